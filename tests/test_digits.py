import hashlib
from collections import Counter

import numpy as np
import sklearn.datasets

from googlenet_flax.data import load_split


def load(split):
    return load_split("digits", split, data_dir="")


def contents(images, labels):
    return Counter(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


def test_train_and_test_are_all_of_scikit_learns_images():
    digits, train, test = sklearn.datasets.load_digits(), load("train"), load("test")
    # Intensities are whole numbers from 0 to 16.
    expected = np.array([round(x * 255 / 16) for x in range(17)], np.uint8)
    everything = contents(expected[digits.images.astype(int)], digits.target)
    assert max(everything.values()) == 1  # So the splits are disjoint.
    parts = contents(train.images, train.labels) + contents(test.images, test.labels)
    assert parts == everything
    for image_set, size in ((train, 1437), (test, 360)):
        assert image_set.images.shape == (size, 8, 8, 1)
        assert (image_set.images.dtype, image_set.labels.dtype) == (np.uint8, np.int32)
        assert image_set.class_names == tuple("0123456789")


def test_the_split_is_fixed():
    test = load("test")
    # Values of scikit-learn 1.9: with another split, accuracies could not be compared.
    digest = hashlib.sha256(test.images.tobytes() + test.labels.astype("<i4").tobytes())
    assert digest.hexdigest() == (
        "eb33daa4a6fa9662340916fc06c6496d7fcc2d666ea677c26e4ccd0a62cbdc8c"
    )
    np.testing.assert_array_equal(
        load("train[:1]+test[90%:]").images[1:], test.images[324:]
    )
