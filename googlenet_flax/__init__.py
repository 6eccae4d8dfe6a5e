"""GoogLeNet (Inception v1) in JAX and Flax, trained with its auxiliary heads."""

from typing import TYPE_CHECKING, Any

from googlenet_flax.model.googlenet import (
    VARIANTS,
    GoogLeNet,
    GoogLeNetOutput,
    Variant,
    create_model,
)
from googlenet_flax.version import __version__

if TYPE_CHECKING:
    from googlenet_flax.importers.published import load_pretrained
else:  # With `__getattr__`, a type checker would accept any attribute.

    def __getattr__(name: str) -> Any:
        """Imports `load_pretrained` at its first use; the packages it needs are slow."""
        if name != "load_pretrained":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from googlenet_flax.importers.published import load_pretrained  # noqa: PLC0415

        return load_pretrained


__all__ = [
    "VARIANTS",
    "GoogLeNet",
    "GoogLeNetOutput",
    "Variant",
    "__version__",
    "create_model",
    "load_pretrained",
]
