import functools
import itertools
import math

import jax
import numpy as np
import pytest
from helpers.crops import assert_evenly_spread, cut
from helpers.images import random_images
from helpers.networks import augment, preprocess

from googlenet_flax.preprocessing.augment import alternating_flips
from googlenet_flax.preprocessing.crops import INTERPOLATIONS

# Pixels are 0 to 255; test_crops explains the bound.
ATOL = 1e-3
METHODS = tuple(INTERPOLATIONS)


@functools.cache
def jitted(augmentation, network_input):
    return jax.jit(
        lambda images, seeds, extents: augmentation(
            images,
            jax.vmap(jax.random.key)(seeds),
            preprocess=network_input,
            extents=extents,
        )
    )


def run(images, seeds, *, extents=None, network_input=None, **fields):
    """Returns the output of `augment(**fields)`, by default at the images' own size."""
    network_input = network_input or preprocess(image_size=images.shape[1])
    return np.asarray(jitted(augment(**fields), network_input)(images, seeds, extents))


# Height and width of pictures in images of 6x6 pixels.
EXTENTS = np.array([[6, 6], [3, 5], [6, 2], [5, 5], [6, 5], [2, 2], [1, 6], [4, 3]])
NETWORK_INPUT = preprocess(
    image_size=7,
    crop_fraction=0.75,
    input_scale=1 / 255,
    input_mean=(0.4, 0.5, 0.6),
    input_std=(0.2, 0.3, 0.4),
    channel_order="BGR",
)


@pytest.mark.parametrize(("channels", "extents"), [(1, None), (3, EXTENTS[:4])])
def test_augmentation_that_is_off_changes_nothing(channels, extents):
    images, seeds = random_images(4, 6, 6, channels), np.arange(4)
    out = run(images, seeds, extents=extents)
    assert out.dtype == np.float32 and out.shape == (4, 6, 6, 3)
    if extents is None:
        np.testing.assert_array_equal(out, np.broadcast_to(images, out.shape))
    out = run(images, seeds, extents=extents, network_input=NETWORK_INPUT)
    evaluated = jax.jit(NETWORK_INPUT.__call__)(images, extents)
    np.testing.assert_array_equal(out, evaluated)


def equals(images, others):
    return np.all(images == others, axis=(1, 2, 3))


def test_crops_are_windows_of_the_padded_image():
    images, places = random_images(600, 5, 5, 3), itertools.product(range(3), repeat=2)
    out = run(images, np.arange(600), crop_padding_pixels=1)
    assert (out.dtype, out.shape) == (np.float32, images.shape)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [padded[:, y : y + 5, x : x + 5] for y, x in places]
    found = np.array([equals(out, window) for window in windows])
    np.testing.assert_array_equal(found.sum(axis=0), 1)
    # 600 / 9 = 67 of each are expected; the bound is four standard deviations of 7.7.
    assert 36 < found.sum(axis=1).min() <= found.sum(axis=1).max() < 98


@pytest.mark.parametrize(
    "fields",
    [{"crop_padding_pixels": 2}, {"crop_min_area": 0.08, "flip": "random"}],
    ids=str,
)
def test_a_picture_in_the_corner_of_its_image_is_as_without_the_rest(fields):
    # Padding surrounds the picture and not the stored image.
    images, seeds = random_images(6, 8, 8, 3), np.arange(6)
    images[:, 5:] = 0
    images[:, :, 7:] = 0
    fields = {**fields, "network_input": preprocess(image_size=10)}
    out = run(images, seeds, extents=np.array([(5, 7)] * 6), **fields)
    alone = run(images[:, :5, :7], seeds, **fields)
    np.testing.assert_allclose(out, alone, rtol=0, atol=ATOL)


def test_about_half_of_the_images_are_mirrored():
    images = random_images(1000, 4, 4, 1)
    seeds = np.arange(len(images))
    out = run(images, seeds, flip="random")
    images = np.repeat(images, 3, axis=-1)
    as_is, mirrored = equals(out, images), equals(out, images[:, :, ::-1])
    np.testing.assert_array_equal(as_is, ~mirrored)
    # The bound is four standard deviations of 15.8.
    assert 437 < mirrored.sum() < 563


def test_each_image_depends_on_its_own_rng_only():
    images, seeds = random_images(8, 6, 6, 3), np.arange(8)
    everything = {
        **{"crop_padding_pixels": 1, "crop_min_area": 0.08, "flip": "random"},
        **{"interpolations": METHODS, "color_jitter": 0.5, "cutout_fraction": 0.3},
        "network_input": NETWORK_INPUT,
    }

    def at(rows, seeds=seeds):
        return run(images[rows], seeds[rows], extents=EXTENTS[rows], **everything)

    out = at(np.arange(8))
    order = np.random.default_rng(1).permutation(8)
    for rows in (order, order[[0, 1, 2, 3, 3, 2, 1, 0]]):  # Other rows do not matter.
        np.testing.assert_array_equal(at(rows), out[rows])
    # The augmentation does depend on the example.
    assert not equals(at(np.arange(8), seeds + 8), out).any()


SIDE = 48  # Side of the network's input. All boxes below are smaller and are enlarged.


def seen_boxes(picture, number, **fields):
    """Returns the boxes `[number, 4]` of area crops: top, left, height, width in pixels.

    Every pixel holds its place, row in red and column in green, and interpolation is linear
    between the centers of two pixels. Two new pixels in the middle therefore determine
    start and length.
    """
    places = np.indices((*picture, 1))[:2, ..., 0]
    image = np.stack([*places, np.zeros(picture)], axis=-1).astype(np.uint8)
    out = run(
        np.broadcast_to(image, (number, *image.shape)),
        np.arange(number),
        network_input=preprocess(image_size=SIDE),
        **fields,
    )
    near, far = SIDE // 4, 3 * SIDE // 4
    boxes = []
    for line in (out[:, :, SIDE // 2, 0], out[:, SIDE // 2, :, 1]):
        step = (line[:, far] - line[:, near]) / (far - near)
        boxes.append((line[:, near] + 0.5 - (near + 0.5) * step, step * SIDE))
    (top, height), (left, width) = boxes
    return np.stack([top, left, height, width], axis=1)


def areas_and_aspects(boxes, picture):
    """Returns areas and aspects of boxes in a picture, and checks them by section 6."""
    assert boxes[:, :2].min() > -1e-3
    assert np.all(boxes[:, :2] + boxes[:, 2:] < np.array(picture) + 1e-3)
    heights, widths = boxes[:, 2], boxes[:, 3]
    areas, aspects = heights * widths / math.prod(picture), widths / heights
    assert areas.min() > 0.08 - 1e-4
    assert aspects.min() > 3 / 4 - 1e-4 and aspects.max() < 4 / 3 + 1e-4
    return areas, aspects


NUMBER = 1600


@functools.cache
def square_boxes(max_aspect):
    fields = {"crop_min_area": 0.08, "crop_max_aspect": max_aspect}
    return seen_boxes((40, 40), NUMBER, **fields)


def test_area_crops_of_section_6():
    # "whose size is distributed evenly between 8% and 100% of the image area with aspect
    # ratio constrained to the interval [3/4, 4/3]". If the ratio must be 1, only the area
    # is drawn, and no draw is refused because its box is too long.
    areas, aspects = areas_and_aspects(square_boxes(1.0), (40, 40))
    np.testing.assert_allclose(aspects, 1, atol=1e-4)
    assert_evenly_spread(areas, 0.08, 1)

    areas, aspects = areas_and_aspects(square_boxes(4 / 3), (40, 40))
    # A box of up to 3/4 of the area fits at any aspect. For such boxes, areas are evenly
    # distributed, and so are the logarithms of the aspects.
    free = areas < 3 / 4
    assert_evenly_spread(areas[free], 0.08, 3 / 4)
    log_aspects = np.log(aspects) / math.log(4 / 3)
    assert_evenly_spread(log_aspects[free], -1, 1)


def test_area_crops_lie_anywhere():
    boxes = square_boxes(4 / 3)
    room = 40 - boxes[:, 2:]
    movable = np.all(room > 1, axis=1)
    assert movable.sum() > NUMBER / 2
    fractions = (boxes[:, :2] / room)[movable]
    for axis in (0, 1):
        assert_evenly_spread(fractions[:, axis], -1e-3, 1 + 1e-3)
    # Row and column, and place and size, are not correlated.
    sizes = boxes[movable, 2]
    correlations = np.corrcoef([*fractions.T, sizes])
    # Each correlation has a standard deviation of 1 / sqrt(n).
    limit = 4 / math.sqrt(movable.sum())
    assert np.abs(correlations - np.eye(3)).max() < limit


def test_area_crops_of_a_panorama():
    # 1:3: a crop of aspect `a` (at most 4/3) covers no more than a / 3 of it.
    picture = 20, 60
    boxes = seen_boxes(picture, 800, crop_min_area=0.08, crop_max_aspect=4 / 3)
    areas, _ = areas_and_aspects(boxes, picture)
    assert areas.max() < 4 / 9 + 1e-4
    # If all ten draws are refused, the box is the largest possible one, 20 x 26.7 pixels.
    fallback = np.all(np.abs(boxes[:, 2:] - (20, 80 / 3)) < 1e-3, axis=1)
    # The height, sqrt(area * 1200 / aspect), must not exceed 20, whose square is a third
    # of 1200.
    area = np.linspace(0.08, 1, 1001)[:, None]
    aspect = np.exp(np.linspace(-1, 1, 1001) * math.log(4 / 3))
    share = (1 - np.mean(area / aspect <= 1 / 3)) ** 10
    deviation = math.sqrt(800 * share * (1 - share))
    assert abs(fallback.sum() - 800 * share) < 4 * deviation


def grey(image):
    """Computes gray values by ITU-R BT.601."""
    return (image @ [0.299, 0.587, 0.114])[..., None]


def changed(image, factors):
    """Changes brightness, contrast and color in turn, neither rounded nor clipped."""
    brightness, contrast, color = factors
    image = brightness * image.astype(np.float64)
    image = grey(image).mean() + contrast * (image - grey(image).mean())
    return grey(image) + color * (image - grey(image))


def mild_images(number, side=6):
    """Draws colors that factors of up to 1.5 keep between 0 and 255."""
    return np.random.default_rng(0).integers(80, 121, (number, side, side, 3), np.uint8)


def factors_of(images, distorted):
    """Computes brightness, contrast and color factors `[N, 3]`."""
    before, after = grey(images.astype(np.float64)), grey(distorted.astype(np.float64))
    axes = (1, 2, 3)
    brightness = after.mean(axes) / before.mean(axes)
    contrast = after.std(axes) / before.std(axes) / brightness
    colours = np.std(distorted - after, axes) / np.std(images - before, axes)
    return np.stack([brightness, contrast, colours / brightness / contrast], axis=1)


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_photometric_factors_are_even_and_independent(strength):
    images = mild_images(800)
    out = run(images, np.arange(800), color_jitter=strength)
    factors = factors_of(images, out)
    for axis in range(3):
        assert_evenly_spread(factors[:, axis], 1 - strength - 1e-4, 1 + strength + 1e-4)
    correlations = np.corrcoef(factors.T)
    assert np.abs(correlations - np.eye(3)).max() < 4 / math.sqrt(800)


def test_the_result_is_clipped_to_what_pixels_can_be():
    images, seeds = random_images(8, 6, 6, 3), np.arange(8)
    # The factors depend on the key and not on the image.
    mild = mild_images(8)
    factors = factors_of(mild, run(mild, seeds, color_jitter=0.5))
    out = run(images, seeds, color_jitter=0.5)
    expected = [changed(*pair) for pair in zip(images, factors, strict=True)]
    np.testing.assert_allclose(out, np.clip(expected, 0, 255), rtol=0, atol=5 * ATOL)
    assert out.min() == 0 and out.max() == 255


def test_only_what_the_network_sees_counts_as_the_image():
    # Contrast is relative to the mean of the crop, without the pixels outside of it.
    images = np.repeat(mild_images(8, side=12), 2, axis=2)
    network_input = preprocess(image_size=6, crop_fraction=0.5)
    fields = {"color_jitter": 0.5, "network_input": network_input}
    out = run(images, np.arange(8), **fields)
    middle = np.zeros_like(images)
    middle[:, 3:9, 9:15] = images[:, 3:9, 9:15]
    np.testing.assert_array_equal(run(middle, np.arange(8), **fields), out)


def test_each_method_is_drawn_equally_often():
    methods = "nearest", "cubic", "area"
    images = np.repeat(random_images(1, 9, 9, 3), 1200, axis=0)
    fields = {"network_input": preprocess(image_size=5), "interpolations": methods}
    out = run(images, np.arange(1200), **fields)
    box = [[0, 0, 9, 9]]
    each = [np.clip(cut(images[:1], box, 5, method=name), 0, 255) for name in METHODS]
    equal = [np.abs(out - resized).max(axis=(1, 2, 3)) < ATOL for resized in each]
    np.testing.assert_array_equal(np.sum(equal, axis=0), 1)
    share = 1 / len(methods)
    deviation = math.sqrt(1200 * share * (1 - share))
    for method, drawn in zip(METHODS, equal, strict=True):
        expected = 1200 * share if method in methods else 0
        assert abs(drawn.sum() - expected) < 4 * deviation, method
        assert method in methods or not drawn.any()


def test_random_crops_are_where_they_were_whatever_the_method():
    # A cubic curve is a straight line wherever bilinear interpolation gives one.
    fields = {"crop_min_area": 0.08, "crop_max_aspect": 4 / 3}
    boxes = seen_boxes((40, 40), 100, interpolations=("cubic",), **fields)
    np.testing.assert_allclose(boxes, square_boxes(4 / 3)[:100], rtol=0, atol=1e-2)


def test_random_crops_in_bfloat16_are_near_those_in_float32():
    images, seeds = 128 + random_images(8, 40, 40, 3) // 2, np.arange(8)
    fields = {"crop_min_area": 0.08, "crop_max_aspect": 4 / 3, "interpolations": METHODS}
    network_input = preprocess(image_size=20)
    fields |= {"network_input": network_input}
    error = run(images, seeds, dtype="bfloat16", **fields) - run(images, seeds, **fields)
    assert 0 < np.sqrt(np.mean(np.square(error))) < 1  # Pixels are 0 to 255.


@pytest.mark.parametrize(("size", "side"), [(11, 5), (10, 4)])
def test_cutout_is_a_square_of_zeros_around_any_pixel(size, side):
    number = 1500
    images = np.repeat(random_images(1, size, size, 3), number, axis=0)
    network_input = preprocess(
        image_size=size, input_scale=1 / 255, input_mean=(0.41, 0.52, 0.63)
    )
    seeds, fields = np.arange(number), {"network_input": network_input}
    # The other changes are as without cutout.
    fields |= {"crop_padding_pixels": 1, "flip": "random", "color_jitter": 0.5}
    whole = run(images, seeds, **fields)
    assert np.all(whole)  # Only erased pixels are zero after normalization.
    out = run(images, seeds, cutout_fraction=side / size, **fields)
    erased = np.all(out == 0, axis=-1)
    np.testing.assert_array_equal(out, np.where(erased[..., None], 0, whole))
    # Rows or columns of an erased square by its center, clipped at the border.
    places, starts = np.arange(size), np.arange(size)[:, None] - side // 2
    lines = (places >= starts) & (places < starts + side)
    rows, columns = erased.any(axis=2), erased.any(axis=1)
    np.testing.assert_array_equal(erased, rows[:, :, None] & columns[:, None])
    for found in (rows, columns):
        is_centre = np.all(found[:, None] == lines, axis=-1)
        np.testing.assert_array_equal(is_centre.sum(axis=1), 1)
        # Every pixel is equally likely to be the center.
        deviation = math.sqrt(number / size * (1 - 1 / size))
        assert np.abs(is_centre.sum(axis=0) - number / size).max() < 4 * deviation


def flips_of(seed, indices, epoch):
    rng = jax.random.key(seed)
    return np.asarray(jax.jit(alternating_flips)(rng, np.asarray(indices), epoch))


def test_alternating_flips_are_half_and_then_the_other_half():
    indices = np.arange(2000) + 31
    first = flips_of(0, indices, 0)
    # The bound is four standard deviations of 22.4.
    assert 910 < first.sum() < 1090
    for epoch in range(1, 4):
        expected = ~first if epoch % 2 else first
        np.testing.assert_array_equal(flips_of(0, indices, epoch), expected)
    order = np.random.default_rng(1).permutation(2000)
    np.testing.assert_array_equal(flips_of(0, indices[order], 0), first[order])
    # They differ from those of another seed.
    assert 910 < np.sum(flips_of(1, indices, 0) == first) < 1090
