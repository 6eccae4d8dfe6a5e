"""Every field a config file may set: its type, its range and what it means."""

import dataclasses
import difflib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from googlenet_flax.model.googlenet import MIN_IMAGE_SIZE, SIZE_FREE_VARIANTS, VARIANTS
from googlenet_flax.preprocessing.augment import FLIPS
from googlenet_flax.preprocessing.crops import INTERPOLATIONS
from googlenet_flax.runtime.errors import UserError

NUM_CHANNELS = 3
MAX_IMAGE_SIZE = 2**15  # Beyond, indices into a map overflow.
MAX_NUMBER = 2**31 - 1  # Steps are int32 on the device.


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the config."""

    type: type  # An int is also good for a float, as in Python.
    allowed: str  # Said to the user when `check` fails.
    check: Callable[[Any], bool]
    help: str


def _one_of(*names: str, help: str) -> Field:
    return Field(str, f"one of {', '.join(names)}", lambda value: value in names, help)


def _text(allowed: str, help: str) -> Field:
    return Field(str, allowed, bool, help)


def _at_least(low: float, of: type, help: str) -> Field:
    allowed = f"from {low} up to {MAX_NUMBER}"
    return Field(of, allowed, lambda value: low <= value <= MAX_NUMBER, help)


def _between(
    low: float, high: float, help: str, *, of: type = float, open_low: bool = False
) -> Field:
    allowed = f"{'above' if open_low else 'from'} {low} up to {high}"

    def check(value: float) -> bool:
        return value <= high and (value > low if open_low else value >= low)

    return Field(of, allowed, check, help)


def _below_one(help: str) -> Field:
    allowed = "from 0 up to but not 1"
    return Field(float, allowed, lambda value: 0 <= value < 1, help)


def _per_channel(allowed: str, check: Callable[[float], bool], help: str) -> Field:
    def check_all(values: tuple) -> bool:
        return len(values) == NUM_CHANNELS and all(
            _is_a(value, float) and abs(value) <= MAX_NUMBER and check(value)
            for value in values
        )

    return Field(tuple, f"{NUM_CHANNELS} {allowed}, as (0.5, 0.5, 0.5)", check_all, help)


def _is_size(value: Any) -> bool:
    return _is_a(value, int) and MIN_IMAGE_SIZE <= value <= MAX_IMAGE_SIZE


def _is_count(value: Any) -> bool:
    return _is_a(value, int) and 1 <= value <= MAX_NUMBER


def _are_rising_counts(values: tuple) -> bool:
    return all(map(_is_count, values)) and all(a < b for a, b in itertools.pairwise(values))


def _is_a(value: Any, expected: type) -> bool:
    if isinstance(value, bool):
        return expected is bool
    return isinstance(value, (int, float) if expected is float else expected)


FIELDS: Mapping[str, Field] = {
    # The network
    "variant": _one_of(*VARIANTS, help="Which original the network equals."),
    "width_multiplier": _between(
        0, 8, "Scales every channel count; 1 is the paper.", open_low=True
    ),
    "dtype": _one_of(
        "float32", "bfloat16", help="Of activations; parameters and loss are float32."
    ),
    # The data
    "dataset": _text(
        "digits, cifar10, cifar100, imagenet2012, folder or the name of a TFDS set",
        "Image classification set to learn; folder is your own pictures, imagenet2012 is "
        "prepared from the two official archives in data_dir.",
    ),
    "data_dir": Field(
        str,
        "a folder",
        lambda value: True,
        'TFDS data folder, "" is TFDS\'s default; or the folder of pictures.',
    ),
    "train_split": _text("a TFDS split such as train[:3000]", "Trained on."),
    "eval_split": _text("a TFDS split such as test", "Evaluated on, whole."),
    "eval_fraction": _below_one(
        "Of each class in a folder without splits, held out as its test split."
    ),
    "storage_size": _at_least(
        1,
        int,
        "Longer side in pixels that pictures of any size (of folder or imagenet2012) are "
        "reduced to when read.",
    ),
    "on_bad_image": _one_of(
        "stop", "skip", help="What such a picture that cannot be read does."
    ),
    "decode_workers": _at_least(
        0, int, "Processes that read such pictures; 0 reads in threads."
    ),
    # The network's input
    "image_size": Field(
        int,
        f"{MIN_IMAGE_SIZE} pixels or more (the auxiliary heads need maps of 5x5) and at "
        f"most {MAX_IMAGE_SIZE}",
        _is_size,
        "Side of the network's input in pixels; images are resized to it.",
    ),
    "crop_fraction": _between(
        0,
        1,
        "Of the shorter side, that the central square of evaluation takes.",
        open_low=True,
    ),
    "input_scale": _between(
        0, 255, "Multiplies pixels (0-255) first; 1/255 gives 0-1.", open_low=True
    ),
    "input_mean": _per_channel(
        "numbers", lambda value: True, "Subtracted after scaling, per channel."
    ),
    "input_std": _per_channel(
        "numbers above 0", lambda value: value > 0, "Divides at the end, per channel."
    ),
    "channel_order": _one_of("RGB", "BGR", help="Of the network's input."),
    "crop_padding_pixels": _at_least(
        0,
        int,
        "Random crops of the image padded by this, at its stored size; 0 is off.",
    ),
    "crop_min_area": _between(
        0,
        1,
        "Random crops of at least this fraction of the picture; 1 is off, 0.08 the paper.",
        open_low=True,
    ),
    "crop_max_aspect": _between(
        1, 16, "Width by height of these crops, or the inverse, at most; 4/3 in the paper."
    ),
    "flip": _one_of(
        *FLIPS,
        help="Mirror half the images at random, or the one half in even epochs and the "
        "other in odd ones.",
    ),
    "photometric_strength": _between(
        0, 1, "Brightness, contrast and colour change by up to this factor; 0 is off."
    ),
    "interpolations": Field(
        tuple,
        f"one or more of {', '.join(INTERPOLATIONS)}, as ('bilinear',)",
        lambda values: bool(values) and all(v in list(INTERPOLATIONS) for v in values),
        "Each training image is resized by one of these at random.",
    ),
    "cutout_fraction": _between(
        0, 1, "Side of an erased square, as a fraction of image_size; 0 is off."
    ),
    "mixup_alpha": _between(
        0, 100, "Of the Beta distribution that mixes two examples; 0 is off."
    ),
    "early_image_sizes": Field(
        tuple,
        f"sizes of {MIN_IMAGE_SIZE} pixels or more, as (128, 160), or ()",
        lambda sizes: all(_is_size(size) for size in sizes),
        "image_size of the first epochs, which only bn and torchvision can change.",
    ),
    "early_image_size_epochs": Field(
        tuple,
        "as many rising numbers of epochs as early_image_sizes has sizes",
        _are_rising_counts,
        "When each of the early_image_sizes gives way to the next.",
    ),
    # The start
    "init_from": Field(
        str,
        "a workdir",
        lambda value: True,
        'Workdir of a run or import whose best weights to start from; "" is none.',
    ),
    "trainable": _one_of(
        "all", "head", help="What is trained; head is the classifiers' last layers only."
    ),
    # The recipe
    "batch_size": _at_least(
        1,
        int,
        "Examples per update, over all devices and processes; changes no other field.",
    ),
    "num_epochs": _at_least(1, int, "Passes over train_split."),
    "max_steps": _at_least(0, int, "Updates of the whole run; 0 lets num_epochs decide."),
    "accumulation_steps": _at_least(
        1,
        int,
        "Parts of a batch that pass through the network in turn, to save memory; on CPUs "
        "XLA plans for all parts at once.",
    ),
    "learning_rate": _at_least(0, float, "The highest one, at the start or after warm-up."),
    "schedule": _one_of(
        "staircase", "cosine", "linear", help="How the learning rate falls."
    ),
    "warmup_epochs": _at_least(0, float, "In which the learning rate rises linearly."),
    "final_rate_fraction": _between(0, 1, "Of learning_rate, where cosine and linear end."),
    "momentum": _between(0, 1, "Of SGD, not Nesterov."),
    "decay_rate": _between(0, 1, "Factor per stair of the staircase.", open_low=True),
    "decay_every_epochs": _at_least(1, int, "Length of a stair."),
    "decay_offset_epochs": _at_least(
        0, int, "Epochs already counted at step 0: 1 in the tutorial, 0 in the paper."
    ),
    "weight_decay": _at_least(0, float, "L2 on kernels, not on biases or batch norm."),
    "aux_weight": _at_least(0, float, "Weight of each auxiliary loss."),
    "final_aux_fraction": _between(
        0, 1, "Of aux_weight, to which it falls linearly until the end of the run."
    ),
    "label_smoothing": _below_one("Of the target, shared by all classes."),
    "averaging": _one_of(
        "none",
        "ema",
        "polyak",
        help="Of weights over steps: exponential, or a plain mean; used wherever the "
        "network is.",
    ),
    "ema_decay": _below_one("Of the exponential moving average, per step."),
    "average_from_epoch": _at_least(0, int, "Epochs before averaging begins."),
    "seed": _between(0, 2**31 - 1, "Of weights, order, dropout and augmentation.", of=int),
    # The run
    "distributed": Field(
        bool,
        "True or False",
        lambda value: True,
        "Several processes train together; see docs/scaling.md.",
    ),
    "log_every_steps": _at_least(1, int, "Training rows in metrics.jsonl."),
    "eval_every_epochs": _at_least(1, int, "Evaluations, each of which saves."),
    "checkpoint_every_steps": _at_least(
        0, int, "Saves between evaluations; 0 saves at evaluations only."
    ),
    "profile_steps": Field(
        tuple,
        "the first and the last step to trace, as (10, 13), or ()",
        lambda steps: not steps or (len(steps) == 2 and _are_rising_counts(steps)),
        "Training steps whose trace is written into the workdir's profile/.",
    ),
    "wandb_project": Field(
        str,
        "the name of a W&B project",
        lambda value: True,
        'Weights & Biases project that gets the metrics too; "" is none.',
    ),
    "restart": Field(
        bool,
        "True or False",
        lambda value: True,
        "Start over where checkpoints lie and none of them can be read; kept aside.",
    ),
}


def validate(config: Mapping[str, Any]) -> None:
    """Checks that every field is there, known, of its type and in its range.

    Raises:
      UserError: Names the first field that is not, its value and what is allowed.
    """
    for name in config:
        if name not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"config has an unknown field {name!r}{hint}")
    for name, field in FIELDS.items():
        if name not in config:
            raise UserError(f"config lacks the field {name!r} ({field.help})")
        value = config[name]
        if not _is_a(value, field.type):
            raise UserError(
                f"config.{name} is {value!r}, a {type(value).__name__}, but must be a "
                f"{field.type.__name__}: {field.allowed}"
            )
        if not field.check(value):
            raise UserError(f"config.{name} is {value!r} but must be {field.allowed}")
    sizes, ends = config["early_image_sizes"], config["early_image_size_epochs"]
    if len(sizes) != len(ends):
        raise UserError(
            f"config.early_image_sizes is {sizes!r} and config.early_image_size_epochs is "
            f"{ends!r} but they must be of the same length"
        )
    if sizes and config["variant"] not in SIZE_FREE_VARIANTS:
        raise UserError(
            f"config.early_image_sizes is {sizes!r} but the parameters of "
            f"{config['variant']!r} depend on the size: use one of "
            f"{', '.join(SIZE_FREE_VARIANTS)}, or set --config.early_image_sizes=()"
        )
    if config["trainable"] == "head" and not config["init_from"]:
        raise UserError(
            "config.trainable is 'head' but config.init_from is empty: random weights must "
            "be trained whole; name a workdir in --config.init_from=DIR"
        )
