"""Artificial images: noise to measure speed, and black images to plan a run."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from googlenet_flax.data.image_set import Batch, ImageSet

# Shape of the stored images and number of classes.
KNOWN_SETS = {
    "digits": ((8, 8, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
}
# Number of examples in each split of the data sets that this package prepares.
SPLIT_SIZES: Mapping[str, Mapping[str, int]] = {
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "imagenet2012": {"train": 1_281_167, "validation": 50_000},
}
STREAMED_SETS = frozenset({"folder", "imagenet2012"})  # Their pictures differ in size.
OTHER_SHAPE = (32, 32, 3)
OTHER_CLASSES = 1000  # The classes of a folder are counted only when it is read.


@dataclasses.dataclass(frozen=True)
class FabricatedPictures(ImageSet):
    """Square pictures with an `extent` in each batch, as `PictureSet` yields it."""

    def batches(self, index_batches: Sequence[np.ndarray]) -> Iterator[Batch]:
        """Yields batches as `Split.batches` describes them."""
        for batch in super().batches(index_batches):
            extents = np.full((len(batch["image"]), 2), self.storage_size, np.int32)
            yield {**batch, "extent": extents}


def fabricate(dataset: str, *, num_examples: int, storage_size: int) -> ImageSet:
    """Fabricates noise with the image shape and classes of a data set.

    Args:
      dataset: Name as for `data.load_split`. A folder gets 1000 classes; a data set that
        is not known here gets 1000 classes and color images of 32 px.
      num_examples: Number of examples.
      storage_size: Side in pixels of the pictures of `STREAMED_SETS`.
    """
    kind, shape, num_classes = _kind(dataset, storage_size)
    rng = np.random.default_rng(0)
    return kind(
        images=rng.integers(0, 256, (num_examples, *shape), dtype=np.uint8),
        labels=rng.integers(0, num_classes, num_examples, dtype=np.int32),
        class_names=tuple(map(str, range(num_classes))),
    )


def stand_in(dataset: str, *, num_examples: int, storage_size: int) -> ImageSet:
    """Creates any number of black images that share the memory of one value.

    The arguments are those of `fabricate`.
    """
    kind, shape, num_classes = _kind(dataset, storage_size)
    return kind(
        images=np.broadcast_to(np.zeros((), np.uint8), (num_examples, *shape)),
        labels=np.broadcast_to(np.zeros((), np.int32), (num_examples,)),
        class_names=tuple(map(str, range(num_classes))),
    )


def _kind(
    dataset: str, storage_size: int
) -> tuple[type[ImageSet], tuple[int, int, int], int]:
    """Returns the class, image shape and number of classes of a data set."""
    known = dataset.split(":", maxsplit=1)[0]
    shape, num_classes = KNOWN_SETS.get(known, (OTHER_SHAPE, OTHER_CLASSES))
    if known in STREAMED_SETS:
        return FabricatedPictures, (storage_size, storage_size, 3), num_classes
    return ImageSet, shape, num_classes
