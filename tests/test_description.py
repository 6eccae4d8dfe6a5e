import json

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from googlenet_flax.config import FIELDS
from googlenet_flax.model.googlenet import VARIANTS
from googlenet_flax.preprocessing.preprocess import Preprocess
from googlenet_flax.training.description import ModelDescription

finite = st.floats(allow_nan=False, allow_infinity=False)

descriptions = st.builds(
    ModelDescription,
    variant=st.sampled_from(sorted(VARIANTS)),
    width_multiplier=finite,
    dtype=st.sampled_from(["float32", "bfloat16"]),
    class_names=st.lists(st.text(), min_size=1, max_size=5).map(tuple),
    preprocess=st.builds(
        Preprocess,
        storage_size=st.integers(1, 1024),
        image_size=st.integers(80, 512),
        crop_fraction=finite,
        input_scale=finite,
        input_mean=st.tuples(finite, finite, finite),
        input_std=st.tuples(finite, finite, finite),
        channel_order=st.sampled_from(["RGB", "BGR"]),
    ),
)


def description(variant="bn", num_classes=7, dtype="float32"):
    return ModelDescription(
        variant=variant,
        width_multiplier=0.25,
        dtype=dtype,
        class_names=tuple(f"class {i}" for i in range(num_classes)),
        preprocess=Preprocess(
            storage_size=256,
            image_size=80,
            crop_fraction=0.875,
            input_scale=1 / 255,
            input_mean=(0.0, 0.5, 1.0),
            input_std=(1.0, 1.0, 2.0),
            channel_order="BGR",
        ),
    )


@given(described=descriptions)
def test_json_round_trip_is_the_identity(described):
    text = json.dumps(described.to_json())
    again = ModelDescription.from_json(json.loads(text))
    assert again == described
    assert hash(again) == hash(described)  # Tuples all the way: jit needs it.


def test_from_json_takes_what_to_json_made():
    assert ModelDescription.from_json(description().to_json()) == description()


def test_all_that_shapes_the_network_input_is_in_the_config():
    assert set(Preprocess.__dataclass_fields__) <= set(FIELDS)
    fields = set(ModelDescription.__dataclass_fields__) - {"class_names", "preprocess"}
    assert fields <= set(FIELDS)


@pytest.mark.parametrize(("variant", "num_classes"), [("seed", 1), ("bn", 37)])
def test_network_has_the_classes(variant, num_classes):
    model = description(variant, num_classes).create_model()
    assert model.num_classes == num_classes
    x = jax.ShapeDtypeStruct((2, 80, 80, 3), jnp.float32)
    out, _ = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), x
    )
    assert out.logits.shape == (2, num_classes)


def test_network_is_the_described_one():
    model = description("paper", dtype="bfloat16").create_model(axis_name="batch")
    assert model.variant == VARIANTS["paper"]
    assert model.dtype == jnp.bfloat16
    assert model.width_multiplier == 0.25
    assert model.axis_name == "batch"
