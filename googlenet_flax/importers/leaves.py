"""Contents of a weight file by the paths of our parameter tree."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from googlenet_flax.model.googlenet import AUX_PROJ_FEATURES
from googlenet_flax.runtime.errors import UserError, optional_package


class WeightFile(NamedTuple):
    """Contents of a weight file."""

    arrays: Mapping[str, np.ndarray]  # Arrays by their names in the file.
    # Names in the file by our paths ("params/conv1/conv/kernel"), in the network's order.
    names: Mapping[str, str]
    skipped: Sequence[str] = ()  # Names in the file that no network needs.
    # Converts the array for one of our paths to our layout.
    layout: Callable[[str, np.ndarray], np.ndarray] = lambda path, values: values

    @property
    def leaves(self) -> dict[str, np.ndarray]:
        """The leaves that the file has, by path and in our layout."""
        return {
            path: self.layout(path, self.arrays[name])
            for path, name in self.names.items()
            if name in self.arrays
        }

    @property
    def unknown(self) -> list[str]:
        """Names in the file that our network has no leaf for."""
        known = {*self.names.values(), *self.skipped}
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


def from_channels_first(path: str, values: np.ndarray) -> np.ndarray:
    """Converts an array of torch or Caffe to the layout of our leaf at a path.

    Kernels of convolutions change from `[out, in, H, W]` to `[H, W, in, out]`, and those of
    dense layers from `[out, in]`, or `[1, 1, out, in]` in old Caffe models, to `[in, out]`.
    The rows of a head's `fc` change from the order `C, H, W` to `H, W, C`, in which our
    heads flatten their map. An array of another rank or size is refused later for its
    shape.
    """
    if path.endswith("/conv/kernel"):
        return values.transpose(2, 3, 1, 0) if values.ndim == 4 else values
    if not path.endswith("/kernel"):
        return values
    if values.ndim == 4 and values.shape[:2] == (1, 1):
        values = values[0, 0]
    kernel = values.T
    is_map = kernel.ndim == 2 and kernel.size and kernel.shape[0] % AUX_PROJ_FEATURES == 0
    if path.endswith("/fc/kernel") and is_map:
        rows = kernel.reshape(AUX_PROJ_FEATURES, -1, kernel.shape[1])
        kernel = rows.swapaxes(0, 1).reshape(kernel.shape)
    return kernel
