"""Learning rate schedules, and the conversion of epochs to steps."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from googlenet_flax.config import MAX_NUMBER, Config
from googlenet_flax.runtime.errors import UserError


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


def epochs_to_steps(field: str, epochs: float, epoch_steps: int) -> int:
    """Converts the epochs that a config field holds to whole steps.

    Raises:
      UserError: The steps exceed what a run can have.
    """
    steps = round(epochs * epoch_steps)
    if steps > MAX_NUMBER:
        raise UserError(
            f"config.{field} is {epochs}, which is {steps} steps, but a run has at most "
            f"{MAX_NUMBER}: set --config.{field}={MAX_NUMBER // epoch_steps} or less"
        )
    return steps


def create_schedule(
    config: Config, *, epoch_steps: int, total_steps: int
) -> optax.Schedule:
    """Creates the learning rate schedule of a run: a linear warm-up and then a decay.

    Raises:
      UserError: The warm-up has more steps than a run can have.
    """
    warmup_steps = epochs_to_steps("warmup_epochs", config.warmup_epochs, epoch_steps)
    rate, fraction = config.learning_rate, config.final_rate_fraction
    steps = max(total_steps - warmup_steps, 1)  # A run may end in its warm-up.
    if config.schedule == "staircase":
        falling = _staircase_decay(config, epoch_steps)
    elif config.schedule == "cosine":
        falling = optax.cosine_decay_schedule(rate, steps, alpha=fraction)
    else:
        line = optax.linear_schedule(rate, rate * fraction, steps)

        def falling(step: Any) -> jax.Array:
            # After more than 2^24 steps, float32 can end a little below the line.
            return jnp.maximum(line(step), rate * fraction)

    if not warmup_steps:
        return falling

    def rising(step: Any) -> jax.Array:
        # NOTE: optax.linear_schedule subtracts from its end value in float32, which leaves
        # the first rates of a long warm-up with three correct digits.
        return (step + 1) / warmup_steps * falling(0)

    return optax.join_schedules([rising, falling], [warmup_steps])


def _staircase_decay(config: Config, epoch_steps: int) -> optax.Schedule:
    """Creates a schedule that falls by the factor `decay_rate` every few epochs.

    The rate `s` steps after the warm-up is
    `learning_rate * decay_rate ** floor((offset + epoch) / every)` with
    `epoch = s // epoch_steps`. Section 6 of the paper lowers it by 4 % every 8 epochs, with
    offset 0. The Keras tutorial counts epochs from 1, which is offset 1.
    """

    def schedule(step: Any) -> jax.Array:
        # NOTE: stairs are counted in integers. optax.exponential_decay divides in float32,
        # where rounding can make a stair begin one step late. The sum can exceed int32.
        epoch = jnp.asarray(step).astype(jnp.uint32) // epoch_steps
        stairs = (config.decay_offset_epochs + epoch) // config.decay_every_epochs
        return config.learning_rate * jnp.power(float(config.decay_rate), stairs)

    return schedule
