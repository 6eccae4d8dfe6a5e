import itertools

import jax
import numpy as np
import PIL.Image
import pytest
from helpers.crops import cut
from helpers.images import random_images
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet_flax.preprocessing.crops import (
    INTERPOLATIONS,
    central_crop,
    crop_boxes,
    evaluation_crops,
)

# Pixels are 0 to 255, and float32 holds a position among ten pixels to 1e-6 pixels.
ATOL = 1e-3
STORED = 12  # Side of the stored images that hypothesis fills, in pixels.


resize = jax.jit(jax.image.resize, static_argnums=(1, 2))


# If a picture shrinks by an even factor, as from 16 to 4, each new center lies halfway
# between two pixels.
@pytest.mark.parametrize("method", ["cubic", "nearest"])
@pytest.mark.parametrize("size", [4, 30])
def test_in_a_corner_of_its_image_it_is_the_resize_of_the_slice(size, method):
    extents = np.array([[7, 12], [16, 5], [16, 16], [1, 9]])
    images = random_images(4, 16, 16, 3).astype(np.float32)
    boxes = np.concatenate([np.zeros_like(extents), extents], axis=1)
    out = cut(images, boxes, size, extents, method)
    for image, (height, width), result in zip(images, extents, out, strict=True):
        picture = image[:height, :width]
        expected = resize(picture, (size, size, 3), method)
        np.testing.assert_allclose(result, expected, rtol=0, atol=ATOL)


def pillow(picture, box, size):
    """Crops and resizes a picture `[h, w]` with Pillow, in the type of the picture."""
    top, left, height, width = box
    corners = (left, top, left + width, top + height)
    image = PIL.Image.fromarray(picture)
    return np.asarray(image.resize((size, size), PIL.Image.Resampling.BILINEAR, corners))


@st.composite
def pictures_and_boxes(draw):
    """Draws a picture's extent, and a box in it of at least a quarter of a pixel."""
    extent = draw(st.tuples(*[st.integers(1, STORED)] * 2))
    # The unit is 1/64 of a pixel, which float32 holds exactly.
    size = [draw(st.integers(16, 64 * side)) for side in extent]
    corner = [
        draw(st.integers(0, 64 * side - length))
        for side, length in zip(extent, size, strict=True)
    ]
    return extent, np.array([*corner, *size]) / 64


NOISE = random_images(1, STORED, STORED, 1)
each_size = pytest.mark.parametrize("size", [1, 5, 16])


@each_size
@settings(deadline=None, max_examples=60)
@given(drawn=pictures_and_boxes())
def test_any_box_is_what_pillow_makes_of_it(size, drawn):
    (height, width), box = drawn
    out = cut(NOISE, [box], size, [(height, width)], "bilinear")[0, ..., 0]
    picture = NOISE[0, :height, :width, 0]
    exact = pillow(picture.astype(np.float32), box, size)
    np.testing.assert_allclose(out, exact, atol=ATOL)
    # For bytes, Pillow rounds by up to 0.5 after the columns and again after the rows.
    np.testing.assert_allclose(out, pillow(picture, box, size), atol=1.01)


# Height and width of pictures, in pixels.
PICTURES = [(480, 640), (500, 375), (320, 320), (256, 1024), (33, 32)]
each_picture = pytest.mark.parametrize("picture", PICTURES, ids=str)


traced_boxes = jax.jit(crop_boxes)  # 144 crops then need one compilation.


def assert_boxes(crops, picture, expected):
    """Checks boxes (top, left, height, width) in any order, plain and mirrored."""
    extents = np.array([picture], np.int32)
    assert len(crops) == 2 * len(expected)
    for mirror in (False, True):
        chosen = [crop for crop in crops if crop.mirror == mirror]
        boxes = [np.asarray(traced_boxes(extents, crop))[0] for crop in chosen]
        boxes, wanted = (
            sorted(map(list, array), key=lambda box: np.round(box, 2).tolist())
            for array in (boxes, expected)
        )
        np.testing.assert_allclose(np.array(boxes), wanted, rtol=0, atol=1e-3)


def windows(picture, scale, part):
    """Returns the boxes of section 7 of the paper for one square, in pixels.

    "we resize the image to 4 scales where the shorter dimension (height or width) is 256,
    288, 320 and 352 respectively, take the left, center and right square of these resized
    images (in the case of portrait images, we take the top, center and bottom squares). For
    each square, we then take the 4 corners and the center 224x224 crop as well as the
    square resized to 224x224, and their mirrored versions."
    """
    enlarged, rest = scale / min(picture), scale - 224
    top, left = (part * (side * enlarged - scale) for side in picture)
    places = [(0, 0), (0, rest), (rest, 0), (rest, rest), (rest / 2, rest / 2)]
    boxes = [(top + down, left + right, 224, 224) for down, right in places]
    return np.array([*boxes, (top, left, scale, scale)]) / enlarged


@each_picture
def test_the_papers_144_crops(picture):
    squares = itertools.product((256, 288, 320, 352), (0, 1 / 2, 1))
    expected = [box for square in squares for box in windows(picture, *square)]
    assert len(expected) == 72
    assert_boxes(evaluation_crops(144, 0.875), picture, expected)


@each_picture
def test_ten_crops_are_224_pixels_of_256(picture):
    # Krizhevsky et al. 2012: of the central 256x256 of the picture resized to 256 pixels on
    # its shorter side, the four 224x224 corners and the centre, and their mirror images.
    assert_boxes(evaluation_crops(10, 0.875), picture, windows(picture, 256, 1 / 2)[:5])


@each_picture
def test_six_views_are_shifted_by_a_32nd(picture):
    length = min(picture) * 0.875
    shifts = np.array([0, -length / 32, length / 32])
    top, left = ((side - length) / 2 + shifts for side in picture)
    sides = np.full(3, length)
    expected = np.stack([top, left, sides, sides], axis=1)
    assert_boxes(evaluation_crops(6, 0.875), picture, expected)


def test_one_crop_is_the_networks_own_and_two_are_it_and_its_mirror_image():
    assert evaluation_crops(1, 0.875) == (None,)  # This is the crop of the network itself.
    assert evaluation_crops(2, 0.875) == (None, central_crop(0.875)._replace(mirror=True))


@each_size
@settings(deadline=None, max_examples=40)
@given(drawn=pictures_and_boxes())
def test_area_weighs_pixels_by_what_is_covered_of_them(size, drawn):
    extent, box = drawn
    out = cut(NOISE, [box], size, [extent], method="area")[0, ..., 0]
    expected = NOISE[0, : extent[0], : extent[1], 0].astype(np.float64)
    for axis, (start, length) in enumerate(zip(box[:2], box[2:], strict=True)):
        edges = start + np.arange(size + 1)[:, None] * length / size
        pixels = np.arange(extent[axis])
        covered = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
        weights = np.clip(covered, 0, None) * size / length
        np.testing.assert_allclose(weights.sum(axis=1), 1)
        expected = np.moveaxis(np.tensordot(weights, expected, (1, axis)), 0, axis)
    # Where a new pixel is 1/1024 of a stored one, float32 holds its ends to a thousandth.
    np.testing.assert_allclose(out, expected, rtol=0, atol=0.5)


@each_size
@settings(deadline=None, max_examples=40)
@given(drawn=pictures_and_boxes(), method=st.sampled_from(sorted(INTERPOLATIONS)))
def test_no_method_sees_beyond_the_picture(size, drawn, method):
    extent, box = drawn
    rows, columns = np.arange(STORED)[:, None], np.arange(STORED)
    outside = ((rows >= extent[0]) | (columns >= extent[1]))[None, :, :, None]
    out = cut(np.where(outside, 0, NOISE), [box], size, [extent], method=method)
    other = cut(np.where(outside, 1e9, NOISE), [box], size, [extent], method=method)
    np.testing.assert_array_equal(other, out)
    plain = cut(np.where(outside, 1e9, 77), [box], size, [extent], method=method)
    np.testing.assert_allclose(plain, 77, rtol=1e-4)
    if method == "nearest":
        assert set(np.unique(out)) <= set(np.unique(NOISE[~outside]))


@pytest.mark.parametrize(
    ("size", "method"), [(32, "bilinear"), (80, "bilinear"), (32, "nearest")]
)
def test_beyond_the_picture_its_border_is_repeated(size, method):
    images, extents = random_images(4, 40, 40, 3), np.array([(32, 32)] * 4)
    corners = np.array([(-1, -3), (3, 1), (-1, 3), (0, 1)])
    sides = np.full((4, 2), 32)
    out = cut(images, np.hstack([corners, sides]), size, extents, method)
    padded = np.pad(images[:, :32, :32], ((0, 0), (10, 10), (10, 10), (0, 0)), "edge")
    expected = cut(padded, np.hstack([corners + 10, sides]), size, method=method)
    np.testing.assert_allclose(out, expected, rtol=0, atol=ATOL)


def test_an_unknown_number_of_crops_is_refused():
    with pytest.raises(ValueError, match="4 but must be one of"):
        evaluation_crops(4, 1.0)
