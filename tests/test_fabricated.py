import numpy as np
import pytest

from googlenet_flax.data import load_split
from googlenet_flax.data.fabricated import fabricate


def test_digits_look_like_the_real_ones():
    real = load_split("digits", "train", data_dir="")
    noise = fabricate("digits", num_examples=32, storage_size=256)
    (batch,), (other,) = (x.batches([np.arange(4)]) for x in (noise, real))
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in other.items()
    }
    assert len(noise) == 32 and len(noise.class_names) == len(real.class_names)
    assert noise.storage_size == real.storage_size


@pytest.mark.parametrize(
    ("dataset", "num_classes"),
    [("cifar10", 10), ("cifar10:3.0.2", 10), ("cifar100", 100), ("mnist", 1000)],
)
def test_sets_of_tfds(dataset, num_classes):
    noise = fabricate(dataset, num_examples=5, storage_size=256)
    assert noise.images.shape == (5, 32, 32, 3)
    assert len(noise.class_names) == num_classes


@pytest.mark.parametrize("dataset", ["folder", "imagenet2012", "imagenet2012:5.1.0"])
def test_what_is_streamed_has_extents(dataset):
    noise = fabricate(dataset, num_examples=3, storage_size=20)
    (batch,) = noise.batches([np.arange(2)])
    assert batch["image"].shape == (2, 20, 20, 3)
    assert batch["extent"].tolist() == [[20, 20], [20, 20]]
