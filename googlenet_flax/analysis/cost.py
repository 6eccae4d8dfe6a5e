"""What one image costs, by the shapes alone: floating-point operations and bytes.

However the arithmetic is fused, these stay the same: what a faster program spares is not
work that the network needs.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from googlenet_flax.model.googlenet import GoogLeNet

# Elements per image at `TABLE_IMAGE_SIZE`, from the map sizes and widths of Table 1.
TABLE_IMAGE_SIZE = 224
CONV_INPUTS = 2.80e6  # Each map once: the three 1x1s on the input of a block share it.
CONV1_INPUTS = 0.15e6
CONV_OUTPUTS = 3.23e6
POOL_INPUTS = 2.88e6
POOL_OUTPUTS = 1.42e6
LRN_OUTPUTS = 0.80e6

POOL_INDEX_BYTES = 2  # Per output, which of the nine was largest: written and read.


def multiply_adds(model: GoogLeNet, image_size: int) -> dict[str, int]:
    """Multiply-adds of one image in each layer that has a kernel.

    Named as in the parameter tree: `conv1`, `inception_3a/1x1`, `aux_4a/fc`. Biases, norms
    and pools are left out, under 1 % of the whole.

    Args:
      model: Of any variant, width and number of classes.
      image_size: Side of its input in pixels.
    """

    def initialise(images: jax.Array) -> Any:
        return model.init(
            jax.random.key(0),
            images,
            train=False,
            mutable=True,
            capture_intermediates=lambda module, _: len(module.path) == 1,
        )

    images = jnp.zeros((1, image_size, image_size, 3))
    variables = jax.eval_shape(initialise, images)
    params, outputs = variables["params"], variables["intermediates"]
    totals = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key != "kernel":
            continue
        names = [key.key for key in path[:-1] if key.key != "conv"]
        positions = 1
        if leaf.ndim == 4:  # Of a convolution, [kernel height, kernel width, C in, C out].
            part = names[0]
            positions = _positions(params[part], outputs[part]["__call__"][0])
        totals["/".join(names)] = math.prod(leaf.shape) * positions
    return totals


def _positions(params: dict, output: jax.Array) -> int:
    """How often the convolutions of a part of the network are applied to one image.

    All of a part work on maps of one size, `[B, H, W, C]`; a head's is flattened in front
    of its `fc`.
    """
    if output.ndim == 4:
        return math.prod(output.shape[1:3])
    features = params["proj"]["conv"]["kernel"].shape[-1]
    return params["fc"]["kernel"].shape[0] // features


@dataclasses.dataclass(frozen=True)
class ImageCost:
    """Of one image of a batch."""

    forward_flops: int  # Of the main classifier's logits.
    training_flops: int  # Of an update, heads included.
    training_bytes: float  # That an update must move through memory, at least.


def image_cost(model: GoogLeNet, image_size: int, *, head_only: bool = False) -> ImageCost:
    """Counts it; at 224 px with 1000 classes 3.165 GFLOP forward and 9.31 in training.

    In bfloat16, without a norm, training moves 62 MB.

    Args:
      model: As for `multiply_adds`.
      image_size: Side of its input in pixels.
      head_only: Only the last layer of each classifier is trained.
    """
    layers = multiply_adds(model, image_size)
    main = sum(n for name, n in layers.items() if not name.startswith("aux"))
    forward = sum(layers.values())
    # The gradients of kernel and input cost as much again each; the images need none.
    training = 3 * forward - layers["conv1"]
    if head_only:
        training = forward + sum(n for name, n in layers.items() if "classifier" in name)
    moved = _training_bytes(model, image_size, head_only=head_only)
    return ImageCost(2 * main, 2 * training, moved)


def _training_bytes(model: GoogLeNet, image_size: int, *, head_only: bool) -> float:
    """A floor: bias, ReLU and concatenation cost no pass of their own.

    The 1x1 convolutions on one input read it once, and a pool keeps its argmax in a byte.
    Weights, which are read and written once a batch, and the heads are left out, about 1 %
    each at batch 256.
    """
    there = CONV_INPUTS + CONV_OUTPUTS + POOL_INPUTS + POOL_OUTPUTS
    # An input is read for its kernel's gradient and gets its own; an output's gradient is
    # read for both, after ReLU's mask.
    back = 2 * CONV_INPUTS - CONV1_INPUTS + 3 * CONV_OUTPUTS + POOL_INPUTS + POOL_OUTPUTS
    if model.variant.local_response_norm:
        there += 2 * LRN_OUTPUTS
        back += 3 * LRN_OUTPUTS
    if model.variant.batch_norm and not head_only:  # Frozen, it is a part of the kernel.
        there += 2 * CONV_OUTPUTS
        back += 3 * CONV_OUTPUTS
    total = there * model.dtype.itemsize
    if not head_only:
        total += back * model.dtype.itemsize + POOL_INDEX_BYTES * POOL_OUTPUTS
    return total * (image_size / TABLE_IMAGE_SIZE) ** 2 * model.width_multiplier
