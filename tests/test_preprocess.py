import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.images import random_images
from helpers.networks import preprocess

from googlenet_flax.preprocessing.crops import Crop, central_crop, ten_crops

# Of 0 to 255: a float32 knows a position among some ten pixels to 1e-6 pixels.
ATOL = 1e-3


def interpolation_matrix(old, new, start=0.0, length=None):
    """Row `i` holds the weights of the old pixels in the new pixel `i`.

    The new pixels share `length` old ones from `start` on. The centre of pixel `i` lies at
    `i + 0.5`; beyond the outermost centres, the outermost pixel goes on.
    """
    weights = np.zeros((new, old))
    step = (old if length is None else length) / new
    assert step <= 1  # Otherwise it would have to be antialiased.
    for i in range(new):
        position = np.clip(start + (i + 0.5) * step - 0.5, 0, old - 1)
        left = min(int(position), old - 2)
        weights[i, left] = left + 1 - position
        weights[i, left + 1] = position - left
    return weights


def resized(images, rows, columns):
    return np.einsum("yh,bhwc,xw->byxc", rows, images.astype(np.float64), columns)


def jitted(**fields):
    return jax.jit(preprocess(**fields).__call__)


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_bilinear_with_half_pixel_centres(channels):
    images = random_images(2, 8, 8, channels)
    weights = interpolation_matrix(8, 80)
    # In the unit range: float32 rounds 255 to 1.5e-5.
    out = jitted(image_size=80, input_scale=1 / 255)(images)
    expected = resized(images, weights, weights) / 255
    assert out.dtype == jnp.float32 and out.shape == (2, 80, 80, 3)
    np.testing.assert_allclose(out, np.broadcast_to(expected, out.shape), rtol=0, atol=1e-6)


@pytest.mark.parametrize("portrait", [False, True])
def test_the_central_square_keeps_the_aspect_ratio(portrait):
    images = random_images(2, 4, 9, 3)
    # 9 columns: the square begins at the middle of the third, 2.5 pixels from either side.
    rows, columns = interpolation_matrix(4, 16), interpolation_matrix(9, 16, 2.5, 4)
    expected = resized(images, rows, columns)
    if portrait:
        images, expected = images.swapaxes(1, 2), expected.swapaxes(1, 2)
    out = jitted(image_size=16)(images)
    np.testing.assert_allclose(out, expected, rtol=0, atol=ATOL)


def test_crop_fraction_is_of_the_shorter_side():
    images = random_images(2, 8, 12, 3)
    cut = jitted(image_size=4, crop_fraction=0.5)
    # A pixel is a pixel: 4 of 8 rows, and as many columns, out of the middle.
    np.testing.assert_array_equal(cut(images), images[:, 2:6, 4:8])
    # Towards its edges it interpolates with what lies outside.
    square = random_images(2, 8, 8, 3)
    weights = interpolation_matrix(8, 20, 1, 6)
    np.testing.assert_allclose(
        jitted(image_size=20, crop_fraction=0.75)(square),
        resized(square, weights, weights),
        rtol=0,
        atol=ATOL,
    )


def test_a_picture_in_the_corner_of_its_image_is_as_without_the_rest():
    extents = np.array([[8, 12], [12, 5], [6, 6]], np.int32)
    images = random_images(3, 12, 12, 3)
    cut = jitted(image_size=10, crop_fraction=0.5)
    out = cut(images, extents)
    for image, (height, width), result in zip(images, extents, out, strict=True):
        alone = cut(image[None, :height, :width])[0]
        np.testing.assert_allclose(result, alone, rtol=0, atol=ATOL)


@pytest.mark.parametrize("image_size", [7, 30])
def test_the_short_way_for_whole_squares_is_no_other(image_size):
    # They are resized by jax.image.resize, and where that is not at hand by resample.
    images = random_images(2, 12, 12, 1)
    resize = jitted(image_size=image_size)
    extents = np.full((2, 2), 12)
    for other in (
        resize(images, extents),
        resize(images, None, central_crop(1.0)),
        resize(images, extents, central_crop(1.0)),
    ):
        np.testing.assert_allclose(other, resize(images), rtol=0, atol=ATOL)


def test_a_crop_in_place_of_evaluations_own():
    images = random_images(2, 8, 16, 3)
    cut = jitted(image_size=4, crop_fraction=0.5)
    # The right one of the largest squares, and in it half of the side, bottom and left.
    crop = Crop(square=1.0, side=0.5, row=1.0, column=0.0)
    expected = images[:, 4:8, 8:12]
    np.testing.assert_array_equal(cut(images, None, crop), expected)
    mirrored = cut(images, None, crop._replace(mirror=True))
    np.testing.assert_array_equal(mirrored, expected[:, :, ::-1])
    own = preprocess(image_size=4, crop_fraction=0.5).crop
    np.testing.assert_array_equal(cut(images, None, own), cut(images))


def test_one_compilation_serves_all_crops():
    images, extents = jnp.asarray(random_images(2, 9, 7, 3)), jnp.array([[9, 7], [5, 6]])
    fields = {"image_size": 6, "input_mean": (1.0, 2.0, 3.0), "channel_order": "BGR"}
    once = jitted(**fields)
    for crop in ten_crops()[4:6]:
        expected = preprocess(**fields)(images, extents, crop)
        np.testing.assert_allclose(once(images, extents, crop), expected, rtol=0, atol=ATOL)
    assert once._cache_size() == 1


def test_the_papers_means_in_bgr():
    # Mean pixel of Caffe's bvlc_googlenet/train_val.prototxt: blue, green, red, 0 to 255.
    images = random_images(2, 6, 6, 3)
    scale = jitted(image_size=6, input_mean=(104.0, 117.0, 123.0), channel_order="BGR")
    red, green, blue = np.moveaxis(images.astype(np.float64), -1, 0)
    expected = np.stack([blue - 104, green - 117, red - 123], axis=-1)
    np.testing.assert_allclose(scale(images), expected, rtol=0, atol=1e-4)


def test_mean_and_deviation_apply_to_the_scaled_channels():
    # torchvision's ImageNet constants: RGB, 0 to 1.
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = random_images(2, 6, 6, 3)
    scale = jitted(image_size=6, input_scale=1 / 255, input_mean=mean, input_std=std)
    expected = (images / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(scale(images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("order", "size"), [("RGB", 6), ("BGR", 3)])
def test_grey_images_get_three_equal_channels(order, size):
    images, margin = random_images(3, 6, 6, 1), (6 - size) / 2
    cut = jitted(image_size=size, crop_fraction=size / 6, channel_order=order)
    rows = interpolation_matrix(6, size, margin, size)
    expected = np.repeat(resized(images, rows, rows), 3, axis=-1).astype(np.float32)
    if size == 6:  # Pixel for pixel.
        np.testing.assert_array_equal(expected, np.repeat(images, 3, axis=-1))
    np.testing.assert_array_equal(cut(images), expected)
