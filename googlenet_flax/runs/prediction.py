"""Classification of picture files with a trained network, and output of the results."""

import concurrent.futures
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from googlenet_flax.data.decode import (
    BadImageError,
    decode_image,
    find_images,
    printable,
)
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runtime.errors import UserError

Decoded = tuple[np.ndarray, tuple[int, int]]


class Prediction(NamedTuple):
    """The most likely classes of a picture, or the reason why it cannot be read."""

    path: pathlib.Path
    classes: tuple[tuple[str, float], ...]  # Name and probability, most likely first.
    error: str = ""


def find_pictures(
    paths: Sequence[str], on_empty: Callable[[pathlib.Path], None] = lambda _: None
) -> list[pathlib.Path]:
    """Lists the files among `paths`, and the pictures in the folders among them.

    Args:
      paths: Files and folders.
      on_empty: Function that is called with each folder that holds no picture.

    Raises:
      UserError: There is no picture in any of them.
    """
    pictures: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        found = find_images(path) if path.is_dir() else [path]
        if not found:
            on_empty(path)
        pictures += found
    if not pictures:
        raise UserError(
            f"there is no picture in {join_paths(paths)}: name files or another folder"
        )
    return pictures


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
    batch_size = min(batch_size, len(pictures))
    batch_size = -(-batch_size // num_devices) * num_devices
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
        for row, (path, result) in enumerate(zip(chunk, decoded, strict=True)):
            if isinstance(result, BadImageError):
                yield Prediction(path, (), str(result))
                continue
            best = np.argsort(-probabilities[row], kind="stable")[:top]
            classes = tuple((class_names[i], float(probabilities[row, i])) for i in best)
            yield Prediction(path, classes)


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
        for number, chunk in enumerate(chunks, start=1):
            decoded = list(ahead)
            if number < len(chunks):
                ahead = pool.map(decode, chunks[number])
            yield chunk, decoded
    finally:
        # After Ctrl-C a thread may wait for a file forever, so do not wait for it.
        pool.shutdown(wait=False, cancel_futures=True)


def print_table(predictions: Iterator[Prediction], width: int) -> int:
    """Prints one row per class, and returns the number of unreadable pictures."""
    failed = 0
    print(f"{'picture':{width}}  probability  class")
    for path, classes, error in predictions:
        label = printable(path)
        if error:
            failed += 1
            _report_unreadable(path, error)
        for name, probability in classes:
            print(f"{label:{width}}  {probability:11.2%}  {name}", flush=True)
            label = ""
    return failed


def print_json(predictions: Iterator[Prediction]) -> int:
    """Prints one JSON object per picture, and returns the number of unreadable ones."""
    failed = 0
    for path, classes, error in predictions:
        row: dict[str, object] = {"picture": printable(path)}
        if error:
            failed += 1
            row["error"] = error
            _report_unreadable(path, error)
        else:
            row["classes"] = [
                {"name": name, "probability": probability} for name, probability in classes
            ]
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return failed


def _report_unreadable(path: pathlib.Path, error: str) -> None:
    sys.stdout.flush()  # Keeps both streams in order on a terminal.
    print(f"googlenet_flax: {printable(path)} cannot be read: {error}", file=sys.stderr)
