"""What a weight file holds, by the paths of our own tree."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from googlenet_flax.model.googlenet import AUX_PROJ_FEATURES, AUX_TAPS, INCEPTIONS
from googlenet_flax.model.layers import InceptionWidths
from googlenet_flax.runtime.errors import UserError

STEM = ("conv1", "conv2_reduce", "conv2")
BRANCHES = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")
INCEPTION_CONVS = tuple(f"{block}/{branch}" for block in INCEPTIONS for branch in BRANCHES)
HEADS = tuple(AUX_TAPS.values())
assert len(BRANCHES) == len(InceptionWidths._fields)

Layout = Callable[[np.ndarray], np.ndarray]


class Source(NamedTuple):
    """Where one of our leaves lies in a file."""

    name: str
    layout: Layout  # From theirs to ours.


class Leaf(NamedTuple):
    """One of our leaves as a file has it."""

    name: str  # There.
    values: np.ndarray  # In our layout.


@dataclasses.dataclass(frozen=True)
class OriginalWeights:
    """A weight file, read."""

    leaves: Mapping[str, Leaf]  # By path, "params/conv1/conv/kernel".
    skipped: tuple[str, ...]  # Names there that no network needs.
    unknown: tuple[str, ...]  # Names there that we have no place for.


@contextlib.contextmanager
def refuse_broken_file(path: pathlib.Path, kind: str) -> Iterator[None]:
    """Turns whatever a library makes of a broken file into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Changed bytes make them raise nearly anything.
        reason = str(error).partition(". ")[0] or type(error).__name__
        raise UserError(f"{path} is not {kind}, or it is broken: {reason}") from error


def translate(
    arrays: Mapping[str, np.ndarray],
    sources: Mapping[str, Source],
    *,
    skipped: Iterable[str] = (),
) -> OriginalWeights:
    """Sorts the arrays of a file by the paths of our tree.

    Args:
      arrays: By their names in the file.
      sources: By our paths, in the order of the network.
      skipped: Names in the file that no network needs.
    """
    known = {source.name for source in sources.values()} | set(skipped)
    return OriginalWeights(
        leaves={
            path: Leaf(source.name, source.layout(arrays[source.name]))
            for path, source in sources.items()
            if source.name in arrays
        },
        skipped=tuple(skipped),
        unknown=tuple(name for name in arrays if name not in known),
    )


def same(values: np.ndarray) -> np.ndarray:
    """No change."""
    return values


def hwio_from_oihw(kernel: np.ndarray) -> np.ndarray:
    """A convolution's kernel, from torch's and Caffe's layout; other ranks unchanged."""
    return kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel


def io_from_oi(kernel: np.ndarray) -> np.ndarray:
    """A dense kernel `[in, out]`, from torch's and Caffe's layout.

    Old Caffe models have two dimensions of size 1 in front.
    """
    return _matrix(kernel).T


def hwc_rows_from_chw(kernel: np.ndarray) -> np.ndarray:
    """The kernel of a head's `fc`, which sees its map flattened as H, W, C here.

    From `[out, C * H * W]` to `[H * W * C, out]`; a shape of no square map of
    `AUX_PROJ_FEATURES` channels is left for the check of shapes to refuse.
    """
    kernel = _matrix(kernel)
    if kernel.ndim != 2 or not kernel.size or kernel.shape[1] % AUX_PROJ_FEATURES:
        return kernel.T
    rows = kernel.T.reshape(AUX_PROJ_FEATURES, -1, kernel.shape[0])
    return rows.transpose(1, 0, 2).reshape(-1, kernel.shape[0])


def _matrix(kernel: np.ndarray) -> np.ndarray:
    if kernel.ndim == 4 and kernel.shape[:2] == (1, 1):
        return kernel[0, 0]
    return kernel
