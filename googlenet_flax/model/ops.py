"""Pooling and normalisation arithmetic, with gradients of our own where they pay.

Every function works on images `[B, H, W, C]` and knows nothing of Flax.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_flax.model.convolution import Padding2D

PoolPadding = Literal["SAME", "CEIL"]
Windows = Sequence[tuple[int, int]]

# Local response norm of Caffe's `bvlc_googlenet`, where alpha is divided by the size.
LRN_SIZE = 5  # Channels.
LRN_ALPHA = 1e-4
LRN_BETA = 0.75
LRN_K = 1.0


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """`max(x, 0)`, whose gradient asks the result what was positive.

    The result is kept for the next layer anyway; asking the input would keep or compute
    that again too.
    """
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = relu(x)
    return y, y


def _relu_backward(y, grad):
    return (jnp.where(y > 0, grad, 0),)


relu.defvjp(_relu_forward, _relu_backward)


def max_pool(
    x: jax.Array, *, window: int, stride: int, padding: PoolPadding, gather: bool = True
) -> jax.Array:
    """Maximum over square windows.

    Args:
      x: `[B, H, W, C]`.
      window: Side of the window in pixels.
      stride: Step between windows in pixels.
      padding: `"SAME"` as in TensorFlow and Keras (output `ceil(H / stride)`, padding on
        both sides); `"CEIL"` as in Caffe and torch's `ceil_mode` (no padding before,
        the last window may reach over the edge).
      gather: Remember which cell of each window won, so that the gradient gathers; else
        XLA's own op and gradient. They give the same numbers, ties included.

    Returns:
      `[B, H', W', C]` in the dtype of `x`.
    """
    _, height, width, _ = x.shape
    pads = (
        pool_padding(height, window, stride, padding),
        pool_padding(width, window, stride, padding),
    )
    if gather:
        return _max_pool(x, window, stride, pads)
    return jax.lax.reduce_window(
        x,
        -jnp.inf,
        jax.lax.max,
        window_dimensions=(1, window, window, 1),
        window_strides=(1, stride, stride, 1),
        padding=((0, 0), *pads, (0, 0)),
    )


def pool_padding(
    size: int, window: int, stride: int, padding: PoolPadding
) -> tuple[int, int]:
    """Pixels that `max_pool` adds before and after rows (or columns) of `size` pixels."""
    if padding == "SAME":
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        return total // 2, total - total // 2
    last_start = -(-max(size - window, 0) // stride) * stride
    return 0, max(last_start + window - size, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: jax.Array, window: int, stride: int, pads: Padding2D) -> jax.Array:
    return functools.reduce(jnp.maximum, _window_cells(x, window, stride, pads))


def _window_cells(
    x: jax.Array, window: int, stride: int, pads: Padding2D
) -> list[jax.Array]:
    """Each cell of every window in row-major order, `[B, H', W', C]`."""
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    height, width = ((size - window) // stride + 1 for size in padded.shape[1:3])
    return [
        padded[
            :,
            row : row + (height - 1) * stride + 1 : stride,
            column : column + (width - 1) * stride + 1 : stride,
        ]
        for row in range(window)
        for column in range(window)
    ]


def _max_pool_forward(x, window, stride, pads):
    """Also returns which cell of each window won, one byte per output.

    Stock XLA finds the winner again in the backward pass with four index planes and a
    scatter; this byte turns the gradient into a gather. Ties go to the first cell in
    row-major order, as in XLA's `select_and_scatter`.
    """
    best, *rest = _window_cells(x, window, stride, pads)
    winner = jnp.zeros(best.shape, jnp.uint8)
    for index, candidate in enumerate(rest, 1):
        winner = jnp.where(candidate > best, jnp.uint8(index), winner)
        best = jnp.maximum(best, candidate)  # Unlike `where`, lets a NaN through.
    return best, (winner, x.shape)


def _max_pool_backward(window, stride, pads, residuals, grad):
    winner, (_, height, width, _) = residuals
    no_winner = np.uint8(window * window)
    low_high = [
        # Cell `k` of the window at `i` is input row `i * stride + k - low`; reading that
        # backwards, each input row gathers from `window` rows of the dilated gradient.
        (window - 1 - low, size + low - 1 - (out - 1) * stride)
        for (low, _), size, out in zip(pads, (height, width), grad.shape[1:3], strict=True)
    ]
    spread = ((0, 0, 0), *((lo, hi, stride - 1) for lo, hi in low_high), (0, 0, 0))
    grad = jax.lax.pad(grad, jnp.zeros((), grad.dtype), spread)
    winner = jax.lax.pad(winner, no_winner, spread)

    total = None
    for index in range(window * window):
        row, column = divmod(index, window)
        rows = slice(window - 1 - row, window - 1 - row + height)
        columns = slice(window - 1 - column, window - 1 - column + width)
        share = jnp.where(winner[:, rows, columns] == index, grad[:, rows, columns], 0)
        total = share if total is None else total + share
    return (total,)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def average_windows(x: jax.Array, rows: Windows, columns: Windows) -> jax.Array:
    """Mean over a grid of windows, as one small matrix product per axis.

    Args:
      x: `[B, H, W, C]`.
      rows: The `(start, stop)` rows of each output row.
      columns: The `(start, stop)` columns of each output column.

    Returns:
      `[B, len(rows), len(columns), C]` in the dtype of `x`.
    """
    wide = _at_least_float32(x)
    return jnp.einsum(
        "rh,sw,bhwc->brsc",
        averaging_matrix(rows, x.shape[1], wide.dtype),
        averaging_matrix(columns, x.shape[2], wide.dtype),
        wide,
        precision=jax.lax.Precision.HIGHEST,
    ).astype(x.dtype)


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def averaging_matrix(windows: Windows, size: int, dtype: jnp.dtype) -> np.ndarray:
    """What maps `size` pixels to the means of their windows, `[len(windows), size]`."""
    matrix = np.zeros((len(windows), size), dtype)
    for row, (start, stop) in zip(matrix, windows, strict=True):
        row[start:stop] = 1 / (stop - start)
    return matrix


def sliding_windows(
    size: int, *, window: int, stride: int, round_up: bool
) -> list[tuple[int, int]]:
    """Windows of a strided pool without padding, as `(start, stop)` pairs.

    `round_up` adds the last, clipped window that Caffe makes when `stride` does not
    divide; its mean is over the pixels that exist, as in Caffe.
    """
    span = size - window
    count = (-(-span // stride) if round_up else span // stride) + 1
    return [(i * stride, min(i * stride + window, size)) for i in range(count)]


def adaptive_windows(size: int, bins: int) -> list[tuple[int, int]]:
    """Windows of torch's adaptive average pool: `bins` of them, overlapping if need be."""
    return [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]


def local_response_norm(
    x: jax.Array,
    *,
    size: int = LRN_SIZE,
    alpha: float = LRN_ALPHA,
    beta: float = LRN_BETA,
    k: float = LRN_K,
) -> jax.Array:
    """Divides each channel by the energy of its neighbours.

    `x / (k + alpha / size * sum of squares over size channels) ** beta`, computed in
    float32. The operation is from Krizhevsky et al. 2012, section 3.3.

    Args:
      x: `[B, H, W, C]`.
      size: Channels in a window, centred on the channel normalised; odd.
      alpha: Weight of the mean square.
      beta: Exponent.
      k: Constant added to the energy.

    Returns:
      `[B, H, W, C]` in the dtype of `x`.
    """
    return _local_response_norm(x, size, alpha / size, beta, k)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _local_response_norm(x, size, weight, beta, k):
    wide = _at_least_float32(x)
    energy = k + weight * _neighbour_sum(jnp.square(wide), size)
    return (wide * _inverse_power(energy, beta)).astype(x.dtype)


def _local_response_norm_forward(x, size, weight, beta, k):
    return _local_response_norm(x, size, weight, beta, k), x


def _local_response_norm_backward(size, weight, beta, k, x, grad):  # noqa: PLR0917
    """Keeps the input alone: the energies are quicker computed again than read."""
    wide, grad = _at_least_float32(x), _at_least_float32(grad)
    energy = k + weight * _neighbour_sum(jnp.square(wide), size)
    scaled = grad * _inverse_power(energy, beta)
    shared = _neighbour_sum(scaled * wide / energy, size)
    return ((scaled - 2 * weight * beta * wide * shared).astype(x.dtype),)


_local_response_norm.defvjp(_local_response_norm_forward, _local_response_norm_backward)


def _neighbour_sum(x: jax.Array, size: int) -> jax.Array:
    """Sum over `size` channels centred on each; `[B, H, W, C]` to the same."""
    half = size // 2
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (half, half)))
    return functools.reduce(
        jnp.add, (padded[..., i : i + x.shape[-1]] for i in range(size))
    )


def _inverse_power(x: jax.Array, exponent: float) -> jax.Array:
    if exponent == 0.75:  # Every published LRN; two roots are several times quicker.
        root = jax.lax.rsqrt(x)
        return root * jnp.sqrt(root)
    return x**-exponent
