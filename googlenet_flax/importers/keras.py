"""Reader of the tutorial's Keras network from a `.weights.h5` file of Keras 3.

Keras numbers the layers of each class in the order of `model.layers`, which is by depth and
not by creation. In each inception block both reductions come first, and the heads are last.
"""

import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from googlenet_flax.importers.leaves import WeightFile, reading
from googlenet_flax.model.googlenet import HEADS, INCEPTIONS
from googlenet_flax.runtime.errors import UserError

BRANCHES = ("3x3_reduce", "5x5_reduce", "1x1", "3x3", "5x5", "pool_proj")
CONVS = (
    *("conv1", "conv2_reduce", "conv2"),
    *(f"{block}/{branch}" for block in INCEPTIONS for branch in BRANCHES),
    *(f"{head}/proj" for head in HEADS),
)
DENSES = (
    *(f"{head}/fc" for head in HEADS),
    "classifier",
    *(f"{head}/classifier" for head in HEADS),
)


def read(path: pathlib.Path) -> WeightFile:
    """Reads the weights of the layers `conv2d`, `conv2d_1`, ..., `dense`, `dense_1`, ...

    Raises:
      UserError: The file is not a weight file of Keras 3, the outputs of its model are in
        another order, or the package h5py is missing.
    """
    arrays: dict[str, np.ndarray] = {}
    own_names: dict[str, str] = {}  # Names of the dense layers by their paths in the file.
    with reading(path, "an HDF5 file", "h5py"):
        import h5py

        def visit(name: str | bytes, item: h5py.Group | h5py.Dataset) -> None:
            name = os.fsdecode(name)  # h5py gives bytes for a name that is not UTF-8.
            if isinstance(item, h5py.Dataset):
                arrays[name] = np.asarray(item)
            elif name.startswith("layers/dense") and name.endswith("/vars"):
                own_names[name] = str(item.attrs.get("name", ""))

        with h5py.File(path) as file:
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
    if len(own_names) == len(DENSES):
        _check_outputs(path, own_names)
    denses = DENSES if len(own_names) > 1 else ["classifier"]
    return WeightFile(arrays, dict(_names(denses)), skipped)


def _names(denses: Sequence[str]) -> Iterator[tuple[str, str]]:
    convs = [f"{ours}/conv" for ours in CONVS]
    for kind, layers in (("conv2d", convs), ("dense", denses)):
        for number, ours in enumerate(layers):
            theirs = _numbered(kind, number)
            yield f"params/{ours}/kernel", f"{theirs}/0"
            yield f"params/{ours}/bias", f"{theirs}/1"


def _numbered(kind: str, number: int) -> str:
    return f"layers/{kind}_{number}/vars" if number else f"layers/{kind}/vars"


def _check_outputs(path: pathlib.Path, own_names: Mapping[str, str]) -> None:
    """Checks the order of the three classifiers by the names of their layers.

    The classifiers have the same shape, so only their names can show a wrong order. The
    names that Keras chooses are numbered by creation: `dense`, `dense_1` and so on. If all
    names are of this kind, the classifier of each head must come right after the `fc` of
    that head. Otherwise, if the name of any classifier contains "aux", exactly the names of
    the heads' two classifiers must contain it. Other names are not checked. Files from
    before Keras 3.6 have no names.
    """
    names = [own_names.get(_numbered("dense", number), "") for number in range(len(DENSES))]
    matches = [re.fullmatch(r"dense(?:_(\d+))?", name) for name in names]
    fits = True
    if all(matches):
        numbers = [int(match[1] or 0) for match in matches if match]
        created = [ours for _, ours in sorted(zip(numbers, DENSES, strict=True))]
        fits = all(
            created.index(f"{head}/fc") + 1 == created.index(f"{head}/classifier")
            for head in HEADS
        )
    elif any("aux" in name for name in names[2:]):
        fits = ["aux" in name for name in names[2:]] == [False, True, True]
    if not fits:
        raise UserError(
            f"{path} has its dense layers in another order ({', '.join(names)}): "
            "build the model with its outputs as [main, aux 1, aux 2] and save it again"
        )
