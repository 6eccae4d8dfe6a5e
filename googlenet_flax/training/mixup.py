"""Mixup (arXiv 1710.09412) of each example with the one before it in the batch."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_flax.training.state import Batch

PREFIX = "partner_"


def with_partners(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the partner of each example, which is the example before it in the batch.

    Every array `[B, ...]` of the batch, on the host, gets a second one under its name with
    the prefix `partner_`. The partner of the first example is the last one.
    """
    partners = {PREFIX + name: np.roll(x, 1, axis=0) for name, x in batch.items()}
    return {**batch, **partners}


def partners_of(batch: Batch) -> Batch:
    """Returns the batch of the partners that `with_partners` has added."""
    return {
        name.removeprefix(PREFIX): values
        for name, values in batch.items()
        if name.startswith(PREFIX)
    }


def mixup_lambdas(rng: jax.Array, indices: jax.Array, alpha: float) -> jax.Array:
    """Draws the weight of each example in its mixture.

    Args:
      rng: Key of the step.
      indices: int `[B]`, numbers of the examples; each weight depends on one of them.
      alpha: Both parameters of the Beta distribution.

    Returns:
      float32 `[B]`, from 0.5 to 1, so that an example outweighs its partner.
    """

    def draw(index: jax.Array) -> jax.Array:
        weight = jax.random.beta(jax.random.fold_in(rng, index), alpha, alpha)
        return jnp.maximum(weight, 1 - weight)

    return jax.vmap(draw)(indices)


def mix(own: jax.Array, partner: jax.Array, lambdas: jax.Array) -> jax.Array:
    """Mixes two arrays `[B, ...]` with the weights `[B]` of the first."""
    weights = jnp.expand_dims(lambdas, range(1, own.ndim))
    return partner + weights * (own - partner)
