import math

import jax
import numpy as np
import pytest
from helpers.configs import named_config
from helpers.networks import numpy_variables, small_googlenet
from hypothesis import example, given, settings
from hypothesis import strategies as st

from googlenet_flax.config import FIELDS, RENAMED, Config, field_type
from googlenet_flax.model.googlenet import VARIANTS
from googlenet_flax.runtime.errors import UserError

GOOD = named_config("digits")

WRONG_TYPE = {
    str: [7, True, ("a",), b"train"],
    int: ["7", 7.0, True, (7,)],
    float: ["0.5", True, (0.5,), 1j],
    tuple: [0.5, "0.5", [0.5, 0.5, 0.5], {0: 0.5}],
    bool: [0, 1, 0.0, "False"],
}

NOT_FINITE = [math.nan, math.inf]
NOT_POSITIVE = [0, 0.0, -1, -0.5, *NOT_FINITE]
NEGATIVE = [-1, -1e-9, *NOT_FINITE]
NO_FRACTION = [-0.1, 1.01, 2, *NOT_FINITE]  # The value is outside of 0 to 1.
NOT_BELOW_1 = [-0.1, 1, 1.0, 1.5, *NOT_FINITE]
NO_COUNT = [0, -1, 2**31]
NO_SEED = [-1, 2**31]
NO_NUMBERS = [
    *((), (0.5,), (0.5, 0.5), (0.5,) * 4, ((0.5, 0.5, 0.5),) * 3),
    *((0.5, 0.5, wrong) for wrong in (*NOT_FINITE, -math.inf, "0.5", None, True)),
]
# Values that each field refuses, besides those of a wrong type.
OUT_OF_RANGE = {
    "variant": ["sead", "", "BN", "b\nn"],
    "width_multiplier": [*NOT_POSITIVE, 8.01],
    "dtype": ["float16", "", "float64"],
    **dict.fromkeys(["dataset", "train_split", "eval_split"], ("",)),
    **dict.fromkeys(["eval_fraction", "label_smoothing", "ema_decay"], NOT_BELOW_1),
    **dict.fromkeys(["storage_size", "accumulation_steps"], NO_COUNT),
    **dict.fromkeys(["decode_workers", "seed", "average_from_epoch"], NO_SEED),
    "on_bad_image": ["", "ignore", "Skip"],
    "image_size": [31, 0, -224],
    **dict.fromkeys(["crop_fraction", "crop_min_area"], (*NOT_POSITIVE, 1.01, 2)),
    "input_scale": [0.0, -1.0, 255.5, *NOT_FINITE],
    "input_channels": [0, -1, 1025],
    "input_mean": NO_NUMBERS,
    "input_std": [*NO_NUMBERS, (1.0, 0.0, 1.0), (1, 0, 1), (1.0, -1.0, 1.0)],
    "channel_order": ["rgb", "", "GRB"],
    "crop_max_aspect": [0, 0.99, 3 / 4, -4 / 3, 16.01, *NOT_FINITE],
    "flip": ["", "Random", "mirror"],
    **dict.fromkeys(["color_jitter", "cutout_fraction", "momentum"], NO_FRACTION),
    **dict.fromkeys(["final_rate_fraction", "final_aux_fraction"], NO_FRACTION),
    "interpolations": [
        *((), ("lanczos",), ("bilinear", "Cubic"), ("bilinear", None), (2,)),
        *((("bilinear",),), (["bilinear"],)),
    ],
    "mixup_alpha": [-0.2, 100.1, *NOT_FINITE],
    "progressive_image_sizes": [
        *((31,), (128, 0), (128.0,), ("128",), (True,), (2**31,), ((128,),))
    ],
    "progressive_image_size_epochs": [
        *((0,), (-1,), (5, 5), (5, 4), (1, 3, 2), (1.5,), ("1",), (True,), (2**31,))
    ],
    "trainable": ["", "heads", "Head", "none"],
    **dict.fromkeys(["batch_size", "num_epochs", "decay_every_epochs"], (0, -1)),
    **dict.fromkeys(["log_every_steps", "eval_every_epochs"], (0, -1)),
    **dict.fromkeys(["max_steps", "decay_offset_epochs", "crop_padding_pixels"], (-1,)),
    "checkpoint_every_steps": [-1],
    **dict.fromkeys(["learning_rate", "warmup_epochs"], (*NEGATIVE, -math.inf)),
    **dict.fromkeys(["weight_decay", "aux_weight"], NEGATIVE),
    "decay_rate": [0, 0.0, -0.96, 1.01, math.nan],
    "schedule": ["", "Cosine", "step"],
    "averaging": ["", "EMA", "swa"],
    "profile_steps": [(1,), (0, 2), (3, 3), (3, 2), (1, 2, 3), (1.0, 2.0), (True, 2)],
}


def error_of(config) -> str:
    with pytest.raises(UserError) as caught:
        Config.of(config)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_range_is_tested():
    # Every text is a valid folder or project, and a bool has no range.
    free = {"data_dir", "distributed", "init_from", "restart", "wandb_project"}
    assert set(FIELDS) - set(OUT_OF_RANGE) == free


def test_a_field_that_is_not_given_has_its_default():
    config = Config.of({})
    for name, field in FIELDS.items():
        assert getattr(config, name) == field.default


def test_a_field_that_was_renamed_is_named():
    assert "'color_jitter' now" in error_of({**GOOD, "photometric_strength": 0.5})


@pytest.mark.parametrize("name", FIELDS)
def test_bad_value_is_named_with_its_field_and_what_is_allowed(name):
    field = FIELDS[name]
    wrong_type = WRONG_TYPE[field_type(field)]
    for value in [None, *wrong_type, *OUT_OF_RANGE.get(name, [])]:
        message = error_of({**GOOD, name: value})
        assert f"config.{name} is {value!r}" in message
        assert field.metadata["allowed"] in message
    if field_type(field) is not bool:
        for value in (True, False):
            assert "a bool" in error_of({**GOOD, name: value})


BELOW_1 = [0, math.nextafter(1, 0)]
EDGES = {
    **dict.fromkeys(["eval_fraction", "label_smoothing", "ema_decay"], BELOW_1),
    **dict.fromkeys(["color_jitter", "cutout_fraction", "momentum"], (0, 1)),
    **dict.fromkeys(["final_rate_fraction", "final_aux_fraction"], (0, 1)),
    **dict.fromkeys(["weight_decay", "aux_weight", "learning_rate"], (0, 1)),
    **dict.fromkeys(["storage_size", "accumulation_steps", "batch_size"], (1,)),
    **dict.fromkeys(["decode_workers", "average_from_epoch", "decay_offset_epochs"], (0,)),
    **{"width_multiplier": [1, 8], "input_scale": [1, 255], "image_size": [80]},
    **{"data_dir": ["", "/a folder/ä"], "init_from": ["", "/a run/ä"]},
    **{"crop_fraction": [1, 1e-6], "crop_min_area": [1, 0.08], "crop_max_aspect": [1, 16]},
    **{"flip": ["none", "random", "alternating"], "on_bad_image": ["skip"]},
    "interpolations": [("cubic",), ("nearest", "area", "cubic", "bilinear")],
    **{"mixup_alpha": [0, 1, 100], "warmup_epochs": [0, 0.5, 1], "decay_rate": [1]},
    **{"progressive_image_sizes": [()], "progressive_image_size_epochs": [()]},
    **{"schedule": ["linear"], "averaging": ["ema", "polyak"], "seed": [0, 2**31 - 1]},
    **{"input_mean": [(0, -3, 1e3)], "input_std": [(1, 1e-6, 300)]},
    **{"channel_order": ["BGR"], "dtype": ["bfloat16"], "input_channels": [3]},
}


@pytest.mark.parametrize("name", EDGES)
def test_edges_of_the_ranges_are_allowed(name):
    for value in EDGES[name]:
        Config.of({**GOOD, name: value})


def test_random_weights_are_trained_whole():
    message = error_of({**GOOD, "trainable": "head", "init_from": ""})
    assert "config.trainable is 'head'" in message
    assert "config.init_from is empty" in message and "--config.init_from=DIR" in message
    Config.of({**GOOD, "trainable": "head", "init_from": "/a run"})
    Config.of({**GOOD, "trainable": "all", "init_from": "/a run"})


@pytest.mark.parametrize(
    ("sizes", "ends"), [((128,), ()), ((), (5,)), ((128, 160), (5,)), ((128,), (5, 9))]
)
def test_every_early_size_has_an_end(sizes, ends):
    fields = {"progressive_image_sizes": sizes, "progressive_image_size_epochs": ends}
    message = error_of({**GOOD, **fields})
    assert f"config.progressive_image_sizes is {sizes!r}" in message
    assert f"config.progressive_image_size_epochs is {ends!r}" in message
    assert "of the same length" in message


@pytest.mark.parametrize(("variant", "smallest"), [("seed", 80), ("paper", 80), ("bn", 32)])
def test_the_smallest_image_depends_on_the_variant(variant, smallest):
    config = {**GOOD, "variant": variant, "image_size": smallest}
    Config.of(config)
    message = error_of({**config, "image_size": smallest - 1})
    assert f"config.image_size is {smallest - 1} but must be {smallest}" in message


@pytest.mark.parametrize("variant", VARIANTS)
def test_sizes_change_where_no_parameter_depends_on_them(variant):
    # At twice the size, a head that does not pool to 4x4 has a larger matrix.
    model = small_googlenet(variant)
    small, large = (jax.tree.map(np.shape, numpy_variables(model, px)) for px in (80, 160))
    config = {**GOOD, "variant": variant, "image_size": 96}
    names = "progressive_image_sizes", "progressive_image_size_epochs"
    early = dict(zip(names, ((80,), (1,)), strict=True))
    Config.of(config)
    if small == large:
        Config.of({**config, **early})
        # Sizes may also become smaller, and a stage may end after the run.
        early = dict(zip(names, ((224, 80), (1, 10**6)), strict=True))
        Config.of({**config, **early})
        assert variant in {"bn", "torchvision"}
    else:
        message = error_of({**config, **early})
        assert "config.progressive_image_sizes is (80,)" in message
        assert repr(variant) in message and "bn, torchvision" in message
        assert "--config.progressive_image_sizes=()" in message


@pytest.mark.parametrize(
    ("typed", "meant"), [("learning_rat", "learning_rate"), ("epochs", "num_epochs")]
)
def test_unknown_field_is_named_with_the_nearest_one(typed, meant):
    message = error_of({**GOOD, typed: 1})
    assert repr(typed) in message and f"did you mean {meant!r}?" in message
    assert "did you mean" not in error_of({**GOOD, "zzz": 1})


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
LISTS = st.lists(SCALARS, max_size=4) | st.lists(st.floats(), min_size=3, max_size=3)
VALUES = (
    SCALARS | LISTS | LISTS.map(tuple) | st.dictionaries(st.text(), SCALARS, max_size=2)
)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(FIELDS)), value=VALUES)
def test_any_value_passes_or_is_a_user_error(name, value):
    try:
        Config.of({**GOOD, name: value})
    except UserError as error:
        assert f"config.{name} is {value!r}" in str(error)
        assert "\n" not in str(error)


@settings(max_examples=50, deadline=None)
@example(name="two  spaces")
@given(name=st.text().filter(lambda name: name not in {*FIELDS, *RENAMED}))
def test_any_unknown_field_is_a_user_error(name):
    assert repr(name) in error_of({**GOOD, name: 1})
