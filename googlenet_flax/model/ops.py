"""ReLU, bias, pools and local response norm.

Gradients are written by hand where that is faster or more accurate. Images are
`[B, H, W, C]`. Nothing here depends on Flax.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_flax.model.convolution import Padding2D, parameter_gradient

PoolPadding = Literal["SAME", "CEIL"]
Windows = Sequence[tuple[int, int]]

# Local response norm of Caffe's `bvlc_googlenet`, where alpha is divided by the size.
LRN_SIZE = 5  # Number of channels in a window.
LRN_ALPHA = 1e-4
LRN_BETA = 0.75  # `_inverse_power` computes no other power.
LRN_K = 1.0


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """Computes `max(x, 0)`, with a gradient that depends on the result alone.

    The next layer keeps the result anyway. A gradient that depends on the input would keep
    the input too, or compute it again.
    """
    return jnp.maximum(x, 0)


def _relu_forward(x):
    # Without the barrier XLA's compilers for GPUs and TPUs keep the input too.
    y = jax.lax.platform_dependent(
        relu(x), cpu=lambda y: y, default=jax.lax.optimization_barrier
    )
    return y, y


def _relu_backward(y, grad):
    return (jnp.where(y > 0, grad, 0),)


relu.defvjp(_relu_forward, _relu_backward)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds a float32 bias `[C]` to `x` `[B, H, W, C]`, in the dtype of `x`.

    The gradient of the bias is summed in float32; a bfloat16 sum over all pixels of a batch
    would be wrong by several percent.
    """
    return x + bias.astype(x.dtype)


def _add_bias_forward(x, bias):
    return add_bias(x, bias), bias


def _add_bias_backward(bias, grad):
    # Each example is summed first, so that XLA:CPU divides the work over its threads.
    per_example = jnp.sum(_at_least_float32(grad), axis=(1, 2))
    return grad, parameter_gradient(jnp.sum(per_example, axis=0), bias)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def max_pool(
    x: jax.Array, *, window: int, stride: int, padding: PoolPadding, gather: bool = True
) -> jax.Array:
    """Computes the maximum over square windows.

    Args:
      x: `[B, H, W, C]`.
      window: Side of the window in pixels.
      stride: Step between windows in pixels.
      padding: `"SAME"` as in TensorFlow and Keras (output `ceil(H / stride)`, padding on
        both sides); `"CEIL"` as in Caffe and torch's `ceil_mode` (no padding before,
        the last window may extend beyond the edge).
      gather: Whether to store which cell of each window holds the maximum, so that the
        gradient needs no scatter. Otherwise XLA's own operation and gradient are used. The
        maxima and the choice among ties are the same; gradients differ in rounding only,
        because the gather adds in at least float32.

    Returns:
      `[B, H', W', C]` in the dtype of `x`.
    """
    rows, columns = (pool_padding(size, window, stride, padding) for size in x.shape[1:3])
    if gather:
        return _max_pool(x, window, stride, (rows, columns))
    return jax.lax.reduce_window(
        x,
        -jnp.inf,
        jax.lax.max,
        window_dimensions=(1, window, window, 1),
        window_strides=(1, stride, stride, 1),
        padding=((0, 0), rows, columns, (0, 0)),
    )


def pool_padding(
    size: int, window: int, stride: int, padding: PoolPadding
) -> tuple[int, int]:
    """Computes how many pixels `max_pool` adds before and after `size` pixels."""
    if padding == "SAME":
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        return total // 2, total - total // 2
    if padding != "CEIL":
        raise ValueError(f"padding must be 'SAME' or 'CEIL', got {padding!r}")
    last_start = -(-max(size - window, 0) // stride) * stride
    return 0, max(last_start + window - size, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: jax.Array, window: int, stride: int, pads: Padding2D) -> jax.Array:
    return _max_pool_forward(x, window, stride, pads)[0]


def _window_cells(
    x: jax.Array, window: int, stride: int, pads: Padding2D
) -> list[jax.Array]:
    """Returns an array `[B, H', W', C]` for each cell of the window, in row-major order."""
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=lowest)
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
    """Computes each window's maximum, and the index of its cell as one byte.

    With XLA's own gradient, the backward pass searches for this cell again, with four
    arrays of indices and a scatter. Among equal cells the first in row-major order wins, as
    in XLA's `select_and_scatter`.
    """

    def search(x):
        best, *rest = _window_cells(x, window, stride, pads)
        winner = jnp.zeros(best.shape, jnp.uint8)
        for index, candidate in enumerate(rest, 1):
            winner = jnp.where(candidate > best, jnp.uint8(index), winner)
            best = jnp.maximum(best, candidate)  # Unlike `where`, it propagates a NaN.
        return best, winner

    def search_ordered(x):
        best, winner = search(_to_ordered(x))
        return jax.lax.optimization_barrier((_from_ordered(best, x.dtype), winner))

    def search_stored(x):
        # A pool with stride 1 reads the input of a block, which is stored for the 1x1
        # convolutions anyway. Without the barrier, XLA:GPU concatenates the branches of the
        # previous block again for each cell of a window.
        return search(jax.lax.optimization_barrier(x) if stride == 1 else x)

    best, winner = jax.lax.platform_dependent(x, cpu=search_ordered, default=search_stored)
    return best, (winner, x.shape)


def _to_ordered(x):
    """Maps bfloat16 to integers in the same order, which CPUs compare much faster.

    As integers, the bits of non-negative numbers have the same order as the numbers. The
    bits of negative numbers have the opposite order, so all of them but the sign are
    flipped. NaN becomes the largest integer, so that it propagates.
    """
    if x.dtype != jnp.bfloat16:
        return x
    bits = jax.lax.bitcast_convert_type(x, jnp.int16)
    magnitude = bits & jnp.int16(0x7FFF)
    ordered = jnp.where(bits < 0, ~magnitude, magnitude)
    return jnp.where(magnitude > 0x7F80, jnp.int16(0x7FFF), ordered)


def _from_ordered(ordered, dtype):
    if dtype != jnp.bfloat16:
        return ordered
    bits = jnp.where(ordered < 0, ordered ^ jnp.int16(0x7FFF), ordered)
    return jax.lax.bitcast_convert_type(bits, dtype)


def _max_pool_backward(window, stride, pads, residuals, grad):
    """Adds to each input pixel the gradients of the windows in which it is the maximum.

    Input row `r` is row `k` of window `(r + low - k) / stride`, if that is a whole number.
    Rows that are `stride` apart have the same values of `k`: they form a phase. Each phase
    is computed alone, with only the cells that it needs, and the phases are interleaved at
    the end. These are the windows for window 3, stride 2 and low 0:

        input row   0    1    2    3    4    5
        k = 0       0    .    1    .    2    .
        k = 1       .    0    .    1    .    2
        k = 2       .    .    0    .    1    .
    """
    winner, (batch, height, width, channels) = residuals
    before = (window - 1) // stride  # A pixel is in at most so many earlier windows.
    (top, start_row, stop_row), (left, start_column, stop_column) = (
        (low % stride, low // stride, -(-(low + size) // stride))
        for (low, _), size in zip(pads, (height, width), strict=True)
    )
    rows, columns = stop_row - start_row, stop_column - start_column
    spread = (
        (0, 0, 0),
        (before - start_row, stop_row - grad.shape[1], 0),
        (before - start_column, stop_column - grad.shape[2], 0),
        (0, 0, 0),
    )
    winner, grad = _computed_once(
        (
            jax.lax.pad(winner, np.uint8(window * window), spread),
            jax.lax.pad(grad, jnp.zeros((), grad.dtype), spread),
        )
    )
    wide = _at_least_float32(grad)

    def share(cell_row, cell_column):
        row, column = before - cell_row // stride, before - cell_column // stride
        windows = np.s_[:, row : row + rows, column : column + columns]
        is_winner = winner[windows] == cell_row * window + cell_column
        return jnp.where(is_winner, wide[windows], 0)

    def phase(row, column):
        shares = [
            share(cell_row, cell_column)
            for cell_row in range(row, window, stride)
            for cell_column in range(column, window, stride)
        ]
        if not shares:  # These pixels are in no window.
            return jnp.zeros((batch, rows, columns, channels), grad.dtype)
        return functools.reduce(jnp.add, shares).astype(grad.dtype)

    phases = [[phase(i, j) for j in range(stride)] for i in range(stride)]
    pixels = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    pixels = pixels.reshape(batch, rows * stride, columns * stride, channels)
    return (_computed_once(pixels[:, top : top + height, left : left + width]),)


def _computed_once(tree):
    """Keeps XLA:CPU from computing `tree` again in each loop that reads it."""
    return jax.lax.platform_dependent(
        tree, cpu=jax.lax.optimization_barrier, default=lambda tree: tree
    )


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def average_windows(x: jax.Array, rows: Windows, columns: Windows) -> jax.Array:
    """Computes the mean over a grid of windows.

    Args:
      x: `[B, H, W, C]`.
      rows: The `(start, stop)` rows of each output row.
      columns: The `(start, stop)` columns of each output column.

    Returns:
      `[B, len(rows), len(columns), C]` in the dtype of `x`.
    """
    means = jax.lax.platform_dependent(
        x,
        tpu=lambda x: _window_products(x, rows, columns),
        default=lambda x: _window_means(x, rows, columns),
    )
    return means.astype(x.dtype)


def _window_means(x: jax.Array, rows: Windows, columns: Windows) -> jax.Array:
    means = _at_least_float32(x)
    means = jnp.stack([jnp.mean(means[:, slice(*row)], axis=1) for row in rows], axis=1)
    means = [jnp.mean(means[:, :, slice(*column)], axis=2) for column in columns]
    return jnp.stack(means, axis=2)


def _window_products(x: jax.Array, rows: Windows, columns: Windows) -> jax.Array:
    """Computes the means as matrix products, without the float32 copies that TPUs store."""
    masks = []  # Which pixels are in each window, [rows, H] and [columns, W].
    for windows, pixels in zip((rows, columns), map(np.arange, x.shape[1:3]), strict=True):
        inside = [(start <= pixels) & (pixels < stop) for start, stop in windows]
        masks.append(np.asarray(inside, x.dtype))
    sums = jnp.einsum(
        "yh,bhwc,xw->byxc",
        masks[0],
        x,
        masks[1],
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
    counts = np.outer(*(np.count_nonzero(mask, axis=1) for mask in masks))
    return sums / counts[..., None]


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def sliding_windows(
    size: int, *, window: int, stride: int, round_up: bool
) -> list[tuple[int, int]]:
    """Lists the windows of a strided pool without padding, as `(start, stop)` pairs.

    Args:
      size: Number of pixels.
      window: Side of a window in pixels.
      stride: Step between windows in pixels.
      round_up: Whether to add a last, clipped window where `stride` does not divide
        `size - window`, as Caffe does. It holds only pixels that exist.
    """
    span = size - window
    count = (-(-span // stride) if round_up else span // stride) + 1
    return [(i * stride, min(i * stride + window, size)) for i in range(count)]


def adaptive_windows(size: int, bins: int) -> list[tuple[int, int]]:
    """Lists the windows of torch's adaptive average pool, which overlap on small maps."""
    return [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]


@jax.custom_vjp
def local_response_norm(x: jax.Array) -> jax.Array:
    """Applies local response normalization over neighboring channels.

    It computes
    `x / (LRN_K + LRN_ALPHA / LRN_SIZE * sum of squares over LRN_SIZE channels)**LRN_BETA`
    in at least float32. The operation is from Krizhevsky et al. 2012, section 3.3, and the
    constants are those of Caffe's `bvlc_googlenet`.

    Args:
      x: `[B, H, W, C]`.

    Returns:
      `[B, H, W, C]` in the dtype of `x`.
    """
    wide = _at_least_float32(x)
    return (wide * _inverse_power(_energy(wide))).astype(x.dtype)


def _local_response_norm_forward(x):
    return local_response_norm(x), x


def _local_response_norm_backward(x, grad):
    """Computes the energies again, which is faster than reading them from memory."""
    wide, grad = _at_least_float32(x), _at_least_float32(grad)
    energy = _energy(wide)
    scaled = grad * _inverse_power(energy)
    shared = _neighbor_sum(scaled * wide / energy)
    weight = 2 * LRN_ALPHA / LRN_SIZE * LRN_BETA
    return ((scaled - weight * wide * shared).astype(x.dtype),)


local_response_norm.defvjp(_local_response_norm_forward, _local_response_norm_backward)


def _energy(x: jax.Array) -> jax.Array:
    return LRN_K + LRN_ALPHA / LRN_SIZE * _neighbor_sum(jnp.square(x))


def _neighbor_sum(x: jax.Array) -> jax.Array:
    """Sums `LRN_SIZE` channels around each channel, `[B, H, W, C]`."""
    return jax.lax.platform_dependent(x, tpu=_neighbor_product, default=_shifted_sum)


def _neighbor_product(x: jax.Array) -> jax.Array:
    """Computes the sum as a matrix product, without the shifted copies that TPUs store."""
    channels, half = x.shape[-1], LRN_SIZE // 2
    near = np.tri(channels, k=half) - np.tri(channels, k=-half - 1)
    return jnp.matmul(x, near.astype(x.dtype), precision=jax.lax.Precision.HIGHEST)


def _shifted_sum(x: jax.Array) -> jax.Array:
    half = LRN_SIZE // 2
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (half, half)))
    parts = (padded[..., i : i + x.shape[-1]] for i in range(LRN_SIZE))
    return functools.reduce(jnp.add, parts)


def _inverse_power(energy: jax.Array) -> jax.Array:
    """Computes `energy**-0.75` (`-LRN_BETA`) by two square roots, which are faster."""
    root = jax.lax.rsqrt(energy)
    return root * jnp.sqrt(root)
