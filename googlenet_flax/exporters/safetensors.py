"""All weights by the paper's names, in Flax's layouts, as a safetensors file."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from googlenet_flax.exporters.network import Network, as_text
from googlenet_flax.runtime.errors import missing_package

STATISTICS = ("mean", "var")  # Of batch norm: what is in `batch_stats`, not in `params`.


def write(network: Network, metadata: Mapping[str, Any]) -> bytes:
    """The file; heads are in it, whether their logits were asked for or not.

    Convolutions have the layout H, W, in, out, dense kernels in, out.

    Raises:
      UserError: The package safetensors is missing.
    """
    text = {"format": "flax", **as_text(metadata)}  # Other libraries ask for `format`.
    return _safetensors().numpy.save(network.leaves(), metadata=text)


def read(data: bytes) -> dict[str, Any]:
    """The variables as Flax takes them, float32 numpy arrays."""
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
        import safetensors.numpy  # noqa: PLC0415 - an extra
    except ImportError as error:
        purpose = "--format=safetensors"
        raise missing_package("safetensors", purpose, "export") from error
    return safetensors
