"""Winograd's minimal filtering, which computes a convolution with fewer multiplications.

The source is Lavin and Gray 2016, "Fast algorithms for convolutional neural networks",
arXiv 1509.09308. A tile of `m x m` outputs of an `r x r` convolution needs `(m + r - 1)^2`
products instead of `m^2 r^2`, for example 36 instead of 144 for `m = 4` and `r = 3`. Both
operands are transformed and multiplied point by point (a matrix product over the channels
for each point), and the result is transformed back:

    y = A^T [(G w G^T) * (B^T x B)] A

JAX differentiates these linear operations; both gradients need as few products as the
forward pass.
"""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial.polynomial import polyfromroots

# Points at which the polynomials of the algorithm are evaluated, besides infinity. Output
# tiles of 4x4 pixels use all points of a kernel, 3x3 all but the last, and 2x2 all but the
# last two. The points for 3x3 were found by a search; the usual points 0, 1, -1, 2, -2 have
# twice the rounding error.
POINTS = {
    3: tuple(Fraction(n, d) for n, d in ((0, 1), (2, 3), (-2, 3), (3, 2), (-3, 2))),
    5: tuple(
        Fraction(n, d)
        for n, d in ((0, 1), (1, 2), (-1, 2), (1, 1), (-1, 1), (2, 1), (-2, 1))
    ),
}


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes a convolution with stride 1 and SAME padding.

    Args:
      x: `[B, H, W, C]`.
      kernel: `[r, r, C, F]`, `r` a key of `POINTS`.

    Returns:
      `[B, H, W, F]` in the dtype of `x`; computed in at least float32.
    """
    dtype = x.dtype
    wide = jnp.promote_types(dtype, jnp.float32)
    x, kernel = x.astype(wide), kernel.astype(wide)
    batch, height, width, channels = x.shape
    r, features = kernel.shape[0], kernel.shape[-1]
    m = _tile_size(height, width, r)
    n = m + r - 1
    output, weight, data = (matrix.astype(wide) for matrix in _transforms(m, r))
    grid = (-(-height // m), -(-width // m))

    tiles = _transformed_tiles(x, data, m, grid)  # [n^2, T, C]
    weights = jnp.matmul(np.kron(weight, weight), kernel.reshape(r * r, -1))
    products = jax.lax.dot_general(
        tiles,
        weights.reshape(n * n, channels, features),
        dimension_numbers=(((2,), (1,)), ((0,), (0,))),
    )  # [n^2, T, F]
    y = jnp.matmul(np.kron(output, output), products.reshape(n * n, -1))
    y = y.reshape(m, m, batch, *grid, features).transpose(2, 3, 0, 4, 1, 5)
    y = y.reshape(batch, grid[0] * m, grid[1] * m, features)
    return y[:, :height, :width].astype(dtype)


def _tile_size(height: int, width: int, r: int) -> int:
    """Returns the size of output tiles, 2 to 4 pixels, that needs the fewest products.

    On large maps, tiles of 4x4 need the fewest. A map of 6x6 takes four tiles of either 4x4
    or 3x3, and those of 3x3 have fewer products.
    """
    return min(
        range(4, 1, -1), key=lambda m: -(-height // m) * -(-width // m) * (m + r - 1) ** 2
    )


def _transformed_tiles(
    x: jax.Array, data: np.ndarray, m: int, grid: tuple[int, int]
) -> jax.Array:
    """Computes `B^T x B` of the overlapping tiles, `[n^2, B * tiles, C]`."""
    n, channels = len(data), x.shape[-1]
    before = (n - m) // 2
    pads = [
        (before, count * m + n - m - size - before)
        for count, size in zip(grid, x.shape[1:3], strict=True)
    ]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows = [x[:, i : i + (grid[0] - 1) * m + 1 : m] for i in range(n)]
    x = jnp.stack([_combine(weights, rows) for weights in data])  # [n, B, t, W, C]
    columns = [x[..., i : i + (grid[1] - 1) * m + 1 : m, :] for i in range(n)]
    x = jnp.stack([_combine(weights, columns) for weights in data], axis=1)
    return x.reshape(n * n, -1, channels)


def _combine(weights: np.ndarray, arrays: list[jax.Array]) -> jax.Array:
    terms = zip(weights, arrays, strict=True)
    return functools.reduce(jnp.add, (weight * array for weight, array in terms if weight))


@functools.cache
def _transforms(m: int, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes `A^T` `[m, n]`, `G` `[n, r]` and `B^T` `[n, n]` by the Cook-Toom method."""
    points = np.array(POINTS[r][: m + r - 2])  # Fractions, so that all is exact.
    others = [np.delete(points, number) for number in range(len(points))]
    scales = [math.prod(point - rest) for point, rest in zip(points, others, strict=True)]
    # The last row of each is that of the point at infinity.
    output = [*np.vander(points, m, increasing=True), np.eye(m)[-1]]
    weight = [*(np.vander(points, r, increasing=True).T / scales).T, np.eye(r)[-1]]
    data = [*([*polyfromroots(rest), 0] for rest in others), polyfromroots(points)]
    output, weight, data = (
        np.array(matrix, np.float64) for matrix in (output, weight, data)
    )
    # A row of `G` may be multiplied by any number if the same row of `B^T` is divided by
    # it. Powers of two cause no rounding, and these keep the transformed input in the range
    # of the input.
    balance = np.exp2(np.round(np.log2(np.linalg.norm(data, axis=1, keepdims=True))))
    return output.T, weight * balance, data / balance
