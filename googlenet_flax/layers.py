"""The paper's vocabulary as Flax modules: ConvBlock, Inception, AuxClassifier."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from googlenet_flax import ops

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

    use_running_average: bool
    momentum: float
    epsilon: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[b, H, W, C]` to the same shape and dtype."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        if self.use_running_average:
            slope = scale * jax.lax.rsqrt(var.value + self.epsilon)
            return (x * slope + (bias - mean.value * slope)).astype(x.dtype)
        y, batch_mean, batch_var = ops.batch_norm(
            x, scale, bias, self.epsilon, self.axis_name
        )
        if not self.is_initializing():
            for running, batch in ((mean, batch_mean), (var, batch_var)):
                change = (1 - self.momentum) * (batch - running.value)
                running.value = running.value + change
        return y


class ConvBlock(nn.Module):
    """Convolution, then normalisation if there is one, then ReLU.

    With a norm the convolution has no bias: the norm's own shift takes its place.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: str | ops.Padding2D = "SAME"
    norm: ModuleFactory | None = None
    kernel_init: nn.initializers.Initializer = nn.initializers.glorot_uniform()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H', W', features]`."""
        x = nn.Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            strides=self.stride,
            padding=self.padding,
            use_bias=self.norm is None,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            dtype=self.dtype,
            name="conv",
        )(x)
        if self.norm is not None:
            x = self.norm(name="bn")(x)
        return nn.relu(x)


class Inception(nn.Module):
    """Figure 2(b): four branches on one input, concatenated along the channels."""

    widths: InceptionWidths
    conv: ModuleFactory = ConvBlock
    kernel_5x5: int = 5  # torchvision has 3 here

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H, W, 1x1 + 3x3 + 5x5 + pool_proj]`."""
        widths, conv = self.widths, self.conv
        branch_1x1 = conv(widths.conv_1x1, 1, name="1x1")(x)
        branch_3x3 = conv(widths.reduce_3x3, 1, name="3x3_reduce")(x)
        branch_3x3 = conv(widths.conv_3x3, 3, name="3x3")(branch_3x3)
        branch_5x5 = conv(widths.reduce_5x5, 1, name="5x5_reduce")(x)
        branch_5x5 = conv(widths.conv_5x5, self.kernel_5x5, name="5x5")(branch_5x5)
        branch_pool = ops.max_pool(x, window=3, stride=1, padding="SAME")
        branch_pool = conv(widths.pool_proj, 1, name="pool_proj")(branch_pool)
        return jnp.concatenate([branch_1x1, branch_3x3, branch_5x5, branch_pool], axis=-1)


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
    pool: Callable[[jax.Array], jax.Array]
    conv: ModuleFactory
    dense: ModuleFactory
    fc_bias_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array, example_ids: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to float32 logits `[B, num_classes]`."""
        x = self.pool(x)
        x = self.conv(self.proj_features, 1, name="proj")(x)
        x = x.reshape(x.shape[0], -1)  # Flattened as H, W, C in every variant.
        x = self.dense(self.fc_features, bias_init=self.fc_bias_init, name="fc")(x)
        x = Dropout(self.dropout_rate)(nn.relu(x), example_ids, train=train)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return self.dense(self.num_classes, dtype=x.dtype, name="classifier")(x)
