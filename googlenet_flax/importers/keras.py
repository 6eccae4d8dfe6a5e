"""Reader of the tutorial's Keras network from a `.weights.h5` file of Keras 3.

Keras numbers the layers of each class in the order of `model.layers`, which is by depth and
not by creation. In each inception block both reductions come first, and the heads are last.
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
      UserError: The file is not a weight file of Keras 3, the outputs of its model are in
        another order, or the package h5py is missing.
    """
    try:
        import h5py  # noqa: PLC0415 - optional package
    except ImportError as error:
        raise missing_package("h5py", f"reading {path.name}") from error
    arrays: dict[str, np.ndarray] = {}
    own_names: dict[str, str] = {}

    def visit(name: str | bytes, item: h5py.Group | h5py.Dataset) -> None:
        name = os.fsdecode(name)  # h5py gives bytes for a name that is not valid UTF-8.
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
    # The skipped arrays are random states of dropout layers, and the optimizer's state.
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
    """Checks the order of the three classifiers by the names of their layers.

    The classifiers have the same shape, so a wrong order can be found by names only. There
    are three cases. Names given by Keras are numbered by creation; then the classifier of
    each head must follow its fc. Other names must contain "aux" for the heads alone. Files
    from before Keras 3.6 have no names, and their order is not checked.

    Raises:
      UserError: The classifiers are in another order.
    """
    names = {
        ours: own_names.get(_numbered("dense", number), "")
        for number, ours in enumerate(DENSES)
    }
    created = {ours: _creation_number(name) for ours, name in names.items()}
    if None not in created.values():
        in_order = sorted(created, key=lambda ours: created[ours] or 0)
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
    """Parses a name given by Keras, `dense` or `dense_7`; returns None for other names."""
    match = re.fullmatch(r"dense(?:_(\d+))?", name)
    return int(match[1] or 0) if match else None
