"""Export of the network as StableHLO, which JAX runs without this package.

exported = jax.export.deserialize(open("googlenet.stablehlo", "rb").read())
exported.call(images)["logits"]

JAX promises that versions up to 6 months newer and up to 3 weeks older can read the file.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from googlenet_flax.exporters.network import Network
from googlenet_flax.runtime.errors import optional_package

PLATFORMS = ("cpu", "cuda", "tpu")


def write(network: Network) -> bytes:
    """Serializes the network, with its weights, for CPU, CUDA and TPU.

    The function maps float32 images `[B, S, S, C]`, 0 to 255, with any B, to the logits of
    each classifier by name, float32 `[B, num_classes]`.

    Raises:
      UserError: The package flatbuffers is missing, with which JAX serializes.
    """
    with optional_package("flatbuffers", "--format=stablehlo", "export"):
        import flatbuffers  # noqa: F401
    (batch,) = export.symbolic_shape("batch")
    size, channels = network.preprocess.image_size, network.preprocess.input_channels
    images = jax.ShapeDtypeStruct((batch, size, size, channels), jnp.float32)

    def googlenet(images: jax.Array) -> dict[str, jax.Array]:
        return network(images)

    config: Any = jax.config  # Typed as Any, since its options are dynamic attributes.
    limit = config.jax_traceback_in_locations_limit
    config.update("jax_traceback_in_locations_limit", 0)  # Keeps paths out of the file.
    try:
        exported = export.export(jax.jit(googlenet), platforms=PLATFORMS)(images)
    finally:
        config.update("jax_traceback_in_locations_limit", limit)
    return bytes(exported.serialize())


def run(data: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    """Computes the logits `[B, num_classes]`, by name, of images float32 `[B, S, S, C]`.

    `data` holds the contents of the file; nothing else of the network is used.
    """
    return jax.device_get(export.deserialize(bytearray(data)).call(images))
