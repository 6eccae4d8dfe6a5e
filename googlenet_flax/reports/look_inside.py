"""Views into a trained network: its first filters, its maps of a picture, and Grad-CAM."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from googlenet_flax.analysis.endpoints import Score, maps_and_vjp, score_gradients
from googlenet_flax.data.image_set import Batch
from googlenet_flax.model.googlenet import AUX_TAPS, GoogLeNet
from googlenet_flax.preprocessing.preprocess import Preprocess
from googlenet_flax.reports.answers import CLASSIFIERS
from googlenet_flax.reports.style import VERMILLION, name_label, pictures_figure
from googlenet_flax.runtime.environment import on_the_cpu

STRONGEST_CHANNELS = 5
EARLIER_BLOCK = "inception_4e"  # Its maps have twice the resolution of the last block's.
MAX_OPACITY = 0.8  # Opacity of the color over the strongest evidence.


class Evidence(NamedTuple):
    """Grad-CAM map of a classifier for its predicted class."""

    classifier: str
    block: str
    predicted: int
    heat: np.ndarray  # float64 [h, w], 0 to 1.


class View(NamedTuple):
    """Outputs and intermediate results of a network for one picture."""

    name: str  # Description of the picture, in words.
    picture: np.ndarray  # Cut and resized as for the network, uint8 [H, W, 3], RGB.
    log_probabilities: Mapping[str, np.ndarray]  # float32 [K], for each classifier.
    maps: Mapping[str, np.ndarray]  # float32 [h, w, C] for each inception block.
    evidence: Sequence[Evidence]


def look_inside(
    model: GoogLeNet,
    preprocess: Preprocess,
    variables: Mapping[str, Any],
    name: str,
    batch: Batch,
) -> View:
    """Runs a network on a picture, the only one of `batch`, for its maps and Grad-CAM."""
    inceptions = list(model.inceptions)
    targets = [(AUX_TAPS[b], b) for b in inceptions if b in AUX_TAPS and model.aux_heads]
    targets += [("main", b) for b in (EARLIER_BLOCK, inceptions[-1]) if b in inceptions]

    @jax.jit
    def run(variables: Any, pixels: jax.Array) -> Any:
        images = preprocess.normalize(pixels)
        maps, output, vjp = maps_and_vjp(model, variables, images, tuple(inceptions))
        gradients = [
            score_gradients(_top_score(name), output, vjp)[block] for name, block in targets
        ]
        scores = jax.tree.map(jax.nn.log_softmax, output.by_classifier())
        return jax.tree.map(
            lambda values: values[0].astype(jnp.float32), (scores, maps, gradients)
        )

    results = run(variables, preprocess.cut(batch["image"], batch.get("extent")))
    scores, maps, gradients = jax.device_get(results)
    return View(
        name=name,
        picture=shown_pixels(preprocess, batch)[0],
        log_probabilities={name: scores[name] for name in CLASSIFIERS if name in scores},
        maps={name: maps[name] for name in inceptions},
        evidence=[
            Evidence(name, block, int(scores[name].argmax()), grad_cam(maps[block], each))
            for (name, block), each in zip(targets, gradients, strict=True)
        ],
    )


def _top_score(classifier: str) -> Score:
    """Returns the score of Grad-CAM: the largest logit, that of the predicted class."""
    return lambda output: output.by_classifier()[classifier].max(axis=-1)


def shown_pixels(preprocess: Preprocess, batch: Batch) -> np.ndarray:
    """Cuts and resizes pictures as for the network, uint8 `[B, H, W, 3]`, RGB."""
    with on_the_cpu():  # Otherwise some forty small programs are compiled for a GPU.
        pixels = np.asarray(preprocess.cut(batch["image"], batch.get("extent")))
    return shown_channels(pixels).round().clip(0, 255).astype(np.uint8)


def shown_channels(images: np.ndarray) -> np.ndarray:
    """Returns the first three channels of `[..., C]`, or the first one three times."""
    channels = [0, 1, 2] if images.shape[-1] >= 3 else [0, 0, 0]
    return images[..., channels]


def grad_cam(maps: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Computes Grad-CAM: the positive part of the maps weighted by their mean gradients.

    The source is Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2. The maps of a block
    and the gradient of the score with respect to them are `[h, w, C]`. The result, float64
    `[h, w]`, is divided by its largest value; it is 0 if no weighted sum is positive.
    """
    weights = np.asarray(gradient, np.float64).mean(axis=(0, 1))
    heat = np.maximum(np.asarray(maps, np.float64) @ weights, 0)
    return heat / heat.max() if heat.max() > 0 else heat


def strongest_channels(maps: np.ndarray, top: int) -> np.ndarray:
    """Returns the channels of maps `[h, w, C]` with the largest means, int `[<= top]`."""
    return np.argsort(-maps.mean(axis=(0, 1)), kind="stable")[:top]


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Colors a gray copy of a picture, uint8 `[H, W, 3]`, by a heat map.

    The map, float `[h, w]` from 0 to 1, is resized bilinearly to the size of the picture.
    """
    gray = PIL.Image.fromarray(picture).convert("L").convert("RGB")
    opacity = PIL.Image.fromarray((255 * MAX_OPACITY * heat).astype(np.float32))
    opacity = opacity.resize(gray.size, PIL.Image.Resampling.BILINEAR).convert("L")
    color = PIL.Image.new("RGB", gray.size, VERMILLION)
    return np.asarray(PIL.Image.composite(color, gray, opacity))


def filter_pictures(kernel: np.ndarray, channel_order: str) -> np.ndarray:
    """Scales the filters of conv1, `[h, w, C, N]`, to pictures.

    `channel_order` is that of the network's input. The pictures are float `[N, h, w, 3]`,
    0 to 1; a weight of 0 is gray.
    """
    filters = shown_channels(np.moveaxis(np.asarray(kernel, np.float64), -1, 0))
    if channel_order == "BGR":
        filters = filters[..., ::-1]
    largest = np.abs(filters).max()
    return 0.5 + filters / (2 * largest) if largest > 0 else np.full(filters.shape, 0.5)


def maps_figure(view: View) -> bytes:
    """Draws the mean over channels and the strongest channels of each block."""
    channels = min(STRONGEST_CHANNELS, *(maps.shape[-1] for maps in view.maps.values()))
    pictures = []
    for name, maps in view.maps.items():
        pictures.append((maps.mean(axis=2), name.removeprefix("inception_") + ": mean"))
        for channel in strongest_channels(maps, channels):
            pictures.append((maps[..., channel], f"channel {channel}"))
    return pictures_figure(pictures, 1 + channels, title_height_inches=0.24)


def evidence_figure(view: View, class_names: Sequence[str]) -> bytes:
    """Draws the picture, and the Grad-CAM map of each classifier over it."""
    pictures = [(view.picture, "the picture\nat the size of the input")]
    for classifier, block, predicted, heat in view.evidence:
        probability = np.exp(view.log_probabilities[classifier][predicted])
        label = f"{name_label(class_names[predicted])}, {probability:.1%}"
        title = f"{classifier} at {block}\n{label}"
        pictures.append((overlay(view.picture, heat), title))
    return pictures_figure(pictures, 3, title_height_inches=0.45, interpolation="auto")
