"""Activations of parts of the network, and gradients of scores with respect to them.

    endpoints = activations(model, variables, images, ["conv2", "inception_4e"])

`activations` and `activation_and_gradient` take the paper's names of the parts and work on
every variant. They compile the network once for each set of names and shapes, and also work
under `jit`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from googlenet_flax.model.googlenet import HEADS, INCEPTIONS, GoogLeNet, GoogLeNetOutput

STEM = ("conv1", "conv2_reduce", "conv2")
LOGITS = (*HEADS, "classifier")
# The outputs of `STEM` and `INCEPTIONS` are maps `[B, H, W, C]`, after ReLU, before a pool.
# `pool` is the mean of each channel of the last map.
ENDPOINTS = (*STEM, *INCEPTIONS, "pool", *LOGITS)

Maps = dict[str, jax.Array]  # By the name of the part.
Score = Callable[[GoogLeNetOutput], jax.Array]  # Returns a value for each example.
Vjp = Callable[[GoogLeNetOutput], tuple[Maps]]  # What `jax.vjp` returns; a pytree.


def with_all_maps(model: GoogLeNet) -> GoogLeNet:
    """Returns a network that computes all maps; `pool_first` skips those before a pool."""
    return model.clone(arithmetic=dataclasses.replace(model.arithmetic, pool_first=False))


def activations(
    model: GoogLeNet,
    variables: Mapping[str, Any],
    images: jax.Array,
    names: Sequence[str] = ENDPOINTS,
) -> Maps:
    """Computes outputs of parts of the network in evaluation mode.

    Args:
      model: A network of any variant.
      variables: Its parameters and, with batch norm, statistics.
      images: float `[B, H, W, C]`, preprocessed as in the training of the weights.
      names: Parts of the network, from `ENDPOINTS`.

    Returns:
      Outputs by name: maps are float `[B, H, W, C]`; `pool`, which dropout follows, is
      float `[B, C]`; heads and classifier give logits `[B, num_classes]`.

    Raises:
      ValueError: The network has no part of that name.
    """
    return _activations(model, variables, images, tuple(names))


# `inline` lets an outer `jit` compile this together with other uses of the network.
@functools.partial(jax.jit, static_argnames=("model", "names"), inline=True)
def _activations(model, variables, images, names):
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
    score: Score,
) -> tuple[jax.Array, jax.Array]:
    """Computes the maps of one part and the gradient of a score, as Grad-CAM needs them.

    The part is a layer of the `STEM` or a block of the network. The score is a function of
    the network's output that returns a value for each example. The sum of these values is
    differentiated.
    The other arguments are those of `activations`.

    Returns:
      Activation and gradient, each `[B, H, W, C]`.

    Raises:
      ValueError: There is no map of that name.
    """
    names = (*STEM, *model.inceptions)
    if name not in names:
        raise ValueError(f"{name!r} has no map; choose one of {', '.join(names)}")
    maps, output, vjp = maps_and_vjp(model, variables, images, (name,))
    return maps[name], score_gradients(score, output, vjp)[name]


@functools.partial(jax.jit, static_argnames=("model", "names"), inline=True)
def maps_and_vjp(
    model: GoogLeNet,
    variables: Mapping[str, Any],
    images: jax.Array,
    names: tuple[str, ...],
) -> tuple[Maps, GoogLeNetOutput, Vjp]:
    """Computes maps of several parts, for the gradients of several scores.

    The network is traced twice, however many parts and scores there are. The arguments are
    those of `activations`; each part must be one that `activation_and_gradient` accepts.

    Returns:
      The maps by name, the network's output, and a function that maps a gradient with
      respect to the output to the gradients with respect to the maps. `score_gradients`
      takes the last two.
    """

    def output_of(offsets: Maps) -> Any:
        def add_offset(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            y, name = call(*args, **kwargs), "/".join(context.module.path)
            is_part = context.method_name == "__call__" and name in offsets
            return y + offsets[name] if is_part else y

        with nn.intercept_methods(add_offset):
            return with_all_maps(model).apply(variables, images, train=False)

    maps = activations(model, variables, images, names)
    # The gradient with respect to a map is that with respect to zeros added to it.
    return maps, *jax.vjp(output_of, jax.tree.map(jnp.zeros_like, maps))


def score_gradients(score: Score, output: GoogLeNetOutput, vjp: Vjp) -> Maps:
    """Computes the gradients of a score with respect to the maps of `maps_and_vjp`."""
    return _call(vjp, jax.grad(lambda output: score(output).sum())(output))[0]


_call = jax.jit(lambda vjp, gradient: vjp(gradient))  # Compiled once for all scores.
