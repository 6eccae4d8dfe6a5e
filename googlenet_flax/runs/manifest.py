"""Manifests of checkpoints: what was saved, with digests to detect damage."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from googlenet_flax.runtime.errors import UserError
from googlenet_flax.training.description import DataDescription, ModelDescription


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The description of a checkpoint, which is saved with it."""

    description: ModelDescription
    metrics: Mapping[str, float] | None  # Metrics of an evaluation of this state.
    leaves: Mapping[str, str]  # Such as "float32[3, 3] DIGEST" by path.
    data: DataDescription | None = None  # None in imports and in older checkpoints.

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON types, with a digest of them all as `seal`."""
        fields = dataclasses.asdict(self)
        return {**fields, "seal": _seal(fields)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Manifest":
        """Creates a manifest from the result of `to_json`.

        Raises:
          ValueError: The seal is missing or does not match.
        """
        rest = {name: value for name, value in fields.items() if name != "seal"}
        if "seal" not in fields:
            raise ValueError("it has no manifest")
        if fields["seal"] != _seal(rest):
            raise ValueError("its manifest was changed")
        return cls(
            description=ModelDescription.from_json(fields["description"]),
            metrics=fields["metrics"],
            leaves=fields["leaves"],
            data=DataDescription(**fields["data"]) if fields.get("data") else None,
        )


def describe_leaves(items: Any) -> dict[str, str]:
    """Returns "dtype[shape] DIGEST" of every leaf, by its path."""
    return {
        path: f"{_shape(leaf)} {_digest(np.asarray(leaf).tobytes())}"
        for path, leaf in named_leaves(jax.device_get(items))
    }


def check_shapes(step: int, saved: Mapping[str, str], items_like: Any) -> None:
    """Raises a `UserError` unless the leaves have the shapes and types of `items_like`.

    Orbax would cast types silently, and its errors about shapes are unclear.
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
            f"checkpoint {step} does not fit this network: {name_first(different)}; give "
            "the variant, classes, image_size and width_multiplier of its training"
        )


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Returns the leaves of a tree, each after its path."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def name_first(names: Sequence[str], count: int = 3) -> str:
    """Joins the first `count` names, and counts the rest, in one line."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{', '.join(names[:count])}{more}"


def _shape(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _seal(fields: Mapping[str, Any]) -> str:
    return _digest(json.dumps(fields, sort_keys=True).encode())


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
