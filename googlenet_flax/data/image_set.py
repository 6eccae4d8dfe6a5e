"""A split in memory."""

import dataclasses

import numpy as np

from googlenet_flax.errors import UserError

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """All images of one split at their own size, with labels and class names.

    Raises:
      UserError: Shapes, types or labels that cannot be trained on.
    """

    images: np.ndarray  # uint8 [N, h, w, 1 or 3], RGB
    labels: np.ndarray  # int32 [N]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        shape, channels = self.images.shape, (1, 3)
        if self.images.ndim != 4 or shape[-1] not in channels:
            raise UserError(f"images must be [N, h, w, 1 or 3], got {list(shape)}")
        if self.images.dtype != np.uint8:
            raise UserError(f"images must be uint8 (0-255), got {self.images.dtype}")
        if not len(self):
            raise UserError("the split is empty; choose another slice")
        if self.labels.min() < 0 or self.labels.max() >= len(self.class_names):
            raise UserError(
                f"labels run from {self.labels.min()} to {self.labels.max()} but there are "
                f"{len(self.class_names)} classes; prepare the data set again"
            )

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray) -> Batch:
        """The examples at `indices`: `image`, `label` and the `index` that names each."""
        return {
            "image": self.images[indices],
            "label": self.labels[indices],
            "index": indices.astype(np.int32),
        }
