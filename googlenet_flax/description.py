"""What it takes to rebuild the network of a checkpoint and to feed it."""

import dataclasses
from typing import Any

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

    def create_model(self, *, axis_name: str | None = None) -> GoogLeNet:
        """The network; `axis_name` as in `googlenet_flax.create_model`."""
        return create_model(
            self.variant,
            num_classes=len(self.class_names),
            dtype=self.dtype,
            width_multiplier=self.width_multiplier,
            axis_name=axis_name,
        )

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
