"""Which squares of a picture the network looks at."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

CROP_NUMBERS = (1, 2, 6, 10, 144)  # 1, 10 and 144 are Table 3 of the paper.
TRAINING_PIXELS = 224  # The crops of the literature are 224 pixels of a resized picture.
ONE_SCALE = (256,)  # Shorter side after resizing, in pixels.
PAPER_SCALES = (256, 288, 320, 352)  # Section 7.
CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
CENTRE = (0.5, 0.5)
SHIFT = 1 / 32  # One pixel of a CIFAR picture.


class Crop(NamedTuple):
    """A square inside one of the largest squares of a picture, whatever its size.

    Positions are fractions of the room there is: 0 is the top or left end, 0.5 the middle
    and 1 the bottom or right end.
    """

    square: float  # Of the largest square, along the picture's longer side.
    side: float  # Of the crop, as a fraction of the largest square's.
    row: float  # Of the crop in the largest square.
    column: float
    mirror: bool = False  # Left and right exchanged.
    down: float = 0.0  # Shift as a fraction of the crop's side; beyond the picture its
    right: float = 0.0  # border is repeated.


def central_crop(side: float) -> Crop:
    """The middle of the picture; `side` is a fraction of its shorter side."""
    return Crop(0.5, side, *CENTRE)


def _with_mirrors(crops: list[Crop]) -> tuple[Crop, ...]:
    return tuple(
        crop._replace(mirror=mirror)
        for mirror, crop in itertools.product((False, True), crops)
    )


def ten_crops() -> tuple[Crop, ...]:
    """Corners and centre of the middle square, and their mirror images.

    Krizhevsky et al. 2012, section 4.1: 224 pixels of 256.
    """
    side = TRAINING_PIXELS / ONE_SCALE[0]
    return _with_mirrors([Crop(0.5, side, *place) for place in (*CORNERS, CENTRE)])


def paper_crops() -> tuple[Crop, ...]:
    """The 144 crops of the paper's section 7.

    4 scales x 3 squares (left, middle, right; or top, middle, bottom) x 6 (four corners,
    centre, and the whole square resized) x 2 mirror images.
    """
    crops = []
    for scale, square in itertools.product(PAPER_SCALES, (0.0, 0.5, 1.0)):
        side = TRAINING_PIXELS / scale
        crops += [Crop(square, side, *place) for place in (*CORNERS, CENTRE)]
        crops.append(Crop(square, 1.0, *CENTRE))
    return _with_mirrors(crops)


def shifted_crops(side: float) -> tuple[Crop, ...]:
    """The central crop, the same shifted up left and down right, and the mirror images."""
    centre = central_crop(side)
    shifts = [centre._replace(down=shift, right=shift) for shift in (0.0, -SHIFT, SHIFT)]
    return _with_mirrors(shifts)


def evaluation_crops(number: int, side: float) -> tuple[Crop | None, ...]:
    """What to average over.

    Args:
      number: 1, the network's own crop, here None; 2, it and its mirror image; 6, both
        shifted too; 10 or 144 crops of the papers.
      side: Of the network's own crop, as a fraction of the picture's shorter side.
    """
    return {
        1: (None,),
        2: (None, central_crop(side)._replace(mirror=True)),
        6: shifted_crops(side),
        10: ten_crops(),
        144: paper_crops(),
    }[number]


def crop_boxes(extents: jax.Array, crop: Crop) -> jax.Array:
    """Boxes float32 `[B, 4]` of a crop: top, left, height and width in pixels.

    Args:
      extents: int `[B, 2]`, height and width of each picture in pixels.
      crop: The same for all; its numbers may be traced.
    """
    sizes = extents.astype(jnp.float32)
    short = jnp.min(sizes, axis=1, keepdims=True)
    side = short * crop.side
    place = jnp.stack([jnp.asarray(crop.row), jnp.asarray(crop.column)])
    shift = jnp.stack([jnp.asarray(crop.down), jnp.asarray(crop.right)])
    corner = (sizes - short) * crop.square + (short - side) * place + side * shift
    return jnp.concatenate([corner, side, side], axis=1)


def resample(
    images: jax.Array,
    boxes: jax.Array,
    size: int,
    extents: jax.Array,
    methods: jax.Array | None = None,
) -> jax.Array:
    """Cuts a box out of each image and resizes it to a square.

    Half-pixel centres, antialiased where it shrinks, like `jax.image.resize`; pixels
    beyond the extent have no weight.

    Args:
      images: float `[B, h, w, C]`.
      boxes: float `[B, 4]`: top, left, height and width in pixels.
      size: Side of the result in pixels.
      extents: int `[B, 2]`, height and width of each picture, which lies in the top left
        corner of its image.
      methods: int `[B]`, index into `INTERPOLATIONS`; default: bilinear for all.

    Returns:
      `[B, size, size, C]` in the dtype of `images`.
    """
    rows, columns = (
        _interpolation_weights(
            boxes[:, axis],
            boxes[:, 2 + axis],
            size,
            extents[:, axis],
            stored=images.shape[1 + axis],
            methods=methods,
        )
        for axis in (0, 1)
    )
    return jnp.einsum(
        "byh,bhwc,bxw->byxc",
        rows.astype(images.dtype),
        images,
        columns.astype(images.dtype),
        precision=jax.lax.Precision.HIGHEST,
    )


def _interpolation_weights(
    start: jax.Array,
    length: jax.Array,
    size: int,
    extent: jax.Array,
    *,
    stored: int,
    methods: jax.Array | None,
) -> jax.Array:
    """Weights `[B, size, stored]` of the stored pixels in each new pixel of an axis."""
    step = (length / size)[:, None, None]  # Stored pixels per new pixel.
    centres = start[:, None, None] + (jnp.arange(size) + 0.5)[:, None] * step - 0.5
    limits = extent[:, None, None]
    centres = jnp.clip(centres, -0.5, limits - 0.5)  # A shifted box repeats the border.
    distance = jnp.abs(jnp.arange(stored) - centres)
    if methods is None:
        weights = _bilinear(distance, step)
    else:
        each = [weigh(distance, step) for weigh in INTERPOLATIONS.values()]
        weights = jnp.choose(methods[:, None, None], each, mode="clip")
    weights = jnp.where(jnp.arange(stored) < limits, weights, 0)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def _bilinear(distance: jax.Array, step: jax.Array) -> jax.Array:
    return jnp.maximum(0, 1 - distance / jnp.maximum(step, 1))


def _cubic(distance: jax.Array, step: jax.Array) -> jax.Array:
    """Keys 1981 with a = -0.5, as in `jax.image`."""
    x = distance / jnp.maximum(step, 1)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def _area(distance: jax.Array, step: jax.Array) -> jax.Array:
    """How much of a stored pixel the new one covers."""
    return jnp.clip((1 + step) / 2 - distance, 0, jnp.minimum(1, step))


def _nearest(distance: jax.Array, step: jax.Array) -> jax.Array:
    """One stored pixel; the last of two at the same distance, as in `jax.image`."""
    del step
    stored = distance.shape[-1]
    nearest = stored - 1 - jnp.argmin(distance[..., ::-1], axis=-1)
    return jax.nn.one_hot(nearest, stored, dtype=distance.dtype)


# By the distance of a stored pixel from the centre of a new one, in stored pixels, and the
# number of stored pixels per new one.
INTERPOLATIONS = {
    "bilinear": _bilinear,
    "cubic": _cubic,
    "area": _area,
    "nearest": _nearest,
}
