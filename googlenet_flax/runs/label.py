"""The label of a checkpoint: what was saved, with a digest of each leaf and a seal."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from googlenet_flax.runtime.errors import UserError
from googlenet_flax.training.description import DataDescription, ModelDescription

MAX_NAMED = 3  # Of the leaves that do not fit, in one line.


@dataclasses.dataclass(frozen=True)
class Label:
    """What a checkpoint says of itself."""

    description: ModelDescription
    metrics: Mapping[str, float] | None  # Of the evaluation of this state.
    leaves: Mapping[str, str]  # Path to "float32[3, 3] digest".
    data: DataDescription | None = None  # None for imports and for older checkpoints.

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON types, sealed."""
        fields = {
            "description": self.description.to_json(),
            "metrics": None if self.metrics is None else dict(self.metrics),
            "leaves": dict(self.leaves),
            "data": None if self.data is None else dataclasses.asdict(self.data),
        }
        return {**fields, "seal": _seal(fields)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Label":
        """Creates a label from what `to_json` made.

        Raises:
          ValueError: The seal is broken, or there is none.
        """
        rest = {name: value for name, value in fields.items() if name != "seal"}
        if "seal" not in fields:
            raise ValueError("it has no label")
        if fields["seal"] != _seal(rest):
            raise ValueError("its label was changed")
        return cls(
            description=ModelDescription.from_json(fields["description"]),
            metrics=fields["metrics"],
            leaves=fields["leaves"],
            data=DataDescription(**fields["data"]) if fields.get("data") else None,
        )


def label_leaves(items: Any) -> dict[str, str]:
    """Returns "dtype[shape] digest" of every leaf, by its path."""
    return {
        path: f"{_shape(leaf)} {_digest(np.ascontiguousarray(leaf).reshape(-1))}"
        for path, leaf in named_leaves(jax.device_get(items))
    }


def check_shapes(step: int, saved: Mapping[str, str], items_like: Any) -> None:
    """Compares the leaves of a label with those that a network expects.

    Orbax would cast types silently and report shapes obscurely.

    Args:
      step: Of the checkpoint, for the message.
      saved: Leaves of its label.
      items_like: Arrays, or their shapes and types.

    Raises:
      UserError: Names the first leaves that differ.
    """
    there = {path: leaf.rpartition(" ")[0] for path, leaf in saved.items()}
    here = {path: _shape(leaf) for path, leaf in named_leaves(items_like)}
    different = [
        f"{path} is {there.get(path, 'absent')} there and {here.get(path, 'absent')} here"
        for path in sorted(there.keys() | here.keys())
        if there.get(path) != here.get(path)
    ]
    if different:
        raise UserError(
            f"checkpoint {step} does not fit this network: {name_first(different)}; "
            "variant, classes, image_size and width_multiplier must be those of its "
            "training"
        )


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Returns the leaves of a tree with their paths."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _shape(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _seal(fields: Mapping[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True)
    return _digest(np.frombuffer(text.encode(), np.uint8))


def _digest(values: np.ndarray) -> str:
    return hashlib.blake2b(values.view(np.uint8).data, digest_size=16).hexdigest()


def name_first(names: Sequence[str]) -> str:
    """Joins the first few names in one line."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}"
