"""scikit-learn's 1,797 handwritten digits: real data that needs no download."""

from typing import Any

import numpy as np
import sklearn.datasets
import sklearn.model_selection

from googlenet_flax.data import splits
from googlenet_flax.data.image_set import ImageSet

TEST_EXAMPLES = 360
SPLIT_SEED = 0
MAX_INTENSITY = 16  # The 8x8 images count the ink in 4x4 blocks of the scanned bitmap.


def load_digits(split: str) -> ImageSet:
    """Grey images uint8 `[N, 8, 8, 1]`; `train` has 1,437 and `test` 360, stratified."""
    digits: Any = sklearn.datasets.load_digits()
    images = np.round(digits.images * (255 / MAX_INTENSITY)).astype(np.uint8)
    train, test = sklearn.model_selection.train_test_split(
        np.arange(len(images)),
        test_size=TEST_EXAMPLES,
        random_state=SPLIT_SEED,
        stratify=digits.target,
    )
    rows = splits.take({"train": train, "test": test}, split)
    return ImageSet(
        images=images[rows, :, :, np.newaxis],
        labels=digits.target[rows].astype(np.int32),
        class_names=tuple(map(str, digits.target_names)),
    )
