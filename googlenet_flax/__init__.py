"""GoogLeNet (Inception v1) in JAX and Flax, trained with its auxiliary heads."""

from googlenet_flax.model.googlenet import GoogLeNet, GoogLeNetOutput, create_model
from googlenet_flax.version import __version__

__all__ = ["GoogLeNet", "GoogLeNetOutput", "__version__", "create_model"]
