"""Descriptions of the network and of the data of a run, saved with each checkpoint."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from googlenet_flax.model.convolution import STOCK
from googlenet_flax.model.googlenet import VARIANTS, GoogLeNet, create_model
from googlenet_flax.preprocessing.preprocess import Preprocess
from googlenet_flax.runtime.errors import UserError

MAX_NAMED_CLASSES = 10  # Longer lists do not fit into one line of an error.


@dataclasses.dataclass(frozen=True)
class DataDescription:
    """Sizes and fingerprints of the splits of a run, independent of their location."""

    train_examples: int
    train_fingerprint: str
    eval_examples: int
    eval_fingerprint: str

    def changes_since(self, before: "DataDescription") -> list[str]:
        """Returns a phrase for each split that has changed."""
        changes = []
        for split in ("train", "eval"):
            old, new = (getattr(data, f"{split}_examples") for data in (before, self))
            prints = {getattr(data, f"{split}_fingerprint") for data in (before, self)}
            if old != new:
                changes.append(f"{split}_split had {old:,} examples and now has {new:,}")
            elif len(prints) > 1:
                changes.append(f"the {new:,} examples of {split}_split are not the same")
        return changes


def class_changes(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """Returns a phrase that says how two lists of classes differ, or an empty list."""
    if tuple(before) == tuple(now):
        return []
    if max(len(before), len(now)) <= MAX_NAMED_CLASSES:
        return [f"the classes were {', '.join(before)} and are now {', '.join(now)}"]
    pairs = itertools.zip_longest(before, now, fillvalue="absent")
    number, (old, new) = next((i, p) for i, p in enumerate(pairs) if p[0] != p[1])
    return [
        f"there were {len(before)} classes and are now {len(now)}; the first that differs, "
        f"{number}, was {old} and is now {new}"
    ]


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """Everything that is needed to rebuild a network and its input from a checkpoint."""

    variant: str
    width_multiplier: float
    dtype: str
    class_names: tuple[str, ...]
    preprocess: Preprocess
    untrained_heads: tuple[str, ...] = ()  # Such as "aux_4a"; empty in older checkpoints.

    @property
    def notes(self) -> list[str]:
        """A line that says which heads are not trained, if there are any."""
        heads = ", ".join(self.untrained_heads)
        return [f"untrained heads, whose outputs mean nothing: {heads}"] if heads else []

    def create_model(
        self,
        devices: Sequence[jax.Device] = (),
        *,
        axis_name: str | None = None,
        freeze_norm: bool = False,
    ) -> GoogLeNet:
        """Creates the network for devices, by default those of JAX's default backend.

        `googlenet_flax.create_model` describes the other arguments.
        """
        return create_model(
            self.variant,
            num_classes=len(self.class_names),
            dtype=self.dtype,
            width_multiplier=self.width_multiplier,
            axis_name=axis_name,
            freeze_norm=freeze_norm,
            input_channels=self.preprocess.input_channels,
            platform=devices[0].platform if devices else None,
        )

    def initialize(self, rng: jax.Array) -> Any:
        """Draws random parameters and statistics of the network.

        It is slow unless it is called under `jax.jit`.
        """
        size, channels = self.preprocess.image_size, self.preprocess.input_channels
        images = jnp.zeros((1, size, size, channels))
        # The arithmetic does not change the parameters, and XLA's own is traced fastest.
        model = self.create_model().clone(arithmetic=STOCK)
        return model.init(rng, images, train=False)

    def variables_like(self) -> Any:
        """Returns shapes and types of the network's parameters and statistics.

        Raises:
          UserError: `VARIANTS` lacks the variant.
        """
        if self.variant not in VARIANTS:
            raise UserError(
                f"the network has the variant {self.variant!r}, which VARIANTS in "
                "googlenet_flax/model/googlenet.py lacks: add it there"
            )
        return jax.eval_shape(lambda: self.initialize(jax.random.key(0)))

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "ModelDescription":
        """Creates a description from its `dataclasses.asdict`, also if read from JSON."""
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
            untrained_heads=tuple(fields.get("untrained_heads", ())),
        )
