"""Tests of one tiny run that uses every part of a recipe."""

import json
import math

import numpy as np
import pytest
from helpers.compilations import recorded_compilations
from helpers.configs import named_config
from helpers.tiny_run import assert_same_run, copy_run, rows_of, saved_steps

from googlenet_flax import evaluate, train
from googlenet_flax.train import train_and_evaluate

pytestmark = pytest.mark.slow

FINAL_STEP = 9
WARMUP_STEPS = 2  # Half an epoch, rounded.
CONFIG = {
    **named_config("digits"),
    **{"width_multiplier": 0.25, "train_split": "train[:24]", "batch_size": 8},
    **{"eval_split": "test[:12]", "num_epochs": 3, "log_every_steps": 1},
    **{"checkpoint_every_steps": 1, "learning_rate": 0.02},
    **{"image_size": 88, "progressive_image_sizes": (80,)},
    "progressive_image_size_epochs": (2,),
    **{"interpolations": ("bilinear", "cubic", "area", "nearest")},
    **{"flip": "alternating", "cutout_fraction": 0.3, "mixup_alpha": 0.2},
    **{"schedule": "cosine", "warmup_epochs": 0.5, "final_rate_fraction": 0.1},
    **{"label_smoothing": 0.1, "final_aux_fraction": 0.0, "averaging": "ema"},
    **{"ema_decay": 0.7, "average_from_epoch": 1, "weight_decay": 1e-4},
}


@pytest.fixture(scope="module")
def run(small_networks, tmp_path_factory):
    """Returns the workdir of the run, and the names of the functions compiled.

    After these come as many entries "sized" as `give_large_steps_back` had calls.
    """
    workdir = tmp_path_factory.mktemp("whole")
    with recorded_compilations() as compiled, pytest.MonkeyPatch.context() as patch:
        sized: list[str] = []
        patch.setattr(train, "give_large_steps_back", lambda _: sized.append("sized"))
        train_and_evaluate(CONFIG, workdir)
    return workdir, [*compiled, *sized]


def test_each_size_is_compiled_once(run):
    """Checks that steps, evaluation and schedule are compiled once each."""
    _, compiled = run
    assert compiled.count("jit(_fun)") == 2 + 1
    assert compiled.count("sized") == 2
    assert compiled.count("jit(schedule)") == 1
    assert compiled.count("jit(create_state)") == 1


def test_rates_are_those_of_the_schedule(run):
    steps = np.arange(FINAL_STEP)
    rising = 0.02 * (steps + 1) / WARMUP_STEPS
    done = (steps - WARMUP_STEPS) / (FINAL_STEP - WARMUP_STEPS)
    falling = 0.02 * (0.1 + 0.9 * (1 + np.cos(math.pi * done)) / 2)
    expected = np.where(steps < WARMUP_STEPS, rising, falling)
    rows = rows_of(run[0], "train")
    assert [row["step"] for row in rows] == list(range(1, 10))
    rates = [row["learning_rate"] for row in rows]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_the_heads_weigh_less_with_each_step(run):
    for row in rows_of(run[0], "train"):
        weight = 0.3 * (1 - (row["step"] - 1) / FINAL_STEP)
        heads = row["aux_4a_loss"] + row["aux_4d_loss"]
        assert row["loss"] == pytest.approx(row["main_loss"] + weight * heads, rel=1e-5)


def test_evaluation_is_of_raw_and_of_averaged_weights(run):
    first, *later = rows_of(run[0], "eval")
    names = {name for name in first if "loss" in name or "acc" in name or "top5" in name}
    raw = {name for name in names if not name.startswith("averaged_")}
    assert names == raw | {f"averaged_{name}" for name in raw}
    assert {"loss", "accuracy", "top5", "main_loss", "aux_4a_accuracy"} <= raw
    # In the first epoch the averages are the latest weights, except for rounding.
    assert first["averaged_loss"] == pytest.approx(first["loss"], rel=1e-4)
    for row in later:
        assert abs(row["averaged_loss"] / row["loss"] - 1) > 1e-4
        # Evaluation does not smooth labels, and the weight of the heads is constant.
        heads = row["averaged_aux_4a_loss"] + row["averaged_aux_4d_loss"]
        expected = row["averaged_main_loss"] + 0.3 * heads
        assert row["averaged_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_commands_take_the_averages(run, run_command):
    workdir, _ = run
    last = rows_of(workdir, "eval")[-1]
    flags = f"--workdir={workdir}", f"--checkpoint={FINAL_STEP}", "--json"
    for prefix, more in (("averaged_", []), ("", ["--raw_weights"])):
        code, out, err = run_command(evaluate, *flags, *more)
        assert code == 0, err
        metrics = json.loads(out)
        assert metrics.pop("step") == FINAL_STEP
        for name in metrics.keys() - {"dataset", "eval_split", "examples"}:
            expected = pytest.approx(last[f"{prefix}{name}"], rel=1e-5)
            assert metrics[name] == expected, name


def test_resumed_at_the_last_size_it_ends_the_same(run, tmp_path):
    """Stops after step 7, in the second epoch of averages."""
    workdir, _ = run
    assert 7 in saved_steps(workdir)
    resumed = copy_run(workdir, tmp_path / "resumed", newest=7)
    train_and_evaluate(CONFIG, resumed)
    assert_same_run(resumed, workdir, FINAL_STEP)
