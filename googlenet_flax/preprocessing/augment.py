"""Random augmentation of training images on the device, with a key for each example."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp

from googlenet_flax.preprocessing.crops import INTERPOLATIONS, crop_boxes, resample
from googlenet_flax.preprocessing.preprocess import (
    Preprocess,
    luma,
    whole_extents,
    with_channels,
)

CROP_ATTEMPTS = 10  # Boxes drawn before the largest allowed box is taken.
FLIPS = ("none", "random", "alternating")


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random crops, flips, color jitter and cutout, each of which can be off."""

    crop_padding_pixels: int  # Padding on each side before a crop; 0 is off.
    crop_min_area: float  # Smallest area of a crop, as a fraction of the picture; 1 is off.
    crop_max_aspect: float  # Largest aspect ratio of a crop; the smallest is its inverse.
    flip: str  # One of `FLIPS`.
    color_jitter: float  # Factors lie between 1 minus this and 1 plus this; 0 is off.
    interpolations: tuple[str, ...]  # Some of `INTERPOLATIONS`, equally likely.
    cutout_fraction: float  # Side of the erased square, relative to the input's; 0 is off.
    dtype: str  # Type in which random crops are computed, which is that of the network.

    def __call__(
        self,
        images: jax.Array,
        rngs: jax.Array,
        *,
        preprocess: Preprocess,
        extents: jax.Array | None = None,
        flips: jax.Array | None = None,
    ) -> jax.Array:
        """Augments and preprocesses images of a training batch.

        Args:
          images: Stored images, uint8 `[B, h, w, c]`.
          rngs: keys `[B]`; image `i` uses only `rngs[i]`.
          preprocess: Preprocessing of the network.
          extents: Height and width of each picture, as `Preprocess` takes them.
          flips: bool `[B]`, true for the images to mirror. It is required if `flip` is
            `"alternating"`, and ignored otherwise.

        Returns:
          The network's input, float32 `[B, H, W, C]`.

        Raises:
          ValueError: `flip` is `"alternating"` and `flips` is missing.
        """
        split = jax.vmap(partial(jax.random.split, num=6), out_axes=1)
        shift_rngs, crop_rngs, flip_rngs, color_rngs, method_rngs, cutout_rngs = split(rngs)
        if self.crop_padding_pixels:
            images = jax.vmap(self._shift)(images, shift_rngs)
        pixels = self._crop(images, extents, preprocess, crop_rngs, method_rngs)
        if self.flip != "none":
            if self.flip == "random":
                flips = jax.vmap(jax.random.bernoulli)(flip_rngs)
            if flips is None:
                raise ValueError("flip is 'alternating': pass flips of alternating_flips")
            pixels = jnp.where(flips[:, None, None, None], pixels[:, :, ::-1], pixels)
        if self.color_jitter:
            pixels = jax.vmap(self._distort)(pixels, color_rngs)
        pixels = preprocess.normalize(pixels)
        if self.cutout_fraction:
            pixels = jax.vmap(self._cut_out)(pixels, cutout_rngs)
        return pixels

    def _shift(self, image: jax.Array, rng: jax.Array) -> jax.Array:
        """Pads an image with zeros and cuts a random crop of its original size."""
        pad = self.crop_padding_pixels
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        row, column = jax.random.randint(rng, (2,), 0, 2 * pad + 1)
        return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)

    def _crop(
        self,
        images: jax.Array,
        extents: jax.Array | None,
        preprocess: Preprocess,
        crop_rngs: jax.Array,
        method_rngs: jax.Array,
    ) -> jax.Array:
        """Cuts a crop out of each image and resizes it, `[B, H, W, C]`, 0 to 255."""
        if self.crop_min_area == 1 and self.interpolations == ("bilinear",):
            return preprocess.cut(images, extents)
        methods = None
        if self.interpolations != ("bilinear",):  # Section 6: random methods.
            names = list(INTERPOLATIONS)
            allowed = jnp.asarray([names.index(name) for name in self.interpolations])
            draw_method = partial(jax.random.choice, a=allowed)
            methods = jax.vmap(draw_method)(method_rngs)
        extents = whole_extents(images) if extents is None else extents
        if self.crop_min_area < 1:
            boxes = jax.vmap(self._draw_box)(extents.astype(jnp.float32), crop_rngs)
        else:
            boxes = crop_boxes(extents, preprocess.crop)
        # bfloat16 halves the bytes. Its RMS error is below one level of uint8.
        pixels = images.astype(self.dtype)
        pixels = resample(pixels, boxes, preprocess.image_size, extents, methods)
        pixels = jnp.clip(pixels, 0, 255)  # Cubic weights overshoot.
        return with_channels(pixels, preprocess.input_channels)

    def _draw_box(self, extent: jax.Array, rng: jax.Array) -> jax.Array:
        """Draws a box `[4]` in a picture: top, left, height and width (section 6).

        `extent` is the height and width of the picture. The area is uniform between
        `crop_min_area` and the whole picture. The aspect ratio, width over height, is
        log-uniform between 1 / `crop_max_aspect` and `crop_max_aspect`.
        """
        area_rng, aspect_rng, place_rng = jax.random.split(rng, 3)
        draw = partial(jax.random.uniform, shape=(CROP_ATTEMPTS,))
        areas = draw(area_rng, minval=self.crop_min_area, maxval=1) * jnp.prod(extent)
        limit = math.log(self.crop_max_aspect)
        aspects = jnp.exp(draw(aspect_rng, minval=-limit, maxval=limit))
        sizes = jnp.sqrt(jnp.stack([areas / aspects, areas * aspects], axis=1))
        fits = jnp.all(sizes <= extent, axis=1)
        largest = jnp.minimum(extent, extent[::-1] * self.crop_max_aspect)
        size = jnp.where(jnp.any(fits), sizes[jnp.argmax(fits)], largest)
        corner = jax.random.uniform(place_rng, (2,)) * (extent - size)
        return jnp.concatenate([corner, size])

    def _distort(self, pixels: jax.Array, rng: jax.Array) -> jax.Array:
        """Changes brightness, contrast and color of an image `[H, W, 3]` by random factors.

        Howard 2013, arXiv 1312.5402, which section 6 cites, applies the three changes in
        random order. Apart from rounding, and from clipping after each, they commute, so
        one expression applies them all.
        """
        low, high = 1 - self.color_jitter, 1 + self.color_jitter
        brightness, contrast, color = jax.random.uniform(rng, (3,), minval=low, maxval=high)
        gray = luma(pixels)
        mean = jnp.mean(gray)
        colored = gray + color * (pixels - gray)
        return jnp.clip(brightness * (mean + contrast * (colored - mean)), 0, 255)

    def _cut_out(self, pixels: jax.Array, rng: jax.Array) -> jax.Array:
        """Sets a square around a random pixel of `[H, W, C]` to 0 (arXiv 1708.04552).

        The part of the square beyond the border is dropped.
        """
        size = pixels.shape[0]
        side = round(self.cutout_fraction * size)
        first = jax.random.randint(rng, (2, 1), 0, size) - side // 2
        row, column = (jnp.arange(size) >= first) & (jnp.arange(size) < first + side)
        inside = row[:, None] & column
        return jnp.where(inside[..., None], 0, pixels)


def alternating_flips(rng: jax.Array, indices: jax.Array, epoch: jax.Array) -> jax.Array:
    """Chooses the examples to mirror: a random half in even epochs, the others in odd ones.

    No example has the same orientation in two consecutive epochs (Jordan 2024, arXiv
    2404.00498, section 3.6).

    Args:
      rng: A key that is the same throughout a run.
      indices: int `[B]`, the number of each example in the split.
      epoch: int `[]`, counted from 0.

    Returns:
      bool `[B]`, true for the examples to mirror.
    """
    bits = jax.vmap(lambda index: jax.random.bernoulli(jax.random.fold_in(rng, index)))
    return bits(indices) ^ (epoch % 2 == 1)
