"""Table 1 of the paper, its variants, and the loop that builds the network from them."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from functools import partial

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from googlenet_flax.model import ops
from googlenet_flax.model.convolution import STOCK, Arithmetic, Padding2D, fastest
from googlenet_flax.model.layers import (
    AuxClassifier,
    ConvBlock,
    Dropout,
    GlobalAveragePool,
    Inception,
    InceptionWidths,
    Pool,
    identity,
)

# Szegedy et al. 2015, "Going deeper with convolutions", arXiv 1409.4842, Table 1.
# #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj
INCEPTIONS: Mapping[str, InceptionWidths] = {
    "inception_3a": InceptionWidths(64, 96, 128, 16, 32, 32),
    "inception_3b": InceptionWidths(128, 128, 192, 32, 96, 64),
    "inception_4a": InceptionWidths(192, 96, 208, 16, 48, 64),
    "inception_4b": InceptionWidths(160, 112, 224, 24, 64, 64),
    "inception_4c": InceptionWidths(128, 128, 256, 24, 64, 64),
    "inception_4d": InceptionWidths(112, 144, 288, 32, 64, 64),
    "inception_4e": InceptionWidths(256, 160, 320, 32, 128, 128),
    "inception_5a": InceptionWidths(256, 160, 320, 32, 128, 128),
    "inception_5b": InceptionWidths(384, 192, 384, 48, 128, 128),
}
CONV1_FEATURES = 64
CONV2_REDUCE_FEATURES = 64
CONV2_FEATURES = 192
# Section 5: the auxiliary classifiers.
AUX_PROJ_FEATURES = 128
AUX_FC_FEATURES = 1024
AUX_DROPOUT_RATE = 0.7
AUX_TAPS = {"inception_4a": "aux_4a", "inception_4d": "aux_4d"}
HEADS = tuple(AUX_TAPS.values())
BATCH_NORM_MOMENTUM = 0.9  # In torch, whose momentum is the complement, it is 0.1.
BATCH_NORM_EPSILON = 1e-3
# Side of the smallest images in pixels; the map of the last block is then a single pixel.
MIN_IMAGE_SIZE = 32

_windows_of_5x5 = partial(ops.sliding_windows, window=5, stride=3)
_grid_of_4x4 = partial(ops.adaptive_windows, bins=4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """The choices that distinguish a variant of the network, such as padding and norm.

    Table 1 of the paper leaves most of them open.
    """

    conv1_padding: str | Padding2D
    pool_padding: ops.PoolPadding
    pool_5a_window: int = 3  # Side of the max pool before inception_5a, in pixels.
    kernel_5x5: int = 5
    local_response_norm: bool = False
    batch_norm: bool = False
    aux_windows: Callable[[int], ops.Windows]  # Windows of the heads' pool by map size.
    kernel_init: nn.initializers.Initializer
    bias: float = 0.0  # Initial biases of conv1 and of the inception blocks.
    conv2_bias: float = 0.0
    # Initial biases of `proj` and `fc` in the heads.
    aux_bias: tuple[float, float] = (0.0, 0.0)
    dropout_rate: float = 0.4  # Dropout before the main classifier.

    @property
    def pool_windows(self) -> dict[str, int]:
        """The windows, in pixels, of the max pools between blocks, by the next block."""
        return {"inception_4a": 3, "inception_5a": self.pool_5a_window}

    @property
    def is_size_free(self) -> bool:
        """True if the heads pool to a fixed size, whatever the size of the images."""
        smaller, larger = map(self.aux_windows, (28, 56))  # Windows on maps of two sizes.
        return len(smaller) == len(larger)

    @property
    def min_image_size(self) -> int:
        """The smallest side of an image in pixels, for a network with heads.

        Heads with 5x5 windows need maps of at least 5x5 pixels, which images of 80 pixels
        give. Other heads take maps of any size.
        """
        return MIN_IMAGE_SIZE if self.is_size_free else 80


VARIANTS: Mapping[str, Variant] = {
    # The network of a Keras tutorial, without any norm.
    "seed": Variant(
        conv1_padding="SAME",
        pool_padding="SAME",
        aux_windows=partial(_windows_of_5x5, round_up=False),
        kernel_init=nn.initializers.glorot_uniform(),
        bias=0.2,
    ),
    # BVLC/caffe models/bvlc_googlenet/train_val.prototxt. Caffe's "xavier" is uniform with
    # variance 1 / fan_in, not Glorot's 2 / (fan_in + fan_out).
    "paper": Variant(
        conv1_padding=((3, 3), (3, 3)),
        pool_padding="CEIL",
        local_response_norm=True,
        aux_windows=partial(_windows_of_5x5, round_up=True),
        kernel_init=nn.initializers.lecun_uniform(),
        bias=0.2,
        conv2_bias=0.2,
        aux_bias=(0.2, 0.2),
    ),
    # `seed` with batch norm on every convolution, heads for any image size, and He init.
    "bn": Variant(
        conv1_padding="SAME",
        pool_padding="SAME",
        batch_norm=True,
        aux_windows=_grid_of_4x4,
        kernel_init=nn.initializers.he_normal(),
    ),
    # pytorch/vision torchvision/models/googlenet.py, with its 3x3 for 5x5.
    "torchvision": Variant(
        conv1_padding=((3, 3), (3, 3)),
        pool_padding="CEIL",
        pool_5a_window=2,
        kernel_5x5=3,
        batch_norm=True,
        aux_windows=_grid_of_4x4,
        # torchvision truncates at 2, which is 200 standard deviations and has no effect.
        kernel_init=nn.initializers.normal(stddev=0.01),
        dropout_rate=0.2,
    ),
}

SIZE_FREE_VARIANTS = tuple(
    name for name, variant in VARIANTS.items() if variant.is_size_free
)


@flax.struct.dataclass
class GoogLeNetOutput:
    """Logits of each classifier, float32 `[B, num_classes]`; None for an absent head."""

    logits: jax.Array
    aux_4a: jax.Array | None = None
    aux_4d: jax.Array | None = None

    def by_classifier(self) -> dict[str, jax.Array]:
        """Returns the logits of `main` and of the heads that are present, by name."""
        named = {"main": self.logits, "aux_4a": self.aux_4a, "aux_4d": self.aux_4d}
        return {name: logits for name, logits in named.items() if logits is not None}


class _Table(FrozenDict):
    """A hashable mapping; two are equal only if their items are in the same order."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Table) and [*self.items()] == [*other.items()]

    __hash__ = FrozenDict.__hash__


class GoogLeNet(nn.Module):
    """GoogLeNet (Inception v1) with two auxiliary classifiers.

    The source is Szegedy et al. 2015, Table 1 and section 5. `create_model` builds a
    network by the name of its variant; the field `variant` is a `Variant` of `VARIANTS`, or
    one that you define.
    """

    num_classes: int
    variant: Variant
    aux_heads: bool = True
    dtype: jnp.dtype = jnp.dtype("float32")  # Type of activations; parameters are float32.
    axis_name: str | None = None  # Mapped axis whose devices share batch statistics.
    freeze_norm: bool = False  # Normalize with running statistics in training too.
    width_multiplier: float = 1.0  # Factor on every channel count; the paper has 1.
    input_channels: int = 3
    arithmetic: Arithmetic = STOCK  # `create_model` chooses the fastest.
    # The blocks by name. Their names determine where the max pools (`Variant.pool_windows`)
    # and the heads (`AUX_TAPS`) are.
    inceptions: Mapping[str, InceptionWidths] = dataclasses.field(
        default_factory=lambda: INCEPTIONS
    )

    def __post_init__(self) -> None:
        """Makes the table hashable, as `jax.jit` needs it for a static argument."""
        self.inceptions = _Table(self.inceptions)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool,
        example_ids: jax.Array | None = None,
    ) -> GoogLeNetOutput:
        """Classifies a batch.

        Args:
          images: float `[B, H, W, input_channels]`, preprocessed as in the training of
            the weights; `H` and `W` at least `variant.min_image_size`. Unless
            `variant.is_size_free`, the heads take only the size that `init` saw; a clone
            with `aux_heads=False` takes other sizes from 32 pixels on with the same
            variables.
          train: Whether to apply dropout, which needs the `"dropout"` rng, and to
            normalize with the statistics of the batch, which needs
            `mutable=["batch_stats"]`. A Python bool, and static under `jax.jit`.
          example_ids: int `[B]`; the dropout mask of an example is a function of the rng
            and its id. Default: the position in the batch.

        Returns:
          The logits of the main and auxiliary classifiers, each float32 `[B, num_classes]`;
          None for heads without `aux_heads`.

        Raises:
          ValueError: The images have a wrong shape or are too small.
        """
        self._check_images(images)
        if example_ids is None:
            example_ids = jnp.arange(images.shape[0])
        variant = self.variant
        conv, dense = self._bind_layers(train=train)
        max_pool = partial(ops.max_pool, gather=self.arithmetic.gather_max_pool)
        pool = partial(max_pool, stride=2, padding=variant.pool_padding)
        block_conv = partial(conv, bias_init=nn.initializers.constant(variant.bias))
        pools = self._pools_after(pool)

        x = self._stem(images.astype(self.dtype), conv, pool)  # [B, H/8, W/8, 192]
        aux = {}
        x = pools["conv2"](x)  # The identity, unless the table begins with 4a or 5a.
        for name, widths in self.inceptions.items():
            inside, after = self._place_pool(pools[name], map_is_read=name in AUX_TAPS)
            x = Inception(
                InceptionWidths(*map(self._width, widths)),
                conv=block_conv,
                kernel_5x5=variant.kernel_5x5,
                max_pool=max_pool,
                pool=inside,
                name=name,
            )(x)
            if self.aux_heads and name in AUX_TAPS:
                head = self._aux_classifier(AUX_TAPS[name], conv, dense)
                aux[AUX_TAPS[name]] = head(x, example_ids, train=train)
            x = after(x)

        x = GlobalAveragePool(name="pool")(x)  # [B, 1024]
        x = Dropout(variant.dropout_rate)(x, example_ids, train=train)
        logits = dense(self.num_classes, name="classifier")(x)
        return GoogLeNetOutput(logits, **aux)

    def _check_images(self, images: jax.Array) -> None:
        channels, shape = self.input_channels, list(images.shape)
        if len(shape) != 4 or shape[-1] != channels:
            raise ValueError(f"images must be [B, H, W, {channels}], got {shape}")
        size = self.variant.min_image_size if self.aux_heads else MIN_IMAGE_SIZE
        if min(shape[1:3]) < size:
            raise ValueError(
                f"images are {shape[1]}x{shape[2]} pixels; the network needs at least "
                f"{size}x{size}: resize them first"
            )

    def _stem(self, x: jax.Array, conv: partial, pool: partial) -> jax.Array:
        """Computes the rows of Table 1 before the first block."""
        variant = self.variant
        pool = partial(pool, window=3)
        lrn = ops.local_response_norm if variant.local_response_norm else identity
        inside, after = self._place_pool(pool)
        x = conv(
            self._width(CONV1_FEATURES),
            7,
            stride=2,
            padding=variant.conv1_padding,
            bias_init=nn.initializers.constant(variant.bias),
            pool=inside,
            name="conv1",
        )(x)
        x = lrn(after(x))  # [B, H/4, W/4, 64]
        conv2 = partial(conv, bias_init=nn.initializers.constant(variant.conv2_bias))
        x = conv2(self._width(CONV2_REDUCE_FEATURES), 1, name="conv2_reduce")(x)
        # LRN comes between conv2 and its pool.
        inside, after = self._place_pool(pool, map_is_read=variant.local_response_norm)
        x = conv2(self._width(CONV2_FEATURES), 3, pool=inside, name="conv2")(x)
        return after(lrn(x))

    def _pools_after(self, pool: partial) -> dict[str, Pool]:
        """Returns the max pool after conv2 and after each block, or the identity."""
        windows = self.variant.pool_windows
        pairs = itertools.pairwise(("conv2", *self.inceptions, "classifier"))
        return {
            before: partial(pool, window=windows[after]) if after in windows else identity
            for before, after in pairs
        }

    def _place_pool(self, pool: Pool, *, map_is_read: bool = False) -> tuple[Pool, Pool]:
        """Returns the pool inside and the pool after a layer; one of them is the identity.

        With `Arithmetic.pool_first` the layer computes the pool itself, unless a head or
        LRN reads its map before the pool (`map_is_read`).
        """
        if self.arithmetic.pool_first and not map_is_read:
            return pool, identity
        return identity, pool

    def _width(self, features: int) -> int:
        return max(1, round(features * self.width_multiplier))

    def _bind_layers(self, *, train: bool) -> tuple[partial, partial]:
        """Returns ConvBlock and Dense with the arguments that all layers share."""
        norm = partial(
            nn.BatchNorm,
            use_running_average=self.freeze_norm or not train,
            momentum=BATCH_NORM_MOMENTUM,
            epsilon=BATCH_NORM_EPSILON,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        conv = partial(
            ConvBlock,
            norm=norm if self.variant.batch_norm else None,
            kernel_init=self.variant.kernel_init,
            dtype=self.dtype,
            arithmetic=self.arithmetic,
        )
        dense = partial(
            nn.Dense,
            kernel_init=self.variant.kernel_init,
            dtype=jnp.promote_types(self.dtype, jnp.float32),
        )
        return conv, dense

    def _aux_classifier(self, name: str, conv: partial, dense: partial) -> nn.Module:
        proj_bias, fc_bias = self.variant.aux_bias
        return AuxClassifier(
            num_classes=self.num_classes,
            proj_features=self._width(AUX_PROJ_FEATURES),
            fc_features=self._width(AUX_FC_FEATURES),
            dropout_rate=AUX_DROPOUT_RATE,
            windows=self.variant.aux_windows,
            conv=partial(conv, bias_init=nn.initializers.constant(proj_bias)),
            dense=dense,
            fc_bias_init=nn.initializers.constant(fc_bias),
            name=name,
        )


def create_model(
    variant: str,
    *,
    num_classes: int,
    aux_heads: bool = True,
    dtype: str | jnp.dtype = "float32",
    axis_name: str | None = None,
    freeze_norm: bool = False,
    width_multiplier: float = 1.0,
    input_channels: int = 3,
    platform: str | None = None,
    arithmetic: Arithmetic | None = None,
) -> GoogLeNet:
    """Creates a variant of GoogLeNet, without parameters.

    Args:
      variant: `"seed"` (the Keras tutorial), `"paper"` (Caffe's bvlc_googlenet), `"bn"`
        (`"seed"` with batch norm and heads for any image size) or `"torchvision"`.
      num_classes: Number of classes of the main and auxiliary classifiers.
      aux_heads: Whether to build the heads on 4a and 4d (section 5).
      dtype: Type of activations, `"float32"` or `"bfloat16"`; parameters, statistics
        and logits are float32.
      axis_name: Mapped axis whose devices share batch norm statistics in training.
      freeze_norm: Whether batch norm uses its running statistics in training too, for
        layers that are not trained.
      width_multiplier: Factor on every channel count but those of the input and the
        classes; the paper has 1. Counts are rounded, to at least 1.
      input_channels: Channels of the images: 1 is gray, 3 RGB and 4 RGBA.
      platform: Platform of the devices that will run the network (`device.platform`):
        `"cpu"`, `"gpu"` or `"tpu"`; others use XLA's own operations. Default:
        `jax.default_backend()`, regardless of `jax.default_device`.
      arithmetic: Options for how the network is computed. Default: those of
        `convolution.fastest` for the platform and `dtype`. Forward-mode derivatives
        (`jax.jvp`, `jax.hessian`) need `STOCK`, and `"bn"` or `"torchvision"`.

    Returns:
      The Flax module; `init` creates its variables and `apply` computes a
      `GoogLeNetOutput`.

    Raises:
      ValueError: There is no variant of that name.
    """
    if variant not in VARIANTS:
        raise ValueError(
            f"unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}"
        )
    dtype = jnp.dtype(dtype)
    return GoogLeNet(
        num_classes=num_classes,
        variant=VARIANTS[variant],
        aux_heads=aux_heads,
        dtype=dtype,
        axis_name=axis_name,
        freeze_norm=freeze_norm,
        width_multiplier=width_multiplier,
        input_channels=input_channels,
        arithmetic=arithmetic or fastest(platform or jax.default_backend(), dtype),
    )
