import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.convolutions import (
    exact_convolution,
    largest_differences,
    output_and_gradients,
)
from helpers.jaxprs import equations
from hypothesis import example, given, settings
from hypothesis import strategies as st

from googlenet_flax.model import winograd


@settings(max_examples=4, deadline=None)
@given(
    r=st.sampled_from(sorted(winograd.POINTS)),
    batch=st.integers(1, 3),
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    channels=st.integers(1, 7),
    features=st.integers(1, 7),
    seed=st.integers(0, 1000),
)
# Maps whose output tiles have 2x2, 3x3 and 4x4 pixels.
@example(r=3, batch=1, height=1, width=1, channels=1, features=1, seed=0)
@example(r=5, batch=2, height=1, width=1, channels=3, features=5, seed=0)
@example(r=3, batch=1, height=6, width=5, channels=2, features=3, seed=0)
@example(r=5, batch=1, height=5, width=6, channels=3, features=2, seed=0)
@example(r=3, batch=2, height=8, width=5, channels=5, features=3, seed=0)
@example(r=5, batch=2, height=6, width=4, channels=3, features=7, seed=0)
def test_is_the_convolution(r, batch, height, width, channels, features, seed):
    shapes = (batch, height, width, channels), (r, r, channels, features)
    arrays, theirs = exact_convolution(*shapes, seed=seed)
    with jax.enable_x64(True):
        ours = output_and_gradients(winograd.convolve, *arrays)
    assert [array.dtype for array in ours] == [np.float64] * 3
    assert [array.shape for array in ours] == [array.shape for array in theirs]
    assert max(largest_differences(ours, theirs)) < 1e-11


@pytest.mark.parametrize(
    ("r", "size", "channels", "features"),
    [  # These are the 3x3 and 5x5 convolutions of 4a and 5b at 224 px.
        (3, 14, 96, 208),
        (3, 7, 192, 384),
        (5, 14, 16, 48),
        (5, 7, 48, 128),
        (3, 6, 96, 208),  # At 96 and 64 px these convolutions have smaller tiles.
        (5, 6, 16, 48),
        (3, 2, 192, 384),
        (5, 2, 48, 128),
        # conv2 has the largest sum in a kernel's gradient; this is a smaller version.
        pytest.param(3, 56, 64, 192, marks=pytest.mark.slow),
        pytest.param(5, 28, 32, 96, marks=pytest.mark.slow),
    ],
)
def test_float32_is_as_good_as_it_need_be(r, size, channels, features):
    shapes = (4, size, size, channels), (r, r, channels, features)
    arrays, exact = exact_convolution(*shapes)
    narrow = [array.astype(np.float32) for array in arrays]
    ours = output_and_gradients(winograd.convolve, *narrow)
    assert [array.dtype for array in ours] == [np.float32] * 3
    differences = largest_differences(ours, exact)
    # The eight points of 5x5 kernels are worse conditioned, and processors differ in the
    # order of sums.
    assert max(differences) < {3: 1e-5, 5: 2e-5}[r], differences


def multiplications(jaxpr) -> int:
    """Counts the multiplications of all matrix products."""
    total = 0
    for equation in equations(jaxpr):
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            shape = equation.outvars[0].aval.shape
            total += math.prod(shape) * math.prod(left[axis] for axis in contracted)
    return total


def with_both_gradients(x, kernel):
    y, vjp = jax.vjp(winograd.convolve, x, kernel)
    return y, vjp(y)


@pytest.mark.parametrize(
    ("r", "size", "expected"),
    [
        (3, (8, 12), 36 / 16),
        (5, (6, 3), 49 / 9),  # Tiles of 3x3 cover a map of 6x3 exactly.
        (3, (2, 2), 16 / 4),
    ],
)
def test_number_of_products(r, size, expected):
    """Compares with `(m + r - 1)^2` products a tile (Lavin and Gray, section 3)."""

    def products(function):
        # Counts what grows with batch, channels and features, which leaves out transforms.
        total = 0
        for sizes in itertools.product((1, 2), repeat=3):
            batch, channels, features = sizes
            x = jax.ShapeDtypeStruct((batch, *size, channels), jnp.float32)
            kernel = jax.ShapeDtypeStruct((r, r, channels, features), jnp.float32)
            sign = (-1) ** sizes.count(1)
            total += sign * multiplications(jax.make_jaxpr(function)(x, kernel).jaxpr)
        return total / math.prod(size)

    assert products(winograd.convolve) == pytest.approx(expected)
    assert products(with_both_gradients) == pytest.approx(3 * expected)
