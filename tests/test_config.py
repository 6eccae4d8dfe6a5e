import math

import jax
import numpy as np
import pytest
from conftest import numpy_variables, small_googlenet
from helpers.configs import CONFIG_FILES, load_config, named_config
from hypothesis import example, given, settings
from hypothesis import strategies as st

from googlenet_flax.config import FIELDS, Config, field_type
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

# 80 pixels: variant bn gives its auxiliary heads maps of 5x5 there.
OUT_OF_RANGE = {
    "variant": ["sead", "", "BN", "b\nn"],
    "width_multiplier": [0, 0.0, -1.0, 8.01, math.nan, math.inf],
    "dtype": ["float16", "", "float64"],
    "dataset": [""],
    "train_split": [""],
    "eval_split": [""],
    "eval_fraction": [-0.1, 1, 1.0, 1.5, math.nan, math.inf],
    "storage_size": [0, -256, 2**31],
    "on_bad_image": ["", "ignore", "Skip"],
    "decode_workers": [-1, 2**31],
    "image_size": [79, 0, -224],
    "crop_fraction": [0, 0.0, -0.5, 1.01, 2, math.nan, math.inf],
    "input_scale": [0.0, -1.0, 255.5, math.nan, math.inf],
    "input_mean": [
        (),
        (0.5,),
        (0.5, 0.5),
        (0.5,) * 4,
        (0.5, 0.5, math.nan),
        (0.5, 0.5, -math.inf),
        (0.5, 0.5, "0.5"),
        (0.5, 0.5, None),
        (0.5, 0.5, True),
        ((0.5, 0.5, 0.5),) * 3,
    ],
    "input_std": [
        (1.0,),
        (1.0, 1.0),
        (1.0, 0.0, 1.0),
        (1, 0, 1),
        (1.0, -1.0, 1.0),
        (1.0, math.nan, 1.0),
        (1.0, math.inf, 1.0),
        (1.0, False, 1.0),
    ],
    "channel_order": ["rgb", "", "GRB"],
    "crop_padding_pixels": [-1],
    "crop_min_area": [0, 0.0, -0.08, 1.01, 8, math.nan, math.inf],
    "crop_max_aspect": [0, 0.99, 3 / 4, -4 / 3, 16.01, math.nan, math.inf],
    "flip": ["", "Random", "mirror"],
    "color_jitter": [-0.1, -1, 1.01, 2, math.nan, math.inf],
    "interpolations": [
        (),
        ("lanczos",),
        ("bilinear", "Cubic"),
        ("bilinear", None),
        (2,),
        (("bilinear",),),
        (["bilinear"],),
    ],
    "cutout_fraction": [-0.1, 1.01, 16, math.nan, math.inf],
    "mixup_alpha": [-0.2, 100.1, math.nan, math.inf],
    "progressive_image_sizes": [
        (79,),
        (128, 0),
        (128.0,),
        ("128",),
        (True,),
        (2**31,),
        ((128,),),
    ],
    "progressive_image_size_epochs": [
        (0,),
        (-1,),
        (5, 5),
        (5, 4),
        (1, 3, 2),
        (1.5,),
        ("1",),
        (True,),
        (2**31,),
    ],
    "trainable": ["", "heads", "Head", "none"],
    "batch_size": [0, -1],
    "num_epochs": [0, -1],
    "max_steps": [-1],
    "accumulation_steps": [0, -1, 2**31],
    "learning_rate": [-1, -1e-9, math.nan, math.inf, -math.inf],
    "schedule": ["", "Cosine", "step"],
    "warmup_epochs": [-1, -1e-9, math.nan, math.inf],
    "final_rate_fraction": [-0.1, 1.01, math.nan, math.inf],
    "momentum": [-0.1, 1.1, math.nan],
    "decay_rate": [0, 0.0, -0.96, 1.01, math.nan],
    "decay_every_epochs": [0, -8],
    "decay_offset_epochs": [-1],
    "weight_decay": [-1e-4, math.nan, math.inf],
    "aux_weight": [-0.3, math.nan, math.inf],
    "final_aux_fraction": [-0.1, 1.01, math.nan, math.inf],
    "label_smoothing": [-0.1, 1, 1.0, 1.5, math.nan, math.inf],
    "averaging": ["", "EMA", "swa"],
    "ema_decay": [-0.1, 1, 1.0, 1.5, math.nan, math.inf],
    "average_from_epoch": [-1, 2**31],
    "seed": [-1, 2**31],
    "log_every_steps": [0, -1],
    "eval_every_epochs": [0, -1],
    "checkpoint_every_steps": [-1],
    "profile_steps": [(1,), (0, 2), (3, 3), (3, 2), (1, 2, 3), (1.0, 2.0), (True, 2)],
}

BAD_VALUES = [
    (name, value)
    for name, field in FIELDS.items()
    for value in [None, *WRONG_TYPE[field_type(field)], *OUT_OF_RANGE.get(name, [])]
]


def error_of(config) -> str:
    with pytest.raises(UserError) as caught:
        Config.of(config)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.stem)
def test_every_config_is_valid(path):
    config = load_config(path)
    Config.of(config)
    Config.of(dict(config))


def test_every_range_is_tested():
    # Any text is a folder or a project, and a bool has no range.
    free = {"data_dir", "distributed", "init_from", "restart", "wandb_project"}
    assert set(FIELDS) - set(OUT_OF_RANGE) == free


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_is_not_given_has_its_default(name):
    config = {other: value for other, value in GOOD.items() if other != name}
    assert getattr(Config.of(config), name) == FIELDS[name].default


def test_a_field_that_was_renamed_is_named():
    assert "'color_jitter' now" in error_of({**GOOD, "photometric_strength": 0.5})


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_bad_value_is_named_with_its_field_and_what_is_allowed(name, value):
    message = error_of({**GOOD, name: value})
    assert f"config.{name} is {value!r}" in message
    assert FIELDS[name].metadata["allowed"] in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width_multiplier", 8),
        ("input_scale", 255),
        ("image_size", 80),
        ("data_dir", ""),
        ("data_dir", "/a folder/ä"),
        ("eval_fraction", 0),
        ("eval_fraction", math.nextafter(1, 0)),
        ("storage_size", 1),
        ("on_bad_image", "skip"),
        ("decode_workers", 0),
        ("crop_fraction", 1),
        ("crop_fraction", 1e-6),
        ("crop_min_area", 1),
        ("crop_min_area", 0.08),
        ("crop_max_aspect", 1),
        ("crop_max_aspect", 16),
        ("flip", "none"),
        ("flip", "random"),
        ("flip", "alternating"),
        ("color_jitter", 0),
        ("color_jitter", 1),
        ("interpolations", ("cubic",)),
        ("interpolations", ("nearest", "area", "cubic", "bilinear")),
        ("cutout_fraction", 0),
        ("cutout_fraction", 1),
        ("mixup_alpha", 0),
        ("mixup_alpha", 100),
        ("progressive_image_sizes", ()),
        ("progressive_image_size_epochs", ()),
        ("accumulation_steps", 1),
        ("schedule", "linear"),
        ("warmup_epochs", 0),
        ("warmup_epochs", 0.5),
        ("final_rate_fraction", 0),
        ("final_rate_fraction", 1),
        ("final_aux_fraction", 0),
        ("final_aux_fraction", 1),
        ("label_smoothing", 0),
        ("label_smoothing", math.nextafter(1, 0)),
        ("averaging", "ema"),
        ("averaging", "polyak"),
        ("ema_decay", 0),
        ("ema_decay", math.nextafter(1, 0)),
        ("average_from_epoch", 0),
        ("init_from", ""),
        ("init_from", "/a run/ä"),
        ("input_mean", (0, -3, 1e3)),
        ("input_std", (1, 1e-6, 300)),
        ("batch_size", 1),
        ("learning_rate", 0),
        ("momentum", 0),
        ("momentum", 1),
        ("decay_rate", 1),
        ("decay_offset_epochs", 0),
        ("weight_decay", 0),
        ("aux_weight", 0),
        ("seed", 0),
        ("seed", 2**31 - 1),
        ("channel_order", "BGR"),
        ("dtype", "bfloat16"),
    ],
)
def test_edges_of_the_ranges_are_allowed(name, value):
    Config.of({**GOOD, name: value})


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if field_type(f) is float])
def test_an_int_is_good_for_a_float(name):
    # 1 is in range of all but these, which are below it.
    below_one = {"eval_fraction", "label_smoothing", "ema_decay"}
    Config.of({**GOOD, name: 0 if name in below_one else 1})


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
    config = {
        **GOOD,
        "progressive_image_sizes": sizes,
        "progressive_image_size_epochs": ends,
    }
    message = error_of(config)
    assert f"config.progressive_image_sizes is {sizes!r}" in message
    assert f"config.progressive_image_size_epochs is {ends!r}" in message
    assert "of the same length" in message


@pytest.mark.parametrize("variant", VARIANTS)
def test_sizes_change_where_no_parameter_depends_on_them(variant):
    # At twice the size a head that does not pool to 4x4 has a larger matrix.
    model = small_googlenet(variant)
    small, large = (jax.tree.map(np.shape, numpy_variables(model, px)) for px in (80, 160))
    fields = {"variant": variant, "image_size": 96}
    early = {"progressive_image_sizes": (80,), "progressive_image_size_epochs": (1,)}
    Config.of({**GOOD, **fields})
    if small == large:
        Config.of({**GOOD, **fields, **early})
        # Sizes may also fall, and one may outlast the run.
        early = {
            "progressive_image_sizes": (224, 80),
            "progressive_image_size_epochs": (1, 10**6),
        }
        Config.of({**GOOD, **fields, **early})
        assert variant in {"bn", "torchvision"}
    else:
        message = error_of({**GOOD, **fields, **early})
        assert "config.progressive_image_sizes is (80,)" in message
        assert repr(variant) in message and "bn, torchvision" in message
        assert "--config.progressive_image_sizes=()" in message


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize(
    "name", [n for n, f in FIELDS.items() if field_type(f) is not bool]
)
def test_a_bool_is_no_number(name, value):
    assert "a bool" in error_of({**GOOD, name: value})


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("learning_rat", "learning_rate"),
        ("batchsize", "batch_size"),
        ("epochs", "num_epochs"),
    ],
)
def test_unknown_field_is_named_with_the_nearest_one(typed, meant):
    message = error_of({**GOOD, typed: 1})
    assert repr(typed) in message
    assert f"did you mean {meant!r}?" in message


def test_unknown_field_that_is_like_no_other():
    message = error_of({**GOOD, "zzz": 1})
    assert repr("zzz") in message
    assert "did you mean" not in message


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()
)
VALUES = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=4),
    st.lists(SCALARS, max_size=4).map(tuple),
    st.tuples(st.floats(), st.floats(), st.floats()),
    st.dictionaries(st.text(), SCALARS, max_size=2),
)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(FIELDS)), value=VALUES)
def test_any_value_passes_or_is_a_user_error(name, value):
    try:
        Config.of({**GOOD, name: value})
    except UserError as error:
        assert f"config.{name} is {value!r}" in str(error)
        assert "\n" not in str(error)


@settings(max_examples=100, deadline=None)
@example(name="two  spaces")
@given(name=st.text().filter(lambda name: name not in FIELDS))
def test_any_unknown_field_is_a_user_error(name):
    assert repr(name) in error_of({**GOOD, name: 1})
