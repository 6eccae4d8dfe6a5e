"""Gradient ascent on pixels over octaves, to find what a part of the network responds to.

The method is that of Mordvintsev, Olah and Tyka 2015, "Inceptionism: going deeper into
neural networks". A picture is changed along the gradient of an activation, first at a small
size. The change is enlarged and continued at the next size.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from googlenet_flax.analysis.endpoints import activations
from googlenet_flax.model.googlenet import HEADS, GoogLeNet
from googlenet_flax.preprocessing.preprocess import Preprocess

OCTAVE_SCALE = 1.4  # Ratio of the sides of one octave and the next, as in the original.
MIN_SIDE = 80  # Side of the smallest drawing in pixels, which every variant takes.
WHITE = 255.0
GRAY = 128.0
NOISE = 2.0  # Standard deviation in pixel values; a larger one stays visible.


@flax.struct.dataclass
class Objective:
    """The value to increase.

    Without a channel it is the mean square of the layer, which strengthens what the layer
    already detects. With a channel it is the mean of that channel, or the logit of a class.
    """

    layer: str = flax.struct.field(pytree_node=False)  # One of `endpoints.ENDPOINTS`.
    channel: int | None = None  # A pytree leaf, so that all channels share a compilation.

    def __call__(self, activation: jax.Array) -> jax.Array:
        """Maps an activation `[B, H, W, C]`, or logits `[B, C]`, to a float32 scalar."""
        x = activation.astype(jnp.float32)
        return jnp.mean(jnp.square(x) if self.channel is None else x[..., self.channel])


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the gradient ascent."""

    octaves: int  # Largest number of octaves; those below `MIN_SIDE` are left out.
    steps: int  # Number of steps in each octave.
    rate: float  # Mean absolute change per step, in pixel values.
    jitter: int  # Largest shift of the picture in a step, in pixels.
    smoothness: float  # The spectrum of the gradient is divided by frequency**smoothness.


def dream(
    model: GoogLeNet,
    variables: Mapping[str, Any],
    preprocess: Preprocess,
    image: jax.Array,
    objective: Objective,
    *,
    settings: Settings,
    rng: jax.Array,
) -> tuple[jax.Array, float, float]:
    """Changes a picture so that the objective rises.

    The network may be of any variant. Only the scaling of `preprocess` is applied: the
    picture, `[H, W, C]`, 0 to 255, is neither cut nor resized. Its sides must be at
    least `MIN_SIDE`. The jitter of each octave and step is drawn from `rng`.

    Returns:
      The picture, float32 `[H, W, C]`, 0 to 255, and the objective before and after.

    Raises:
      ValueError: A side is smaller than `MIN_SIDE`.
    """
    ascent = create_ascent(model, preprocess, settings.smoothness)
    image = jnp.asarray(image, jnp.float32)
    pixels = detail = jnp.zeros_like(image)
    height, width, channels = image.shape
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"image is {width}x{height} px but needs {MIN_SIDE} px a side")
    for number, size in enumerate(octave_sizes(height, width, settings.octaves)):
        base, detail = (
            jax.image.resize(x, (*size, channels), "bilinear") for x in (image, detail)
        )
        pixels = base + detail
        octave_rng = jax.random.fold_in(rng, number)
        lowest, highest = -settings.jitter, settings.jitter + 1
        for shift in jax.random.randint(octave_rng, (settings.steps, 2), lowest, highest):
            _, direction = ascent(objective, variables, pixels, shift)
            pixels = jnp.clip(pixels + settings.rate * direction, 0, WHITE)
        detail = pixels - base
    stay = jnp.zeros(2, jnp.int32)
    before, _ = ascent(objective, variables, image, stay)
    after, _ = ascent(objective, variables, pixels, stay)
    return pixels, float(before), float(after)


def create_ascent(
    model: GoogLeNet, preprocess: Preprocess, smoothness: float
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Creates a jitted function that computes the objective and the direction of ascent.

    The function takes the objective, the variables, pixels `[H, W, C]` and a shift, int
    `[2]`. The objective is computed for the picture rolled by the shift. The direction
    `[H, W, C]` fits the picture before the roll. It is smoothed and has the mean absolute
    value 1.
    """

    @jax.jit
    def ascent(
        objective: Objective, variables: Any, pixels: jax.Array, shift: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        # Other layers need no heads, and those of `seed` and `paper` take only one size.
        part = model.clone(aux_heads=objective.layer in HEADS)

        def score(pixels: jax.Array) -> jax.Array:
            images = preprocess.normalize(jnp.roll(pixels, shift, axis=(0, 1))[None])
            found = activations(part, variables, images, [objective.layer])
            return objective(found[objective.layer])

        value, gradient = jax.value_and_grad(score)(pixels)
        smooth = _smooth(gradient, smoothness)
        tiny = jnp.finfo(smooth.dtype).tiny  # Avoids 0 / 0 where the gradient is 0.
        return value, smooth / jnp.maximum(jnp.mean(jnp.abs(smooth)), tiny)

    return ascent


def octave_sizes(height: int, width: int, octaves: int) -> list[tuple[int, int]]:
    """Computes heights and widths from small to large, none below `MIN_SIDE`."""
    scales = [OCTAVE_SCALE**-number for number in reversed(range(octaves))]
    sizes = [(round(height * scale), round(width * scale)) for scale in scales]
    return [size for size in sizes if min(size) >= MIN_SIDE]


def gray_noise(rng: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Draws a picture of noise around gray, float32 of a shape `(H, W, C)`."""
    return GRAY + NOISE * jax.random.normal(rng, shape)


def _smooth(gradient: jax.Array, power: float) -> jax.Array:
    """Divides the spectrum of a gradient `[H, W, C]` by a power of the spatial frequency.

    Without this the picture fills with high-frequency noise. The division favors coarse
    structure, as in Olah et al. 2017, "Feature visualization".
    """
    if not power:
        return gradient
    height, width = gradient.shape[:2]
    rows, columns = jnp.fft.fftfreq(height), jnp.fft.rfftfreq(width)
    lowest = 1 / max(height, width)  # Also stands for the frequency 0 of the mean.
    frequencies = jnp.maximum(jnp.hypot(rows[:, None], columns), lowest)
    spectrum = jnp.fft.rfft2(gradient, axes=(0, 1)) * frequencies[..., None] ** -power
    return jnp.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))
