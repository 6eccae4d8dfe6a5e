"""Learning rate schedules, and the conversion of epochs to steps."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from googlenet_flax.runtime.errors import UserError

MAX_STEPS = 2**31 - 1  # Steps are int32 on the device.


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Returns the number of full batches in an epoch; the remaining examples are dropped.

    Raises:
      UserError: The split holds less than one batch.
    """
    if batch_size > num_examples:
        raise UserError(
            f"batch_size is {batch_size} but train_split holds {num_examples} examples: "
            f"set --config.batch_size={num_examples} or less"
        )
    return num_examples // batch_size


def steps_within_a_run(field: str, epochs: float, epoch_steps: int) -> int:
    """Converts the epochs that a config field holds to whole steps.

    Raises:
      UserError: The steps exceed what a run can have.
    """
    steps = round(epochs * epoch_steps)
    if steps > MAX_STEPS:
        raise UserError(
            f"config.{field} is {epochs}, which is {steps} steps, but a run has at most "
            f"{MAX_STEPS}: set --config.{field}={MAX_STEPS // epoch_steps} or less"
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
    """Creates a schedule that falls by the factor `decay_rate` every few epochs.

    The rate at step `s` is
    `learning_rate * decay_rate ** floor((offset + epoch) / every)` with
    `epoch = s // epoch_steps`. Section 6 of the paper lowers it by 4 % every 8 epochs, with
    offset 0. The Keras tutorial counts epochs from 1, which is offset 1.
    """
    stairs_before, epochs_into_stair = divmod(decay_offset_epochs, decay_every_epochs)
    first_rate = learning_rate * decay_rate**stairs_before
    stair_steps = steps_or_never(decay_every_epochs * epoch_steps)
    first_end = steps_or_never((decay_every_epochs - epochs_into_stair) * epoch_steps)

    def schedule(step: Any) -> jax.Array:
        # NOTE: stairs are counted in integers. optax.exponential_decay divides in float32,
        # where rounding can make a stair begin one step late. Counting starts at
        # `first_end`, because step + offset could exceed int32.
        stairs = 1 + (step - first_end) // stair_steps
        return first_rate * jnp.power(decay_rate, stairs)

    return schedule


def cosine_decay(
    *, learning_rate: float, final_fraction: float, steps: int
) -> optax.Schedule:
    """Creates half a cosine from `learning_rate` to `final_fraction` of it, in `steps`."""
    return optax.cosine_decay_schedule(learning_rate, max(steps, 1), alpha=final_fraction)


def linear_decay(
    *, learning_rate: float, final_fraction: float, steps: int
) -> optax.Schedule:
    """Creates a line from `learning_rate` to `final_fraction` of it, in `steps`."""
    final_rate = learning_rate * final_fraction
    return optax.linear_schedule(learning_rate, final_rate, max(steps, 1))


def with_warmup(schedule: optax.Schedule, warmup_steps: int) -> optax.Schedule:
    """Prepends a linear rise of `warmup_steps` steps to `schedule`."""
    if not warmup_steps:
        return schedule

    def rise(step: Any) -> jax.Array:
        # NOTE: optax.linear_schedule subtracts from its end value in float32, which leaves
        # the first rates of a long warm-up with three correct digits.
        return (step + 1) / warmup_steps * schedule(0)

    return optax.join_schedules([rise, schedule], [warmup_steps])


def stage_of(step: int, stage_ends: Sequence[int]) -> int:
    """Returns the stage, from 0, of the update that follows `step` updates."""
    return sum(step >= end for end in stage_ends)
