"""Views into a trained network: its first filters, its maps of a picture, and Grad-CAM."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from googlenet_flax.analysis.endpoints import activation_and_gradient, activations
from googlenet_flax.model.googlenet import AUX_TAPS, GoogLeNet, GoogLeNetOutput
from googlenet_flax.preprocessing.preprocess import Preprocess
from googlenet_flax.reports.answers import in_order
from googlenet_flax.reports.style import (
    VERMILLION,
    name_label,
    pictures_grid,
    styled,
)
from googlenet_flax.training.losses import outputs_by_name

FILTER_COLUMNS = 8
STRONGEST_CHANNELS = 5
EARLIER_BLOCK = "inception_4e"  # Its maps have twice the resolution of the last block's.
MAX_OPACITY = 0.8  # Opacity of the color over the strongest evidence.


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Grad-CAM map of a classifier for its predicted class."""

    classifier: str
    block: str
    predicted: int
    heat: np.ndarray  # float64 [h, w], 0 to 1.


@dataclasses.dataclass(frozen=True)
class View:
    """Outputs and intermediate results of a network for one picture."""

    picture: np.ndarray  # Cut and resized as for the network, uint8 [H, W, 3], RGB.
    probabilities: Mapping[str, np.ndarray]  # float64 [K] for each classifier.
    maps: Mapping[str, np.ndarray]  # float32 [h, w, C] for each inception block.
    evidence: Sequence[Evidence]


def look_inside(
    model: GoogLeNet,
    preprocess: Preprocess,
    variables: Mapping[str, Any],
    image: np.ndarray,
    extent: tuple[int, int] | None = None,
) -> View:
    """Runs a network on one picture and collects its maps and Grad-CAM.

    Args:
      model: A network of any variant.
      preprocess: Preprocessing of its training.
      variables: Its parameters and, with batch norm, statistics.
      image: uint8 `[h, w, 1 or 3]`, RGB.
      extent: Height and width of the picture in the image; by default it fills the image.
    """
    extents = None if extent is None else jnp.asarray([extent])
    pixels = preprocess.cut(jnp.asarray(image)[np.newaxis], extents)
    targets = _targets(model)

    @jax.jit
    def run(variables: Any, pixels: jax.Array) -> Any:
        images = preprocess.normalize(pixels)
        output: Any = model.apply(variables, images, train=False)
        maps = activations(model, variables, images, list(model.inceptions))
        gradients = {}
        for classifier, block in targets:

            def score(output: GoogLeNetOutput, classifier: str = classifier) -> jax.Array:
                # The largest logit is that of the predicted class.
                return outputs_by_name(output)[classifier].max(axis=-1)

            _, gradient = activation_and_gradient(model, variables, images, block, score)
            gradients[classifier, block] = gradient[0]
        logits = {name: value[0] for name, value in outputs_by_name(output).items()}
        return logits, {name: value[0] for name, value in maps.items()}, gradients

    logits, maps, gradients = jax.device_get(run(variables, pixels))
    return View(
        picture=shown_pixels(preprocess, image[np.newaxis], extents)[0],
        probabilities={name: _softmax(logits[name]) for name in in_order(logits)},
        maps={name: np.asarray(maps[name], np.float32) for name in model.inceptions},
        evidence=[
            Evidence(
                classifier,
                block,
                int(np.argmax(logits[classifier])),
                grad_cam(maps[block], gradients[classifier, block]),
            )
            for classifier, block in targets
        ],
    )


def shown_pixels(preprocess: Preprocess, images: Any, extents: Any = None) -> np.ndarray:
    """Cuts and resizes pictures as for the network, without scaling their values.

    Args:
      preprocess: Preprocessing of the network.
      images: uint8 `[B, h, w, 1 or 3]`.
      extents: Height and width of each picture, int `[B, 2]`; None if they fill the images.

    Returns:
      The pictures, uint8 `[B, H, W, 3]`.
    """
    pixels = preprocess.cut(jnp.asarray(images), extents)
    return np.asarray(pixels).round().clip(0, 255).astype(np.uint8)


def _targets(model: GoogLeNet) -> list[tuple[str, str]]:
    """Lists pairs of a classifier and a block for Grad-CAM."""
    blocks = list(model.inceptions)
    heads = [(AUX_TAPS[b], b) for b in blocks if b in AUX_TAPS and model.aux_heads]
    earlier = [("main", EARLIER_BLOCK)] if EARLIER_BLOCK in blocks[:-1] else []
    return [*heads, *earlier, ("main", blocks[-1])]


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(np.float64(logits) - np.max(logits))
    return powers / powers.sum()


def grad_cam(maps: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Computes Grad-CAM: the positive part of the maps weighted by their mean gradients.

    The source is Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2. The result is
    divided by its largest value.

    Args:
      maps: Activation of a block, `[h, w, C]`.
      gradient: Gradient of the score with respect to the maps, `[h, w, C]`.

    Returns:
      float64 `[h, w]`, 0 to 1; all 0 if no weighted sum is positive.
    """
    weights = np.asarray(gradient, np.float64).mean(axis=(0, 1))
    heat = np.maximum(np.asarray(maps, np.float64) @ weights, 0)
    return heat / heat.max() if heat.max() > 0 else heat


def strongest_channels(maps: np.ndarray, top: int = STRONGEST_CHANNELS) -> np.ndarray:
    """Returns the channels of maps `[h, w, C]` with the largest means, int `[<= top]`."""
    return np.argsort(-maps.mean(axis=(0, 1)), kind="stable")[:top]


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Colors a gray copy of a picture by a heat map.

    Args:
      picture: uint8 `[H, W, 3]`, RGB.
      heat: float `[h, w]`, 0 to 1; it is resized bilinearly to the size of the picture.

    Returns:
      The colored picture, uint8 `[H, W, 3]`.
    """
    height, width, _ = picture.shape
    small = PIL.Image.fromarray(heat.astype(np.float32))
    large = np.asarray(small.resize((width, height), PIL.Image.Resampling.BILINEAR))
    gray = np.asarray(PIL.Image.fromarray(picture).convert("L"), np.float64)
    opacity = MAX_OPACITY * np.clip(large, 0, 1)[..., np.newaxis]
    color = 255 * np.array(to_rgb(VERMILLION))
    mixed = (1 - opacity) * gray[..., np.newaxis] + opacity * color
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def filter_pictures(kernel: np.ndarray, channel_order: str) -> np.ndarray:
    """Scales the filters of conv1 to pictures.

    Args:
      kernel: Kernel of conv1, `[h, w, 3, N]`.
      channel_order: Order of the channels of the network's input, "RGB" or "BGR".

    Returns:
      The pictures, float `[N, h, w, 3]`, 0 to 1; a weight of 0 is gray.
    """
    filters = np.moveaxis(np.asarray(kernel, np.float64), -1, 0)
    if channel_order == "BGR":
        filters = filters[..., ::-1]
    largest = np.abs(filters).max()
    return 0.5 + filters / (2 * largest) if largest > 0 else np.full(filters.shape, 0.5)


@styled
def filters_figure(kernel: np.ndarray, channel_order: str) -> Figure:
    """Draws the filters of conv1; the arguments are those of `filter_pictures`."""
    filters = filter_pictures(kernel, channel_order)
    rows = -(-len(filters) // FILTER_COLUMNS)
    figure, axes = pictures_grid(rows, FILTER_COLUMNS, title_height_inches=0)
    for ax, pixels in zip(axes.flat, filters, strict=False):
        ax.imshow(pixels, interpolation="nearest")
    return figure


@styled
def maps_figure(view: View) -> Figure:
    """Draws the mean over channels and the strongest channels of each block."""
    columns = 1 + STRONGEST_CHANNELS
    figure, axes = pictures_grid(len(view.maps), columns, title_height_inches=0.24)
    for row, (name, maps) in zip(axes, view.maps.items(), strict=True):
        row[0].imshow(maps.mean(axis=2), interpolation="nearest")
        row[0].set_title(name.removeprefix("inception_") + ": mean", fontsize=9)
        for ax, channel in zip(row[1:], strongest_channels(maps), strict=False):
            ax.imshow(maps[..., channel], interpolation="nearest")
            ax.set_title(f"channel {channel}", fontsize=9)
    return figure


@styled
def evidence_figure(view: View, class_names: Sequence[str]) -> Figure:
    """Draws the picture, and the Grad-CAM map of each classifier over it."""
    columns = 3
    rows = -(-(1 + len(view.evidence)) // columns)
    figure, axes = pictures_grid(rows, columns, title_height_inches=0.45)
    axes.flat[0].imshow(view.picture)
    axes.flat[0].set_title("the picture\nat the size of the input", fontsize=9)
    for ax, one in zip(axes.flat[1:], view.evidence, strict=False):
        ax.imshow(overlay(view.picture, one.heat))
        probability = view.probabilities[one.classifier][one.predicted]
        predicted = f"{name_label(class_names[one.predicted])}, {probability:.1%}"
        ax.set_title(f"{one.classifier} at {one.block}\n{predicted}", fontsize=9)
    return figure
