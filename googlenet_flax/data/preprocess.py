"""From stored uint8 images to the network's input, on the device, inside the step."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

ChannelOrder = Literal["RGB", "BGR"]


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """What turns stored pixels into what the network was trained on.

    It travels with the checkpoint, so that evaluation and prediction repeat it exactly:
    resize, order the channels, then `(x * input_scale - input_mean) / input_std` with one
    mean and std per channel, in `channel_order`.
    """

    image_size: int  # Side of the network's input in pixels.
    input_scale: float
    input_mean: tuple[float, float, float]
    input_std: tuple[float, float, float]
    channel_order: ChannelOrder

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps uint8 `[B, h, w, 1 or 3]` in RGB to float32 `[B, H, W, 3]`.

        Bilinear with half-pixel centres; antialiased where it shrinks. The aspect ratio is
        not kept: both sides become `image_size`. Grey images get three equal channels.
        """
        batch, _, _, channels = images.shape
        size = (batch, self.image_size, self.image_size, channels)
        x = jax.image.resize(images.astype(jnp.float32), size, "bilinear")
        x = jnp.broadcast_to(x, (*size[:3], 3))
        if self.channel_order == "BGR":
            x = x[..., ::-1]
        mean, std = jnp.asarray(self.input_mean), jnp.asarray(self.input_std)
        return (x * self.input_scale - mean) / std


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random crop of the zero-padded image and random mirroring, at the stored size."""

    crop_padding_pixels: int  # Added on each side before cropping; 0 does not crop.
    flip: bool

    def __call__(self, images: jax.Array, rngs: jax.Array) -> jax.Array:
        """Maps uint8 `[B, h, w, C]` to the same shape; image `i` uses only `rngs[i]`."""
        return jax.vmap(self._augment_one)(images, rngs)

    def _augment_one(self, image: jax.Array, rng: jax.Array) -> jax.Array:
        crop_rng, flip_rng = jax.random.split(rng)
        if self.crop_padding_pixels:
            pad = self.crop_padding_pixels
            padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            row, column = jax.random.randint(crop_rng, (2,), 0, 2 * pad + 1)
            image = jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)
        if self.flip:
            mirror = jax.random.bernoulli(flip_rng)
            image = jnp.where(mirror, image[:, ::-1], image)
        return image
