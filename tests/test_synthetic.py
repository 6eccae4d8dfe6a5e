import numpy as np
import pytest

from googlenet_flax.data.synthetic import random_images


@pytest.mark.parametrize(
    ("dataset", "shape", "num_classes"),
    [
        ("digits", (8, 8, 1), 10),
        ("cifar10:3.0.2", (32, 32, 3), 10),
        ("cifar100", (32, 32, 3), 100),
        ("mnist", (32, 32, 4), 1000),
        ("folder", (20, 20, 4), 1000),
        ("imagenet2012:5.1.0", (20, 20, 4), 1000),
    ],
)
def test_shapes_and_classes(dataset, shape, num_classes):
    """Asks for four channels, which only a set without channels of its own gets."""
    noise = random_images(dataset, num_examples=5, storage_size=20, channels=4)
    (batch,) = noise.batches([np.arange(2)])
    assert batch["image"].shape == (2, *shape) and batch["image"].dtype == np.uint8
    assert batch["label"].dtype == batch["index"].dtype == np.int32
    assert len(noise) == 5 and len(noise.class_names) == num_classes
    # Streamed pictures have extents.
    extents = [[20, 20]] * 2 if shape[0] == 20 else None
    assert extents == (batch["extent"].tolist() if "extent" in batch else None)
    default = random_images(dataset, num_examples=5, storage_size=20)
    assert default.images.shape[-1] == min(shape[-1], 3)
