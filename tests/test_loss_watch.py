import contextlib
import io
import math

import jax
import numpy as np
import pytest
from helpers.configs import load_config
from helpers.paths import DIGITS
from helpers.tiny_run import EPOCH_STEPS, TINY_RUN

from googlenet_flax.config import Config
from googlenet_flax.runtime.errors import NotFiniteError
from googlenet_flax.train import train_and_evaluate
from googlenet_flax.training import loss_watch
from googlenet_flax.training.loss_watch import CHANCE_STEPS, ChanceWatch, LossWatch

CHANCE = math.log(1000)


def sharded(**metrics):
    """Returns metrics as a sharded step does, with equal values on two devices."""
    devices = jax.local_devices()[:2]
    return {
        name: jax.pmap(lambda x: x, devices=devices)(np.full(2, value, np.float32))
        for name, value in metrics.items()
    }


def test_the_last_metrics_are_returned_and_all_are_checked_once():
    losses = LossWatch()
    losses.add(1, sharded(loss=2.5, accuracy=0.5))
    losses.add(2, sharded(loss=1.5, accuracy=0.75))
    assert losses.check() == {"loss": 1.5, "accuracy": 0.75}
    losses.add(3, sharded(loss=1.0))
    assert losses.check() == {"loss": 1.0}
    assert losses.check() == {}


def test_the_first_step_that_is_not_finite_is_named():
    losses = LossWatch()
    losses.add(7, sharded(loss=2.5, main_loss=1.0))
    losses.add(8, sharded(loss=np.nan, main_loss=np.inf, aux_4a_loss=1.0))
    losses.add(9, sharded(loss=np.nan, main_loss=np.nan))
    words = "^loss is nan, main_loss is inf at step 8: lower --config.learning_rate"
    with pytest.raises(NotFiniteError, match=words):
        losses.check()


def warnings(losses, *, steps=range(10, 3001, 10), epoch_steps=1, **fields):
    """Logs losses, numbers or functions of the step; returns the warnings by step."""
    config = Config(**{"variant": "seed", **fields})
    watch = ChanceWatch(config, num_classes=1000, epoch_steps=epoch_steps)
    said = {}
    for step in steps:
        row = {name: x(step) if callable(x) else x for name, x in losses.items()}
        named = {f"{name}_loss": value for name, value in row.items()}
        said[step] = watch.add(step, {"loss": 1.6 * CHANCE, **named, "accuracy": 0.5})
    return {step: text for step, text in said.items() if text}


def test_a_classifier_at_chance_is_named_once():
    """Logs two heads at 6.91 = ln 1000 while the main one learns (BVLC/caffe#1598)."""
    losses = {
        "main": lambda step: 4 if step % 20 else 2.5,
        "aux_4a": lambda step: 6.8 if step % 20 else 7.1,  # The average is 6.95.
        "aux_4d": lambda step: 3 if step < 600 else 6.91,
    }
    said = warnings(losses, learning_rate=0.02, warmup_epochs=0.5)
    assert list(said) == [CHANCE_STEPS, 3 * CHANCE_STEPS]
    first, second = said.values()
    assert first.startswith("steps 1 to 500: no better than ")
    assert "guessing (loss 6.91): aux_4a 6.95; learning: main 3.25, aux_4d 3.00." in first
    assert second.startswith("steps 1001 to 1500: ") and "6.91): aux_4d 6.91; " in second
    for text in said.values():
        assert "\n" not in text and "--config.variant=bn" in text
        assert "--config.learning_rate (now 0.02)" in text
        assert "--config.warmup_epochs (now 0.5)" in text
    (text,) = warnings({"main": 8.0, "aux_4a": 3.0}, variant="bn").values()
    assert ": main 8.00; learning: aux_4a 3.00. " in text and "variant" not in text


def test_the_time_at_chance_begins_when_another_one_learns():
    late = warnings({"main": lambda step: 7 if step <= 2000 else 6, "aux_4a": 6.91})
    assert list(late) == [2000 + CHANCE_STEPS]
    assert list(warnings({"main": 3, "aux_4a": 6.91}, epoch_steps=1500)) == [1500]
    rare = warnings({"main": 3, "aux_4a": 6.91}, steps=range(1000, 20_001, 1000))
    assert list(rare) == [10_000]


@pytest.mark.parametrize(
    "losses",
    [
        {"main": CHANCE, "aux_4a": CHANCE, "aux_4d": CHANCE},  # Nothing learns yet.
        {"main": CHANCE, "aux_4a": 0.91 * CHANCE},
        {"main": 0.98 * CHANCE, "aux_4a": 3.0},  # The main one learns slowly.
        {"main": lambda step: CHANCE if step % 100 else 5, "aux_4a": 3.0},
        {"main": math.nan, "aux_4a": 3.0},
        {"main": CHANCE},
        {"main": 3.0, "center": CHANCE},  # The loss of no classifier.
    ],
)
def test_other_losses_are_no_reason_to_warn(losses):
    assert not warnings(losses)


def test_heads_that_are_not_trained_stay_at_chance():
    assert not warnings({"main": 3.0, "aux_4a": 6.91}, aux_weight=0.0)


@pytest.mark.slow
def test_a_run_warns_once_also_if_it_is_resumed(tmp_path, small_inceptions, monkeypatch):
    """Uses fabricated losses, and windows of the five steps of an epoch."""
    monkeypatch.setattr(loss_watch, "CHANCE_STEPS", 1)
    monkeypatch.setattr(loss_watch, "CHANCE_ROWS", 1)
    measured = LossWatch.check
    chance = {"main_loss": 1.0, "aux_4a_loss": math.log(10), "aux_4d_loss": 1.0}
    monkeypatch.setattr(LossWatch, "check", lambda self: measured(self) | chance)
    said = []
    for last_step in (4, 8, 10):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            flags = f"--config.max_steps={last_step}", "--config.schedule=staircase"
            train_and_evaluate(load_config(DIGITS, *TINY_RUN, *flags), tmp_path)
        said.append([line for line in out.getvalue().splitlines() if "guessing" in line])
    assert [len(lines) for lines in said] == [0, 1, 0]
    line = said[1][0]
    assert line.startswith(f"steps 1 to {EPOCH_STEPS}: ") and ": aux_4a 2.30; " in line
