"""Contents of a weight file by the paths of our parameter tree."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from googlenet_flax.model.googlenet import AUX_PROJ_FEATURES
from googlenet_flax.runtime.errors import UserError, optional_package


class Source(NamedTuple):
    """Location of one of our leaves in a file."""

    name: str  # Name of the array in the file.
    layout: Callable[[np.ndarray], np.ndarray] = np.asarray  # Converts it to our layout.


class WeightFile(NamedTuple):
    """Contents of a weight file."""

    arrays: Mapping[str, np.ndarray]  # Arrays by their names in the file.
    # Sources by our paths, such as "params/conv1/conv/kernel", in the network's order.
    sources: Mapping[str, Source]
    skipped: Sequence[str]  # Names in the file that no network needs.

    @property
    def leaves(self) -> dict[str, np.ndarray]:
        """The leaves that the file has, by path and in our layout."""
        return {
            path: source.layout(self.arrays[source.name])
            for path, source in self.sources.items()
            if source.name in self.arrays
        }

    @property
    def unknown(self) -> list[str]:
        """Names in the file that our network has no leaf for."""
        known = {source.name for source in self.sources.values()} | {*self.skipped}
        return [name for name in self.arrays if name not in known]


@contextlib.contextmanager
def reading(path: pathlib.Path, kind: str, package: str) -> Iterator[None]:
    """Turns errors of an optional package that reads a file into a `UserError`.

    `kind` says what the file should be, such as "an ONNX file". A missing package is an
    error too.
    """
    try:
        with optional_package(package, f"reading {path.name}"):
            yield
    except UserError:
        raise
    except Exception as error:  # For broken files the libraries raise nearly anything.
        reason = str(error).partition(". ")[0] or type(error).__name__
        raise UserError(f"{path} is not {kind}, or it is broken: {reason}") from error


def hwio_from_oihw(kernel: np.ndarray) -> np.ndarray:
    """Converts a convolution's kernel from `[out, in, H, W]` to `[H, W, in, out]`.

    torch and Caffe have the first layout. Arrays of other ranks are returned unchanged.
    """
    return kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel


def io_from_oi(kernel: np.ndarray) -> np.ndarray:
    """Converts a dense kernel from `[out, in]`, as in torch and Caffe, to `[in, out]`.

    Old Caffe models have `[1, 1, out, in]`.
    """
    return _matrix(kernel).T


def hwc_rows_from_chw(kernel: np.ndarray) -> np.ndarray:
    """Converts the kernel of a head's `fc` from `[out, C * H * W]` to `[H * W * C, out]`.

    Our heads flatten their map `[H, W, C]` in this order. A kernel that fits no map of
    `AUX_PROJ_FEATURES` channels is only transposed, and refused later for its shape.
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
