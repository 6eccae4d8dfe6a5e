"""Detection of losses that are not finite, and of classifiers that do not learn."""

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import jax

from googlenet_flax.config import Config
from googlenet_flax.model.googlenet import HEADS, VARIANTS
from googlenet_flax.runtime.errors import NotFiniteError
from googlenet_flax.training.state import Metrics

# For K classes, a classifier is at chance if its mean loss is at least `AT_CHANCE * ln K`,
# and it learns if its mean loss is below `LEARNING * ln K`.
AT_CHANCE = 0.99
LEARNING = 0.9
CHANCE_STEPS = 500  # Shortest window, in updates.
CHANCE_ROWS = 10  # Smallest number of logged steps in a window.


class LossWatch:
    """Collects the metrics of steps on the devices until their losses are checked."""

    def __init__(self) -> None:
        self._unchecked: list[tuple[int, Metrics]] = []

    def add(self, step: int, metrics: Metrics) -> None:
        """Adds the metrics that a sharded step returned, without waiting for them."""
        self._unchecked.append((step, metrics))

    def check(self) -> dict[str, float]:
        """Checks the losses of all steps added since the last check.

        Returns the metrics of the last step; empty if no step was added.

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


class ChanceWatch:
    """A detector of classifiers that stay at chance while another one learns.

    A classifier that gives all K classes equal probabilities has the loss ln K, also with
    label smoothing and mixup. The losses of single steps are noisy, so their means over
    windows are compared. A window spans at least one epoch, `CHANCE_STEPS` updates and
    `CHANCE_ROWS` logged steps. Each classifier is reported once. Nothing is reported if no
    classifier learns, as at the start of a run, or if the heads are not trained.
    """

    def __init__(self, config: Config, *, num_classes: int, epoch_steps: int):
        self._config = config
        self._chance = math.log(num_classes)
        self._window_steps = max(epoch_steps, CHANCE_STEPS)
        self._window_start = 0
        self._window: list[dict[str, float]] = []  # Losses of each logged step.
        self._reported: set[str] = set()

    def add(self, step: int, metrics: Mapping[str, Any]) -> str:
        """Adds the metrics logged after `step` updates.

        Returns a line about classifiers at chance in the window that ends here, or "".
        """
        losses = {name: metrics.get(f"{name}_loss") for name in ("main", *HEADS)}
        self._window.append({n: loss for n, loss in losses.items() if loss is not None})
        start, window = self._window_start, self._window
        if step - start < self._window_steps or len(window) < CHANCE_ROWS:
            return ""
        self._window_start, self._window = step, []
        means = {n: fmean(x.get(n, math.nan) for x in window) for n in window[-1]}
        learning = {n: x for n, x in means.items() if x < LEARNING * self._chance}
        stuck = {
            name: mean
            for name, mean in means.items()
            if mean >= AT_CHANCE * self._chance and name not in self._reported
        }
        if not (learning and stuck and self._config.aux_weight):
            return ""
        self._reported.update(stuck)
        return f"steps {start + 1} to {step}: {self._describe(stuck, learning)}"

    def _describe(self, stuck: Mapping[str, float], learning: Mapping[str, float]) -> str:
        config = self._config
        stuck_means, means = (
            ", ".join(f"{name} {mean:.2f}" for name, mean in each.items())
            for each in (stuck, learning)
        )
        norm = "" if VARIANTS[config.variant].batch_norm else ", with --config.variant=bn"
        return (
            f"no better than guessing (loss {self._chance:.2f}): {stuck_means}; learning: "
            f"{means}. Train in another --workdir with a lower --config.learning_rate (now "
            f"{config.learning_rate:g}){norm} or with a longer --config.warmup_epochs (now "
            f"{config.warmup_epochs:g}); see docs/runs.md"
        )


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
    return {name: value.item() for name, value in values.items()}


def _first_shard(values: jax.Array) -> jax.Array:
    """Returns one shard of an array that is equal on all devices."""
    return values.addressable_data(0)
