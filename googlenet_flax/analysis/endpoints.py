"""Activations of parts of the network by the paper's names, and their gradients.

    endpoints = activations(model, variables, images, ["conv2", "inception_4e"])

Both functions work on every variant and under `jit`. The network needs no change for them:
each named part is a Flax module, whose output Flax can capture.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from googlenet_flax.model.googlenet import AUX_TAPS, INCEPTIONS, GoogLeNet, GoogLeNetOutput

# Names in the order of the computation. Heads and classifier give logits
# `[B, num_classes]`.
STEM = ("conv1", "conv2_reduce", "conv2")
MAPS = (*STEM, *INCEPTIONS)  # Maps `[B, H, W, C]`, after ReLU and before a pool.
ENDPOINTS = (*MAPS, *AUX_TAPS.values(), "classifier")


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
      images: float `[B, H, W, 3]`, preprocessed as the variant expects.
      names: Parts of the network, from `ENDPOINTS`.

    Returns:
      Outputs by name: maps are float `[B, H, W, C]`; heads and classifier give logits
      `[B, num_classes]`.

    Raises:
      ValueError: A name is unknown, or this network has no part of that name.
    """
    check_names(names)
    paths = {(name,) for name in names}
    _, captured = model.apply(
        variables,
        images,
        train=False,
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: module.path in paths,
    )
    outputs: Any = captured.get("intermediates", {})
    missing = [name for name in names if name not in outputs]
    if missing:
        raise ValueError(f"this network was built without {', '.join(missing)}")
    return {name: outputs[name]["__call__"][0] for name in names}


def activation_and_gradient(
    model: GoogLeNet,
    variables: Mapping[str, Any],
    images: jax.Array,
    name: str,
    score: Callable[[GoogLeNetOutput], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Computes the maps of one part and the gradient of a score with respect to them.

    Grad-CAM needs both.

    Args:
      model: A network of any variant.
      variables: Its parameters and, with batch norm, statistics.
      images: float `[B, H, W, 3]`, preprocessed as the variant expects.
      name: The part, one of `MAPS`.
      score: Function of the network's output that returns a value for each example. The
        sum over the examples is differentiated.

    Returns:
      Activation and gradient, each `[B, H, W, C]`.

    Raises:
      ValueError: There is no map of that name.
    """
    if name not in MAPS:
        raise ValueError(f"{name!r} has no map; choose one of {', '.join(MAPS)}")

    def score_with(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        maps = []

        def add_offset(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = call(*args, **kwargs)
            if context.module.path != (name,) or context.method_name != "__call__":
                return output
            maps.append(output)
            return output + offset

        with nn.intercept_methods(add_offset):
            output: Any = model.apply(variables, images, train=False)
        return score(output).sum(), maps[0]

    shape = jax.eval_shape(lambda: activations(model, variables, images, [name]))[name]
    gradient, maps = jax.grad(score_with, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    return maps, gradient


def check_names(names: Sequence[str]) -> None:
    """Checks that all names are among `ENDPOINTS`.

    Raises:
      ValueError: A name is not; the message names the first one.
    """
    for name in names:
        if name not in ENDPOINTS:
            raise ValueError(
                f"no part is called {name!r}; there are {', '.join(ENDPOINTS)}"
            )
