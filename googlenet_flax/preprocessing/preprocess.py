"""Preprocessing of stored uint8 images on the device: crop, resize and normalize."""

import dataclasses

import jax
import jax.numpy as jnp

from googlenet_flax.preprocessing.crops import Crop, central_crop, crop_boxes, resample


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Deterministic preprocessing of stored images into the network's input.

    It cuts out the central square, resizes it, orders the channels and computes
    `(x * input_scale - input_mean) / input_std`, with one mean and std per channel in
    `channel_order`. Every checkpoint stores it, so that evaluation and prediction
    preprocess as training did.
    """

    storage_size: int  # Longer side in pixels to which pictures are reduced when read.
    image_size: int  # Side of the network's input in pixels.
    crop_fraction: float  # Side of the central square, as a fraction of the shorter side.
    input_scale: float
    input_mean: tuple[float, float, float]
    input_std: tuple[float, float, float]
    channel_order: str  # "RGB" or "BGR".

    @property
    def crop(self) -> Crop:
        """The central crop that evaluation uses."""
        return central_crop(self.crop_fraction)

    def __call__(
        self, images: jax.Array, extents: jax.Array | None = None, crop: Crop | None = None
    ) -> jax.Array:
        """Maps uint8 `[B, h, w, 1 or 3]` in RGB to float32 `[B, H, W, 3]`.

        Args:
          images: The stored images; a gray one gets three equal channels.
          extents: int `[B, 2]`, height and width of each picture, which lies in the top
            left corner of its image; None means that every picture fills its image.
          crop: The crop to take instead of the one that evaluation uses.
        """
        return self.normalize(self.cut(images, extents, crop))

    def cut(
        self, images: jax.Array, extents: jax.Array | None, crop: Crop | None = None
    ) -> jax.Array:
        """Cuts and resizes a crop to RGB float32 `[B, H, W, 3]`, still from 0 to 255."""
        height, width = images.shape[1:3]
        if crop is None and extents is None and self.crop_fraction == 1 and height == width:
            size = (images.shape[0], self.image_size, self.image_size, images.shape[3])
            return as_rgb(jax.image.resize(images.astype(jnp.float32), size, "bilinear"))
        crop = crop or self.crop
        if extents is None:
            extents = whole_extents(images)
        boxes = crop_boxes(extents, crop)
        pixels = resample(images.astype(jnp.float32), boxes, self.image_size, extents)
        return as_rgb(jnp.where(jnp.asarray(crop.mirror), pixels[:, :, ::-1], pixels))

    def normalize(self, pixels: jax.Array) -> jax.Array:
        """Maps RGB from 0 to 255 to the network's channel order, scale, mean and std."""
        x = pixels[..., ::-1] if self.channel_order == "BGR" else pixels
        mean, std = jnp.asarray(self.input_mean), jnp.asarray(self.input_std)
        return (x * self.input_scale - mean) / std


def as_rgb(images: jax.Array) -> jax.Array:
    """Repeats a single channel three times: `[B, H, W, 1 or 3]` to `[B, H, W, 3]`."""
    return jnp.broadcast_to(images, (*images.shape[:3], 3))


def whole_extents(images: jax.Array) -> jax.Array:
    """Returns extents int32 `[B, 2]` of pictures that fill their images `[B, h, w, C]`."""
    return jnp.broadcast_to(jnp.asarray(images.shape[1:3]), (images.shape[0], 2))
