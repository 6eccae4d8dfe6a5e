"""Export of all weights as a safetensors file, by the paths of `Network.leaves`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from googlenet_flax.exporters.network import Network, as_text
from googlenet_flax.runtime.errors import optional_package


def write(network: Network, metadata: Mapping[str, Any]) -> bytes:
    """Serializes all weights, including those of the heads.

    The layouts are Flax's: `[H, W, in, out]` for convolutions, `[in, out]` for dense
    kernels.

    Raises:
      UserError: The package safetensors is missing.
    """
    with optional_package("safetensors", "--format=safetensors", "export"):
        import safetensors.numpy  # noqa: PLC0415
    text = {"format": "flax", **as_text(metadata)}  # Other libraries require `format`.
    return safetensors.numpy.save(network.leaves(), metadata=text)


def read(data: bytes) -> dict[str, np.ndarray]:
    """Reads the arrays, by name, from the contents of a safetensors file."""
    import safetensors.numpy  # noqa: PLC0415 - optional package

    return safetensors.numpy.load(data)
