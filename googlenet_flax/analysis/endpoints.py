"""Activations of parts of the network by the paper's names, and their gradients.

    endpoints = activations(model, variables, images, ["conv2", "inception_4e"])

`activations` and `activation_and_gradient` work on every variant and under `jit`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from googlenet_flax.model.googlenet import HEADS, INCEPTIONS, GoogLeNet, GoogLeNetOutput

STEM = ("conv1", "conv2_reduce", "conv2")
LOGITS = (*HEADS, "classifier")
# Those of `STEM` and `INCEPTIONS` are maps `[B, H, W, C]`, after ReLU and before a pool.
# `pool` is the mean of each channel of the last map.
ENDPOINTS = (*STEM, *INCEPTIONS, "pool", *LOGITS)


def with_all_maps(model: GoogLeNet) -> GoogLeNet:
    """Returns a network that computes all maps; `pool_first` skips those before a pool."""
    return model.clone(arithmetic=dataclasses.replace(model.arithmetic, pool_first=False))


def activations(
    model: GoogLeNet,
    variables: Mapping[str, Any],
    images: jax.Array,
    names: Sequence[str] = ENDPOINTS,
) -> dict[str, jax.Array]:
    """Computes outputs of parts of the network in evaluation mode.

    Args:
      model: A network of any variant.
      variables: Its parameters and, with batch norm, statistics.
      images: float `[B, H, W, C]`, preprocessed as the variant expects.
      names: Parts of the network, from `ENDPOINTS`.

    Returns:
      Outputs by name: maps are float `[B, H, W, C]`; `pool`, which dropout follows, is
      float `[B, C]`; heads and classifier give logits `[B, num_classes]`.

    Raises:
      ValueError: The network has no part of that name.
    """
    paths = {(name,) for name in names}
    _, captured = with_all_maps(model).apply(
        variables,
        images,
        train=False,
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: module.path in paths,
    )
    outputs: Any = captured.get("intermediates", {})
    missing = [name for name in names if name not in outputs]
    if missing:
        raise ValueError(
            f"this network has no {', '.join(missing)}; parts that a network may have are "
            f"{', '.join(ENDPOINTS)}"
        )
    return {name: outputs[name]["__call__"][0] for name in names}


def activation_and_gradient(
    model: GoogLeNet,
    variables: Mapping[str, Any],
    images: jax.Array,
    name: str,
    score: Callable[[GoogLeNetOutput], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Computes the maps of one part and the gradient of a score, as Grad-CAM needs them.

    The part is a layer of the `STEM` or a block of the network. The score is a function of
    the network's output that returns a value for each example; their sum is differentiated.
    The other arguments are those of `activations`.

    Returns:
      Activation and gradient, each `[B, H, W, C]`.

    Raises:
      ValueError: There is no map of that name.
    """
    names = (*STEM, *model.inceptions)
    if name not in names:
        raise ValueError(f"{name!r} has no map; choose one of {', '.join(names)}")

    def score_of(maps: jax.Array) -> jax.Array:
        def replace(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            is_part = context.module.path == (name,) and context.method_name == "__call__"
            return maps if is_part else call(*args, **kwargs)

        with nn.intercept_methods(replace):
            output: Any = with_all_maps(model).apply(variables, images, train=False)
        return score(output).sum()

    maps = activations(model, variables, images, [name])[name]
    return maps, jax.grad(score_of)(maps)
