"""The tutorial's Keras network: `.weights.h5` as Keras 3 writes it.

Layers are numbered by class in the order of `model.layers`, which is by depth and not by
creation: in each inception block both reductions come first, and the heads come last.
"""

import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from googlenet_flax.importers.leaves import (
    HEADS,
    STEM,
    OriginalWeights,
    Source,
    refuse_broken_file,
    same,
    translate,
)
from googlenet_flax.model.googlenet import INCEPTIONS
from googlenet_flax.runtime.errors import UserError, missing_package

BRANCHES = ("3x3_reduce", "5x5_reduce", "1x1", "3x3", "5x5", "pool_proj")
CONVS = (
    *STEM,
    *(f"{block}/{branch}" for block in INCEPTIONS for branch in BRANCHES),
    *(f"{head}/proj" for head in HEADS),
)
DENSES = (
    *(f"{head}/fc" for head in HEADS),
    "classifier",
    *(f"{head}/classifier" for head in HEADS),
)
DENSES_WITHOUT_HEADS = ("classifier",)


def read(path: pathlib.Path) -> OriginalWeights:
    """Reads the weights of the layers `conv2d`, `conv2d_1`, ..., `dense`, `dense_1`, ...

    Raises:
      UserError: Not a weight file of Keras 3, or one with its outputs in another order.
    """
    try:
        import h5py  # noqa: PLC0415 - needed by nobody else
    except ImportError as error:
        raise missing_package("h5py", f"reading {path.name}") from error
    arrays: dict[str, np.ndarray] = {}
    own_names: dict[str, str] = {}

    def visit(name: str | bytes, item: h5py.Group | h5py.Dataset) -> None:
        name = os.fsdecode(name)  # Bytes where it is no text.
        if isinstance(item, h5py.Dataset):
            arrays[name] = np.asarray(item)
        elif name.startswith("layers/dense") and name.endswith("/vars"):
            own_names[name] = str(item.attrs.get("name", ""))

    with refuse_broken_file(path, "an HDF5 file"), h5py.File(path) as file:
        if "layers" not in file:
            raise UserError(
                f"{path} has no `layers`: save it with Keras 3 as "
                "model.save_weights('NAME.weights.h5')"
            )
        file.visititems(visit)
    # Random states of the dropout layers, and of a compiled model its optimizer.
    skipped = [
        name
        for name in arrays
        if "seed_generator" in name or not name.startswith("layers/")
    ]
    denses = DENSES if len(own_names) > 1 else DENSES_WITHOUT_HEADS
    if len(own_names) == len(DENSES):
        _check_outputs(path, own_names)
    return translate(arrays, dict(_sources(denses)), skipped=skipped)


def _sources(denses: Sequence[str]) -> Iterator[tuple[str, Source]]:
    for number, ours in enumerate(CONVS):
        yield from _layer_sources(f"{ours}/conv", _numbered("conv2d", number))
    for number, ours in enumerate(denses):
        yield from _layer_sources(ours, _numbered("dense", number))


def _numbered(kind: str, number: int) -> str:
    return f"layers/{kind}_{number}/vars" if number else f"layers/{kind}/vars"


def _layer_sources(ours: str, theirs: str) -> Iterator[tuple[str, Source]]:
    yield f"params/{ours}/kernel", Source(f"{theirs}/0", same)
    yield f"params/{ours}/bias", Source(f"{theirs}/1", same)


def _check_outputs(path: pathlib.Path, own_names: Mapping[str, str]) -> None:
    """The three classifiers have one shape: only the layers' names can tell a mix-up.

    Either those of the heads have "aux" in their names; or the names are Keras's own,
    counted as the layers were made, and each head's classifier comes right after its fc.
    Before Keras 3.6 the file has no names, and its order is trusted.
    """
    names = {
        ours: own_names.get(_numbered("dense", number), "")
        for number, ours in enumerate(DENSES)
    }
    made = {ours: _creation_number(name) for ours, name in names.items()}
    if None not in made.values():
        in_order = sorted(made, key=lambda ours: made[ours] or 0)
        follows = {fc: after for fc, after in itertools.pairwise(in_order)}
        fits = all(follows.get(f"{head}/fc") == f"{head}/classifier" for head in HEADS)
    elif any("aux" in name for name in names.values()):
        fits = all(
            ("aux" in names[ours]) == ours.startswith("aux")
            for ours in DENSES
            if ours.endswith("classifier")
        )
    else:
        fits = True
    if not fits:
        raise UserError(
            f"{path} has its dense layers in another order ({', '.join(names.values())}): "
            "build the model with its outputs as [main, aux 1, aux 2] and save it again"
        )


def _creation_number(name: str) -> int | None:
    """Of a name that Keras gave, `dense` or `dense_7`."""
    match = re.fullmatch(r"dense(?:_(\d+))?", name)
    return int(match[1] or 0) if match else None
