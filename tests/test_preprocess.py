import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from googlenet_flax.data.preprocess import Augment, Preprocess

ZEROS, ONES = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def preprocess(image_size, scale=1.0, mean=ZEROS, std=ONES, order="RGB"):
    return Preprocess(image_size, scale, mean, std, order)


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def interpolation_matrix(old, new):
    """Row `i` holds the weights of the old pixels in the new pixel `i`.

    The centre of pixel `i` lies at `i + 0.5`; beyond the outermost centres, the outermost
    pixel goes on.
    """
    weights = np.zeros((new, old))
    for i in range(new):
        position = np.clip((i + 0.5) * old / new - 0.5, 0, old - 1)
        left = min(int(position), old - 2)
        weights[i, left] = left + 1 - position
        weights[i, left + 1] = position - left
    return weights


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_bilinear_with_half_pixel_centres(channels):
    images = random_images(2, 8, 8, channels)
    weights = interpolation_matrix(8, 80)
    expected = np.einsum("yh,bhwc,xw->byxc", weights, images.astype(np.float64), weights)
    # In the unit range: float32 rounds 255 to 1.5e-5.
    out = preprocess(80, scale=1 / 255)(jnp.asarray(images))
    expected = expected / 255
    assert out.dtype == jnp.float32
    assert out.shape == (2, 80, 80, 3)
    np.testing.assert_allclose(out, np.broadcast_to(expected, out.shape), rtol=0, atol=1e-6)


def test_resize_does_not_keep_the_aspect_ratio():
    images = random_images(1, 4, 8, 3)
    rows, columns = interpolation_matrix(4, 16), interpolation_matrix(8, 16)
    expected = np.einsum("yh,bhwc,xw->byxc", rows, images.astype(np.float64), columns)
    np.testing.assert_allclose(
        preprocess(16)(jnp.asarray(images)), expected, rtol=0, atol=1e-4
    )


def test_scale_to_the_unit_range():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    out = np.asarray(preprocess(16, scale=1 / 255)(jnp.asarray(images)))
    assert (out.min(), out.max()) == (0, pytest.approx(1, abs=1e-6))
    np.testing.assert_allclose(out[..., 0], images[..., 0] / 255, atol=1e-6)


def test_the_papers_means_in_bgr():
    # Mean pixel of Caffe's bvlc_googlenet/train_val.prototxt: blue, green, red, 0 to 255.
    images = random_images(2, 6, 6, 3)
    out = preprocess(6, mean=(104.0, 117.0, 123.0), order="BGR")(jnp.asarray(images))
    red, green, blue = np.moveaxis(images.astype(np.float64), -1, 0)
    expected = np.stack([blue - 104, green - 117, red - 123], axis=-1)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-4)


def test_mean_and_deviation_apply_to_the_scaled_channels():
    # torchvision's ImageNet constants: RGB, 0 to 1.
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = random_images(2, 6, 6, 3)
    out = preprocess(6, scale=1 / 255, mean=mean, std=std)(jnp.asarray(images))
    expected = (images / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_grey_images_get_three_equal_channels(order):
    images = random_images(3, 6, 6, 1)
    out = np.asarray(preprocess(6, order=order)(jnp.asarray(images)))
    np.testing.assert_array_equal(out, np.repeat(images, 3, axis=-1).astype(np.float32))


@functools.cache
def jitted(augment):
    return jax.jit(lambda images, seeds: augment(images, jax.vmap(jax.random.key)(seeds)))


def augment(images, seeds, **fields):
    return np.asarray(jitted(Augment(**fields))(images, seeds))


def test_augmentation_that_is_off_changes_nothing():
    images = random_images(4, 6, 6, 3)
    out = augment(images, np.arange(4), crop_padding_pixels=0, flip=False)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, images)


def padded_windows(image, padding):
    """The `(2 * padding + 1) ** 2` crops of the zero-padded image."""
    height, width, channels = image.shape
    padded = np.zeros((height + 2 * padding, width + 2 * padding, channels), np.uint8)
    padded[padding : padding + height, padding : padding + width] = image
    places = range(2 * padding + 1)
    return [
        padded[row : row + height, column : column + width]
        for row in places
        for column in places
    ]


def test_crops_are_windows_of_the_padded_image():
    images = random_images(600, 5, 4, 3)
    seeds = np.arange(len(images))
    out = augment(images, seeds, crop_padding_pixels=1, flip=False)
    assert (out.dtype, out.shape) == (images.dtype, images.shape)
    counts = np.zeros(9, int)
    for image, cropped in zip(images, out, strict=True):
        equal = [np.array_equal(cropped, window) for window in padded_windows(image, 1)]
        assert sum(equal) == 1
        counts += equal
    # 600 / 9 = 67 of each, standard deviation 7.7; four of them.
    assert counts.min() > 36
    assert counts.max() < 98


def test_about_half_of_the_images_are_mirrored():
    images = random_images(1000, 4, 4, 1)
    seeds = np.arange(len(images))
    out = augment(images, seeds, crop_padding_pixels=0, flip=True)
    mirrored = 0
    for image, flipped in zip(images, out, strict=True):
        as_is = np.array_equal(flipped, image)
        assert as_is or np.array_equal(flipped, image[:, ::-1])
        mirrored += not as_is
    # Standard deviation 15.8; four of them.
    assert 437 < mirrored < 563


def test_each_image_depends_on_its_own_rng_only():
    images = random_images(16, 6, 6, 3)
    seeds = np.arange(16)
    fields = {"crop_padding_pixels": 2, "flip": True}
    out = augment(images, seeds, **fields)
    assert not np.array_equal(out, images)
    order = np.random.default_rng(1).permutation(16)
    np.testing.assert_array_equal(
        augment(images[order], seeds[order], **fields), out[order]
    )
    halves = [
        augment(images[rows], seeds[rows], **fields) for rows in (slice(8), slice(8, 16))
    ]
    np.testing.assert_array_equal(np.concatenate(halves), out)
    # Both at once: a window, perhaps mirrored, and some of each.
    mirrored = [
        any(np.array_equal(x[:, ::-1], w) for w in padded_windows(image, 2))
        for image, x in zip(images, out, strict=True)
    ]
    as_is = [
        any(np.array_equal(x, w) for w in padded_windows(image, 2))
        for image, x in zip(images, out, strict=True)
    ]
    assert [not flipped for flipped in mirrored] == as_is
    assert 0 < sum(mirrored) < 16
