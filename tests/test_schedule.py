import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.configs import named_config

from googlenet_flax.config import MAX_NUMBER, Config
from googlenet_flax.data.synthetic import black_images
from googlenet_flax.training.experiment import build_experiment
from googlenet_flax.training.schedule import create_schedule


def steps_around(*edges: int) -> list[int]:
    return sorted({edge + by for edge in edges for by in (-1, 0, 1)} - {-1})


def rates_of(schedule, steps) -> np.ndarray:
    """Computes the compiled rates at steps."""
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.asarray(steps, jnp.int32)))


def stairs(*, offset, every, epoch_steps, rate=0.01, decay_rate=0.96, warmup=0):
    config = Config(
        learning_rate=rate,
        decay_rate=decay_rate,
        decay_every_epochs=every,
        decay_offset_epochs=offset,
        warmup_epochs=warmup,
    )
    return create_schedule(config, epoch_steps=epoch_steps, total_steps=1)


LONG = MAX_NUMBER // 3, MAX_NUMBER


# Offset 0 is the paper's. Offset 1 is that of the tutorial, whose Keras scheduler counts
# epochs from 1. An epoch of 3,000 images, or of ImageNet's 1,281,167, in batches of 256 has
# 11 or 5004 steps.
@pytest.mark.parametrize("every", [1, 7, 8, *LONG])
@pytest.mark.parametrize("offset", [0, 1, *LONG])
@pytest.mark.parametrize("epoch_steps", [1, 11, 5004])
def test_stairs_are_those_of_unbounded_integers(every, offset, epoch_steps):
    ends = [(stair * every - offset) * epoch_steps for stair in range(1, 5)]
    steps = steps_around(*ends, MAX_NUMBER - 1, *range(0, 41 * epoch_steps, epoch_steps))
    steps = [step for step in steps if 0 <= step < MAX_NUMBER]
    rates = rates_of(stairs(offset=offset, every=every, epoch_steps=epoch_steps), steps)
    expected = [0.01 * 0.96 ** ((offset + step // epoch_steps) // every) for step in steps]
    # `atol` is about the smallest normal number of float32.
    np.testing.assert_allclose(rates, expected, rtol=3e-6, atol=1e-38)


@pytest.mark.parametrize(("rate", "decay_rate"), [(0.0, 1.0), (0.1, 1.0), (1, 1)])
def test_decay_rate_one_keeps_the_learning_rate(rate, decay_rate):
    schedule = stairs(offset=1, every=1, epoch_steps=3, rate=rate, decay_rate=decay_rate)
    rates = jax.vmap(schedule)(jnp.arange(30))
    np.testing.assert_array_equal(rates, np.full(30, rate, np.float32), strict=True)


def decay(shape: str, *, steps: int, final: float, warmup: int = 0):
    """Creates the schedule of a run whose epochs have one step."""
    config = Config(
        schedule=shape,
        learning_rate=0.4,
        final_rate_fraction=final,
        warmup_epochs=float(warmup),
    )
    return create_schedule(config, epoch_steps=1, total_steps=warmup + steps)


# The part of the rate that is left when a part of the steps is done.
FALLS = {
    "cosine": lambda done: (1 + np.cos(np.pi * done)) / 2,
    "linear": lambda done: 1 - done,
}


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("steps", [1, 100, 58_600])
@pytest.mark.parametrize("shape", FALLS)
def test_fall_is_the_closed_form(shape, steps, final):
    points = steps_around(0, steps // 3, steps // 2, steps, 2 * steps)
    rates = rates_of(decay(shape, steps=steps, final=final), points)
    # The expected rates are in float64, and constant after the end.
    remaining = FALLS[shape](np.minimum(1, np.array(points) / steps))
    expected = 0.4 * final + (0.4 - 0.4 * final) * remaining
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-7)
    assert rates[0] == pytest.approx(0.4, rel=1e-6)
    assert rates[-1] == pytest.approx(0.4 * final, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("warmup", [1, 5, 50])
def test_warmup_before_a_cosine_is_that_of_optax(warmup):
    schedule = decay("cosine", steps=200, final=0.1, warmup=warmup)
    peer = optax.warmup_cosine_decay_schedule(0, 0.4, warmup, 200 + warmup, 0.04)
    # The schedule of optax has rate 0 at step 0; ours leaves this step out.
    rising = rates_of(schedule, range(warmup))
    expected = [peer(step + 1) for step in range(warmup)]
    np.testing.assert_allclose(rising, expected, rtol=1e-5)
    assert rising[0] == pytest.approx(0.4 / warmup, rel=1e-6)
    later = steps_around(warmup + 1, warmup + 100, warmup + 200, 400)
    expected = [peer(step) for step in later]
    np.testing.assert_allclose(rates_of(schedule, later), expected, rtol=1e-5)


def test_stairs_are_counted_from_the_end_of_the_warmup():
    plain, warm = (stairs(offset=0, every=8, epoch_steps=97, warmup=n) for n in (0, 2))
    steps = np.array(steps_around(*range(0, 41 * 97, 97)))
    rates = rates_of(warm, steps + 2 * 97)
    np.testing.assert_allclose(rates, rates_of(plain, steps), rtol=1e-6)


@pytest.mark.parametrize("steps", [0, -5])
@pytest.mark.parametrize("shape", FALLS)
def test_a_run_may_end_in_its_warmup(shape, steps):
    rates = rates_of(decay(shape, steps=steps, final=0.0, warmup=10), range(10))
    np.testing.assert_allclose(rates, 0.04 * np.arange(1, 11), rtol=1e-5)


def test_a_stage_ends_with_the_update_that_fills_its_epochs():
    sizes = {"progressive_image_sizes": (80, 84, 88), "image_size": 92}
    ends = {"progressive_image_size_epochs": (5, 6, 20), "num_epochs": 30}
    config = Config.of({**named_config("digits"), **sizes, **ends})
    split = black_images("digits", num_examples=config.batch_size, storage_size=8)
    built = build_experiment(config, jax.local_devices(), split, split)
    stages = {0: 0, 4: 0, 5: 1, 6: 2, 19: 2, 20: 3, 29: 3}
    found = {step: built.train_steps.index(built.train_step_at(step)) for step in stages}
    assert found == stages
