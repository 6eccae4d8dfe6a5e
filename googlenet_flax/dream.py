"""Draws what a part of the network responds to; a command.

python -m googlenet_flax.dream --workdir=DIR --layer=inception_4c --image=FILE --out=FILE
python -m googlenet_flax.dream --workdir=DIR --layer=classifier --channel=cat --out=FILE
"""

import argparse
import dataclasses
import math
import os
import pathlib
import tempfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from absl import logging

from googlenet_flax.analysis.endpoints import ENDPOINTS, MAPS, activations, check_names
from googlenet_flax.analysis.gradient_ascent import (
    WHITE,
    Objective,
    Settings,
    dream,
    grey_noise,
    octave_sizes,
)
from googlenet_flax.data.decode import BadImageError, decode_image, printable
from googlenet_flax.model.googlenet import AUX_TAPS, MIN_IMAGE_SIZE, SIZE_FREE_VARIANTS
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.compilation_cache import use_compilation_cache
from googlenet_flax.runtime.errors import UserError, exit_on_run_error, out_of_memory_hint
from googlenet_flax.runtime.memory import keep_freed_memory
from googlenet_flax.training.description import ModelDescription

# A picture shows through, so few and rough steps do; grey needs many and smooth ones.
FROM_PICTURE = Settings(octaves=4, steps=10, rate=1.5, jitter=16, smoothness=0.0)
FROM_NOISE = Settings(octaves=4, steps=50, rate=2.0, jitter=8, smoothness=1.0)
PICTURE_SIZE = 512  # Longer side in pixels, at most, unless --size is given.
SIZE_DEFAULT = f"the network's, or of --image its own up to {PICTURE_SIZE}"
LIMITS = {  # Lowest and highest.
    "octaves": (1, 16),
    "steps": (1, 100_000),
    "rate": (0, WHITE),
    "jitter": (0, 4096),
    "smoothness": (0, 4),
    "size": (MIN_IMAGE_SIZE, 4096),
    "seed": (0, 2**32 - 1),
}


def choose_objective(layer: str, channel: str, description: ModelDescription) -> Objective:
    """What `--layer` and `--channel` ask for.

    Args:
      layer: Among `endpoints.ENDPOINTS`.
      channel: A number; of a classifier the name of a class, or its number; "" for none.
      description: Of the network.

    Raises:
      UserError: There is no such layer, channel or class.
    """
    try:
        check_names([layer])
    except ValueError as error:
        raise UserError(f"--layer: {error}") from error
    names = () if layer in MAPS else description.class_names
    if not channel and layer in MAPS:
        return Objective(layer)
    if not channel:
        raise UserError(f"{layer} needs --channel=CLASS, one of {_first(names)}")
    if channel in names:
        return Objective(layer, names.index(channel))
    count = len(names) or _num_channels(layer, description)
    if channel.isascii() and channel.isdecimal() and int(channel) < count:
        return Objective(layer, int(channel))
    what = f" or one of {_first(names)}" if names else ""
    raise UserError(
        f"--channel is {channel!r} but must be a number from 0 to {count - 1}{what}"
    )


def _num_channels(layer: str, description: ModelDescription) -> int:
    size = MIN_IMAGE_SIZE
    model = description.create_model().clone(aux_heads=False)
    function = partial(activations, model, names=[layer])
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(function, description.variables_like(), images)[layer].shape[-1]


def _first(names: tuple[str, ...], most: int = 10) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def load_picture(path: str, size: int | None) -> jax.Array:
    """A picture as `[H, W, 3]`, 0 to 255, of unchanged proportions.

    Args:
      path: Of a file that `decode_image` reads.
      size: Longer side in pixels; default: its own, at most `PICTURE_SIZE`.

    Raises:
      UserError: It cannot be read, or is too small or narrow for the network.
    """
    try:
        image, extent = decode_image(path, size or PICTURE_SIZE)
    except BadImageError as error:
        raise UserError(f"--image {printable(path)} cannot be read: {error}") from error
    scale = size / max(extent) if size else 1
    height, width = (round(side * scale) for side in extent)
    if min(height, width) < MIN_IMAGE_SIZE:
        enough = math.ceil(MIN_IMAGE_SIZE * max(extent) / min(extent))
        raise UserError(
            f"--image is {width}x{height} pixels but the network needs {MIN_IMAGE_SIZE} "
            f"either way: use --size={enough} or more"
        )
    picture = image[: extent[0], : extent[1]].astype(np.float32)
    return jax.image.resize(picture, (height, width, 3), "bilinear")


def check_head_size(
    objective: Objective, description: ModelDescription, sizes: list[tuple[int, int]]
) -> None:
    """Raises a UserError where a head that knows one size only would meet another."""
    size = description.preprocess.image_size
    tied = description.variant not in SIZE_FREE_VARIANTS
    if tied and objective.layer in AUX_TAPS.values() and sizes != [(size, size)]:
        raise UserError(
            f"{objective.layer} of variant {description.variant} takes {size}x{size} "
            f"pixels only: use --octaves=1 --size={size}, and no --image that is not square"
        )


def check_output(out: pathlib.Path) -> None:
    """Finds out before the work whether its result can be written.

    Raises:
      UserError: It cannot.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"--out is {printable(out)} but must end in .png")
    try:
        if out.is_dir():
            raise UserError(f"--out {printable(out)} is a directory: name a file")
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise _cannot_write(out, error) from error


def save_picture(pixels: jax.Array, out: pathlib.Path) -> None:
    """Writes `[H, W, 3]`, 0 to 255, as a PNG file without metadata, whole or not at all.

    Raises:
      UserError: The disk is full, say.
    """
    picture = PIL.Image.fromarray(np.rint(np.asarray(pixels)).astype(np.uint8))
    temporary = out.with_name(f".dream-{os.getpid()}.tmp")
    try:
        picture.save(temporary, format="PNG")
        temporary.replace(out)
    except OSError as error:
        raise _cannot_write(out, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_write(out: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f"--out {printable(out)} cannot be written ({error.strerror}): choose another"
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m googlenet_flax.dream", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument

    def add_setting(name: str, text: str) -> None:
        noise, picture = getattr(FROM_NOISE, name), getattr(FROM_PICTURE, name)
        default = f"{noise}" if noise == picture else f"{noise}, with --image {picture}"
        add(f"--{name}", type=type(noise), help=f"{text}; default: {default}")

    add("--workdir", required=True, help="directory of a run or import")
    add("--checkpoint", default="best", help="best, latest or a step")
    add("--layer", required=True, help=f"what is to respond: {', '.join(ENDPOINTS)}")
    add("--channel", default="", help="one channel of it; of a classifier, a class")
    add("--image", default="", help="picture to begin with; default: grey noise")
    add("--out", required=True, help="PNG file to write")
    add("--size", type=int, help=f"longer side in pixels; default: {SIZE_DEFAULT}")
    add_setting("octaves", "sizes at most, each 1.4 times the one before")
    add_setting("steps", "for each octave")
    add_setting("rate", "mean change of a step, in pixel values of 0 to 255")
    add_setting("jitter", "random shift before each step, in pixels at most")
    add_setting("smoothness", "0 draws fine noise, 1 broad strokes")
    add("--seed", type=int, default=0, help="of noise and jitter")
    return parser.parse_args()


def _choose_settings(args: argparse.Namespace) -> Settings:
    for name, (lowest, highest) in LIMITS.items():
        value = getattr(args, name)
        if value is not None and not lowest <= value <= highest:
            raise UserError(f"--{name} is {value} but must be {lowest} to {highest:.0f}")
    defaults = FROM_PICTURE if args.image else FROM_NOISE
    names = [field.name for field in dataclasses.fields(Settings)]
    given = {name: getattr(args, name) for name in names}
    return dataclasses.replace(
        defaults, **{name: value for name, value in given.items() if value is not None}
    )


def run(args: argparse.Namespace) -> str:
    """Draws and saves what the flags ask for; returns what there is to say of it.

    Raises:
      UserError: No such run, layer, channel or picture, or a result without a place.
    """
    settings, out = _choose_settings(args), pathlib.Path(args.out)
    check_output(out)
    workdir, devices = Workdir(args.workdir), jax.local_devices()[:1]
    predictor = Predictor.load(workdir, args.checkpoint, devices)
    description = predictor.description
    objective = choose_objective(args.layer, args.channel, description)
    noise_rng, jitter_rng = jax.random.split(jax.random.key(args.seed))
    if args.image:
        image = load_picture(args.image, args.size)
    else:
        size = args.size or description.preprocess.image_size
        image = grey_noise(noise_rng, size, size)
    height, width = image.shape[:2]
    check_head_size(objective, description, octave_sizes(height, width, settings.octaves))
    with out_of_memory_hint("lower --size"):
        pixels, octaves = dream(
            description.create_model(),
            predictor.variables,
            description.preprocess,
            image,
            objective,
            settings=settings,
            rng=jitter_rng,
        )
    before, after = octaves[-1].before, octaves[-1].after
    what = f"{args.layer} channel {args.channel}" if args.channel else args.layer
    if before == after == 0:
        raise UserError(
            f"{what} does not respond at all: choose another --channel, --image or --seed"
        )
    save_picture(pixels, out)
    scores = f"objective of {what} from {before:.4g} to {after:.4g}"
    return f"{printable(out)}: {width}x{height} pixels, {scores}"


def main() -> None:
    """The command."""
    args = _parse_arguments()
    logging.set_verbosity(logging.FATAL)  # Libraries talking; errors are raised.
    use_compilation_cache()
    keep_freed_memory()
    with exit_on_run_error():
        print(run(args))


if __name__ == "__main__":
    main()
