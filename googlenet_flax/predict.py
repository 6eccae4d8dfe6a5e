"""Classifies picture files with a trained network; a command.

python -m googlenet_flax.predict --workdir=DIR IMAGE_OR_FOLDER...
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from googlenet_flax.data.decode import (
    BadImageError,
    decode_image,
    find_images,
    printable,
)
from googlenet_flax.preprocessing.crops import CROP_NUMBERS
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.compilation_cache import use_compilation_cache
from googlenet_flax.runtime.errors import UserError, exit_on_run_error
from googlenet_flax.runtime.memory import keep_freed_memory

Decoded = tuple[np.ndarray, tuple[int, int]]


class Prediction(NamedTuple):
    """The likeliest classes of one picture, or why there are none."""

    path: pathlib.Path
    classes: tuple[tuple[str, float], ...]  # Name and probability, likeliest first.
    error: str = ""


def find_pictures(
    paths: Sequence[str], on_empty: Callable[[pathlib.Path], None] = lambda _: None
) -> list[pathlib.Path]:
    """Lists the files among `paths`, and the pictures in the folders among them.

    Args:
      paths: Files and folders.
      on_empty: Called with each folder that holds no picture.

    Raises:
      UserError: There is no picture at all.
    """
    pictures: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        found = find_images(path) if path.is_dir() else [path]
        if not found:
            on_empty(path)
        pictures += found
    if not pictures:
        raise UserError(
            f"there is no picture in {_join(paths)}: name files or another folder"
        )
    return pictures


def _join(paths: Iterable[str | os.PathLike[str]]) -> str:
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
      pictures: Files of any size that `decode_image` reads.
      top: Classes to name for each.
      batch_size: Pictures at a time, rounded up to the devices.
      num_crops: Of each, as in `data.crops.evaluation_crops`; their softmax is averaged.
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
    """Batches of pictures; while one is looked at, threads read the next."""

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
        # After Ctrl-C a thread may still wait for a file, possibly forever.
        pool.shutdown(wait=False, cancel_futures=True)


def _print_table(predictions: Iterator[Prediction], width: int) -> int:
    """Prints one row a class; returns how many pictures could not be read."""
    failed = 0
    print(f"{'picture':{width}}  probability  class")
    for path, classes, error in predictions:
        label = printable(path)
        if error:
            failed += 1
            _complain(path, error)
        for name, probability in classes:
            print(f"{label:{width}}  {probability:11.2%}  {name}", flush=True)
            label = ""
    return failed


def _print_json(predictions: Iterator[Prediction]) -> int:
    """Prints one JSON object a picture; returns how many could not be read."""
    failed = 0
    for path, classes, error in predictions:
        row: dict[str, object] = {"picture": printable(path)}
        if error:
            failed += 1
            row["error"] = error
            _complain(path, error)
        else:
            row["classes"] = [
                {"name": name, "probability": probability} for name, probability in classes
            ]
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return failed


def _complain(path: pathlib.Path, error: str) -> None:
    sys.stdout.flush()  # So that a terminal shows both in order.
    print(f"googlenet_flax: {printable(path)} cannot be read: {error}", file=sys.stderr)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m googlenet_flax.predict", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="IMAGE_OR_FOLDER")
    add("--workdir", required=True, help="directory of a run or import")
    add("--checkpoint", default="best", help="best, latest or a step")
    add("--top", type=int, default=5, help="classes to name for each picture")
    add("--crops", type=int, default=1, choices=CROP_NUMBERS, help="views of each picture")
    add("--batch_size", type=int, default=32, help="pictures at a time")
    add("--json", action="store_true", help="print one JSON object a picture")
    return parser.parse_args()


def main() -> None:
    """The command."""
    args = _parse_arguments()
    logging.set_verbosity(logging.FATAL)  # Libraries talking; errors are raised.
    use_compilation_cache()
    keep_freed_memory()
    with exit_on_run_error():
        for name in ("top", "batch_size"):
            if getattr(args, name) < 1:
                raise UserError(f"--{name} is {getattr(args, name)} but must be 1 or more")
        empty_folders: list[pathlib.Path] = []
        pictures = find_pictures(args.paths, on_empty=empty_folders.append)
        predictor = Predictor.load(
            Workdir(args.workdir), args.checkpoint, jax.local_devices()
        )
        predictions = predict(
            predictor,
            pictures,
            top=args.top,
            batch_size=args.batch_size,
            num_crops=args.crops,
        )
        if args.json:
            failed = _print_json(predictions)
        else:
            failed = _print_table(
                predictions, max(len(printable(path)) for path in pictures)
            )
        problems = []
        if failed:
            problems.append(f"{failed} of {len(pictures)} pictures could not be read")
        if empty_folders:
            problems.append(f"there is no picture in {_join(empty_folders)}")
        if problems:
            raise UserError("; ".join(problems))


if __name__ == "__main__":
    main()
