"""What it takes to rebuild the network of a checkpoint and to feed it."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from googlenet_flax.data.preprocess import Preprocess
from googlenet_flax.model import GoogLeNet, create_model


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """Travels with every checkpoint, so that nothing about it is ever guessed."""

    variant: str
    width_multiplier: float
    dtype: str
    class_names: tuple[str, ...]
    preprocess: Preprocess

    def create_model(
        self, *, axis_name: str | None = None, freeze_norm: bool = False
    ) -> GoogLeNet:
        """The network; arguments as in `googlenet_flax.create_model`."""
        return create_model(
            self.variant,
            num_classes=len(self.class_names),
            dtype=self.dtype,
            width_multiplier=self.width_multiplier,
            axis_name=axis_name,
            freeze_norm=freeze_norm,
        )

    def variables_like(self) -> Any:
        """Shapes and types of the network's parameters and statistics."""
        size = self.preprocess.image_size
        init = partial(self.create_model().init, train=False)
        return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, size, size, 3)))

    def to_json(self) -> dict[str, Any]:
        """As JSON types; `from_json` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "ModelDescription":
        """From what `to_json` made, also after it has been through a JSON file."""
        preprocess: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields["preprocess"].items()
        }
        return cls(
            variant=fields["variant"],
            width_multiplier=fields["width_multiplier"],
            dtype=fields["dtype"],
            class_names=tuple(fields["class_names"]),
            preprocess=Preprocess(**preprocess),
        )
