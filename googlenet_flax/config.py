"""Every field that a config may set: its type, default, range and meaning.

A recipe in `configs/` starts from the defaults and sets the fields that differ:

    from googlenet_flax.config import default_config

    def get_config():
        config = default_config()
        config.variant = "bn"
        return config
"""

import dataclasses
import difflib
import itertools
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import ml_collections

from googlenet_flax.model.googlenet import MIN_IMAGE_SIZE, SIZE_FREE_VARIANTS, VARIANTS
from googlenet_flax.preprocessing.augment import FLIPS
from googlenet_flax.preprocessing.crops import INTERPOLATIONS
from googlenet_flax.runtime.errors import UserError

MAX_IMAGE_SIZE = 2**15  # On larger images, indices into a feature map overflow.
MAX_NUMBER = 2**31 - 1  # Steps are int32 on the device.

# Former names of fields, in the config.json of older runs.
RENAMED = {
    "photometric_strength": "color_jitter",
    "early_image_sizes": "progressive_image_sizes",
    "early_image_size_epochs": "progressive_image_size_epochs",
}


def _field(
    default: Any,
    allowed: str,
    check: Callable[[Any], bool] = lambda value: True,
    *,
    resumable: bool = False,
) -> Any:
    """Declares a field of `Config`; a resumed run may change it if it is `resumable`.

    `check` gets a value of the right type; `allowed` describes the values that it accepts.
    """
    metadata = {"allowed": allowed, "check": check, "resumable": resumable}
    return dataclasses.field(default=default, metadata=metadata)


def _one_of(*names: str, default: str = "", resumable: bool = False) -> Any:
    """Declares a field with one of the names, by default the first."""
    allowed = f"one of {', '.join(names)}"
    return _field(default or names[0], allowed, names.__contains__, resumable=resumable)


def _flag() -> Any:
    return _field(False, "True or False", resumable=True)


def _from(
    low: float, high: float = MAX_NUMBER, *, default: float, resumable: bool = False
) -> Any:
    allowed = f"from {low} up to {high}"
    return _field(default, allowed, lambda v: low <= v <= high, resumable=resumable)


def _above(low: float, high: float, *, default: float) -> Any:
    return _field(default, f"above {low} up to {high}", lambda v: low < v <= high)


def _below_one(*, default: float) -> Any:
    return _field(default, "at least 0 and below 1", lambda v: 0 <= v < 1)


def _is_a(value: Any, expected: type) -> bool:
    """Returns true for a value of the type; ints count as floats, bools only as bools."""
    if isinstance(value, bool):
        return expected is bool
    return isinstance(value, (int, float) if expected is float else expected)


def _are_numbers(values: tuple) -> bool:
    return bool(values) and all(
        _is_a(value, float) and abs(value) <= MAX_NUMBER for value in values
    )


def _is_size(value: Any) -> bool:
    return _is_a(value, int) and MIN_IMAGE_SIZE <= value <= MAX_IMAGE_SIZE


def _are_rising_counts(values: tuple) -> bool:
    are_counts = all(_is_a(value, int) and 1 <= value <= MAX_NUMBER for value in values)
    return are_counts and all(a < b for a, b in itertools.pairwise(values))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The configuration of a run, validated on construction.

    Raises:
      UserError: A field has the wrong type or is out of range, or two fields contradict
        each other. The message names the field, its value and what is allowed.
    """

    # The network:

    # Which network to build; README.md lists the variants.
    variant: str = _one_of(*VARIANTS, default="bn")
    # Factor on every channel count; the paper has 1.
    width_multiplier: float = _above(0, 8, default=1.0)
    # Type of the activations; parameters and loss are float32.
    dtype: str = _one_of("float32", "bfloat16")

    # The data:

    # Image classification set to learn. The set `folder` is your own pictures;
    # imagenet2012 is prepared from the two official archives in data_dir.
    dataset: str = _field(
        "cifar10",
        "digits, cifar10, cifar100, imagenet2012, folder or the name of a TFDS set",
        bool,
    )
    # TFDS data folder, or the folder of pictures; "" is the default of TFDS.
    data_dir: str = _field("", "a folder", resumable=True)
    # Split to train on.
    train_split: str = _field("train", "a TFDS split such as train[:3000]", bool)
    # Split to evaluate on; every evaluation covers all of it.
    eval_split: str = _field("test", "a TFDS split such as test", bool)
    # Fraction of each class that becomes the test split of a folder without splits.
    eval_fraction: float = _below_one(default=0.0)
    # Longer side in pixels to which pictures of different sizes are reduced when they are
    # read.
    storage_size: int = _from(1, default=256)
    # Whether an unreadable picture stops the run or is skipped.
    on_bad_image: str = _one_of("stop", "skip", resumable=True)
    # Processes that decode pictures; 0 decodes in threads.
    decode_workers: int = _from(0, default=0, resumable=True)

    # The network's input:

    # Side of the network's input in pixels; images are resized to it.
    image_size: int = _field(
        224,
        f"{MIN_IMAGE_SIZE} pixels or more (80 for seed and paper) and at most "
        f"{MAX_IMAGE_SIZE}",
        _is_size,
    )
    # Side of the central square, as a fraction of the shorter side. Evaluation cuts out
    # this square, and so does training if crop_min_area is 1.
    crop_fraction: float = _above(0, 1, default=1.0)
    # Channels of the network's input: 1 is gray, 3 RGB and 4 RGBA.
    input_channels: int = _from(1, 1024, default=3)
    # Factor on pixels of 0 to 255, applied first.
    input_scale: float = _above(0, 255, default=1 / 255)
    # Value for each channel that is subtracted after scaling.
    input_mean: tuple[float, ...] = _field(
        (0.0, 0.0, 0.0), "a number for each channel, as (0.5, 0.5, 0.5)", _are_numbers
    )
    # Divisor of each channel, applied after input_mean is subtracted.
    input_std: tuple[float, ...] = _field(
        (1.0, 1.0, 1.0),
        "a number above 0 for each channel, as (0.5, 0.5, 0.5)",
        lambda values: _are_numbers(values) and min(values) > 0,
    )
    # Order of the three channels of the input.
    channel_order: str = _one_of("RGB", "BGR")
    # Width of the zero padding around the stored image, from which a random crop of the
    # image's original size is then cut; 0 is off.
    crop_padding_pixels: int = _from(0, default=0)
    # Smallest area of a random crop, as a fraction of the picture's area; 1 is off, the
    # paper has 0.08.
    crop_min_area: float = _above(0, 1, default=1.0)
    # Largest ratio of the sides of these crops; the paper has 4/3.
    crop_max_aspect: float = _from(1, 16, default=4 / 3)
    # Which images are mirrored: no image (none), each one with probability 1/2 (random), or
    # one half of them in even epochs and the other in odd ones (alternating).
    flip: str = _one_of(*FLIPS)
    # Largest relative change of brightness, contrast and color: their random factors lie
    # between 1 - color_jitter and 1 + color_jitter. Needs 3 channels; 0 is off.
    color_jitter: float = _from(0, 1, default=0.0)
    # Resizing methods; each training image uses one of them, chosen at random.
    interpolations: tuple[str, ...] = _field(
        ("bilinear",),
        f"one or more of {', '.join(INTERPOLATIONS)}, as ('bilinear',)",
        lambda values: bool(values) and all(v in list(INTERPOLATIONS) for v in values),
    )
    # Side of an erased square, as a fraction of the side of the network's input; 0 is off.
    cutout_fraction: float = _from(0, 1, default=0.0)
    # Both parameters of the Beta distribution of mixup's weights; 0 is off.
    mixup_alpha: float = _from(0, 100, default=0.0)
    # Image sizes of the first epochs (progressive resizing), before training continues at
    # image_size; for bn and torchvision only.
    progressive_image_sizes: tuple[int, ...] = _field(
        (),
        f"sizes of {MIN_IMAGE_SIZE} pixels or more, as (128, 160), or ()",
        lambda sizes: all(map(_is_size, sizes)),
    )
    # Number of epochs from the start of the run to the end of each of these sizes.
    progressive_image_size_epochs: tuple[int, ...] = _field(
        (),
        "as many rising numbers of epochs as progressive_image_sizes has sizes",
        _are_rising_counts,
    )

    # The start:

    # Workdir of a run or an import, from whose best weights training starts; "" starts from
    # random weights.
    init_from: str = _field("", "a workdir")
    # Which layers are trained: every layer (all), or only the last layer of the main and of
    # each auxiliary classifier (head).
    trainable: str = _one_of("all", "head")

    # The recipe:

    # Examples per update, over all devices and processes. learning_rate is not scaled with
    # it.
    batch_size: int = _from(1, default=256)
    num_epochs: int = _from(1, default=15)  # Passes over train_split.
    # Updates of the whole run; 0 lets num_epochs decide.
    max_steps: int = _from(0, default=0)
    # Number of parts of a batch that pass through the network in turn, each with its own
    # batch statistics. More parts save memory on GPUs and TPUs, but not on CPUs.
    accumulation_steps: int = _from(1, default=1)
    # Highest learning rate, at the start or after warm-up.
    learning_rate: float = _from(0, default=0.01)
    # How the learning rate falls.
    schedule: str = _one_of("staircase", "cosine", "linear")
    # Epochs in which the learning rate rises linearly.
    warmup_epochs: float = _from(0, default=0.0)
    # Final rate of the cosine and linear schedules, as a fraction of learning_rate.
    final_rate_fraction: float = _from(0, 1, default=0.0)
    # Momentum of SGD, without Nesterov.
    momentum: float = _from(0, 1, default=0.9)
    # Factor by which the staircase multiplies the learning rate at each stair.
    decay_rate: float = _above(0, 1, default=0.96)
    # Length of a stair in epochs, counted from the end of the warm-up.
    decay_every_epochs: int = _from(1, default=8)
    # Number that the staircase gives to the first epoch after the warm-up: 1 in the
    # tutorial, 0 in the paper.
    decay_offset_epochs: int = _from(0, default=0)
    # L2 penalty on kernels, not on biases or batch norm.
    weight_decay: float = _from(0, default=0.0)
    aux_weight: float = _from(0, default=0.3)  # Weight of each auxiliary loss.
    # Auxiliary weight at the end of the run, as a fraction of aux_weight. During the run,
    # the weight changes linearly.
    final_aux_fraction: float = _from(0, 1, default=1.0)
    # Part of the target probability that is spread evenly over all classes.
    label_smoothing: float = _below_one(default=0.0)
    # Average over steps of the weights and of batch norm's statistics: exponential (ema) or
    # plain (polyak). Evaluations then report metrics of the latest and of the averaged
    # weights, and commands load the averaged weights by default.
    averaging: str = _one_of("none", "ema", "polyak")
    # Decay of the exponential average, per step.
    ema_decay: float = _below_one(default=0.999)
    average_from_epoch: int = _from(0, default=0)  # Epochs before averaging begins.
    # Seed of weights, order of the examples, dropout and augmentation.
    seed: int = _from(0, default=0)

    # The run:

    distributed: bool = _flag()  # Several processes train together; see docs/scaling.md.
    # Steps between training rows in metrics.jsonl.
    log_every_steps: int = _from(1, default=10, resumable=True)
    # Epochs between evaluations; each evaluation saves a checkpoint.
    eval_every_epochs: int = _from(1, default=1, resumable=True)
    # Steps between further checkpoints; 0 saves at evaluations only.
    checkpoint_every_steps: int = _from(0, default=100, resumable=True)
    # Training steps whose trace is written into the folder profile of the workdir.
    profile_steps: tuple[int, ...] = _field(
        (),
        "the first and the last step to trace, as (10, 13), or ()",
        lambda steps: not steps or (len(steps) == 2 and _are_rising_counts(steps)),
        resumable=True,
    )
    # Weights & Biases project that gets the metrics too; "" is none.
    wandb_project: str = _field("", "the name of a W&B project", resumable=True)
    # Start over if no checkpoint can be read or all are gone. Damaged ones are renamed.
    restart: bool = _flag()

    def __post_init__(self) -> None:
        """Checks each field alone, and then those that depend on each other."""
        for field in FIELDS.values():
            _check_field(field, getattr(self, field.name))
        _check_channels(self)
        _check_image_size(self)
        _check_progressive_sizes(self)
        if self.trainable == "head" and not self.init_from:
            raise UserError(
                "config.trainable is 'head' but config.init_from is empty: random weights "
                "must all be trained; set --config.trainable=all, or name a workdir in "
                "--config.init_from=DIR"
            )

    @classmethod
    def of(cls, fields: "ConfigLike") -> "Config":
        """Makes a config from its fields by name, such as a `ConfigDict`.

        Fields that are not given have their defaults.

        Raises:
          UserError: A field is unknown, of another type or out of its range.
        """
        if isinstance(fields, Config):
            return fields
        for name in fields:
            if name in RENAMED:
                raise UserError(f"config.{name} is called {RENAMED[name]!r} now")
            if name not in FIELDS:
                close = difflib.get_close_matches(name, FIELDS, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise UserError(f"config has an unknown field {name!r}{hint}")
        return cls(**dict(fields))

    @classmethod
    def of_run(cls, saved: Mapping[str, Any]) -> "Config":
        """Makes the config of a saved run from the result of `Workdir.read_config`.

        Fields that were added after the run get their defaults, which reproduce how the run
        was trained. Fields that no longer exist are dropped.

        Raises:
          UserError: A field has the wrong type or is out of range.
        """
        fields = {RENAMED.get(name, name): value for name, value in saved.items()}
        return cls(**{name: value for name, value in fields.items() if name in FIELDS})

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields by name."""
        return {name: getattr(self, name) for name in FIELDS}


ConfigLike: TypeAlias = Config | Mapping[str, Any] | ml_collections.ConfigDict
FIELDS: Mapping[str, dataclasses.Field] = {
    field.name: field for field in dataclasses.fields(Config)
}
RESUMABLE_FIELDS = frozenset(n for n, f in FIELDS.items() if f.metadata["resumable"])


def default_config() -> ml_collections.ConfigDict:
    """Creates the defaults of all fields as a `ConfigDict` that takes no other field."""
    return ml_collections.ConfigDict(Config().to_dict()).lock()


def field_type(field: dataclasses.Field) -> type:
    """Returns the plain type of a field: `tuple` for `tuple[int, ...]`."""
    annotation: Any = field.type
    return typing.get_origin(annotation) or annotation


def _check_field(field: dataclasses.Field, value: Any) -> None:
    expected, allowed = field_type(field), field.metadata["allowed"]
    if not _is_a(value, expected):
        raise UserError(
            f"config.{field.name} is {value!r}, a {type(value).__name__}, but must be a "
            f"{expected.__name__}: {allowed}"
        )
    if not field.metadata["check"](value):
        raise UserError(f"config.{field.name} is {value!r} but must be {allowed}")


def _check_channels(config: Config) -> None:
    count = config.input_channels
    defects, fixes = [], []
    for name in ("input_mean", "input_std"):
        values = getattr(config, name)
        if len(values) != count:
            allowed = FIELDS[name].metadata["allowed"]
            defects.append(f"config.{name} is {values!r} but must be {allowed}")
            fixes.append(f"'--config.{name}={values[:1] * count!r}'")
    for name in ("channel_order", "color_jitter"):
        value, default = getattr(config, name), FIELDS[name].default
        if count != 3 and value != default:
            defects.append(f"config.{name} is {value!r} but is for 3 channels only")
            fixes.append(f"--config.{name}={default}")
    if defects:
        raise UserError(
            f"{'; '.join(defects)}, and config.input_channels is {count}: set "
            f"{' '.join(fixes)}"
        )


def _check_image_size(config: Config) -> None:
    smallest = VARIANTS[config.variant].min_image_size
    if config.image_size < smallest:
        raise UserError(
            f"config.image_size is {config.image_size} but must be {smallest} or more for "
            f"{config.variant}: set --config.image_size={smallest}"
        )


def _check_progressive_sizes(config: Config) -> None:
    sizes, ends = config.progressive_image_sizes, config.progressive_image_size_epochs
    if len(sizes) != len(ends):
        raise UserError(
            f"config.progressive_image_sizes is {sizes!r} and "
            f"config.progressive_image_size_epochs is {ends!r} but they must be of the "
            "same length"
        )
    if sizes and config.variant not in SIZE_FREE_VARIANTS:
        raise UserError(
            f"config.progressive_image_sizes is {sizes!r} but the parameters of "
            f"{config.variant!r} depend on the size: use one of "
            f"{', '.join(SIZE_FREE_VARIANTS)}, or set --config.progressive_image_sizes=()"
        )
