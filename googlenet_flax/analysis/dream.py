"""The command `dream`: draws a picture that a part of a trained network responds to."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import PIL.Image

from googlenet_flax.analysis.cost import layer_shapes
from googlenet_flax.analysis.endpoints import ENDPOINTS, LOGITS
from googlenet_flax.analysis.gradient_ascent import (
    MIN_SIDE,
    WHITE,
    Objective,
    Settings,
    dream,
    gray_noise,
    octave_sizes,
)
from googlenet_flax.data.decode import (
    BadImageError,
    check_channels,
    decode_pixels,
    printable,
)
from googlenet_flax.model.googlenet import HEADS, SIZE_FREE_VARIANTS
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.environment import local_devices
from googlenet_flax.runtime.errors import UserError, out_of_memory_hint, writing
from googlenet_flax.runtime.files import OUT_HINT, check_writable, replacing
from googlenet_flax.runtime.streams import tell
from googlenet_flax.training.description import MAX_NAMED_CLASSES, ModelDescription
from googlenet_flax.training.sharding import replicate

# Few rough steps are enough to change a picture; gray noise needs many smooth ones.
FROM_PICTURE = Settings(octaves=4, steps=10, rate=1.5, jitter=16, smoothness=0.0)
FROM_NOISE = Settings(octaves=4, steps=50, rate=2.0, jitter=8, smoothness=1.0)
PICTURE_SIZE = 512  # Limit of the longer side in pixels, unless --size is given.
MAX_SIZE = 4096
LIMITS = {  # Lowest and highest value of each flag.
    "octaves": (1, 16),
    "steps": (1, 100_000),
    "rate": (0, WHITE),
    "jitter": (0, MAX_SIZE),
    "smoothness": (0, 4),
    "size": (MIN_SIDE, MAX_SIZE),
    "seed": (0, 2**32 - 1),
}


def draw(
    *,
    workdir: str,
    checkpoint: str,
    layer: str,
    channel: str,
    image: str,
    out: pathlib.Path,
    size: int | None,
    seed: int,
    **settings: float | None,
) -> str:
    """Draws and saves a picture; returns a line about it and the rise of the objective.

    The arguments are the flags of the command.

    Raises:
      UserError: The run, the layer, the channel or the picture does not exist, a flag is
        out of its limits, or the file cannot be written.
    """
    given: Any = {name: value for name, value in settings.items() if value is not None}
    _check_limits({**given, "size": size, "seed": seed})
    if out.suffix.lower() != ".png":
        raise UserError(f"--out is {printable(out)} but must end in .png")
    check_writable(out)
    devices = local_devices()[:1]
    predictor = Predictor.load(Workdir(workdir), checkpoint, devices)
    description, variables = predictor.description, predictor.variables
    model, preprocess = description.create_model(), description.preprocess
    channels = preprocess.input_channels
    check_channels(channels)
    objective = choose_objective(layer, channel, description)
    noise_rng, rng = jax.random.split(jax.random.key(seed))
    if image:
        start = load_picture(image, size, channels)
    else:
        side = size or max(preprocess.image_size, MIN_SIDE)
        start = gray_noise(noise_rng, (side, side, channels))
    chosen = dataclasses.replace(FROM_PICTURE if image else FROM_NOISE, **given)
    start = replicate(start, devices)  # Placed like the variables, to compile only once.
    height, width, _ = start.shape
    check_head_size(objective, description, octave_sizes(height, width, chosen.octaves))
    with out_of_memory_hint("lower --size"):
        pixels, before, after = dream(
            model, variables, preprocess, start, objective, settings=chosen, rng=rng
        )
    part = f"{layer} channel {channel}" if channel else layer
    if before == after == 0:
        raise UserError(
            f"{part} does not respond at all: choose another --channel, --image or --seed"
        )
    levels = np.rint(pixels).astype(np.uint8).squeeze()  # Gray is `[H, W]`.
    with writing(out, OUT_HINT), replacing(out) as file:
        PIL.Image.fromarray(levels).save(file, format="PNG")
    for note in description.notes if layer in description.untrained_heads else ():
        tell(note)
    return (
        f"{printable(out)}: {width}x{height} pixels, objective of {part} from {before:.4g} "
        f"to {after:.4g}"
    )


def _check_limits(flags: Mapping[str, float | None]) -> None:
    """Raises a `UserError` that names the first flag out of its limits."""
    for name, value in flags.items():
        lowest, highest = LIMITS[name]
        if value is not None and not lowest <= value <= highest:
            raise UserError(f"--{name} is {value} but must be {lowest} to {highest:.0f}")


def choose_objective(layer: str, channel: str, description: ModelDescription) -> Objective:
    """Creates the objective that `--layer` and `--channel` name.

    The channel "" stands for the whole layer. A classifier needs the name or the number of
    a class.

    Raises:
      UserError: The layer, the channel or the class does not exist.
    """
    if layer not in ENDPOINTS:
        raise UserError(f"--layer is {layer!r} but must be one of {', '.join(ENDPOINTS)}")
    names = description.class_names if layer in LOGITS else ()
    more = ", ..." if len(names) > MAX_NAMED_CLASSES else ""
    listed = ", ".join(names[:MAX_NAMED_CLASSES]) + more
    if not channel and not names:
        return Objective(layer)
    if not channel:
        raise UserError(f"{layer} needs --channel=CLASS, one of {listed}")
    if channel in names:
        return Objective(layer, names.index(channel))
    _, shapes = layer_shapes(description.create_model(), description.preprocess.image_size)
    count = shapes[layer][-1]
    if channel.isascii() and channel.isdecimal() and int(channel) < count:
        return Objective(layer, int(channel))
    or_name = f" or one of {listed}" if names else ""
    raise UserError(
        f"--channel is {channel!r} but must be a number from 0 to {count - 1}{or_name}"
    )


def load_picture(path: str, size: int | None, channels: int = 3) -> jax.Array:
    """Loads a picture in the proportions of the file, `[H, W, channels]`, 0 to 255.

    Its longer side gets `size` pixels. If `size` is None, the longer side keeps its length
    in the file, but has at most `PICTURE_SIZE` pixels.

    Raises:
      UserError: The file cannot be read, or the picture is too small or too narrow for the
        network.
    """
    try:
        file = os.path.expanduser(path)
        pixels, full = decode_pixels(file, size or PICTURE_SIZE, channels)
    except BadImageError as error:
        raise UserError(f"--image {printable(path)} cannot be read: {error}") from error
    extent = pixels.shape[:2]
    scale = size / max(extent) if size else 1
    height, width = (round(side * scale) for side in extent)
    if min(height, width) < MIN_SIDE:
        smallest = math.ceil(MIN_SIDE * max(full) / min(full))
        hint = f"use --size={smallest} or more"
        if smallest > MAX_SIZE:
            hint = (
                f"--size goes up to {MAX_SIZE}, so cut out a part that is at most "
                f"{MAX_SIZE // MIN_SIDE} times as long as wide"
            )
        raise UserError(
            f"--image of {full[1]}x{full[0]} pixels would be drawn at {width}x{height} but "
            f"each side must have {MIN_SIDE} or more: {hint}"
        )
    shape = height, width, channels
    return jax.image.resize(pixels.astype(np.float32), shape, "bilinear")


def check_head_size(
    objective: Objective, description: ModelDescription, sizes: list[tuple[int, int]]
) -> None:
    """Raises a `UserError` if a head that fits only one image size would get another."""
    size = description.preprocess.image_size
    has_fixed_size = description.variant not in SIZE_FREE_VARIANTS
    is_head = objective.layer in HEADS
    if has_fixed_size and is_head and sizes != [(size, size)]:
        raise UserError(
            f"{objective.layer} of variant {description.variant} takes {size}x{size} "
            f"pixels only: use --octaves=1 --size={size}; an --image must be square"
        )
