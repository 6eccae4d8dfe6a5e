"""Convolutions, computed by XLA's own operation or as matrix products."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from googlenet_flax.model import winograd

Padding2D = tuple[tuple[int, int], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """Choices of how to compute the network.

    These choices change outputs and gradients only by rounding. With some of them, Flax's
    `capture_intermediates` sees maps of another shape, or misses some.
    """

    merge_1x1: bool = False  # Compute the 1x1 convolutions on one input as a single one.
    matmul_1x1: bool = False  # Compute 1x1 convolutions as matrix products.
    winograd: bool = False  # Compute 3x3 and 5x5 convolutions by Winograd's algorithm.
    # Compute the gradient of a kernel as a matrix product, for each convolution that the
    # options above do not cover, such as conv1.
    matmul_weight_gradient: bool = False
    # Compute gradients in forms that oneDNN computes fast, for convolutions with stride 1
    # that the options above do not cover.
    onednn_gradients: bool = False
    gather_max_pool: bool = False  # Store where each window's maximum is, for the gradient.
    # Compute a max pool inside the layer before it: before the branches of a block are
    # concatenated and, if there is no norm, before bias and ReLU.
    pool_first: bool = False


STOCK = Arithmetic()  # XLA's own operations and gradients.
# docs/performance.md has the measurements on CPUs, docs/accelerators.md those on an H100.
# The options for TPUs were chosen by the cycles that libtpu estimates for a TPU v5e; their
# speed was not measured.
FASTEST: Mapping[str, Arithmetic] = {
    "cpu": Arithmetic(
        merge_1x1=True,
        matmul_1x1=True,
        winograd=True,
        matmul_weight_gradient=True,
        gather_max_pool=True,
    ),
    "cpu_onednn_bfloat16": Arithmetic(
        merge_1x1=True,
        onednn_gradients=True,
        gather_max_pool=True,
        pool_first=True,
    ),
    "gpu": Arithmetic(merge_1x1=True, gather_max_pool=True, pool_first=True),
    "tpu": Arithmetic(pool_first=True),
}


def fastest(platform: str, dtype: jnp.dtype) -> Arithmetic:
    """Returns the arithmetic of `FASTEST`, or `STOCK` for a platform that it lacks.

    Args:
      platform: Platform of the devices that run the network.
      dtype: Type of the activations.
    """
    if platform == "cpu" and dtype == jnp.bfloat16 and _onednn_convolves():
        return FASTEST["cpu_onednn_bfloat16"]
    return FASTEST.get(platform, STOCK)


@functools.cache
def _onednn_convolves() -> bool:
    """Returns true if XLA:CPU computes bfloat16 convolutions with oneDNN.

    This depends on jaxlib, the processor and `runtime.onednn`, so a small convolution is
    compiled to find out.
    """
    like = jax.ShapeDtypeStruct((1, 8, 8, 32), jnp.bfloat16)
    kernel_like = jax.ShapeDtypeStruct((3, 3, 32, 32), jnp.bfloat16)
    convolution = jax.jit(functools.partial(_stock, stride=1, padding=((1, 1), (1, 1))))
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        compiled = convolution.lower(like, kernel_like).compile()
    return "__onednn$convolution" in str(compiled.as_text())


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
            # XLA:CPU multiplies bfloat16 fast only if the result is float32. In the
            # gradient it would copy both operands if batch, height and width were not one
            # axis.
            wide = jnp.promote_types(x.dtype, jnp.float32)
            pixels = x.reshape(-1, x.shape[-1])
            y = jnp.matmul(pixels, kernel[0, 0], preferred_element_type=wide)
            return y.astype(x.dtype).reshape(*x.shape[:-1], kernel.shape[-1])
        if size in (3, 5) and arithmetic.winograd:
            return winograd.convolve(x, kernel)
    pads = padding
    if isinstance(padding, str):
        sizes = x.shape[1:3], kernel.shape[:2], (stride, stride)
        pads = tuple(jax.lax.padtype_to_pads(*sizes, padding))
    if arithmetic.matmul_weight_gradient:
        return _convolve_with_taps(x, kernel, stride, pads)
    if arithmetic.onednn_gradients and stride == 1:
        return _convolve_with_onednn(x, kernel, pads)
    return _stock(x, kernel, stride, pads)


def parameter_gradient(grad: jax.Array, parameter: jax.Array) -> jax.Array:
    """Converts the gradient of a parameter to what a custom VJP rule must return.

    The result has the shape and the dtype of `parameter`. Inside `jax.shard_map` it is also
    summed over the mesh axes that split the batch: JAX inserts a broadcast of the parameter
    over these axes into the addition below, and the transpose of a broadcast is a sum.
    """
    grad = grad.astype(parameter.dtype)
    _, vjp = jax.vjp(lambda parameter: parameter + grad, parameter)
    return vjp(grad)[0]


def _stock(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_with_onednn(x, kernel, padding):
    if kernel.shape[0] > min(x.shape[1:3]):
        # XLA would exchange the kernel with a map that is smaller, and oneDNN does not
        # take that form. So the map is padded first.
        padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        x, padding = jax.lax.optimization_barrier(padded), ((0, 0), (0, 0))
    return _stock(x, kernel, 1, padding)


def _convolve_with_onednn_forward(x, kernel, padding):
    return _convolve_with_onednn(x, kernel, padding), (x, kernel)


def _convolve_with_onednn_backward(padding, residuals, grad):
    x, kernel = residuals
    size = kernel.shape[0]
    # oneDNN does not take XLA's own form of the input's gradient. Without the barrier, XLA
    # turns the flipped kernel into that form again.
    flipped = jax.lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    pads = tuple((size - 1 - low, size - 1 - high) for low, high in padding)
    x_grad = _convolve_with_onednn(grad, flipped, pads)
    if size > 3:  # The matrix product below would be slower for such kernels.
        _, kernel_vjp = jax.vjp(lambda kernel: _stock(x, kernel, 1, padding), kernel)
        return x_grad, *kernel_vjp(grad)
    _, height, width, features = grad.shape
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    taps = [
        padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)
    ]
    pixels = jnp.concatenate(taps, axis=-1).reshape(-1, size * size * x.shape[-1])
    kernel_grad = jnp.matmul(pixels.T, grad.reshape(-1, features)).reshape(kernel.shape)
    return x_grad, parameter_gradient(kernel_grad, kernel)


_convolve_with_onednn.defvjp(_convolve_with_onednn_forward, _convolve_with_onednn_backward)


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
    kernel_grad = jnp.sum(products, axis=0).reshape(kernel.shape)
    return x_vjp(grad)[0], parameter_gradient(kernel_grad, kernel)


_convolve_with_taps.defvjp(_convolve_with_taps_forward, _convolve_with_taps_backward)


def _taps(x, size, stride, padding, out):
    """Returns the input pixels under each cell of the kernel, `[B, size^2 * C, H' * W']`.

    Channels come before pixels, so that each row is contiguous. Pixels are grouped by row
    and column modulo `stride`, so that each tap is a slice without steps.
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
