"""Labelled pictures in files or records, decoded by grain as they are asked for."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Protocol

import grain
import numpy as np

from googlenet_flax.data.decode import BadImageError, Picture, decode_image
from googlenet_flax.data.image_set import Batch
from googlenet_flax.data.read_ahead import read_ahead
from googlenet_flax.runtime.errors import UserError

SHARE_EXAMPLES = 8  # Of a batch, that one thread or process decodes at a time.
PREFETCH_BATCHES = 2  # 256 pictures of 320x320 are 79 MB.


class PictureSource(Protocol):
    """Where the pictures of one split lie; processes that decode get a copy."""

    @property
    def remedy(self) -> str:
        """What a person can do about a picture that cannot be read."""
        ...

    @property
    def fingerprint(self) -> str:
        """A digest of the pictures and their labels, wherever they are stored."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Picture, int]:
        """A picture as `decode_image` takes it, and its label.

        Raises:
          BadImageError: There is none.
        """
        ...

    def name(self, index: int) -> str:
        """What a person finds the picture by."""
        ...


@dataclasses.dataclass(frozen=True)
class PictureSet:
    """The pictures of one split, of any sizes, with labels and class names."""

    pictures: PictureSource
    class_names: tuple[str, ...]
    storage_size: int
    on_bad_image: str
    decode_workers: int
    # Pictures that were skipped so far and what is wrong with each.
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def fingerprint(self) -> str:
        """The digest of the source of the pictures."""
        return self.pictures.fingerprint

    def batches(self, index_batches: Sequence[np.ndarray]) -> Iterator[Batch]:
        """One batch for each array of example numbers, in turn, decoded ahead of time.

        A batch holds `image` uint8 `[B, S, S, 3]`, RGB, with the picture in the top-left
        corner and zeros elsewhere; `extent` int32 `[B, 2]`, its height and width; `label`
        and `index` int32 `[B]`, the number of the example; and `readable` bool `[B]`.
        Where that is false the picture could not be read: image, label and index are
        those of the next one that can, and `unreadable` tells why. Closing the iterator
        ends its threads or processes.

        Args:
          index_batches: Asked for one array at a time, from several threads; processes
            get a copy.

        Raises:
          UserError: A picture cannot be read and `on_bad_image` is `"stop"`, or none can.
        """
        if not len(index_batches):
            return
        shares = _Shares(index_batches, -(-len(index_batches[0]) // SHARE_EXAMPLES))
        decoder = _Decoder(self.pictures, self.storage_size, self.on_bad_image == "skip")
        decoded = grain.MapDataset.source(shares).map(decoder)
        ahead = PREFETCH_BATCHES * shares.per_batch
        with closing(read_ahead(decoded, ahead, workers=self.decode_workers)) as parts:
            for _ in range(len(index_batches)):
                yield self._join(list(itertools.islice(parts, shares.per_batch)))

    def _join(self, shares: Sequence[Batch]) -> Batch:
        batch = {
            name: np.concatenate([np.asarray(share[name]) for share in shares])
            for name in shares[0]
        }
        requested, reasons = batch.pop("requested"), batch.pop("reason")
        batch["readable"] = reasons == ""
        for row in np.flatnonzero(~batch["readable"]):
            name, reason = self.pictures.name(int(requested[row])), str(reasons[row])
            if self.on_bad_image != "skip":
                raise UserError(
                    f"{name} cannot be read ({reason}): {self.pictures.remedy}, or set "
                    "--config.on_bad_image=skip"
                )
            if batch["index"][row] < 0:
                raise UserError(
                    f"none of the {len(self)} pictures can be read; {name}: {reason}"
                )
            self.unreadable[name] = reason
        return batch


@dataclasses.dataclass(frozen=True)
class _Shares(Sequence):
    """Each batch cut into `per_batch` pieces, which are decoded side by side."""

    index_batches: Sequence[np.ndarray]
    per_batch: int

    def __len__(self) -> int:
        return len(self.index_batches) * self.per_batch

    def __getitem__(self, position: int) -> np.ndarray:  # pyrefly: ignore
        batch, share = divmod(position, self.per_batch)
        return np.array_split(self.index_batches[batch], self.per_batch)[share]


@dataclasses.dataclass(frozen=True)
class _Decoder:
    """Reads the pictures of a share; what cannot be read travels as data, too."""

    pictures: PictureSource
    storage_size: int
    replaces: bool

    def __call__(self, requested: np.ndarray) -> Batch:
        """As `PictureSet.batches`, with the `reason` that one cannot be read or ""."""
        size = self.storage_size
        images = np.zeros((len(requested), size, size, 3), np.uint8)
        extents = np.zeros((len(requested), 2), np.int32)
        labels = np.zeros(len(requested), np.int32)
        indices = np.full(len(requested), -1, np.int32)
        reasons = [""] * len(requested)
        for row, example in enumerate(requested.tolist()):
            for index in self._candidates(example):
                try:
                    picture, label = self.pictures.read(index)
                    images[row], extents[row] = decode_image(picture, size)
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

    def _candidates(self, example: int) -> Iterator[int]:
        total = len(self.pictures)
        count = total if self.replaces else 1
        return ((example + offset) % total for offset in range(count))
