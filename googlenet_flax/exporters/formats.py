"""The formats that a network is exported to, each compared with the network it is of."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_flax.exporters import onnx, safetensors, stablehlo
from googlenet_flax.exporters.network import Network, describe
from googlenet_flax.model.convolution import STOCK
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.runtime.files import replace_file

Format = Literal["stablehlo", "onnx", "safetensors"]
FORMATS: tuple[Format, ...] = ("stablehlo", "onnx", "safetensors")
METADATA_SUFFIX = ".json"  # StableHLO's own file has no place for text.
TOLERANCE = 1e-4  # Of the largest logit, between the file and the network.
SMALLEST = np.finfo(np.float32).tiny  # Instead of dividing by 0.
BLOCKS = 8  # Of one colour along each side of a picture.


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was made of a network, not written yet."""

    data: bytes
    metadata: Mapping[str, Any]
    verified: str  # How, or why not.


def export(predictor: Predictor, format_name: Format, *, aux_heads: bool) -> Exported:
    """Makes a file of a network, and compares it with the network where that is possible.

    Args:
      predictor: The network; its weights are float32, and so is what is exported.
      format_name: `"stablehlo"` and `"onnx"` take RGB pixels, 0 to 255, at the network's
        size; `"safetensors"` has the weights alone.
      aux_heads: Give the heads' logits too; `"safetensors"` has their weights anyway.

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
    if format_name == "safetensors":
        data = safetensors.write(portable, metadata)
        return Exported(data, metadata, _compare_leaves(data, network))
    if format_name == "stablehlo":
        data, run = stablehlo.write(portable), stablehlo.run
    else:
        data, run = onnx.write(portable, metadata), onnx.run
    images = _draw_images(description.preprocess.image_size)
    try:
        outputs = run(data, images)
    except ImportError:
        note = "not verified: that needs onnxruntime: pip install onnxruntime"
        return Exported(data, metadata, note)
    return Exported(data, metadata, _compare_outputs(outputs, network, images))


def _draw_images(size: int) -> np.ndarray:
    """Float32 `[2, size, size, 3]`, 0 to 255: noise, and blocks of one colour each.

    Local response norm hardly changes what the network makes of noise.
    """
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (size, size, 3))
    colours = rng.integers(0, 256, (BLOCKS, BLOCKS, 3))
    block = np.arange(size) * BLOCKS // size
    return np.stack([noise, colours[block][:, block]]).astype(np.float32)


def _compare_outputs(
    outputs: Mapping[str, np.ndarray], network: Network, images: np.ndarray
) -> str:
    """Compares what the file computes with what the network predicts here."""

    @jax.jit
    def apply(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        return dataclasses.replace(network, variables=variables)(images)

    expected = jax.device_get(apply(network.variables, images))
    differences = [
        np.abs(outputs[name] - logits).max() / np.abs(logits).max().clip(SMALLEST)
        for name, logits in expected.items()
    ]
    worst = np.max(differences)  # Unlike max(), lets a NaN through.
    if not worst <= TOLERANCE:
        raise UserError(
            f"the exported network gives other logits than this one (by {worst:.1e} of the "
            f"largest, more than {TOLERANCE}): nothing was written; try another version of "
            "jax or onnxruntime"
        )
    return (
        f"verified: {', '.join(outputs)} differ by at most {worst:.1e} of the largest, "
        f"on {len(images)} images"
    )


def _compare_leaves(data: bytes, network: Network) -> str:
    there = dataclasses.replace(network, variables=safetensors.read(data)).leaves()
    here = network.leaves()
    if there.keys() != here.keys() or not all(
        np.array_equal(there[name], leaf) for name, leaf in here.items()
    ):
        raise UserError(
            "the file holds other weights than this network: nothing was written"
        )
    return f"verified: {len(there)} leaves read back bit for bit"


def write_files(out: pathlib.Path, exported: Exported, format_name: Format) -> None:
    """Writes the file, whole or not at all; in front of StableHLO's the one beside it.

    Raises:
      UserError: It cannot be written.
    """
    if format_name == "stablehlo":
        text = json.dumps(exported.metadata, indent=2) + "\n"
        _write(out.with_name(out.name + METADATA_SUFFIX), text.encode())
    _write(out, exported.data)


def _write(path: pathlib.Path, data: bytes) -> None:
    try:
        replace_file(path, data)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from error


def check_out(name: str) -> pathlib.Path:
    """Returns the file that `--out` names, for use before anything is computed.

    Raises:
      UserError: It is something else than a file, or its folder does not exist.
    """
    # Through links, which would be replaced themselves.
    path = os.path.realpath(os.path.expanduser(name))
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"--out={name} is no file: name another")
    if not os.path.isdir(os.path.dirname(path)):
        raise UserError(f"--out={name}: there is no folder {os.path.dirname(path)}")
    return pathlib.Path(path)
