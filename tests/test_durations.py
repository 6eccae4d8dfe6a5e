"""Conversion of durations in epochs, up to the largest, to steps that fit int32."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.configs import NEVER, load_config, named_config
from helpers.paths import DIGITS
from helpers.tiny_run import FINAL_STEP, TINY_RUN, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet_flax.analysis.plan import describe_run
from googlenet_flax.config import FIELDS, MAX_NUMBER, Config
from googlenet_flax.data.synthetic import black_images
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.train import train_and_evaluate
from googlenet_flax.training.experiment import build_experiment

BATCH_SIZE = 4
RATE = 0.5
DIGITS_CONFIG = named_config("digits")
DURATIONS = [
    *("num_epochs", "max_steps", "warmup_epochs", "decay_every_epochs"),
    *("decay_offset_epochs", "average_from_epoch", "progressive_image_size_epochs"),
    "eval_every_epochs",
]
EPOCH_STEPS = [1, 3, 44, 5004, 2**22]


def edges(name: str, epoch_steps: int) -> list:
    """Returns values of a field near its limits, and near those of its number of steps."""
    last = MAX_NUMBER // epoch_steps
    values = {0, 1, 2, last - 1, last, last + 1, MAX_NUMBER - 1, MAX_NUMBER}
    if name == "warmup_epochs":
        values |= {1e-9, 0.5, last + 0.5, float(MAX_NUMBER)}
    if name == "progressive_image_size_epochs":
        values = {(value,) for value in values}
    return [value for value in sorted(values) if FIELDS[name].metadata["check"](value)]


@st.composite
def configs(draw) -> tuple[dict, int]:
    """Draws a config with two fields at their edges, and the steps of its epochs."""
    epoch_steps = draw(st.sampled_from(EPOCH_STEPS))
    pair = draw(st.sampled_from(list(itertools.combinations(DURATIONS, 2))))
    fields = {name: draw(st.sampled_from(edges(name, epoch_steps))) for name in pair}
    config = {
        **DIGITS_CONFIG,
        **{"batch_size": BATCH_SIZE, "learning_rate": RATE, "averaging": "polyak"},
        "schedule": draw(st.sampled_from(["staircase", "cosine", "linear"])),
        "decay_rate": draw(st.sampled_from([1e-300, 0.04, 0.96, 1])),
        **{"progressive_image_sizes": (80,), "progressive_image_size_epochs": (1,)},
        **{"final_aux_fraction": 0.0, **fields},
    }
    return Config.of(config), epoch_steps


@settings(max_examples=25, deadline=None)
@given(configs())
def test_two_durations_at_their_ends_give_numbers_or_a_user_error(drawn):
    config, epoch_steps = drawn
    split = black_images("digits", num_examples=epoch_steps * BATCH_SIZE, storage_size=8)
    run_steps = config.max_steps or config.num_epochs * epoch_steps
    warmup_steps = config.warmup_epochs * epoch_steps
    try:
        built = build_experiment(config, jax.local_devices(), split, split)
    except UserError as error:
        assert max(run_steps, warmup_steps) > MAX_NUMBER and "\n" not in str(error)
        return
    assert max(run_steps, round(warmup_steps)) <= MAX_NUMBER
    assert built.total_steps == run_steps
    assert built.is_eval_due(run_steps) and built.is_eval_due(run_steps + 1)
    averaging = built.averaging

    @jax.jit
    @jax.vmap
    def compiled(step):
        means = {"weight": jnp.float32(0)}, {"weight": jnp.float32(1)}
        return built.schedule(step), averaging.update(*means, step)["weight"]

    steps = sorted({0, 1 % run_steps, run_steps - 1})
    rates, averages = compiled(jnp.asarray(steps, jnp.int32))
    assert np.all((rates >= 0) & (rates <= RATE * (1 + 1e-6))), rates
    young = [max(0, s - config.average_from_epoch * epoch_steps) + 1 for s in steps]
    np.testing.assert_allclose(averages, 1 / np.array(young), rtol=1e-6)
    (end,) = config.progressive_image_size_epochs
    for step in steps:
        stage = built.train_steps.index(built.train_step_at(step))
        assert stage == (step >= end * epoch_steps)


@pytest.mark.slow
def test_a_run_in_which_what_is_due_later_never_happens(tmp_path, small_inceptions):
    train_and_evaluate({**load_config(DIGITS, *TINY_RUN), **NEVER}, tmp_path)
    rates = [row["learning_rate"] for row in rows_of(tmp_path, "train")]
    assert rates == pytest.approx([0.05] * FINAL_STEP)
    (evaluation,) = rows_of(tmp_path, "eval")
    assert evaluation["averaged_loss"] == evaluation["loss"]


@pytest.mark.parametrize(
    ("name", "value"), [("num_epochs", "1000000000"), ("warmup_epochs", "1000000000.0")]
)
def test_more_steps_than_int32_are_refused_before_anything_is_written(
    tmp_path, name, value
):
    flags = f"--config.{name}={value}", "--config.schedule=cosine"
    config = load_config(DIGITS, *TINY_RUN, *flags)
    words = f"config.{name} is {value}, which is 5000000000 steps, .*=429496729 or less$"
    for refused in (describe_run, lambda config: train_and_evaluate(config, tmp_path)):
        with pytest.raises(UserError, match=words) as caught:
            refused(config)
        assert caught.value.exit_code == 2
    # The exit code is that of every config that does not fit its data.
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
