"""Reference convolutions, and the differences of ours from them."""

from functools import cache

import jax
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def same_padding(size, kernel_size, stride):
    """Returns the pixels that TensorFlow's SAME adds before and after `size` pixels."""
    total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
    return total // 2, total - total // 2


def numpy_convolution(x, kernel, grad, stride=1, padding="SAME") -> list[np.ndarray]:
    """Computes a convolution, and the gradients of both arguments, with NumPy.

    `grad` is the gradient of the output, or None for the output alone.
    """
    size, pads = len(kernel), padding
    if padding == "SAME":
        pads = [same_padding(side, size, stride) for side in x.shape[1:3]]
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))
    views = sliding_window_view(padded, (size, size), (1, 2))[:, ::stride, ::stride]
    y = np.tensordot(views, kernel, ((4, 5, 3), (0, 1, 2)))
    if grad is None:
        return [y]
    kernel_grad = np.tensordot(views, grad, ((0, 1, 2), (0, 1, 2))).transpose(1, 2, 0, 3)
    x_grad = np.zeros_like(padded)
    for row, column in np.ndindex(size, size):
        rows = slice(row, row + stride * y.shape[1], stride)
        columns = slice(column, column + stride * y.shape[2], stride)
        x_grad[:, rows, columns] += grad @ kernel[row, column].T
    (top, _), (left, _) = pads
    height, width = x.shape[1:3]
    return [y, x_grad[:, top : top + height, left : left + width], kernel_grad]


def draw_convolution(x_shape, kernel_shape, stride=1, padding="SAME", seed=0):
    """Draws an input as after a ReLU, a kernel and a gradient of the output, float64."""
    rng = np.random.default_rng(seed)
    x, kernel = np.maximum(rng.normal(size=x_shape), 0), rng.normal(size=kernel_shape)
    (y,) = numpy_convolution(x, kernel, None, stride, padding)
    return x, kernel, rng.normal(size=y.shape)


def output_and_gradients(convolve, x, kernel, grad) -> list[np.ndarray]:
    """Computes `convolve(x, kernel)` and the gradients of both arguments."""

    def run(x, kernel, grad):
        y, vjp = jax.vjp(convolve, x, kernel)
        return y, *vjp(grad)

    return jax.device_get(list(jax.jit(run)(x, kernel, grad)))


@cache
def exact_convolution(x_shape, kernel_shape, stride=1, padding="SAME", seed=0):
    """Draws a convolution; returns its arrays, and NumPy's output and gradients."""
    arrays = draw_convolution(x_shape, kernel_shape, stride, padding, seed)
    return arrays, numpy_convolution(*arrays, stride, padding)


def largest_differences(actual, expected) -> list[float]:
    """Returns the difference of each pair of arrays, relative to the largest value."""
    pairs = zip(actual, expected, strict=True)
    return [float(np.abs(a - e).max() / np.abs(e).max()) for a, e in pairs]
