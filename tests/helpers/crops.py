"""Reference crops of images, and a check that random values are evenly spread."""

import functools
import math

import jax
import numpy as np

from googlenet_flax.preprocessing.crops import INTERPOLATIONS, resample

resampled = functools.partial(jax.jit, static_argnums=2)(resample)


def cut(images, boxes, size, extents=None, method=None):
    """Resamples boxes of images by one method, by default bilinearly."""
    if extents is None:
        extents = np.broadcast_to(images.shape[1:3], (len(images), 2))
    images, boxes = np.asarray(images, np.float32), np.asarray(boxes, np.float32)
    if method is not None:
        method = np.full(len(images), list(INTERPOLATIONS).index(method), np.int32)
    return np.asarray(resampled(images, boxes, size, np.asarray(extents, np.int32), method))


def assert_evenly_spread(values, low, high):
    """Checks that each quarter of a range holds a quarter, within 4 standard deviations."""
    counts, _ = np.histogram(values, 4, (low, high))
    assert counts.sum() == len(values), "some are out of range"
    deviation = math.sqrt(len(values) * (1 / 4) * (3 / 4))
    assert np.abs(counts - len(values) / 4).max() < 4 * deviation, counts
