"""The learning rate, and the one place where epochs become steps."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from googlenet_flax.runtime.errors import UserError

MAX_STEPS = 2**31 - 1  # Steps are int32 on the device.


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Full batches in one pass; the tail of each epoch's permutation is dropped.

    Raises:
      UserError: The split holds less than one batch.
    """
    if batch_size > num_examples:
        raise UserError(
            f"batch_size is {batch_size} but train_split holds {num_examples} examples: "
            f"set --config.batch_size={num_examples} or less"
        )
    return num_examples // batch_size


def total_steps(*, num_epochs: int, max_steps: int, epoch_steps: int) -> int:
    """Steps of the whole run: `max_steps`, or `num_epochs` where that is 0.

    Raises:
      UserError: `num_epochs` are more steps than a run can have.
    """
    return max_steps or steps_within_a_run("num_epochs", num_epochs, epoch_steps)


def steps_within_a_run(field: str, epochs: float, epoch_steps: int) -> int:
    """Converts the epochs that a config field holds to whole steps.

    Raises:
      UserError: They are more steps than a run can have.
    """
    steps = round(epochs * epoch_steps)
    if steps > MAX_STEPS:
        raise UserError(
            f"config.{field} is {epochs}, which is {steps} steps at {epoch_steps} an "
            f"epoch, but a run has at most {MAX_STEPS} steps: set "
            f"--config.{field}={MAX_STEPS // epoch_steps} or less"
        )
    return steps


def steps_or_never(steps: int) -> int:
    """Limits the step of an event to int32; an event at the limit never happens.

    The last update of the longest run follows `MAX_STEPS - 1` steps.
    """
    return min(steps, MAX_STEPS)


def staircase_decay(
    *,
    learning_rate: float,
    decay_rate: float,
    decay_every_epochs: int,
    decay_offset_epochs: int,
    epoch_steps: int,
) -> optax.Schedule:
    """Learning rate that drops by `decay_rate` every `decay_every_epochs` epochs.

    At step `s`, `learning_rate * decay_rate ** floor((offset + epoch) / every)` with
    `epoch = s // epoch_steps`. Section 6 of the paper: 4 % every 8 epochs, offset 0. The
    Keras tutorial counts epochs from 1: offset 1.
    """
    stairs_before, epochs_into_stair = divmod(decay_offset_epochs, decay_every_epochs)
    first_rate = learning_rate * decay_rate**stairs_before
    stair_steps = steps_or_never(decay_every_epochs * epoch_steps)
    first_end = steps_or_never((decay_every_epochs - epochs_into_stair) * epoch_steps)

    def schedule(step: Any) -> jax.Array:
        # NOTE: stairs are counted in integers. optax.exponential_decay divides in float32,
        # and a compiled quotient just below a whole number is a stair one step late.
        # Counted from `first_end`, because step + offset could exceed int32.
        stairs = 1 + (step - first_end) // stair_steps
        return first_rate * jnp.power(decay_rate, stairs)

    return schedule


def cosine_decay(
    *, learning_rate: float, final_fraction: float, steps: int
) -> optax.Schedule:
    """Half a cosine from `learning_rate` to `final_fraction` of it, in `steps` steps."""
    return optax.cosine_decay_schedule(learning_rate, max(steps, 1), alpha=final_fraction)


def linear_decay(
    *, learning_rate: float, final_fraction: float, steps: int
) -> optax.Schedule:
    """A straight line from `learning_rate` to `final_fraction` of it, in `steps` steps."""
    final_rate = learning_rate * final_fraction
    return optax.linear_schedule(learning_rate, final_rate, max(steps, 1))


def with_warmup(schedule: optax.Schedule, warmup_steps: int) -> optax.Schedule:
    """Rises linearly to the start of `schedule`, which begins after `warmup_steps`."""
    if not warmup_steps:
        return schedule

    def rise(step: Any) -> jax.Array:
        # NOTE: optax.linear_schedule subtracts from its end value, which in float32 costs
        # the first rates of a long warm-up all but three digits.
        return (step + 1) / warmup_steps * schedule(0)

    return optax.join_schedules([rise, schedule], [warmup_steps])


def stage_of(step: int, stage_ends: Sequence[int]) -> int:
    """Which stage the update after `step` updates belongs to, counted from 0."""
    return sum(step >= end for end in stage_ends)
