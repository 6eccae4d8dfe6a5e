"""Runs that are killed and continue exactly, also on other devices."""

import json
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from helpers.processes import TIMEOUT_SECONDS, finish, last_line, wait_for_line
from helpers.series import series_of, tensorboard_series
from helpers.tiny_run import (
    EPOCH_STEPS,
    FINAL_STEP,
    assert_same_run,
    copy_run,
    evaluate_tiny,
    on_devices,
    rows_of,
    rows_without_timings,
    saved_steps,
    start_tiny,
    train_well,
)

from googlenet_flax.runs.metrics import read_rows

MAX_START_SECONDS = 5  # A kill before the first step comes within these seconds.
MAX_STEP_SECONDS = 0.5  # A kill after a step comes within these seconds.


def kill_at_random(process, rng, first_step, last_step):
    """Kills the process during the start, or soon after one of these steps."""
    if rng.random() < 0.2:
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=rng.uniform(0, MAX_START_SECONDS))
    else:
        wait_for_line(process, f"step {rng.integers(first_step, last_step + 1)}/")
        time.sleep(rng.uniform(0, MAX_STEP_SECONDS))
    process.kill()
    finish(process)
    assert process.returncode == -signal.SIGKILL


def assert_every_row_once(workdir, num_steps):
    """Checks `metrics.jsonl`, and what TensorBoard shows."""
    for split, every in (("train", 1), ("eval", EPOCH_STEPS)):
        steps = [row["step"] for row in rows_of(workdir, split)]
        assert steps == list(range(every, num_steps + 1, every))
    rows = read_rows(workdir / "metrics.jsonl")
    assert tensorboard_series(workdir / "tensorboard") == series_of(rows)


@pytest.mark.parametrize(
    ("kills", "epochs"),
    [
        pytest.param(1, 2, marks=pytest.mark.ci),
        pytest.param(24, 20, marks=pytest.mark.faults),
    ],
)
def test_a_run_killed_at_random_moments_ends_as_if_nothing_had_happened(
    tmp_path, finished_run, kills, epochs
):
    workdir, undisturbed = tmp_path / "killed", finished_run[0]
    more, num_steps = f"--config.num_epochs={epochs}", epochs * EPOCH_STEPS
    if num_steps != FINAL_STEP:
        undisturbed = tmp_path / "undisturbed"
        train_well(undisturbed, more)
    rng = np.random.default_rng(kills)
    for kill in range(kills):
        saved = max(saved_steps(workdir), default=0)
        share = 2 * (num_steps - saved) // (kills - kill + 1)
        last_step = max(saved + 1, min(saved + share, num_steps - 2))
        process = start_tiny(workdir, more)
        kill_at_random(process, rng, saved + 1, last_step)
    out, err = train_well(workdir, more)
    assert "resuming after step" in out and "Traceback" not in err
    assert not list((workdir / "checkpoints").glob("*.damaged"))
    assert_same_run(workdir, undisturbed, num_steps)
    assert_every_row_once(workdir, num_steps)


@pytest.mark.faults
def test_a_second_run_is_kept_out_until_the_first_is_dead(run_to_6, finished_run):
    first, lock = start_tiny(run_to_6), run_to_6 / ".lock"
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while f"process {first.pid} " not in lock.read_text():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # It lives until the second has asked.
    try:
        before = rows_without_timings(run_to_6)
        code, out, err = finish(start_tiny(run_to_6))
        assert code == 3 and out == ""
        owner = f"process {first.pid} on {socket.gethostname()}"
        assert f"is in use by {owner}: wait for it or choose another" in last_line(err)
        assert str(run_to_6) in err and len(err.splitlines()) == 1
        assert rows_without_timings(run_to_6) == before
    finally:
        first.kill()
        finish(first)
    assert f"process {first.pid} " in lock.read_text()
    out, _ = train_well(run_to_6, expected=finished_run[0])
    assert "resuming after step 6" in out


# At this rate, differences of rounding do not grow, so a loss identifies its pictures.
SLOWLY = "--config.learning_rate=1e-7"
SAME_PICTURES = 1e-4  # Relative to the loss.


@pytest.fixture(scope="module")
def run_on_four_devices(tmp_path_factory):
    """Returns the workdir of a finished run."""
    workdir = tmp_path_factory.mktemp("devices") / "four"
    out, _ = train_well(workdir, SLOWLY, env=on_devices(4))
    assert "on 4 x" in out
    return workdir


def training_losses(workdir):
    """Returns the loss of every step."""
    return [row["loss"] for row in rows_of(workdir, "train")]


@pytest.mark.faults
@pytest.mark.parametrize("number", [1, 2])
def test_a_run_goes_on_on_other_devices_and_back(tmp_path, run_on_four_devices, number):
    expected = training_losses(run_on_four_devices)
    assert np.diff(sorted(expected)).min() > 3 * SAME_PICTURES * max(expected)
    before = run_on_four_devices
    for devices, start_step in (number, 6), (4, 8):
        workdir = copy_run(before, tmp_path / f"on {devices}", newest=start_step)
        out, _ = train_well(workdir, SLOWLY, env=on_devices(devices))
        assert f"on {devices} x" in out and f"resuming after step {start_step}" in out
        losses = training_losses(workdir)
        assert losses == pytest.approx(expected, rel=SAME_PICTURES, abs=0)
        before = workdir


@pytest.mark.faults
@pytest.mark.parametrize("number", [1, 2, 4])
def test_one_checkpoint_evaluates_equally_on_any_devices(run_on_four_devices, number):
    """Compares the metrics with those that the run itself wrote."""
    row = read_rows(run_on_four_devices / "metrics.jsonl")[-1]
    flags = "--checkpoint=latest", "--json"
    out = evaluate_tiny(run_on_four_devices, *flags, env=on_devices(number))
    metrics = json.loads(out)
    for name in metrics.keys() - {"dataset", "eval_split", "examples"}:
        assert metrics[name] == pytest.approx(row[name], rel=1e-6, abs=0), name
