"""Classification of picture files with a trained network."""

import concurrent.futures
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from googlenet_flax.data.decode import BadImageError, decode_image, find_images, printable
from googlenet_flax.data.image_set import Batch
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.training.sharding import fit_batch_size


class Prediction(NamedTuple):
    """The most likely classes of a picture, or the reason why it cannot be read."""

    path: pathlib.Path
    classes: tuple[tuple[str, float], ...]  # Name and probability, most likely first.
    error: str = ""


def find_pictures(paths: Sequence[str]) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Lists the given files, and the pictures in the given folders, in order.

    The second list holds the folders without pictures.

    Raises:
      UserError: A folder cannot be listed, or there is no picture in any of them.
    """
    pictures: list[pathlib.Path] = []
    empty_folders = []
    for path in map(pathlib.Path, paths):
        # Unlike `Path.is_dir`, this raises no error for a path that cannot be read.
        found = find_images(path) if os.path.isdir(path) else [path]
        if not found:
            empty_folders.append(path)
        pictures += found
    if not pictures:
        folders = ", ".join(map(printable, paths))
        raise UserError(f"there is no picture in {folders}: name files or another folder")
    return pictures, empty_folders


def describe_missing(failed: int, total: int, empty_folders: Sequence[pathlib.Path]) -> str:
    """Says how many pictures could not be read, and which folders hold none.

    Returns "" if every picture was read and no folder is empty.
    """
    problems = []
    if failed:
        problems.append(f"{failed} of {total} pictures could not be read")
    if empty_folders:
        folders = ", ".join(map(printable, empty_folders))
        problems.append(f"there is no picture in {folders}")
    return "; ".join(problems)


def predict(
    predictor: Predictor,
    pictures: Sequence[pathlib.Path],
    *,
    top: int,
    batch_size: int,
    num_crops: int = 1,
) -> Iterator[Prediction]:
    """Classifies pictures in batches, and yields a prediction for each, in order.

    Args:
      predictor: The network.
      pictures: Picture files; `decode_image` says which formats are read.
      top: Number of classes to return for each picture.
      batch_size: Pictures per batch, which `fit_batch_size` adapts.
      num_crops: Number of crops whose softmax is averaged, as for `evaluation_crops`.

    Raises:
      UserError: The network's number of input channels fits no picture.
      ValueError: `num_crops` is not in `CROP_NUMBERS`.
    """
    class_names = predictor.description.class_names
    for paths, errors, batch in read_batches(predictor, pictures, batch_size):
        probabilities = np.exp(predictor.log_probabilities(batch, num_crops)["main"])
        for path, error, row in zip(paths, errors, probabilities, strict=False):
            best = () if error else np.argsort(-row, kind="stable")[:top]
            classes = tuple((class_names[i], float(row[i])) for i in best)
            yield Prediction(path, classes, error)


def read_batches(
    predictor: Predictor, pictures: Sequence[pathlib.Path], batch_size: int
) -> Iterator[tuple[Sequence[pathlib.Path], Sequence[str], Batch]]:
    """Yields pictures in batches of equal size, as the network takes them.

    Each item holds the n paths of the batch; for each path the reason why it cannot be
    read, or ""; and `image` and `extent` as in a batch of a `Split`. Unreadable pictures,
    and rows from n on, are black. Threads decode the next batch while the caller uses the
    current one.
    """
    batch_size = fit_batch_size(batch_size, len(pictures), len(predictor.devices))
    inputs = predictor.description.preprocess
    size, channels = inputs.storage_size, inputs.input_channels
    black = np.zeros((size, size, channels), np.uint8)

    def decode(path: pathlib.Path) -> tuple[np.ndarray, tuple[int, int], str]:
        try:
            return *decode_image(path, size, channels), ""
        except BadImageError as error:
            return black, (1, 1), str(error)

    pool = concurrent.futures.ThreadPoolExecutor()
    try:
        ahead = pool.map(decode, pictures[:batch_size])
        for start in range(0, len(pictures), batch_size):
            end, decoded = start + batch_size, list(ahead)
            ahead = pool.map(decode, pictures[end : end + batch_size])
            paths = pictures[start:end]
            decoded += [(black, (1, 1), "")] * (batch_size - len(paths))
            images, extents, errors = zip(*decoded, strict=True)
            batch = {"image": np.stack(images), "extent": np.array(extents, np.int32)}
            yield paths, errors[: len(paths)], batch
    finally:
        # After Ctrl-C a thread may wait for a file forever, so do not wait for it.
        pool.shutdown(wait=False, cancel_futures=True)
