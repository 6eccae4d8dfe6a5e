"""Cost of one image in floating-point operations and bytes.

Operations are counted from the shapes of the layers. Bytes are computed from the maps of
Table 1, scaled by the area of the image and the width of the network. Neither depends on
how a program fuses its operations.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from googlenet_flax.analysis.endpoints import with_all_maps
from googlenet_flax.model.googlenet import GoogLeNet

# Elements per image at `TABLE_IMAGE_SIZE`, from the map sizes and widths of Table 1.
TABLE_IMAGE_SIZE = 224
CONV_INPUTS = 2.80e6  # Counts each map once: the 1x1s of a block share their input.
CONV1_INPUTS = 0.15e6
CONV_OUTPUTS = 3.23e6
POOL_INPUTS = 2.88e6
POOL_OUTPUTS = 1.42e6
LRN_OUTPUTS = 0.80e6

POOL_INDEX_BYTES = 2  # One byte per output for the argmax, written once and read once.


def layer_shapes(model: GoogLeNet, image_size: int) -> tuple[Any, dict[str, Any]]:
    """Returns the shapes of the parameters, and the output shapes for one image.

    The output shapes are `[H, W, C]` or `[C]`, by the names of `endpoints.ENDPOINTS`.
    """
    initialize = functools.partial(
        with_all_maps(model).init,
        train=False,
        mutable=True,
        capture_intermediates=lambda module, _: len(module.path) == 1,
    )
    shape = (1, image_size, image_size, model.input_channels)
    variables = jax.eval_shape(lambda: initialize(jax.random.key(0), jnp.zeros(shape)))
    outputs = variables["intermediates"].items()
    shapes = {name: output["__call__"][0].shape[1:] for name, output in outputs}
    return variables["params"], shapes


def multiply_adds(params: Any, shapes: Mapping[str, Any]) -> dict[str, int]:
    """Counts the multiply-adds of one image by layer, such as `inception_3a/1x1`.

    Biases, norms and pools are left out; they are less than 1 % of the total. The
    arguments are the results of `layer_shapes`.
    """
    totals = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key != "kernel":
            continue
        names = [key.key for key in path[:-1] if key.key != "conv"]
        positions = 1
        if leaf.ndim == 4:  # A convolution: [kernel height, kernel width, C in, C out].
            # All convolutions of a part work on maps of the size of its output. A head
            # gives logits, so the size of its map follows from the kernel of its `fc`.
            positions = math.prod(shapes[names[0]][:2])
            if names[-1] == "proj":
                positions = params[names[0]]["fc"]["kernel"].shape[0] // leaf.shape[-1]
        totals["/".join(names)] = math.prod(leaf.shape) * positions
    return totals


@dataclasses.dataclass(frozen=True)
class ImageCost:
    """Cost of one image of a batch."""

    forward_flops: int  # Operations for the logits of the main classifier.
    training_flops: int  # Operations of a training step, heads included.
    training_bytes: float  # Lower bound of the memory traffic of a training step.


def image_cost(
    model: GoogLeNet, image_size: int, *, last_layers_only: bool = False
) -> ImageCost:
    """Computes the cost of one image with a side of `image_size` pixels.

    With `last_layers_only` nothing but the last layer of each classifier is trained. At 224
    px with 1000 classes `seed` costs 3.165 GFLOP for the forward pass and 9.31 GFLOP for
    training, which moves at least 62 MB in bfloat16.
    """
    layers = multiply_adds(*layer_shapes(model, image_size))
    main = sum(n for name, n in layers.items() if not name.startswith("aux"))
    forward = sum(layers.values())
    # The gradients of kernel and input each cost as much as the forward pass. The images
    # need no gradient.
    training = 3 * forward - layers["conv1"]
    if last_layers_only:
        training = forward + sum(n for name, n in layers.items() if "classifier" in name)
    training_bytes = _training_bytes(model, image_size, last_layers_only=last_layers_only)
    return ImageCost(2 * main, 2 * training, training_bytes)


def _training_bytes(model: GoogLeNet, image_size: int, *, last_layers_only: bool) -> float:
    """Computes a lower bound of the bytes that a training step moves for one image.

    The bound assumes that bias, ReLU and concatenation need no pass of their own, that the
    1x1 convolutions of a block read their input once, and that a pool stores its argmax in
    one byte. It leaves out the heads and the weights, which are read and written once per
    batch; at batch 256 each of the two is about 1 %.
    """
    forward = CONV_INPUTS + CONV_OUTPUTS + POOL_INPUTS + POOL_OUTPUTS
    # Each convolution reads its input once, for the gradient of the kernel, and writes the
    # gradient of the input once (conv1 does not). It reads the gradient of the output twice
    # and the output once, as the mask of ReLU.
    backward = (
        2 * CONV_INPUTS - CONV1_INPUTS + 3 * CONV_OUTPUTS + POOL_INPUTS + POOL_OUTPUTS
    )
    if model.variant.local_response_norm:
        forward += 2 * LRN_OUTPUTS
        backward += 3 * LRN_OUTPUTS
    # A frozen batch norm could be folded into the kernel, so the bound leaves it out.
    if model.variant.batch_norm and not last_layers_only:
        forward += 2 * CONV_OUTPUTS
        backward += 3 * CONV_OUTPUTS
    total = forward * model.dtype.itemsize
    if not last_layers_only:
        total += backward * model.dtype.itemsize + POOL_INDEX_BYTES * POOL_OUTPUTS
    return total * (image_size / TABLE_IMAGE_SIZE) ** 2 * model.width_multiplier
