"""Square crops of pictures, and their resampling to the size of the network's input."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

CROP_NUMBERS = (1, 2, 6, 10, 144)  # Table 3 of the paper has 1, 10 and 144.
TRAINING_PIXELS = 224  # Side of the crops in the literature, cut from a resized picture.
TEN_CROP_SCALE = 256  # Shorter side of the resized picture in pixels.
PAPER_SCALES = (256, 288, 320, 352)  # Shorter sides for the 144 crops of section 7.
# Positions of the four corners and the center.
PLACES = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))
SHIFT = 1 / 32  # One pixel of a CIFAR picture.


class Crop(NamedTuple):
    """A square crop, defined relative to the size of a picture.

    The crop lies in a square whose side is the picture's shorter side ("largest square").
    A position is a fraction of the free space: 0 is the top or left end, 0.5 the middle and
    1 the bottom or right end.
    """

    square: float  # Position of the largest square along the picture's longer side.
    side: float  # Side of the crop, as a fraction of the side of the largest square.
    row: float  # Vertical position of the crop in the largest square.
    column: float  # Horizontal position of the crop in the largest square.
    mirror: bool = False  # True exchanges left and right.
    # Shift down and right, as a fraction of the crop's side. Pixels of the crop that lie
    # outside the picture repeat its border.
    shift: float = 0.0


def central_crop(side: float) -> Crop:
    """Returns the central crop; `side` is a fraction of the picture's shorter side."""
    return Crop(0.5, side, 0.5, 0.5)


def evaluation_crops(number: int, side: float) -> tuple[Crop | None, ...]:
    """Returns the crops whose predictions are averaged.

    Args:
      number: One of `CROP_NUMBERS`.
      side: Side of the network's own crop, as a fraction of the picture's shorter side.
        The sets of 10 and of 144 crops do not depend on it.

    Returns:
      The crops; None is the network's own crop. If there are several, half are mirrored.

    Raises:
      ValueError: `number` is not in `CROP_NUMBERS`.
    """
    if number not in CROP_NUMBERS:
        raise ValueError(f"number of crops is {number} but must be one of {CROP_NUMBERS}")
    center = central_crop(side)
    if number <= 2:
        return (None, center._replace(mirror=True))[:number]
    crops = []
    if number == 6:  # The center, also shifted to the top left and the bottom right.
        crops = [center._replace(shift=shift) for shift in (0.0, -SHIFT, SHIFT)]
    elif number == 10:  # Corners and center, Krizhevsky et al. 2012, section 4.1.
        side = TRAINING_PIXELS / TEN_CROP_SCALE
        crops = [Crop(0.5, side, *place) for place in PLACES]
    else:  # Section 7: corners, center and the whole of 3 squares at each of 4 scales.
        for scale, square in itertools.product(PAPER_SCALES, (0.0, 0.5, 1.0)):
            side = TRAINING_PIXELS / scale
            crops += [Crop(square, side, *place) for place in PLACES]
            crops.append(Crop(square, 1.0, 0.5, 0.5))
    return (*crops, *(crop._replace(mirror=True) for crop in crops))


def crop_boxes(extents: jax.Array, crop: Crop) -> jax.Array:
    """Computes the box of a crop in each picture, in pixels.

    Args:
      extents: int `[B, 2]`, height and width of each picture.
      crop: The crop; its numbers may be traced.

    Returns:
      float32 `[B, 4]`: top, left, height and width of each box.
    """
    sizes = extents.astype(jnp.float32)
    short = jnp.min(sizes, axis=1, keepdims=True)
    side = short * crop.side
    place = jnp.stack([jnp.asarray(crop.row), jnp.asarray(crop.column)])
    corner = (sizes - short) * crop.square + (short - side) * place + side * crop.shift
    return jnp.concatenate([corner, side, side], axis=1)


def resample(
    images: jax.Array,
    boxes: jax.Array,
    size: int,
    extents: jax.Array,
    methods: jax.Array | None = None,
) -> jax.Array:
    """Cuts a box out of each image and resizes it to a square.

    Like `jax.image.resize`, it uses half-pixel centers and antialiases when it shrinks.
    Pixels beyond the extent have no weight.

    Args:
      images: float `[B, h, w, C]`.
      boxes: float `[B, 4]`: top, left, height and width in pixels.
      size: Side of the result in pixels.
      extents: int `[B, 2]`, height and width of each picture, which lies in the top left
        corner of its image.
      methods: int `[B]`, indices into `INTERPOLATIONS`; None is bilinear for all.

    Returns:
      `[B, size, size, C]` in the dtype of `images`.
    """
    weights = []  # [B, size, h] and [B, size, w], of stored pixels in new ones.
    for axis in (0, 1):
        start, step = boxes[:, axis], boxes[:, 2 + axis] / size
        start, step, limits = (x[:, None, None] for x in (start, step, extents[:, axis]))
        centers = start + (jnp.arange(size) + 0.5)[:, None] * step - 0.5
        # A shifted box repeats the border. A center on the far edge itself would have no
        # nearest pixel, so centers stop just before it.
        centers = jnp.clip(centers, -0.5, jnp.nextafter(limits - 0.5, 0.0))
        stored = jnp.arange(images.shape[1 + axis])
        offset = stored - centers
        weight = _bilinear(offset, step)
        if methods is not None:
            for index, weigh in enumerate(INTERPOLATIONS.values()):
                is_own = (methods == index)[:, None, None]
                weight = jnp.where(is_own, weigh(offset, step), weight)
        weight = jnp.where(stored < limits, weight, 0)
        weight /= jnp.sum(weight, axis=-1, keepdims=True)
        weights.append(weight.astype(images.dtype))
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum(
        "byh,bhwc,bxw->byxc", weights[0], images, weights[1], precision=highest
    )


def _bilinear(offset: jax.Array, step: jax.Array) -> jax.Array:
    return jnp.maximum(0, 1 - jnp.abs(offset) / jnp.maximum(step, 1))


def _cubic(offset: jax.Array, step: jax.Array) -> jax.Array:
    """Computes the cubic kernel of Keys 1981 with a = -0.5, the one of `jax.image`."""
    x = jnp.abs(offset) / jnp.maximum(step, 1)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def _area(offset: jax.Array, step: jax.Array) -> jax.Array:
    """Computes the part of a stored pixel that the new one covers."""
    return jnp.clip((1 + step) / 2 - jnp.abs(offset), 0, jnp.minimum(1, step))


def _nearest(offset: jax.Array, step: jax.Array) -> jax.Array:
    """Selects the nearest stored pixel; of two, the last one, like `jax.image`."""
    del step
    return ((-0.5 < offset) & (offset <= 0.5)).astype(offset.dtype)


# Each function returns weights. Its arguments are the offset of a stored pixel from the
# center of a new one, in stored pixels, and the number of stored pixels per new one.
INTERPOLATIONS = {
    "bilinear": _bilinear,
    "cubic": _cubic,
    "area": _area,
    "nearest": _nearest,
}
