"""Pictures that a part of the network answers strongly: gradient ascent over octaves.

After Mordvintsev, Olah and Tyka 2015, "Inceptionism: going deeper into neural networks",
whose network was GoogLeNet. A picture is changed along the gradient of what a part of the
network answers, at a small size first; what was drawn there is enlarged and drawn on.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from googlenet_flax.analysis.endpoints import activations
from googlenet_flax.model.googlenet import AUX_TAPS, MIN_IMAGE_SIZE, GoogLeNet
from googlenet_flax.preprocessing.preprocess import Preprocess

OCTAVE_SCALE = 1.4  # Between the sides of one octave and the next, as in the original.
WHITE = 255.0
GREY = 128.0
NOISE = 2.0  # Standard deviation around grey, in pixel values; more of it stays visible.

# As `create_ascent` says.
Ascent = Callable[..., tuple[jax.Array, jax.Array]]


@flax.struct.dataclass
class Objective:
    """What is to rise.

    Without a channel the mean square of the whole layer, which strengthens whatever it
    sees already; with one its mean, or the logit of one class.
    """

    layer: str = flax.struct.field(pytree_node=False)  # Among `endpoints.ENDPOINTS`.
    channel: int | None = None  # No constant of the program: all share one compilation.

    def __call__(self, activation: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]`, or logits `[B, C]`, to a float32 scalar."""
        x = activation.astype(jnp.float32)
        return jnp.mean(jnp.square(x) if self.channel is None else x[..., self.channel])


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to climb."""

    octaves: int  # At most; those below `MIN_IMAGE_SIZE` are left out.
    steps: int  # In each octave.
    rate: float  # Mean change of a step, in pixel values.
    jitter: int  # Pixels by which each step shifts the picture at most.
    smoothness: float  # Steps are divided by spatial frequency to this power.


class Octave(NamedTuple):
    """The objective for the first picture at one size, and for the one drawn there."""

    height: int
    width: int
    before: float
    after: float


def dream(
    model: GoogLeNet,
    variables: Mapping[str, Any],
    preprocess: Preprocess,
    image: jax.Array,
    objective: Objective,
    *,
    settings: Settings,
    rng: jax.Array,
) -> tuple[jax.Array, list[Octave]]:
    """Changes a picture so that the objective rises.

    Args:
      model: Of any variant.
      variables: Its parameters and, with batch norm, statistics.
      preprocess: Its scaling is applied; nothing is cut or resized.
      image: RGB `[H, W, 3]`, 0 to 255; `H` and `W` at least `MIN_IMAGE_SIZE`.
      objective: What is to rise.
      settings: How.
      rng: Of the jitter, a function of it, the octave and the step.

    Returns:
      The picture, float32 `[H, W, 3]`, 0 to 255, and its octaves from small to large.
    """
    ascent = create_ascent(model, preprocess, settings.smoothness)
    image = jnp.asarray(image, jnp.float32)
    pixels = detail = jnp.zeros_like(image)
    stay = jnp.zeros(2, jnp.int32)
    octaves = []
    sizes = octave_sizes(image.shape[0], image.shape[1], settings.octaves)
    for number, size in enumerate(sizes):
        base = _resize(image, size)
        pixels = base + _resize(detail, size)
        before, _ = ascent(objective, variables, base, stay)
        octave_rng = jax.random.fold_in(rng, number)
        for shift in _draw_shifts(octave_rng, settings.steps, settings.jitter):
            _, direction = ascent(objective, variables, pixels, shift)
            pixels = jnp.clip(pixels + settings.rate * direction, 0, WHITE)
        after, _ = ascent(objective, variables, pixels, stay)
        detail = pixels - base
        octaves.append(Octave(*size, float(before), float(after)))
    return pixels, octaves


def create_ascent(model: GoogLeNet, preprocess: Preprocess, smoothness: float) -> Ascent:
    """A jitted function of objective, variables, pixels `[H, W, 3]` and shift, int `[2]`.

    It shifts the picture, around its edges, and returns the objective and the direction
    `[H, W, 3]` in which it rises: smoothed, of mean absolute value 1, shifted back.
    """

    def score(
        pixels: jax.Array, objective: Objective, variables: Any, shift: jax.Array
    ) -> jax.Array:
        # Only the heads tie `seed` and `paper` to one size.
        part = model.clone(aux_heads=objective.layer in AUX_TAPS.values())
        images = preprocess.normalize(jnp.roll(pixels, shift, axis=(0, 1))[None])
        found = activations(part, variables, images, [objective.layer])
        return objective(found[objective.layer])

    @jax.jit
    def ascent(
        objective: Objective, variables: Any, pixels: jax.Array, shift: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        value, gradient = jax.value_and_grad(score)(pixels, objective, variables, shift)
        smooth = _smooth(gradient, smoothness)
        tiny = jnp.finfo(smooth.dtype).tiny  # What does not answer has no gradient.
        return value, smooth / jnp.maximum(jnp.mean(jnp.abs(smooth)), tiny)

    return ascent


def octave_sizes(height: int, width: int, octaves: int) -> list[tuple[int, int]]:
    """Heights and widths from small to large, none below `MIN_IMAGE_SIZE`."""
    sizes: list[tuple[int, int]] = []
    for number in range(octaves):
        scale = OCTAVE_SCALE**-number
        size = round(height * scale), round(width * scale)
        if min(size) < MIN_IMAGE_SIZE:
            break
        sizes.insert(0, size)
    return sizes


def grey_noise(rng: jax.Array, height: int, width: int) -> jax.Array:
    """A picture of nothing to begin with, float32 `[H, W, 3]`."""
    return GREY + NOISE * jax.random.normal(rng, (height, width, 3))


def _draw_shifts(rng: jax.Array, steps: int, jitter: int) -> jax.Array:
    """Pixels down and right for each step, int32 `[steps, 2]`."""
    return jax.random.randint(rng, (steps, 2), -jitter, jitter + 1)


def _resize(pixels: jax.Array, size: tuple[int, int]) -> jax.Array:
    return jax.image.resize(pixels, (*size, 3), "bilinear")


def _smooth(gradient: jax.Array, power: float) -> jax.Array:
    """Divides the spectrum of `[H, W, 3]` by spatial frequency to some power.

    A network answers to noise in which people see nothing. This is to climb in a space
    where coarse parts move easily, as in Olah et al. 2017, "Feature visualization".
    """
    if not power:
        return gradient
    height, width = gradient.shape[:2]
    rows, columns = jnp.fft.fftfreq(height), jnp.fft.rfftfreq(width)
    lowest = 1 / max(height, width)  # Of all that is not constant; the mean counts as it.
    frequencies = jnp.maximum(jnp.hypot(rows[:, None], columns), lowest)
    spectrum = jnp.fft.rfft2(gradient, axes=(0, 1)) * frequencies[..., None] ** -power
    return jnp.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))
