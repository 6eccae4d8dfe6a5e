"""What a trained network sees: its first filters, its maps of a picture, and Grad-CAM."""

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
EARLIER_BLOCK = "inception_4e"  # Its maps are twice as fine as those of the last block.
STRONGEST_OPACITY = 0.8  # Of the colour of the strongest evidence on a picture.


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Where in the picture a classifier sees its predicted class (Grad-CAM)."""

    classifier: str
    block: str
    predicted: int
    heat: np.ndarray  # float64 [h, w], 0 to 1


@dataclasses.dataclass(frozen=True)
class View:
    """What a network makes of one picture."""

    picture: np.ndarray  # uint8 [H, W, 3], RGB, as the network is shown it
    probabilities: Mapping[str, np.ndarray]  # Of each classifier, float64 [K].
    maps: Mapping[str, np.ndarray]  # Of each inception block, float32 [h, w, C].
    evidence: Sequence[Evidence]


def look_inside(
    model: GoogLeNet,
    preprocess: Preprocess,
    variables: Mapping[str, Any],
    image: np.ndarray,
    extent: tuple[int, int] | None = None,
) -> View:
    """Runs a network on one picture and looks at all it computes.

    Args:
      model: Of any variant.
      preprocess: Of its training.
      variables: Its parameters and, with batch norm, statistics.
      image: uint8 `[h, w, 1 or 3]`, RGB.
      extent: Height and width of the picture in it; default: it fills the image.
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
    """What the network is shown of pictures, before it is scaled: uint8 `[B, H, W, 3]`.

    Arguments as in `Preprocess`.
    """
    pixels = preprocess.cut(jnp.asarray(images), extents)
    return np.asarray(pixels).round().clip(0, 255).astype(np.uint8)


def _targets(model: GoogLeNet) -> list[tuple[str, str]]:
    """Classifiers, and the blocks to ask where each sees its class."""
    blocks = list(model.inceptions)
    heads = [(AUX_TAPS[b], b) for b in blocks if b in AUX_TAPS and model.aux_heads]
    earlier = [("main", EARLIER_BLOCK)] if EARLIER_BLOCK in blocks[:-1] else []
    return [*heads, *earlier, ("main", blocks[-1])]


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(np.float64(logits) - np.max(logits))
    return powers / powers.sum()


def grad_cam(maps: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Where maps speak for a score: each weighed by its mean gradient, and their sum.

    Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2; then divided by the largest.

    Args:
      maps: `[h, w, C]`.
      gradient: Of the score, `[h, w, C]`.

    Returns:
      float64 `[h, w]`, 0 to 1; all 0 where nothing speaks for it.
    """
    weights = np.asarray(gradient, np.float64).mean(axis=(0, 1))
    heat = np.maximum(np.asarray(maps, np.float64) @ weights, 0)
    return heat / heat.max() if heat.max() > 0 else heat


def strongest_channels(maps: np.ndarray, top: int = STRONGEST_CHANNELS) -> np.ndarray:
    """Channels of `[h, w, C]` with the largest mean, strongest first, int `[<= top]`."""
    return np.argsort(-maps.mean(axis=(0, 1)), kind="stable")[:top]


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lays heat on a picture in grey: uint8 `[H, W, 3]`.

    Args:
      picture: uint8 `[H, W, 3]`, RGB.
      heat: float `[h, w]`, 0 to 1; made as large as the picture, bilinearly.
    """
    height, width, _ = picture.shape
    small = PIL.Image.fromarray(heat.astype(np.float32))
    large = np.asarray(small.resize((width, height), PIL.Image.Resampling.BILINEAR))
    grey = np.asarray(PIL.Image.fromarray(picture).convert("L"), np.float64)
    opacity = STRONGEST_OPACITY * np.clip(large, 0, 1)[..., np.newaxis]
    colour = 255 * np.array(to_rgb(VERMILLION))
    mixed = (1 - opacity) * grey[..., np.newaxis] + opacity * colour
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def filter_pictures(kernel: np.ndarray, channel_order: str) -> np.ndarray:
    """The filters of conv1 as pictures: float `[N, h, w, 3]`, 0 to 1, grey for a weight 0.

    Args:
      kernel: `[h, w, 3, N]`.
      channel_order: Of the network's input.
    """
    filters = np.moveaxis(np.asarray(kernel, np.float64), -1, 0)
    if channel_order == "BGR":
        filters = filters[..., ::-1]
    largest = np.abs(filters).max()
    return 0.5 + filters / (2 * largest) if largest > 0 else np.full(filters.shape, 0.5)


@styled
def filters_figure(kernel: np.ndarray, channel_order: str) -> Figure:
    """The filters of conv1; arguments as in `filter_pictures`."""
    filters = filter_pictures(kernel, channel_order)
    rows = -(-len(filters) // FILTER_COLUMNS)
    figure, axes = pictures_grid(rows, FILTER_COLUMNS, title_height=0)
    for ax, pixels in zip(axes.flat, filters, strict=False):
        ax.imshow(pixels, interpolation="nearest")
    return figure


@styled
def maps_figure(view: View) -> Figure:
    """For each block the mean over channels, and its strongest channels."""
    columns = 1 + STRONGEST_CHANNELS
    figure, axes = pictures_grid(len(view.maps), columns, title_height=0.24)
    for row, (name, maps) in zip(axes, view.maps.items(), strict=True):
        row[0].imshow(maps.mean(axis=2), interpolation="nearest")
        row[0].set_title(name.removeprefix("inception_") + ": mean", fontsize=9)
        for ax, channel in zip(row[1:], strongest_channels(maps), strict=False):
            ax.imshow(maps[..., channel], interpolation="nearest")
            ax.set_title(f"channel {channel}", fontsize=9)
    return figure


@styled
def evidence_figure(view: View, class_names: Sequence[str]) -> Figure:
    """The picture, and on it where each classifier sees its predicted class."""
    columns = 3
    rows = -(-(1 + len(view.evidence)) // columns)
    figure, axes = pictures_grid(rows, columns, title_height=0.45)
    axes.flat[0].imshow(view.picture)
    axes.flat[0].set_title("the picture\nas the network is shown it", fontsize=9)
    for ax, one in zip(axes.flat[1:], view.evidence, strict=False):
        ax.imshow(overlay(view.picture, one.heat))
        probability = view.probabilities[one.classifier][one.predicted]
        said = f"{name_label(class_names[one.predicted])}, {probability:.1%}"
        ax.set_title(f"{one.classifier} at {one.block}\n{said}", fontsize=9)
    return figure
