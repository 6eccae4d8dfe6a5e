"""Classification of picture files with a trained network."""

import concurrent.futures
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from googlenet_flax.data.decode import BadImageError, decode_image, find_images, printable
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runtime.errors import UserError

Decoded = tuple[np.ndarray, tuple[int, int]]


class Prediction(NamedTuple):
    """The most likely classes of a picture, or the reason why it cannot be read."""

    path: pathlib.Path
    classes: tuple[tuple[str, float], ...]  # Name and probability, most likely first.
    error: str = ""


def find_pictures(paths: Sequence[str]) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Lists the files among `paths` with the pictures in the folders among them.

    Returns:
      The pictures, and the folders that hold none.

    Raises:
      UserError: There is no picture in any of them.
    """
    pictures: list[pathlib.Path] = []
    empty_folders = []
    for path in map(pathlib.Path, paths):
        found = find_images(path) if path.is_dir() else [path]
        if not found:
            empty_folders.append(path)
        pictures += found
    if not pictures:
        raise UserError(
            f"there is no picture in {join_paths(paths)}: name files or another folder"
        )
    return pictures, empty_folders


def join_paths(paths: Iterable[str | os.PathLike[str]]) -> str:
    """Joins paths with commas for one line of a message."""
    return ", ".join(map(printable, paths))


def predict(
    predictor: Predictor,
    pictures: Sequence[pathlib.Path],
    *,
    top: int,
    batch_size: int,
    num_crops: int = 1,
) -> Iterator[Prediction]:
    """Classifies pictures in batches, in order.

    Args:
      predictor: The network.
      pictures: Picture files of any size in a format that `decode_image` reads.
      top: Number of classes to name for each picture.
      batch_size: Pictures per batch, rounded up to a multiple of the devices.
      num_crops: Number of crops of each picture whose softmax is averaged (see
        `evaluation_crops`).
    """
    num_devices = len(predictor.devices)
    batch_size = -(-min(batch_size, len(pictures)) // num_devices) * num_devices
    storage_size = predictor.description.preprocess.storage_size
    class_names = predictor.description.class_names
    for chunk, decoded in _decode(pictures, storage_size, batch_size):
        batch = {
            "image": np.zeros((batch_size, storage_size, storage_size, 3), np.uint8),
            "extent": np.ones((batch_size, 2), np.int32),
        }
        for row, result in enumerate(decoded):
            if not isinstance(result, BadImageError):
                batch["image"][row], batch["extent"][row] = result
        probabilities = np.exp(predictor.log_probabilities(batch, num_crops)["main"])
        for path, result, row in zip(chunk, decoded, probabilities, strict=False):
            if isinstance(result, BadImageError):
                yield Prediction(path, (), str(result))
                continue
            best = np.argsort(-row, kind="stable")[:top]
            yield Prediction(path, tuple((class_names[i], float(row[i])) for i in best))


def _decode(
    pictures: Sequence[pathlib.Path], storage_size: int, batch_size: int
) -> Iterator[tuple[Sequence[pathlib.Path], list[Decoded | BadImageError]]]:
    """Yields batches of decoded pictures, while threads decode the next batch."""

    def decode(path: pathlib.Path) -> Decoded | BadImageError:
        try:
            return decode_image(path, storage_size)
        except BadImageError as error:
            return error

    starts = range(0, len(pictures), batch_size)
    chunks = [pictures[start : start + batch_size] for start in starts]
    pool = concurrent.futures.ThreadPoolExecutor()
    try:
        ahead = pool.map(decode, chunks[0])
        for chunk, following in zip(chunks, [*chunks[1:], []], strict=True):
            decoded = list(ahead)
            ahead = pool.map(decode, following)
            yield chunk, decoded
    finally:
        # After Ctrl-C a thread may wait for a file forever, so do not wait for it.
        pool.shutdown(wait=False, cancel_futures=True)
