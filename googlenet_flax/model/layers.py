"""The building blocks of the paper as Flax modules: ConvBlock, Inception, AuxClassifier."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from googlenet_flax.model import ops
from googlenet_flax.model.convolution import STOCK, Arithmetic, Padding2D, convolve

ModuleFactory = Callable[..., Any]
Pool = Callable[[jax.Array], jax.Array]


def identity(x: jax.Array) -> jax.Array:
    """Returns `x`; takes the place of a pool or norm that a network lacks."""
    return x


class InceptionWidths(NamedTuple):
    """Output channels of one row of Table 1, in the paper's column order."""

    conv_1x1: int
    reduce_3x3: int
    conv_3x3: int
    reduce_5x5: int
    conv_5x5: int
    pool_proj: int


# Names of the convolutions in a block, in the order of `InceptionWidths`.
BRANCHES = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")


class Convolution(nn.Module):
    """A convolution with the parameters of `nn.Conv`, computed as `arithmetic` says."""

    features: int
    kernel_size: int
    stride: int
    padding: str | Padding2D
    use_bias: bool
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer
    dtype: jnp.dtype
    arithmetic: Arithmetic

    @nn.compact
    def __call__(self, x: jax.Array, pool: Pool = identity) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H', W', features]`; `pool` precedes the bias."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
            arithmetic=self.arithmetic,
        )
        y = pool(y)
        if self.use_bias:
            shape = (self.features,)
            y = ops.add_bias(y, self.param("bias", self.bias_init, shape, jnp.float32))
        return y


class ConvBlock(nn.Module):
    """A convolution, batch norm where the variant has it, ReLU, and a max pool if given.

    Without batch norm, the pool is computed before bias and ReLU, which then process fewer
    pixels. The result is the same, because both are monotonic. Only a convolution that
    `on_one_input` merges adds its bias before the pool.
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
    pool: Pool = identity  # A max pool that follows.

    def setup(self) -> None:
        """Creates the two submodules."""
        self.conv = Convolution(
            self.features,
            self.kernel_size,
            self.stride,
            self.padding,
            use_bias=self.norm is None,  # Batch norm adds a bias of its own.
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            dtype=self.dtype,
            arithmetic=self.arithmetic,
        )
        self.bn = None if self.norm is None else self.norm()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H', W', features]`."""
        if self.bn is None:
            return ops.relu(self.conv(x, self.pool))
        return self.activate(self.conv(x))

    def activate(self, y: jax.Array) -> jax.Array:
        """Maps the output of the convolution, with its bias, to that of the block."""
        if self.bn is None:
            return ops.relu(self.pool(y))
        # The barrier of ops.relu would cost memory here.
        return self.pool(nn.relu(self.bn(y)))


def on_one_input(x: jax.Array, blocks: Sequence[ConvBlock]) -> list[jax.Array]:
    """Applies several 1x1 blocks to the same input.

    Where `Arithmetic.merge_1x1` is set, their convolutions are computed as a single one,
    which reads the input once. Flax's `capture_intermediates` then misses the blocks'
    outputs, since `ConvBlock.__call__` is not called.

    Args:
      x: `[B, H, W, C]`.
      blocks: Blocks with kernels of 1x1.

    Returns:
      The output of each block, `[B, H', W', features]`.
    """
    first = blocks[0]
    # During initialization there are no parameters to merge yet.
    if first.is_initializing() or not first.arithmetic.merge_1x1:
        return [block(x) for block in blocks]
    params = [block.variables["params"]["conv"] for block in blocks]
    merged = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=-1), *params)
    features = [block.features for block in blocks]
    # A copy without a parent takes the merged parameters instead of its own.
    conv = first.conv.clone(features=sum(features), parent=None)
    y: Any = conv.apply({"params": merged}, x)
    parts = jnp.split(y, np.cumsum(features)[:-1], axis=-1)
    return [block.activate(part) for block, part in zip(blocks, parts, strict=True)]


class Inception(nn.Module):
    """Figure 2(b) of the paper: four branches on one input, concatenated."""

    widths: InceptionWidths
    conv: ModuleFactory
    kernel_5x5: int = 5  # torchvision has 3 here.
    max_pool: Callable[..., jax.Array] = ops.max_pool
    pool: Pool = identity  # A max pool that follows; it is applied to each branch.

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, H', W', 1x1 + 3x3 + 5x5 + pool_proj]`.

        Only `pool` changes height and width.
        """
        widths, conv = self.widths, self.conv
        branch = partial(conv, pool=self.pool)
        branch_1x1, reduced_3x3, reduced_5x5 = on_one_input(
            x,
            [
                branch(widths.conv_1x1, 1, name="1x1"),
                conv(widths.reduce_3x3, 1, name="3x3_reduce"),
                conv(widths.reduce_5x5, 1, name="5x5_reduce"),
            ],
        )
        branch_3x3 = branch(widths.conv_3x3, 3, name="3x3")(reduced_3x3)
        branch_5x5 = branch(widths.conv_5x5, self.kernel_5x5, name="5x5")(reduced_5x5)
        pooled = self.max_pool(x, window=3, stride=1, padding="SAME")
        branch_pool = branch(widths.pool_proj, 1, name="pool_proj")(pooled)
        return jnp.concatenate([branch_1x1, branch_3x3, branch_5x5, branch_pool], axis=-1)


class GlobalAveragePool(nn.Module):
    """The mean over height and width."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, C]`."""
        return jnp.mean(x, axis=(1, 2))


class Dropout(nn.Module):
    """Dropout with a mask that is a function of the `"dropout"` key and the example's id.

    Flax's own layer draws one mask for the whole array, so that the mask of an example
    would depend on how the batch is split over devices.
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
    """An auxiliary classifier (section 5 of the paper).

    It consists of an average pool, a 1x1 convolution, a fully connected layer with dropout
    and a linear classifier.
    """

    num_classes: int
    proj_features: int
    fc_features: int
    dropout_rate: float
    windows: Callable[[int], ops.Windows]  # Maps the side of a map to the pool's windows.
    conv: ModuleFactory
    dense: ModuleFactory
    fc_bias_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array, example_ids: jax.Array, *, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` and int ids `[B]` to float32 logits `[B, num_classes]`."""
        rows, columns = map(self.windows, x.shape[1:3])
        x = ops.average_windows(x, rows, columns)
        x = self.conv(self.proj_features, 1, name="proj")(x)
        size = math.prod(x.shape[1:])
        x = x.reshape(x.shape[0], size)  # In the order H, W, C in every variant.
        x = self.dense(self.fc_features, bias_init=self.fc_bias_init, name="fc")(x)
        x = Dropout(self.dropout_rate)(nn.relu(x), example_ids, train=train)
        return self.dense(self.num_classes, name="classifier")(x)
