"""Detection of the first loss that is not finite, without waiting for each step."""

import math
from collections.abc import Mapping

import jax

from googlenet_flax.runtime.errors import NotFiniteError
from googlenet_flax.training.state import Metrics


class LossWatch:
    """Collects the metrics of steps on the devices until their losses are checked."""

    def __init__(self) -> None:
        self._unchecked: list[tuple[int, Metrics]] = []

    def add(self, step: int, metrics: Metrics) -> None:
        """Adds the metrics that a sharded step returned, without waiting for them."""
        self._unchecked.append((step, metrics))

    def check(self) -> dict[str, float]:
        """Checks the losses of all steps added since the last check.

        Returns:
          The metrics of the last step; empty if no step was added.

        Raises:
          NotFiniteError: Names the first step with a loss that is NaN or infinite.
        """
        losses = jax.device_get([_first_shard(m["loss"]) for _, m in self._unchecked])
        for (step, metrics), loss in zip(self._unchecked, losses, strict=True):
            if not math.isfinite(loss.item()):
                raise not_finite(_to_floats(metrics), step)
        last = _to_floats(self._unchecked[-1][1]) if self._unchecked else {}
        self._unchecked.clear()
        return last


def not_finite(metrics: Mapping[str, float], step: int) -> NotFiniteError:
    """Returns an error that names the losses that are NaN or infinite."""
    bad = [
        f"{name} is {value}"
        for name, value in metrics.items()
        if name.endswith("loss") and not math.isfinite(value)
    ]
    return NotFiniteError(
        f"{', '.join(bad)} at step {step}: lower --config.learning_rate; the last "
        "checkpoint was saved before this step"
    )


def _to_floats(metrics: Metrics) -> dict[str, float]:
    """Fetches the metrics of a sharded step to the host."""
    values = jax.device_get({name: _first_shard(value) for name, value in metrics.items()})
    return {name: float(value.item()) for name, value in values.items()}


def _first_shard(values: jax.Array) -> jax.Array:
    """Returns one shard of an array that is equal on all devices."""
    return values.addressable_data(0)
