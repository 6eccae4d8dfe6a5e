"""The state of a run, which every update changes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

Batch = Mapping[str, Any]  # A `data.image_set.Batch` on the host or on a device.
Metrics = dict[str, jax.Array]
Params = Any  # The parameters of a network, or anything of their structure.
BatchStats = Any  # Running means and variances of batch norm; empty without it.
Variables = Any  # {"params": ..., "batch_stats": ...} as `model.apply` takes them.


@flax.struct.dataclass
class TrainState:
    """Everything that an update changes, and that a checkpoint holds."""

    step: jax.Array  # Number of updates done, int32 [].
    params: Params
    batch_stats: BatchStats
    opt_state: optax.OptState
    # Averages over steps of {"params", "batch_stats"}; empty without averaging.
    averages: Variables = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        variables: Variables,
        tx: optax.GradientTransformation,
        *,
        averages: bool = False,
    ) -> "TrainState":
        """Creates the state of step 0 from parameters and statistics.

        With `averages` the state also holds averages of the weights, in separate arrays,
        because the train step donates every array of the state.
        """
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=tx.init(variables["params"]),
            averages=jax.tree.map(jnp.copy, dict(variables)) if averages else {},
        )

    @property
    def variables(self) -> Variables:
        """The parameters and statistics in the form that `model.apply` takes."""
        return variables_of(self.params, self.batch_stats)


def variables_of(params: Params, batch_stats: BatchStats) -> Variables:
    """Returns the variables of a network; without batch norm there are no statistics."""
    return {"params": params, **({"batch_stats": batch_stats} if batch_stats else {})}
