"""Reference convolutions, and the differences of ours from them."""

from functools import cache, partial

import jax
import numpy as np


def stock_convolution(x, kernel, stride=1, padding="SAME"):
    """Computes a convolution with XLA's own operation."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def draw_convolution(x_shape, kernel_shape, stride=1, padding="SAME", seed=0):
    """Draws an input as after a ReLU, a kernel and a gradient of the output, float64."""
    rng = np.random.default_rng(seed)
    x, kernel = rng.normal(size=x_shape), rng.normal(size=kernel_shape)
    y = jax.eval_shape(
        lambda x, kernel: stock_convolution(x, kernel, stride, padding), x, kernel
    )
    return np.maximum(x, 0), kernel, rng.normal(size=y.shape)


def output_and_gradients(convolve, x, kernel, grad) -> list[np.ndarray]:
    """Computes `convolve(x, kernel)` and the gradients of both arguments."""

    def run(x, kernel, grad):
        y, vjp = jax.vjp(convolve, x, kernel)
        return y, *vjp(grad)

    return jax.device_get(list(jax.jit(run)(x, kernel, grad)))


@cache
def exact_convolution(x_shape, kernel_shape, stride=1, padding="SAME", seed=0):
    """Draws a convolution; returns its arrays, and XLA's output and gradients, float64."""
    with jax.enable_x64(True):
        arrays = draw_convolution(x_shape, kernel_shape, stride, padding, seed)
        stock = partial(stock_convolution, stride=stride, padding=padding)
        return arrays, output_and_gradients(stock, *arrays)


def largest_differences(actual, expected) -> list[float]:
    """Returns the difference of each pair of arrays, relative to the largest value."""
    pairs = zip(actual, expected, strict=True)
    return [float(np.abs(a - e).max() / np.abs(e).max()) for a, e in pairs]
