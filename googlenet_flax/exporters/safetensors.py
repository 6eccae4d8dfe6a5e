"""Writer and reader of a safetensors file with all weights by the paper's names."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from googlenet_flax.exporters.network import Network, as_text
from googlenet_flax.runtime.errors import missing_package

STATISTICS = ("mean", "var")  # Leaves of the collection `batch_stats`.


def write(network: Network, metadata: Mapping[str, Any]) -> bytes:
    """Serializes all weights, including those of the heads.

    The layouts are Flax's: `[H, W, in, out]` for convolutions, `[in, out]` for dense
    kernels.

    Raises:
      UserError: The package safetensors is missing.
    """
    text = {"format": "flax", **as_text(metadata)}  # Other libraries require `format`.
    return _safetensors().numpy.save(network.leaves(), metadata=text)


def read(data: bytes) -> dict[str, Any]:
    """Reads the variables in the form that Flax takes, as float32 NumPy arrays."""
    variables: dict[str, Any] = {}
    for name, values in _safetensors().numpy.load(data).items():
        *parents, leaf = name.split("/")
        branch = variables.setdefault("batch_stats" if leaf in STATISTICS else "params", {})
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = np.asarray(values)
    return variables


def _safetensors() -> Any:
    try:
        import safetensors.numpy  # noqa: PLC0415 - optional package
    except ImportError as error:
        purpose = "--format=safetensors"
        raise missing_package("safetensors", purpose, "export") from error
    return safetensors
