"""The interface of a split of a data set, its options, and its form in memory."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PictureOptions:
    """Options for pictures that are read while the network trains."""

    storage_size: int  # Longer side in pixels to which pictures are reduced.
    input_channels: int = 3  # Channels that pictures are read with.
    eval_fraction: float = 0.0  # Fraction of each class held out for split `test`.
    on_bad_image: str = "stop"  # "stop" at an unreadable picture, or "skip" it.
    decode_workers: int = 0  # Number of decoding processes; 0 decodes in threads.
    class_names: tuple[str, ...] = ()  # In label order; () takes those of split train.


class Split(Protocol):
    """Labeled pictures, numbered from 0 to `len(split) - 1`."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""

    @property
    def storage_size(self) -> int:
        """Longer side of the stored pictures in pixels."""

    @property
    def unreadable(self) -> dict[str, str]:
        """Pictures skipped so far, each with the reason."""

    @property
    def fingerprint(self) -> str:
        """A digest that changes with the examples and labels, not with their location."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Returns printable text by which a user can find the picture, such as its path."""

    def batches(self, index_batches: Sequence[np.ndarray]) -> Iterator[Batch]:
        """Yields one batch for each array of example numbers, in order.

        A batch holds `image` uint8 `[B, h, w, C]`, such as RGB; `label` int32 `[B]`; and
        `index` int32 `[B]`, the number of each example. Pictures of different sizes are in
        the top-left corner of `image`, and `extent` int32 `[B, 2]` holds their height and
        width. If pictures can be unreadable, `readable` bool `[B]` is False where another
        picture replaces an unreadable one.
        """


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """All images of a split, in memory, with labels and class names.

    Raises:
      ValueError: A label is not that of a class, or there are no images.
    """

    images: np.ndarray  # uint8 [N, h, w, C], such as gray, RGB or RGBA
    labels: np.ndarray  # int32 [N]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        low, high, known = self.labels.min(), self.labels.max(), len(self.class_names)
        if low < 0 or high >= known:
            raise ValueError(
                f"labels run from {low} to {high} but there are {known} classes"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def storage_size(self) -> int:
        """Longer side of the images in pixels."""
        return max(self.images.shape[1:3])

    @property
    def unreadable(self) -> dict[str, str]:
        """No pictures, because those in memory are already decoded."""
        return {}

    @property
    def fingerprint(self) -> str:
        """A digest of all pixels and labels."""
        digest = hashlib.blake2b(repr(self.images.shape).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels, np.int32).data)
        return digest.hexdigest()

    def name(self, index: int) -> str:
        """Returns the number of the example in words."""
        return f"example {index}"

    def batches(self, index_batches: Sequence[np.ndarray]) -> Iterator[Batch]:
        """Yields batches as `Split.batches` describes them."""
        for indices in index_batches:
            yield {
                "image": self.images[indices],
                "label": self.labels[indices],
                "index": indices.astype(np.int32),
            }
