"""Convolutions, computed by XLA's own operation or as matrix products."""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from googlenet_flax.model import winograd

Padding2D = tuple[tuple[int, int], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Choices of how to compute the network, which differ in speed and rounding only."""

    merge_1x1: bool  # Compute the 1x1 convolutions on one input as a single one.
    matmul_1x1: bool  # Compute 1x1 convolutions as matrix products.
    winograd: bool  # Compute 3x3 and 5x5 convolutions by Winograd's algorithm.
    matmul_weight_gradient: bool  # Compute other weight gradients as matrix products.
    gather_max_pool: bool  # Remember the maximum of each window for the gradient.


STOCK = Arithmetic(
    merge_1x1=False,
    matmul_1x1=False,
    winograd=False,
    matmul_weight_gradient=False,
    gather_max_pool=False,
)
# By platform of the devices that run the network. For CPUs it was measured by
# `benchmarks/cpu_ablation.py`. For GPUs it was chosen by the bytes that a program compiled
# for an H100 moves; no GPU was measured. TPUs were not looked at and keep XLA's operations.
FASTEST: Mapping[str, Arithmetic] = MappingProxyType(
    {
        "cpu": Arithmetic(
            merge_1x1=True,
            matmul_1x1=True,
            winograd=True,
            matmul_weight_gradient=True,
            gather_max_pool=True,
        ),
        "gpu": dataclasses.replace(STOCK, merge_1x1=True, gather_max_pool=True),
        "tpu": STOCK,
    }
)


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int,
    padding: str | Padding2D,
    arithmetic: Arithmetic,
) -> jax.Array:
    """Computes a convolution (cross-correlation) with a square kernel.

    Args:
      x: `[B, H, W, C]`.
      kernel: `[r, r, C, F]`.
      stride: Step in pixels.
      padding: `"SAME"` as in TensorFlow, or pixels before and after rows and columns.
      arithmetic: Choices of how to compute it.

    Returns:
      `[B, H', W', F]` in the dtype of `x`.
    """
    size = kernel.shape[0]
    if stride == 1 and padding == "SAME":
        if size == 1 and arithmetic.matmul_1x1:
            # XLA:CPU has a fast kernel for bfloat16 products with float32 results only.
            wide = jnp.promote_types(x.dtype, jnp.float32)
            y = jnp.matmul(x, kernel[0, 0], preferred_element_type=wide)
            return y.astype(x.dtype)
        if size in (3, 5) and arithmetic.winograd:
            return winograd.convolve(x, kernel)
    if isinstance(padding, str):
        strides = (stride, stride)
        rows, columns = jax.lax.padtype_to_pads(
            x.shape[1:3], kernel.shape[:2], strides, padding
        )
    else:
        rows, columns = padding
    pads = (tuple(rows), tuple(columns))
    if arithmetic.matmul_weight_gradient:
        return _convolve_with_taps(x, kernel, stride, pads)
    return _stock(x, kernel, stride, pads)


def _stock(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_with_taps(x, kernel, stride, padding):
    return _stock(x, kernel, stride, padding)


def _convolve_with_taps_forward(x, kernel, stride, padding):
    return _stock(x, kernel, stride, padding), (x, kernel)


def _convolve_with_taps_backward(stride, padding, residuals, grad):
    x, kernel = residuals
    _, x_vjp = jax.vjp(lambda x: _stock(x, kernel, stride, padding), x)
    batch, *out, features = grad.shape
    products = jnp.einsum(
        "bkp,bpf->bkf",
        _taps(x, kernel.shape[0], stride, padding, out),
        grad.reshape(batch, -1, features),
    )
    return x_vjp(grad)[0], jnp.sum(products, axis=0).reshape(kernel.shape)


_convolve_with_taps.defvjp(_convolve_with_taps_forward, _convolve_with_taps_backward)


def _taps(x, size, stride, padding, out):
    """Returns the input pixels under each cell of the kernel, `[B, size^2 * C, H' * W']`.

    Channels stand in front of pixels, so that each row is contiguous. Pixels of one phase
    of the stride stand together.
    """
    batch, *_, channels = x.shape
    need = [(count - 1) * stride + size for count in out]
    pads = [
        (low, -(-n // stride) * stride - low - have)
        for (low, _), n, have in zip(padding, need, x.shape[1:3], strict=True)
    ]
    zero = jnp.zeros((), x.dtype)
    x = jax.lax.pad(x, zero, ((0, 0, 0), *((*pair, 0) for pair in pads), (0, 0, 0)))
    height, width = (n // stride for n in x.shape[1:3])
    phases = x.reshape(batch, height, stride, width, stride, channels)
    phases = phases.transpose(0, 2, 4, 5, 1, 3)
    taps = [
        phases[:, i % stride, j % stride, :, i // stride :, j // stride :][
            ..., : out[0], : out[1]
        ]
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(taps, axis=1).reshape(batch, size * size * channels, -1)
