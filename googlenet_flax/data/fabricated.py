"""Noise in the shape of a data set, to measure speed without the data."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from googlenet_flax.data.image_set import Batch, ImageSet

# Shape of the stored images and number of classes.
KNOWN_SETS = {
    "digits": ((8, 8, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
}
STREAMED_SETS = frozenset({"folder", "imagenet2012"})  # Pictures of any size.
OTHER_SHAPE = (32, 32, 3)  # Of the sets of TFDS that fit into memory.
OTHER_CLASSES = 1000  # Of these and of a folder, which is counted only when it is read.


@dataclasses.dataclass(frozen=True)
class FabricatedPictures(ImageSet):
    """Square pictures that come with their extents, as those that are streamed."""

    def batches(self, index_batches: Sequence[np.ndarray]) -> Iterator[Batch]:
        """As in `Split`."""
        for batch in super().batches(index_batches):
            extents = np.full((len(batch["image"]), 2), self.storage_size, np.int32)
            yield {**batch, "extent": extents}


def fabricate(dataset: str, *, num_examples: int, storage_size: int) -> ImageSet:
    """Noise uint8 with the image shape and classes of a data set.

    Args:
      dataset: As in `data.load_split`. A folder is taken to have 1000 classes, a set that
        is not known here 1000 and colour images of 32 px.
      num_examples: How many.
      storage_size: Side in pixels of pictures that are streamed.
    """
    kind, known = ImageSet, dataset.split(":", maxsplit=1)[0]
    shape, num_classes = KNOWN_SETS.get(known, (OTHER_SHAPE, OTHER_CLASSES))
    if known in STREAMED_SETS:
        kind, shape = FabricatedPictures, (storage_size, storage_size, 3)
    rng = np.random.default_rng(0)
    return kind(
        images=rng.integers(0, 256, (num_examples, *shape), dtype=np.uint8),
        labels=rng.integers(0, num_classes, num_examples, dtype=np.int32),
        class_names=tuple(map(str, range(num_classes))),
    )
