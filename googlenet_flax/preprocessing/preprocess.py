"""Preprocessing of stored uint8 images on the device: crop, resize and normalize."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_flax.preprocessing.crops import Crop, central_crop, crop_boxes, resample
from googlenet_flax.runtime.errors import UserError

LUMA = (0.299, 0.587, 0.114)  # Weights of red, green and blue, Rec. ITU-R BT.601.


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
    input_mean: tuple[float, ...]
    input_std: tuple[float, ...]
    channel_order: str  # "RGB" or "BGR".

    @property
    def input_channels(self) -> int:
        """The number of channels of the input, C."""
        return len(self.input_mean)

    @property
    def crop(self) -> Crop:
        """The central crop that evaluation uses."""
        return central_crop(self.crop_fraction)

    def __call__(
        self,
        images: jax.Array | np.ndarray,
        extents: jax.Array | None = None,
        crop: Crop | None = None,
    ) -> jax.Array:
        """Maps stored images, uint8 `[B, h, w, c]`, to float32 `[B, H, W, C]`.

        Args:
          images: The stored images; `with_channels` says what `c` may be.
          extents: int `[B, 2]`, height and width of each picture, which lies in the top
            left corner of its image; None means that every picture fills its image.
          crop: The crop to take instead of the one that evaluation uses.

        Raises:
          UserError: The channels of the images do not fit the network's input.
        """
        return self.normalize(self.cut(images, extents, crop))

    def cut(
        self,
        images: jax.Array | np.ndarray,
        extents: jax.Array | np.ndarray | None,
        crop: Crop | None = None,
    ) -> jax.Array:
        """Cuts and resizes a crop to float32 `[B, H, W, C]`, still from 0 to 255.

        The arguments and errors are those of `__call__`.
        """
        images = jnp.asarray(images)
        height, width = images.shape[1:3]
        if crop is None and extents is None and self.crop_fraction == 1 and height == width:
            size = (images.shape[0], self.image_size, self.image_size, images.shape[3])
            pixels = jax.image.resize(images.astype(jnp.float32), size, "bilinear")
            return with_channels(pixels, self.input_channels)
        crop = crop or self.crop
        extents = whole_extents(images) if extents is None else jnp.asarray(extents)
        boxes = crop_boxes(extents, crop)
        pixels = resample(images.astype(jnp.float32), boxes, self.image_size, extents)
        pixels = jnp.where(jnp.asarray(crop.mirror), pixels[:, :, ::-1], pixels)
        return with_channels(pixels, self.input_channels)

    def normalize(self, pixels: jax.Array) -> jax.Array:
        """Maps pixels from 0 to 255 to the network's channel order, scale, mean and std."""
        x = pixels[..., ::-1] if self.channel_order == "BGR" else pixels
        mean, std = jnp.asarray(self.input_mean), jnp.asarray(self.input_std)
        return (x * self.input_scale - mean) / std


def with_channels(images: jax.Array, channels: int) -> jax.Array:
    """Maps images `[B, H, W, c]` to `[B, H, W, channels]`.

    A single channel is repeated, and RGB becomes gray by its luma.

    Raises:
      UserError: The numbers of channels differ in another way.
    """
    stored = images.shape[-1]
    if (stored, channels) == (3, 1):
        return luma(images)
    if stored not in (1, channels):
        raise UserError(
            f"the images have {stored} channels and the network's input has {channels}: "
            f"set --config.input_channels={stored}, or choose other data"
        )
    return jnp.broadcast_to(images, (*images.shape[:3], channels))


def luma(images: jax.Array) -> jax.Array:
    """Computes the brightness `[..., 1]` of RGB images `[..., 3]`.

    It adds slices, because XLA fuses these with what follows. A reduction over the channels
    would be stored first, which makes color jitter on a CPU much slower.
    """
    red, green, blue = jnp.split(images * jnp.asarray(LUMA), 3, axis=-1)
    return red + green + blue


def whole_extents(images: jax.Array) -> jax.Array:
    """Returns extents int32 `[B, 2]` of pictures that fill their images `[B, h, w, C]`."""
    return jnp.broadcast_to(jnp.asarray(images.shape[1:3]), (images.shape[0], 2))
