"""Drawing a picture that a part of a trained network responds to, for the command."""

import dataclasses
import io
import math
import pathlib
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from googlenet_flax.analysis.endpoints import MAPS, activations, check_names
from googlenet_flax.analysis.gradient_ascent import (
    WHITE,
    Objective,
    Octave,
    Settings,
    dream,
    gray_noise,
    octave_sizes,
)
from googlenet_flax.data.decode import BadImageError, decode_pixels, printable
from googlenet_flax.model.googlenet import AUX_TAPS, MIN_IMAGE_SIZE, SIZE_FREE_VARIANTS
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.errors import UserError, out_of_memory_hint, writing
from googlenet_flax.runtime.files import replace_file
from googlenet_flax.training.description import ModelDescription

# Few rough steps are enough to change a picture; gray noise needs many smooth ones.
FROM_PICTURE = Settings(octaves=4, steps=10, rate=1.5, jitter=16, smoothness=0.0)
FROM_NOISE = Settings(octaves=4, steps=50, rate=2.0, jitter=8, smoothness=1.0)
PICTURE_SIZE = 512  # Largest longer side in pixels, unless --size is given.
LIMITS = {  # Lowest and highest value of each flag.
    "octaves": (1, 16),
    "steps": (1, 100_000),
    "rate": (0, WHITE),
    "jitter": (0, 4096),
    "smoothness": (0, 4),
    "size": (MIN_IMAGE_SIZE, 4096),
    "seed": (0, 2**32 - 1),
}


def choose_objective(layer: str, channel: str, description: ModelDescription) -> Objective:
    """Creates the objective that `--layer` and `--channel` name.

    Args:
      layer: One of `endpoints.ENDPOINTS`.
      channel: Number of a channel, or "" for the whole layer. A classifier needs the name
        or the number of a class.
      description: Description of the network.

    Raises:
      UserError: The layer, the channel or the class does not exist.
    """
    try:
        check_names([layer])
    except ValueError as error:
        raise UserError(f"--layer: {error}") from error
    names = () if layer in MAPS else description.class_names
    if not channel and layer in MAPS:
        return Objective(layer)
    if not channel:
        raise UserError(f"{layer} needs --channel=CLASS, one of {_list_names(names)}")
    if channel in names:
        return Objective(layer, names.index(channel))
    count = len(names) or _num_channels(layer, description)
    if channel.isascii() and channel.isdecimal() and int(channel) < count:
        return Objective(layer, int(channel))
    or_name = f" or one of {_list_names(names)}" if names else ""
    raise UserError(
        f"--channel is {channel!r} but must be a number from 0 to {count - 1}{or_name}"
    )


def _num_channels(layer: str, description: ModelDescription) -> int:
    size = MIN_IMAGE_SIZE
    model = description.create_model().clone(aux_heads=False)
    function = partial(activations, model, names=[layer])
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(function, description.variables_like(), images)[layer].shape[-1]


def _list_names(names: tuple[str, ...], limit: int = 10) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def load_picture(path: str, size: int | None) -> jax.Array:
    """Loads a picture and resizes it without changing its proportions.

    Args:
      path: A file that `decode_pixels` can read.
      size: Longer side in pixels; None keeps that of the file, up to `PICTURE_SIZE`.

    Returns:
      The picture, `[H, W, 3]`, 0 to 255.

    Raises:
      UserError: The file cannot be read, or the picture is too small or too narrow for the
        network.
    """
    try:
        pixels, full = decode_pixels(path, size or PICTURE_SIZE)
    except BadImageError as error:
        raise UserError(f"--image {printable(path)} cannot be read: {error}") from error
    extent = pixels.shape[:2]
    scale = size / max(extent) if size else 1
    height, width = (round(side * scale) for side in extent)
    if min(height, width) < MIN_IMAGE_SIZE:
        raise _too_small(full, (height, width))
    return jax.image.resize(pixels.astype(np.float32), (height, width, 3), "bilinear")


def _too_small(full: tuple[int, int], drawn: tuple[int, int]) -> UserError:
    """Returns the error for a picture that would be drawn with too few pixels."""
    limit = LIMITS["size"][1]
    smallest = math.ceil(MIN_IMAGE_SIZE * max(full) / min(full))
    way_out = f"use --size={smallest} or more"
    if smallest > limit:
        way_out = (
            f"--size goes up to {limit}, so cut out a part that is at most "
            f"{limit // MIN_IMAGE_SIZE} times as long as wide"
        )
    return UserError(
        f"--image of {full[1]}x{full[0]} pixels would be drawn at {drawn[1]}x{drawn[0]} "
        f"but each side must have {MIN_IMAGE_SIZE} or more: {way_out}"
    )


def check_head_size(
    objective: Objective, description: ModelDescription, sizes: list[tuple[int, int]]
) -> None:
    """Checks that a head with parameters for one size gets no other size.

    Raises:
      UserError: One of the sizes, height and width, does not fit the head.
    """
    size = description.preprocess.image_size
    has_fixed_size = description.variant not in SIZE_FREE_VARIANTS
    is_head = objective.layer in AUX_TAPS.values()
    if has_fixed_size and is_head and sizes != [(size, size)]:
        raise UserError(
            f"{objective.layer} of variant {description.variant} takes {size}x{size} "
            f"pixels only: use --octaves=1 --size={size}, and no --image that is not square"
        )


def check_output(out: pathlib.Path) -> None:
    """Checks that the file can be written, before anything is computed.

    Raises:
      UserError: The file cannot be written, or its name does not end in .png.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"--out is {printable(out)} but must end in .png")
    with _writing(out):
        if out.is_dir():
            raise UserError(f"--out {printable(out)} is a directory: name a file")
        tempfile.TemporaryFile(dir=out.parent).close()


def save_picture(pixels: jax.Array, out: pathlib.Path) -> None:
    """Writes a PNG file without metadata, completely or not at all.

    Args:
      pixels: The picture, `[H, W, 3]`, 0 to 255.
      out: The file.

    Raises:
      UserError: The file cannot be written, for example because the disk is full.
    """
    picture = PIL.Image.fromarray(np.rint(np.asarray(pixels)).astype(np.uint8))
    png = io.BytesIO()
    picture.save(png, format="PNG")
    with _writing(out):
        replace_file(out, png.getvalue())


def _writing(out: pathlib.Path) -> AbstractContextManager[None]:
    return writing(f"--out {printable(out)}", "choose another")


def choose_settings(image: str, given: Mapping[str, float | None]) -> Settings:
    """Fills in the defaults, which depend on what the drawing starts from.

    Args:
      image: Name of the picture to start from; "" for noise.
      given: Values by their names in `Settings`; None for the default.
    """
    defaults = FROM_PICTURE if image else FROM_NOISE
    chosen: Any = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(defaults, **chosen)


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
    """Draws and saves a picture; the arguments are the flags of the command.

    Returns:
      A line about the picture and the rise of the objective.

    Raises:
      UserError: The run, the layer, the channel or the picture does not exist, a flag is
        out of its limits, or the file cannot be written.
    """
    _check_limits({**settings, "size": size, "seed": seed})
    check_output(out)
    predictor = Predictor.load(Workdir(workdir), checkpoint, jax.local_devices()[:1])
    description = predictor.description
    objective = choose_objective(layer, channel, description)
    noise_rng, jitter_rng = jax.random.split(jax.random.key(seed))
    if image:
        start = load_picture(image, size)
    else:
        side = size or description.preprocess.image_size
        start = gray_noise(noise_rng, side, side)
    chosen = choose_settings(image, settings)
    pixels, octave = _dream(predictor, start, objective, chosen, jitter_rng)
    part = f"{layer} channel {channel}" if channel else layer
    if octave.before == octave.after == 0:
        raise UserError(
            f"{part} does not respond at all: choose another --channel, --image or --seed"
        )
    save_picture(pixels, out)
    return (
        f"{printable(out)}: {start.shape[1]}x{start.shape[0]} pixels, objective of {part} "
        f"from {octave.before:.4g} to {octave.after:.4g}"
    )


def _check_limits(values: Mapping[str, float | None]) -> None:
    for name, (lowest, highest) in LIMITS.items():
        value = values[name]
        if value is not None and not lowest <= value <= highest:
            raise UserError(f"--{name} is {value} but must be {lowest} to {highest:.0f}")


def _dream(
    predictor: Predictor,
    image: jax.Array,
    objective: Objective,
    settings: Settings,
    rng: jax.Array,
) -> tuple[jax.Array, Octave]:
    """Runs gradient ascent from `image`; returns the picture and the last octave."""
    description, (height, width) = predictor.description, image.shape[:2]
    check_head_size(objective, description, octave_sizes(height, width, settings.octaves))
    with out_of_memory_hint("lower --size"):
        pixels, octaves = dream(
            description.create_model(),
            predictor.variables,
            description.preprocess,
            image,
            objective,
            settings=settings,
            rng=rng,
        )
    return pixels, octaves[-1]
