import numpy as np
import pytest

from googlenet_flax.data import load_split
from googlenet_flax.data.synthetic import random_images


def test_digits_look_like_the_real_ones():
    real = load_split("digits", "train", data_dir="")
    noise = random_images("digits", num_examples=32, storage_size=256)
    (batch,), (other,) = (x.batches([np.arange(4)]) for x in (noise, real))
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in other.items()
    }
    assert len(noise) == 32 and len(noise.class_names) == len(real.class_names)


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
    assert batch["image"].shape == (2, *shape)
    assert len(noise) == 5 and len(noise.class_names) == num_classes
    # Streamed pictures have extents.
    extents = [[20, 20]] * 2 if shape[0] == 20 else None
    assert extents == (batch["extent"].tolist() if "extent" in batch else None)
    default = random_images(dataset, num_examples=5, storage_size=20)
    assert default.images.shape[-1] == min(shape[-1], 3)
