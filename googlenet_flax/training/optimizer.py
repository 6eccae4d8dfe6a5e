"""The paper's SGD with momentum, and averages of the weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from googlenet_flax.training.state import Params, Variables


def create_optimizer(
    schedule: optax.Schedule,
    *,
    momentum: float,
    weight_decay: float,
    last_layers_only: bool = False,
) -> optax.GradientTransformation:
    """Creates SGD with momentum (not Nesterov) and weight decay on kernels.

    The weight decay is an L2 penalty. With `last_layers_only` nothing but the last layer of
    each classifier changes.
    """

    def kernels(params: Params) -> Params:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    def last_layers(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(lambda path, _: is_last_layer(path), params)

    decay = optax.add_decayed_weights(weight_decay, mask=kernels)
    sgd = optax.sgd(schedule, momentum=momentum)
    tx = optax.chain(decay, sgd) if weight_decay else sgd
    if not last_layers_only:
        return tx
    return optax.partition({True: tx, False: optax.set_to_zero()}, last_layers)


def is_last_layer(path: tuple[Any, ...]) -> bool:
    """Returns true for a path of the parameter tree into the last layer of a classifier."""
    return any(key.key == "classifier" for key in path)


@dataclasses.dataclass(frozen=True)
class Averaging:
    """An average of the weights over steps: exponential (EMA) or plain (Polyak)."""

    kind: str  # "ema" or "polyak".
    decay: float  # Decay of the EMA per step.
    start_step: int  # First step to average; before it, the average is the latest weights.

    def update(self, averages: Variables, latest: Variables, step: jax.Array) -> Variables:
        """Returns the averages after the update that follows `step` updates.

        The EMA begins as a plain average, so that it does not overweight its first weights.
        """
        count = jnp.maximum(step - self.start_step, 0).astype(jnp.float32)
        rate = 1 / (count + 1)
        if self.kind == "ema":
            rate = jnp.maximum(rate, 1 - self.decay)
        return optax.incremental_update(latest, averages, rate)
