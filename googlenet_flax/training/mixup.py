"""Mixup (arXiv 1710.09412) of each example with the one before it in the batch."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def with_partners(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the partner of each example, which is the example before it in the batch.

    The batch holds arrays `[B, ...]` on the host. The result also holds the batch of the
    partners, as `partner`. The partner of the first example is the last one.
    """
    return {**batch, "partner": {name: np.roll(x, 1, axis=0) for name, x in batch.items()}}


def mixup_lambdas(rng: jax.Array, indices: jax.Array, alpha: float) -> jax.Array:
    """Draws the weight of each example in its mixture.

    Args:
      rng: Key of the step.
      indices: int `[B]`, numbers of the examples; each weight depends only on its own.
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
