"""TFDS split notation, such as `train[:3000]`, `train+test` and `test[50%:]`."""

from collections.abc import Mapping

from googlenet_flax.runtime.errors import UserError


def split_positions(spec: str, sizes: Mapping[str, int]) -> list[tuple[str, range]]:
    """Resolves `spec` to the rows of the named splits, in order.

    Raises:
      UserError: The split does not exist, is empty, or is not in this notation.
    """
    if sizes.get(spec):
        return [(spec, range(sizes[spec]))]  # Avoids the slow import of TFDS.
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
    names = [part.splitname for part in parts]
    rows = [range(sizes[part.splitname])[part.from_ : part.to] for part in parts]
    if not any(rows):
        raise UserError(
            f"split {spec!r} holds no examples: choose another split or a larger slice"
        )
    return list(zip(names, rows, strict=True))
