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
OTHER_SIDE = 32
OTHER_CLASSES = 1000  # Also stands for a folder, which is not read to count its classes.
# Number of examples in each split of the data sets that this package prepares.
SPLIT_SIZES: Mapping[str, Mapping[str, int]] = {
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "imagenet2012": {"train": 1_281_167, "validation": 50_000},
}
STREAMED_SETS = frozenset({"folder", "imagenet2012"})  # Their pictures differ in size.


@dataclasses.dataclass(frozen=True)
class SyntheticPictures(ImageSet):
    """Square pictures with an `extent` in each batch, as `PictureSet` yields it."""

    def batches(self, index_batches: Sequence[np.ndarray]) -> Iterator[Batch]:
        """Yields batches as `Split.batches` describes them."""
        for batch in super().batches(index_batches):
            extents = np.full((len(batch["image"]), 2), self.storage_size, np.int32)
            yield {**batch, "extent": extents}


def black_images(
    dataset: str, *, num_examples: int, storage_size: int, channels: int = 3
) -> ImageSet:
    """Creates black images, uint8 `[num_examples, S, S, C]`, that take almost no memory.

    The sets in `KNOWN_SETS` have their own shape and number of classes. All others have
    1000 classes and `channels`; their side S is `storage_size` for `STREAMED_SETS`, and 32
    pixels otherwise.
    """
    known = dataset.partition(":")[0]
    kind, side = ImageSet, OTHER_SIDE
    if known in STREAMED_SETS:
        kind, side = SyntheticPictures, storage_size
    other = (side, side, channels), OTHER_CLASSES
    shape, num_classes = KNOWN_SETS.get(known, other)
    return kind(
        images=np.broadcast_to(np.uint8(0), (num_examples, *shape)),
        labels=np.broadcast_to(np.int32(0), num_examples),
        class_names=tuple(map(str, range(num_classes))),
    )


def random_images(dataset: str, *, num_examples: int, **options: int) -> ImageSet:
    """Creates noise with random labels; the arguments are those of `black_images`."""
    black = black_images(dataset, num_examples=num_examples, **options)
    rng, num_classes = np.random.default_rng(0), len(black.class_names)
    return dataclasses.replace(
        black,
        images=rng.integers(0, 256, black.images.shape, dtype=np.uint8),
        labels=rng.integers(0, num_classes, num_examples, dtype=np.int32),
    )
