"""Checks that all commands name heads that were never trained."""

import jax
import numpy as np
import PIL.Image
import pytest
from helpers.configs import named_config
from helpers.networks import create_small, numpy_variables
from helpers.untrained_runs import describe, write_run

from googlenet_flax import evaluate, export, features, predict, report
from googlenet_flax.config import Config
from googlenet_flax.training.description import ModelDescription
from googlenet_flax.training.experiment import create_experiment

HEADS = ("aux_4a", "aux_4d")
DESCRIPTION = describe(class_names=tuple("0123456789"), untrained_heads=HEADS)
NOTE = "untrained heads, whose outputs mean nothing: aux_4a, aux_4d"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    variables = numpy_variables(create_small(DESCRIPTION))
    path = tmp_path_factory.mktemp("run")
    config = {**named_config("digits"), "eval_split": "test[:20]"}
    return write_run(path, DESCRIPTION, variables, **config)


@pytest.mark.slow
def test_every_command_says_so(tmp_path, workdir, small_networks, run_command):
    picture = tmp_path / "a.png"
    PIL.Image.fromarray(np.zeros((80, 80, 3), np.uint8)).save(picture)
    commands = {
        predict: [picture],
        evaluate: ["--json"],
        export: ["--format=onnx", "--aux_heads", f"--out={tmp_path / 'x.onnx'}"],
        features: ["--layer=aux_4a", f"--out={tmp_path / 'x.npz'}", picture],
        report: [f"--image={picture}"],  # The page names them too.
    }
    for command, args in commands.items():
        code, _, err = run_command(command, f"--workdir={workdir}", *args)
        assert code == 0 and err.count(NOTE) == (command is not report), err
    page = (workdir / "report" / "index.html").read_text()
    assert f"The network has {NOTE}." in page


def test_heads_of_older_checkpoints_count_as_trained():
    fields = DESCRIPTION.to_json()
    assert tuple(fields.pop("untrained_heads")) == HEADS
    description = ModelDescription.from_json(fields)
    assert description.untrained_heads == () and not description.notes


@pytest.mark.parametrize(("weight", "untrained"), [(0.1, ()), (0, HEADS)])
def test_heads_without_a_weight_in_the_loss_are_not_trained(weight, untrained):
    config = Config.of({**named_config("digits"), "aux_weight": weight})
    experiment = create_experiment(config, jax.local_devices())
    assert experiment.description.untrained_heads == untrained
