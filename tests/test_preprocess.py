import jax
import numpy as np
import pytest
from helpers.images import cut_out, random_images
from helpers.networks import preprocess

from googlenet_flax.preprocessing.crops import Crop

# Pixels are 0 to 255, and float32 holds a position among ten pixels to 1e-6 pixels.
ATOL = 1e-3


def jitted(**fields):
    return jax.jit(preprocess(**fields).__call__)


@pytest.mark.parametrize(
    ("shape", "fraction", "box"),
    [
        ((4, 9), 1.0, (0, 2.5, 4, 4)),
        ((9, 4), 1.0, (2.5, 0, 4, 4)),
        ((8, 12), 0.5, (2, 4, 4, 4)),
        # At its edges the crop is interpolated with pixels outside of it.
        ((8, 8), 0.75, (1, 1, 6, 6)),
    ],
)
def test_the_central_square_is_a_fraction_of_the_shorter_side(shape, fraction, box):
    images = random_images(2, *shape, 3)
    out = jitted(image_size=16, crop_fraction=fraction)(images)
    expected = [cut_out(image, box, 16) for image in images]
    np.testing.assert_allclose(out, expected, rtol=0, atol=ATOL)


def test_a_crop_in_place_of_evaluations_own():
    images = random_images(2, 8, 16, 3)
    cut = jitted(image_size=4, crop_fraction=0.5)
    # The box is the lower left quarter of the right one of the largest squares.
    crop = Crop(square=1.0, side=0.5, row=1.0, column=0.0)
    expected = images[:, 4:8, 8:12]
    np.testing.assert_array_equal(cut(images, None, crop), expected)
    mirrored = cut(images, None, crop._replace(mirror=True))
    np.testing.assert_array_equal(mirrored, expected[:, :, ::-1])
    assert cut._cache_size() == 1  # One compilation serves all crops.
