"""Batches of pictures that are read from files."""

import numpy as np

from googlenet_flax.data.decode import decode_image


def assert_batch(batch, pictures, labels, indices, size):
    """Compares a batch with `pictures[index]` decoded, paths or bytes, and `labels`."""
    expected = [decode_image(pictures[index], size) for index in indices]
    arrays = {
        "image": np.array([image for image, _ in expected]),
        "extent": np.array([extent for _, extent in expected], np.int32),
        "label": np.array([labels[index] for index in indices], np.int32),
        "index": np.array(indices, np.int32),
    }
    assert set(batch) == {*arrays, "readable"} and batch["readable"].dtype == np.bool_
    for name, array in arrays.items():
        assert (type(batch[name]), batch[name].dtype) == (np.ndarray, array.dtype), name
        np.testing.assert_array_equal(batch[name], array, name)
