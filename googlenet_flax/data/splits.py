"""TFDS split notation (`train[:3000]`, `train+test`, `test[50%:]`) for arrays in memory."""

from collections.abc import Mapping

import numpy as np

from googlenet_flax.runtime.errors import UserError


def split_positions(spec: str, sizes: Mapping[str, int]) -> list[tuple[str, slice]]:
    """Resolves `spec` to slices of the named splits, in order.

    Raises:
      UserError: The split does not exist, is empty, or is not in this notation.
    """
    if sizes.get(spec):
        return [(spec, slice(0, sizes[spec]))]  # Avoids the slow import of TFDS.
    import tensorflow_datasets as tfds  # noqa: PLC0415 - slow

    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0)
        for name, size in sizes.items()
    }
    try:
        parts = tfds.core.splits.AbstractSplit.from_spec(spec).to_absolute(infos)
    # TFDS raises NotImplementedError for slices of `all`.
    except (ValueError, KeyError, AssertionError, NotImplementedError) as error:
        names = ", ".join(f"{name} ({size} examples)" for name, size in sizes.items())
        raise UserError(
            f"unknown split {spec!r}: the data set has {names}; slices are written as in "
            "TFDS, for example train[:3000] or test[50%:]"
        ) from error
    positions = [
        (
            part.splitname,
            slice(*slice(part.from_, part.to).indices(sizes[part.splitname])),
        )
        for part in parts
    ]
    if not any(rows.start < rows.stop for _, rows in positions):
        raise UserError(f"split {spec!r} holds no examples: choose a larger slice")
    return positions


def take(arrays: Mapping[str, np.ndarray], spec: str) -> np.ndarray:
    """Concatenates the rows that `spec` selects from `arrays` (one array per split)."""
    sizes = {name: len(array) for name, array in arrays.items()}
    parts = split_positions(spec, sizes)
    return np.concatenate([arrays[name][rows] for name, rows in parts])
