import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from helpers.configs import named_config
from helpers.untrained_runs import describe
from helpers.unusual_input import DESCRIPTION

from googlenet_flax.config import Config
from googlenet_flax.model.googlenet import VARIANTS
from googlenet_flax.training.description import ModelDescription
from googlenet_flax.training.experiment import create_experiment

HEADS = ("aux_4a", "aux_4d")


@pytest.mark.parametrize("heads", [(), ("aux_4d",)], ids=str)
def test_json_round_trip_is_the_identity(heads):
    """Uses a description in which no setting is the default."""
    described = dataclasses.replace(DESCRIPTION, untrained_heads=heads)
    text = json.dumps(dataclasses.asdict(described))
    again = ModelDescription.from_json(json.loads(text))
    assert again == described
    assert hash(again) == hash(described)  # jit needs hashable values.


def test_network_is_the_described_one():
    fields = {"variant": "paper", "dtype": "bfloat16", "width_multiplier": 0.25}
    described = describe(class_names=tuple("abcdefg"), **fields)
    model = described.create_model(axis_name="batch")
    assert model.variant == VARIANTS["paper"]
    assert model.num_classes == 7
    assert model.dtype == jnp.bfloat16
    assert model.width_multiplier == 0.25
    assert model.axis_name == "batch"


def test_heads_of_older_checkpoints_count_as_trained():
    older = describe(class_names=("a",), untrained_heads=HEADS)
    fields = dataclasses.asdict(older)
    assert tuple(fields.pop("untrained_heads")) == HEADS
    description = ModelDescription.from_json(fields)
    assert description.untrained_heads == () and not description.notes


@pytest.mark.parametrize(("weight", "untrained"), [(0.1, ()), (0, HEADS)])
def test_heads_without_a_weight_in_the_loss_are_not_trained(weight, untrained):
    config = Config.of({**named_config("digits"), "aux_weight": weight})
    experiment = create_experiment(config, jax.local_devices())
    assert experiment.description.untrained_heads == untrained
