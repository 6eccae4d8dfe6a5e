"""The paper's vocabulary as Flax modules: ConvBlock, Inception, AuxClassifier."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from googlenet_flax.model import ops
from googlenet_flax.model.convolution import STOCK, Arithmetic, Padding2D, convolve

ModuleFactory = Callable[..., Any]


class InceptionWidths(NamedTuple):
    """Output channels of one row of Table 1, in the paper's column order."""

    conv_1x1: int
    reduce_3x3: int
    conv_3x3: int
    reduce_5x5: int
    conv_5x5: int
    pool_proj: int


class BatchNorm(nn.Module):
    """Batch norm over the global batch; in evaluation with the running statistics.

    Flax's own layer averages the devices' means, whose rounding depends on their number.
    """

    features: int
    use_running_average: bool
    momentum: float
    epsilon: float
    axis_name: str | None = None

    def setup(self) -> None:
        """Declares parameters and running statistics, each `[features]`."""
        shape = (self.features,)
        self.scale = self.param("scale", nn.initializers.ones, shape)
        self.bias = self.param("bias", nn.initializers.zeros, shape)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        self.var = self.variable("batch_stats", "var", jnp.ones, shape)

    def record(self, batch_mean: jax.Array, batch_var: jax.Array) -> None:
        """Moves the running statistics towards those of a batch, `[features]`."""
        if not self.is_initializing():
            for running, batch in ((self.mean, batch_mean), (self.var, batch_var)):
                change = (1 - self.momentum) * (batch - running.value)
                running.value = running.value + change


def batch_norm(x: jax.Array, norms: Sequence[BatchNorm]) -> jax.Array:
    """Normalises `[b, H, W, C]` whose channels belong to `norms`, one after another."""
    scale = jnp.concatenate([norm.scale for norm in norms])
    bias = jnp.concatenate([norm.bias for norm in norms])
    if norms[0].use_running_average:
        mean = jnp.concatenate([norm.mean.value for norm in norms])
        var = jnp.concatenate([norm.var.value for norm in norms])
        slope = scale * jax.lax.rsqrt(var + norms[0].epsilon)
        return (x * slope + (bias - mean * slope)).astype(x.dtype)
    y, mean, var = ops.batch_norm(x, scale, bias, norms[0].epsilon, norms[0].axis_name)
    ends = np.cumsum([norm.features for norm in norms])[:-1]
    statistics = zip(norms, jnp.split(mean, ends), jnp.split(var, ends), strict=True)
    for norm, norm_mean, norm_var in statistics:
        norm.record(norm_mean, norm_var)
    return y


class ConvParameters(nn.Module):
    """Kernel and bias of a convolution, for whoever computes it."""

    features: int
    kernel_size: int
    use_bias: bool
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, in_features: int) -> jax.Array:
        """Returns the kernel, `[size, size, in_features, features]`."""
        shape = (self.kernel_size, self.kernel_size, in_features, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        if self.use_bias:
            self.param("bias", self.bias_init, shape[-1:])
        return kernel


class ConvBlock(nn.Module):
    """Convolution, then normalisation if there is one, then ReLU.

    With a norm the convolution has no bias: the norm's own shift takes its place.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: str | Padding2D = "SAME"
    norm: ModuleFactory | None = None
    kernel_init: nn.initializers.Initializer = nn.initializers.glorot_uniform()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    dtype: jnp.dtype = jnp.dtype("float32")
    arithmetic: Arithmetic = STOCK

    def setup(self) -> None:
        """Names the two submodules."""
        self.conv = ConvParameters(
            self.features,
            self.kernel_size,
            self.norm is None,
            self.kernel_init,
            self.bias_init,
        )
        if self.norm is not None:
            self.bn = self.norm(self.features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H', W', features]`."""
        return activate(self.convolve(x), [self])

    def convolve(self, x: jax.Array) -> jax.Array:
        """The convolution alone, without what `activate` adds."""
        return convolve(
            x.astype(self.dtype),
            self.kernel(x.shape[-1]),
            stride=self.stride,
            padding=self.padding,
            arithmetic=self.arithmetic,
        )

    def kernel(self, in_features: int) -> jax.Array:
        """The kernel in the dtype of the activations."""
        return self.conv(in_features).astype(self.dtype)

    def bias(self) -> jax.Array:
        """The bias; made by the first call of `kernel`."""
        return self.conv.get_variable("params", "bias")


def activate(y: jax.Array, blocks: Sequence[ConvBlock]) -> jax.Array:
    """What follows a convolution: bias or norm, then ReLU.

    Args:
      y: `[B, H, W, C]`, the convolutions of `blocks` side by side.
      blocks: Whose features add up to `C`.
    """
    if blocks[0].norm is not None:
        return ops.relu(batch_norm(y, [block.bn for block in blocks]))
    bias = jnp.concatenate([block.bias() for block in blocks])
    return ops.relu(y + bias.astype(y.dtype))


def convolve_together(x: jax.Array, blocks: Sequence[ConvBlock]) -> jax.Array:
    """The 1x1 convolutions of `blocks` on one input, side by side.

    Args:
      x: `[B, H, W, C]`.
      blocks: Of 1x1 kernels.

    Returns:
      `[B, H, W, F]` before activation, `F` the sum of the blocks' features.
    """
    if not blocks[0].arithmetic.merge_1x1:
        return jnp.concatenate([block.convolve(x) for block in blocks], axis=-1)
    return convolve(
        x.astype(blocks[0].dtype),
        jnp.concatenate([block.kernel(x.shape[-1]) for block in blocks], axis=-1),
        stride=1,
        padding="SAME",
        arithmetic=blocks[0].arithmetic,
    )


class Inception(nn.Module):
    """Figure 2(b): four branches on one input, concatenated along the channels.

    Convolutions that read the same input are computed together, and so are the biases,
    norms and ReLUs of what lies side by side.
    """

    widths: InceptionWidths
    conv: ModuleFactory = ConvBlock
    kernel_5x5: int = 5  # torchvision has 3 here
    max_pool: Callable[..., jax.Array] = ops.max_pool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H, W, 1x1 + 3x3 + 5x5 + pool_proj]`."""
        widths, conv = self.widths, self.conv
        conv_1x1 = conv(widths.conv_1x1, 1, name="1x1")
        reduce_3x3 = conv(widths.reduce_3x3, 1, name="3x3_reduce")
        conv_3x3 = conv(widths.conv_3x3, 3, name="3x3")
        reduce_5x5 = conv(widths.reduce_5x5, 1, name="5x5_reduce")
        conv_5x5 = conv(widths.conv_5x5, self.kernel_5x5, name="5x5")
        pool_proj = conv(widths.pool_proj, 1, name="pool_proj")

        branch_1x1, reduced = jnp.split(
            convolve_together(x, [conv_1x1, reduce_3x3, reduce_5x5]),
            [widths.conv_1x1],
            axis=-1,
        )
        reduced = activate(reduced, [reduce_3x3, reduce_5x5])
        reduced_3x3, reduced_5x5 = jnp.split(reduced, [widths.reduce_3x3], axis=-1)
        pooled = self.max_pool(x, window=3, stride=1, padding="SAME")
        branches = [
            branch_1x1,
            conv_3x3.convolve(reduced_3x3),
            conv_5x5.convolve(reduced_5x5),
            pool_proj.convolve(pooled),
        ]
        blocks = [conv_1x1, conv_3x3, conv_5x5, pool_proj]
        return activate(jnp.concatenate(branches, axis=-1), blocks)


class Dropout(nn.Module):
    """Dropout whose mask for an example depends on that example alone.

    Flax's own layer draws one mask for the whole array, so the same example gets another
    mask when the batch is split over devices. Here the mask is a function of the
    `"dropout"` key and the example's id.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, example_ids: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[B, C]` to `[B, C]`; `example_ids` is int `[B]`."""
        if not train or self.rate == 0:
            return x
        rng = self.make_rng("dropout")

        def keep(example_id):
            example_rng = jax.random.fold_in(rng, example_id)
            return jax.random.bernoulli(example_rng, 1 - self.rate, x.shape[1:])

        return jnp.where(jax.vmap(keep)(example_ids), x / (1 - self.rate), 0)


class AuxClassifier(nn.Module):
    """Section 5: average pool, 1x1 convolution, fully connected layer, classifier."""

    num_classes: int
    proj_features: int
    fc_features: int
    dropout_rate: float
    pool_windows: Callable[[int], ops.Windows]  # By side of the map.
    conv: ModuleFactory
    dense: ModuleFactory
    fc_bias_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array, example_ids: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to float32 logits `[B, num_classes]`."""
        rows, columns = map(self.pool_windows, x.shape[1:3])
        x = ops.average_windows(x, rows, columns)
        x = self.conv(self.proj_features, 1, name="proj")(x)
        x = x.reshape(x.shape[0], -1)  # Flattened as H, W, C in every variant.
        x = self.dense(self.fc_features, bias_init=self.fc_bias_init, name="fc")(x)
        x = Dropout(self.dropout_rate)(nn.relu(x), example_ids, train=train)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return self.dense(self.num_classes, dtype=x.dtype, name="classifier")(x)
