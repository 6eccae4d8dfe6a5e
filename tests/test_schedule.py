import jax
import jax.numpy as jnp
import numpy as np
import pytest

from googlenet_flax.errors import UserError
from googlenet_flax.schedule import staircase_decay, steps_per_epoch, total_steps

NUM_EPOCHS = 40

# The two offsets are the seed's, whose Keras scheduler counts epochs from 1, and the
# paper's. Steps an epoch: 3,000 images by 256, CIFAR-10 by 512 and by 256, ImageNet's
# 1,281,167 by 256.
each_schedule = pytest.mark.parametrize(
    ("offset", "every", "epoch_steps"),
    [
        (offset, every, epoch_steps)
        for offset in (0, 1)
        for every in (8, 10)
        for epoch_steps in (1, 11, 44, 97, 195, 5004)
    ],
)


def schedule_of(*, offset: int, every: int, epoch_steps: int):
    return staircase_decay(
        learning_rate=0.01,
        decay_rate=0.96,
        decay_every_epochs=every,
        decay_offset_epochs=offset,
        epoch_steps=epoch_steps,
    )


def steps_around_epoch_edges(epoch_steps: int) -> list[int]:
    edges = [epoch * epoch_steps for epoch in range(NUM_EPOCHS + 1)]
    return sorted({edge + by for edge in edges for by in (-1, 0, 1)} - {-1})


def closed_form(steps: list[int], *, offset: int, every: int, epoch_steps: int):
    return [0.01 * 0.96 ** ((offset + step // epoch_steps) // every) for step in steps]


@each_schedule
def test_staircase_is_the_closed_form_inside_a_compiled_step(offset, every, epoch_steps):
    shape = dict(offset=offset, every=every, epoch_steps=epoch_steps)
    steps = steps_around_epoch_edges(epoch_steps)
    rates = jax.jit(jax.vmap(schedule_of(**shape)))(jnp.asarray(steps, jnp.int32))
    np.testing.assert_allclose(rates, closed_form(steps, **shape), rtol=1e-6)
    assert np.all(np.diff(rates) <= 0)


@pytest.mark.parametrize("epoch_steps", [11, 97, 5004])
def test_staircase_is_the_closed_form_for_the_log(epoch_steps):
    # train.py logs the rate from a Python int.
    shape = dict(offset=1, every=8, epoch_steps=epoch_steps)
    schedule = schedule_of(**shape)
    steps = [8 * stair * epoch_steps + by for stair in range(1, 5) for by in (-1, 0, 1)]
    rates = [float(schedule(step)) for step in steps]
    np.testing.assert_allclose(rates, closed_form(steps, **shape), rtol=1e-6)


def test_first_stair_of_the_seed_is_an_epoch_shorter():
    # The tutorial's decay(epoch) = 0.01 * 0.96 ** floor((1 + epoch) / 8).
    shape = dict(every=8, epoch_steps=11)
    seed, paper = schedule_of(offset=1, **shape), schedule_of(offset=0, **shape)
    for schedule, epochs in ((seed, 7), (paper, 8)):
        np.testing.assert_allclose(schedule(epochs * 11 - 1), 0.01, rtol=1e-6)
        np.testing.assert_allclose(schedule(epochs * 11), 0.0096, rtol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_decay_rate_one_keeps_the_learning_rate(rate):
    schedule = staircase_decay(
        learning_rate=rate,
        decay_rate=1.0,
        decay_every_epochs=1,
        decay_offset_epochs=1,
        epoch_steps=3,
    )
    rates = jax.vmap(schedule)(jnp.arange(30))
    np.testing.assert_array_equal(rates, np.full(30, rate, np.float32))


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "expected"),
    [(50_000, 256, 195), (3000, 256, 11), (1_281_167, 256, 5004), (32, 32, 1), (63, 32, 1)],
)
def test_steps_per_epoch_drops_the_tail(num_examples, batch_size, expected):
    assert steps_per_epoch(num_examples, batch_size) == expected


@pytest.mark.parametrize(("num_examples", "batch_size"), [(31, 32), (1, 256)])
def test_batch_larger_than_the_split_is_a_user_error(num_examples, batch_size):
    with pytest.raises(UserError) as caught:
        steps_per_epoch(num_examples, batch_size)
    message = str(caught.value)
    assert f"batch_size is {batch_size}" in message
    assert f"--config.batch_size={num_examples}" in message


def test_total_steps():
    assert total_steps(num_epochs=15, max_steps=0, epoch_steps=195) == 2925
    assert total_steps(num_epochs=15, max_steps=7, epoch_steps=195) == 7
    assert total_steps(num_epochs=1, max_steps=4000, epoch_steps=195) == 4000
