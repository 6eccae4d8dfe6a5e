"""Labeled pictures in files or records, decoded by grain while the network trains."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Protocol

import grain
import numpy as np

from googlenet_flax.data.decode import BadImageError, Picture, check_channels, decode_image
from googlenet_flax.data.image_set import Batch, PictureOptions
from googlenet_flax.data.read_ahead import read_ahead
from googlenet_flax.runtime.errors import UserError

CHUNK_EXAMPLES = 8  # Examples that a thread or process decodes at a time.
PREFETCH_BATCHES = 2  # A batch of 256 pictures of 320x320 takes 79 MB.


class PictureSource(Protocol):
    """Access to the encoded pictures of a split; each decoding process gets a copy."""

    @property
    def remedy(self) -> str:
        """Advice for the user about a picture that cannot be read."""

    @property
    def fingerprint(self) -> str:
        """A digest that changes with the pictures and labels, not with their location."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Picture, int]:
        """Returns a picture for `decode_image`, and its label; raises `BadImageError`."""

    def name(self, index: int) -> str:
        """Returns a name by which the user can find the picture."""


@dataclasses.dataclass(frozen=True)
class PictureSet:
    """The pictures of a split, of any sizes, with labels and class names.

    Raises:
      UserError: Pictures cannot be read with `options.input_channels`.
    """

    pictures: PictureSource
    class_names: tuple[str, ...]
    options: PictureOptions
    # Names of the pictures skipped so far, each with the reason.
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_channels(self.options.input_channels)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def storage_size(self) -> int:
        """Longer side in pixels to which pictures are reduced."""
        return self.options.storage_size

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the source of the pictures."""
        return self.pictures.fingerprint

    def name(self, index: int) -> str:
        """Returns the name that the source has for the picture."""
        return self.pictures.name(index)

    def batches(self, index_batches: Sequence[np.ndarray]) -> Iterator[Batch]:
        """Yields batches as `Split.batches` describes them, decoded ahead of time.

        `image` is uint8 `[B, S, S, C]` and zero outside the picture. Where `readable` is
        False, image, label and index are those of the next readable picture, and
        `unreadable` holds the reason. Closing the iterator ends its threads or processes.

        Args:
          index_batches: Arrays of example numbers. Several threads index the sequence;
            decoding processes get a copy.

        Raises:
          UserError: A picture cannot be read and `on_bad_image` is `"stop"`, or no picture
            can be read.
        """
        if not len(index_batches):
            return
        per_batch = math.ceil(len(index_batches[0]) / CHUNK_EXAMPLES)
        numbers = grain.MapDataset.source(range(len(index_batches) * per_batch))
        take = functools.partial(_take_chunk, index_batches, per_batch)
        decode = functools.partial(_decode_chunk, self.pictures, self.options)
        decoded = numbers.map(take).map(decode)
        ahead, workers = PREFETCH_BATCHES * per_batch, self.options.decode_workers
        with closing(read_ahead(decoded, ahead, workers=workers)) as iterator:
            for _ in range(len(index_batches)):
                yield self._join(list(itertools.islice(iterator, per_batch)))

    def _join(self, chunks: Sequence[Batch]) -> Batch:
        """Joins the decoded chunks of a batch and reports unreadable pictures."""
        batch = {
            name: np.concatenate([np.asarray(chunk[name]) for chunk in chunks])
            for name in chunks[0]
        }
        requested, reasons = batch.pop("requested"), batch.pop("reason")
        batch["readable"] = reasons == ""
        for row in np.flatnonzero(~batch["readable"]):
            name, reason = self.name(int(requested[row])), str(reasons[row])
            if self.options.on_bad_image != "skip":
                raise UserError(
                    f"{name} cannot be read ({reason}): {self.pictures.remedy}, or set "
                    "--config.on_bad_image=skip"
                )
            if batch["index"][row] < 0:
                raise UserError(
                    f"none of the {len(self)} pictures can be read ({name}: {reason}): "
                    "choose other pictures with --config.data_dir"
                )
            self.unreadable[name] = reason
        return batch


def _take_chunk(
    index_batches: Sequence[np.ndarray], per_batch: int, number: int
) -> np.ndarray:
    """Returns a chunk of example numbers; every batch has `per_batch` chunks."""
    batch, chunk = divmod(number, per_batch)
    return np.array_split(index_batches[batch], per_batch)[chunk]


def _decode_chunk(
    pictures: PictureSource, options: PictureOptions, requested: np.ndarray
) -> Batch:
    """Decodes a chunk of a batch; returns errors as data, not as exceptions.

    In the result, `reason` says for each of the `requested` examples why it could not be
    read, or is "". `index` is -1 where neither the example nor a substitute could be read.
    """
    count, size, total = len(requested), options.storage_size, len(pictures)
    tries = total if options.on_bad_image == "skip" else 1
    channels = options.input_channels
    images = np.zeros((count, size, size, channels), np.uint8)
    extents = np.zeros((count, 2), np.int32)
    labels = np.zeros(count, np.int32)
    indices = np.full(count, -1, np.int32)
    reasons = [""] * count
    for row, example in enumerate(requested.tolist()):
        for offset in range(tries):
            index = (example + offset) % total
            try:
                picture, label = pictures.read(index)
                images[row], extents[row] = decode_image(picture, size, channels)
            except BadImageError as error:
                reasons[row] = reasons[row] or str(error)
            else:
                labels[row], indices[row] = label, index
                break
    return {
        "image": images,
        "extent": extents,
        "label": labels,
        "index": indices,
        "requested": requested,
        "reason": np.array(reasons, np.str_),
    }
