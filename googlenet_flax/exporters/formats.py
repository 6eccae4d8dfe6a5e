"""Export of a network to a file, and comparison of the file with the network."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_flax.exporters import onnx, safetensors, stablehlo
from googlenet_flax.exporters.network import Network, describe
from googlenet_flax.model.convolution import STOCK
from googlenet_flax.preprocessing.preprocess import Preprocess
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.runtime.files import OUT_HINT, replace_file

FORMATS = ("stablehlo", "onnx", "safetensors")
TOLERANCE = 1e-4  # Largest difference of logits, relative to the largest logit.
SMALLEST = np.finfo(np.float32).tiny  # Avoids division by 0.
BLOCKS = 8  # Number of color blocks along each side of a test image.


@dataclasses.dataclass(frozen=True)
class Exported:
    """Contents of the exported file, before it is written."""

    data: bytes
    metadata: Mapping[str, Any]
    verified: str  # Result of the comparison, or the reason why there is none.


def export(
    predictor: Predictor, format_name: str, *, aux_heads: bool, accuracy: str = ""
) -> Exported:
    """Exports a network in float32 in one of `FORMATS`, and compares the file with it.

    With `aux_heads`, the logits of the heads are outputs too. `accuracy` is a text about
    the network's accuracy, for the metadata; it is "" if unknown. Without the package
    onnxruntime, an ONNX file is not compared.

    Raises:
      UserError: A package is missing, or the file gives other logits than the network.
    """
    description = predictor.description
    model = description.create_model().clone(
        dtype=jnp.dtype(jnp.float32), aux_heads=aux_heads
    )
    network = Network(model, jax.device_get(predictor.variables), description.preprocess)
    portable = dataclasses.replace(network, model=model.clone(arithmetic=STOCK))
    metadata = describe(
        description, predictor.checkpoint_step, done_inside=format_name != "safetensors"
    )
    if accuracy:
        metadata["accuracy"] = accuracy
    if format_name == "safetensors":
        data = safetensors.write(portable, metadata)
        return Exported(data, metadata, _compare_leaves(data, network))
    if format_name == "stablehlo":
        metadata["jax_version"] = jax.__version__  # Its age decides who can read the file.
        data, run = stablehlo.write(portable), stablehlo.run
    else:
        data, run = onnx.write(portable, metadata), onnx.run
    images = _draw_images(description.preprocess)
    try:
        outputs = run(data, images)
    except ImportError:
        note = "not verified: onnxruntime is missing (pip install onnxruntime)"
        return Exported(data, metadata, note)
    return Exported(data, metadata, _compare_outputs(outputs, network, images))


def _draw_images(inputs: Preprocess) -> np.ndarray:
    """Draws test images, float32 `[2, S, S, C]`, 0 to 255: noise, and color blocks.

    Noise alone is not enough, as an error in local response norm would hardly change the
    logits of noise.
    """
    rng = np.random.default_rng(0)
    size, channels = inputs.image_size, inputs.input_channels
    noise = rng.integers(0, 256, (size, size, channels))
    colors = rng.integers(0, 256, (BLOCKS, BLOCKS, channels))
    block = np.arange(size) * BLOCKS // size
    return np.stack([noise, colors[block][:, block]]).astype(np.float32)


def _compare_outputs(
    outputs: Mapping[str, np.ndarray], network: Network, images: np.ndarray
) -> str:
    """Compares the logits of the file with those of the network."""
    apply = jax.jit(
        lambda variables, images: dataclasses.replace(network, variables=variables)(images)
    )
    expected = jax.device_get(apply(network.variables, images))
    differences = [
        np.abs(outputs[name] - logits).max() / np.abs(logits).max().clip(SMALLEST)
        for name, logits in expected.items()
    ]
    worst = np.max(differences)  # Unlike max(), it returns NaN if there is one.
    if not worst <= TOLERANCE:
        raise UserError(
            f"the file gives other logits (by {worst:.1e} of the largest logit, more than "
            f"{TOLERANCE}) and was not written: try another version of jax; for ONNX, try "
            "another version of onnxruntime, and bring exporters/onnx.py up to date if you "
            "have changed the network"
        )
    return (
        f"verified: {', '.join(outputs)} differ by at most {worst:.1e} of the largest "
        f"logit, on {len(images)} images"
    )


def _compare_leaves(data: bytes, network: Network) -> str:
    actual, expected = safetensors.read(data), network.leaves()
    if actual.keys() != expected.keys() or not all(
        np.array_equal(actual[name], leaf) for name, leaf in expected.items()
    ):
        raise UserError(
            "the file holds other weights than this network: nothing was written"
        )
    return f"verified: {len(actual)} leaves read back bit for bit"


def write_files(out: pathlib.Path, exported: Exported, format_name: str) -> None:
    """Writes the exported file, after its metadata file or model card if it has one.

    Each file is written completely or not at all.

    Raises:
      UserError: A file cannot be written.
    """
    beside = {}
    if format_name == "stablehlo":  # Such a file cannot hold text itself.
        beside[".json"] = json.dumps(exported.metadata, indent=2) + "\n"
    if format_name == "safetensors":  # Not README.md, which the folder may have.
        beside[".md"] = safetensors.model_card(exported.metadata, out.name)
    for suffix, text in beside.items():
        data = text.encode(errors="backslashreplace")
        replace_file(out.with_name(out.name + suffix), data, OUT_HINT)
    replace_file(out, exported.data, OUT_HINT)
