"""The 1,797 handwritten digits of scikit-learn, which need no download."""

from typing import Any

import numpy as np
import sklearn.datasets
import sklearn.model_selection

from googlenet_flax.data.image_set import ImageSet
from googlenet_flax.data.splits import split_positions

TEST_EXAMPLES = 360
SPLIT_SEED = 0
MAX_INTENSITY = 16  # A stored value counts the set pixels in a 4x4 block of the scan.


def load_digits(split: str) -> ImageSet:
    """Loads a split of the gray images, uint8 `[N, 8, 8, 1]`, 0 to 255.

    The split `train` has 1,437 images and `test` has 360, stratified by class. `split` is
    in TFDS notation, such as `train[:100]`.

    Raises:
      UserError: The split does not exist or is empty.
    """
    digits: Any = sklearn.datasets.load_digits()
    images = np.round(digits.images * (255 / MAX_INTENSITY)).astype(np.uint8)
    train, test = sklearn.model_selection.train_test_split(
        np.arange(len(images)),
        test_size=TEST_EXAMPLES,
        random_state=SPLIT_SEED,
        stratify=digits.target,
    )
    indices = {"train": train, "test": test}
    positions = split_positions(split, {name: len(indices[name]) for name in indices})
    chosen = np.concatenate([indices[name][rows] for name, rows in positions])
    return ImageSet(
        images=images[chosen, :, :, np.newaxis],
        labels=digits.target[chosen].astype(np.int32),
        class_names=tuple(map(str, digits.target_names)),
    )
