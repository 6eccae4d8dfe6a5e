"""Runs that die and go on: exactly, alone in their workdir, on other devices."""

import json
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from helpers.processes import TIMEOUT_SECONDS, finish, last_line, run, wait_for_line
from helpers.series import series_of, tensorboard_series
from helpers.tiny_run import (
    EPOCH_STEPS,
    FINAL_STEP,
    assert_same_run,
    copy_run,
    rows_without_timings,
    saved_steps,
    start_tiny,
    train_tiny,
)

from googlenet_flax.runs.metrics import read_rows

MAX_START_SECONDS = 5  # A kill before the first step comes within them.
MAX_STEP_SECONDS = 0.5  # A kill after a step, with the write that goes on meanwhile.


def kill_at_random(process, rng, first_step, last_step):
    """During the start, or soon after one of these steps."""
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
    """In `metrics.jsonl`, and in what TensorBoard shows."""
    rows = read_rows(workdir / "metrics.jsonl")
    steps = {
        split: [row["step"] for row in rows if row["split"] == split]
        for split in ("train", "eval")
    }
    assert steps["train"] == list(range(1, num_steps + 1))
    assert steps["eval"] == list(range(EPOCH_STEPS, num_steps + 1, EPOCH_STEPS))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert tensorboard_series(workdir / "tensorboard") == series_of(rows)


@pytest.mark.parametrize(
    ("kills", "epochs"), [(1, 2), pytest.param(24, 20, marks=pytest.mark.faults)]
)
def test_a_run_killed_at_random_moments_ends_as_if_nothing_had_happened(
    tmp_path, finished_run, compilation_cache, kills, epochs
):
    workdir, undisturbed = tmp_path / "killed", finished_run[0]
    more, num_steps = f"--config.num_epochs={epochs}", epochs * EPOCH_STEPS
    if num_steps != FINAL_STEP:
        undisturbed = tmp_path / "undisturbed"
        code, _, err = train_tiny(undisturbed, more, env=compilation_cache)
        assert code == 0, err
    rng = np.random.default_rng(kills)
    for kill in range(kills):
        saved = max(saved_steps(workdir), default=0)
        share = 2 * (num_steps - saved) // (kills - kill + 1)
        last_step = max(saved + 1, min(saved + share, num_steps - 2))
        process = start_tiny(workdir, more, env=compilation_cache)
        kill_at_random(process, rng, saved + 1, last_step)
    code, out, err = train_tiny(workdir, more, env=compilation_cache)
    assert code == 0, err
    assert "resuming after step" in out and "Traceback" not in err
    assert not list((workdir / "checkpoints").glob("*.damaged"))
    assert_same_run(workdir, undisturbed, num_steps)
    assert_every_row_once(workdir, num_steps)


def wait_for_owner(process, workdir):
    """Until the lock names the process."""
    lock = workdir / ".lock"
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not lock.exists() or f"process {process.pid} " not in lock.read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.faults
def test_a_second_run_is_kept_out_until_the_first_is_dead(
    tmp_path, finished_run, compilation_cache
):
    workdir = copy_run(finished_run[0], tmp_path / "run", newest=6)
    first = start_tiny(workdir, env=compilation_cache)
    wait_for_owner(first, workdir)
    first.send_signal(signal.SIGSTOP)  # So that it lives as long as the second asks.
    try:
        before = rows_without_timings(workdir)
        code, out, err = train_tiny(workdir, env=compilation_cache)
        assert code == 3 and out == ""
        owner = f"process {first.pid} on {socket.gethostname()}"
        assert last_line(err).startswith(f"googlenet_flax: workdir {str(workdir)!r}")
        assert f"is in use by {owner}: wait for it or choose another" in err
        assert len(err.splitlines()) == 1
        assert rows_without_timings(workdir) == before
    finally:
        first.kill()
        finish(first)
    assert f"process {first.pid} " in (workdir / ".lock").read_text()  # Of the dead.
    code, out, err = train_tiny(workdir, env=compilation_cache)
    assert code == 0, err
    assert "resuming after step 6" in out
    assert_same_run(workdir, finished_run[0])


@pytest.mark.faults
def test_of_several_that_start_at_once_one_trains(
    tmp_path, finished_run, compilation_cache
):
    workdir = tmp_path / "run"
    processes = [start_tiny(workdir, env=compilation_cache) for _ in range(4)]
    results = [finish(process) for process in processes]
    assert sorted(code for code, _, _ in results) == [0, 3, 3, 3]
    (owner,) = [p.pid for p in processes if p.returncode == 0]
    for code, _, err in results:
        assert code == 0 or f"process {owner} on" in last_line(err)
    assert_same_run(workdir, finished_run[0])


def on_devices(number, compilation_cache):
    """Environment of a process that sees so many."""
    flags = f"--xla_force_host_platform_device_count={number}"
    flags += " --xla_backend_optimization_level=0"
    return {**compilation_cache, "XLA_FLAGS": flags}


def evaluated_on(number, workdir, compilation_cache):
    """The metrics of the latest checkpoint."""
    args = f"--workdir={workdir}", "--checkpoint=latest", "--json"
    code, out, err = run("evaluate", *args, env=on_devices(number, compilation_cache))
    assert code == 0, err
    return json.loads(out)


# So slow that rounding, which differs, does not grow: a loss tells which pictures it is of.
SLOWLY = "--config.learning_rate=1e-7"
SAME_PICTURES = 1e-4  # As a fraction of the loss.


@pytest.fixture(scope="module")
def run_on_four_devices(tmp_path_factory, compilation_cache):
    """Workdir of a finished run."""
    workdir = tmp_path_factory.mktemp("devices") / "four"
    code, out, err = train_tiny(workdir, SLOWLY, env=on_devices(4, compilation_cache))
    assert code == 0, err
    assert "on 4 x" in out
    return workdir


def training_losses(workdir):
    """Of every step."""
    rows = read_rows(workdir / "metrics.jsonl")
    return [row["loss"] for row in rows if row["split"] == "train"]


@pytest.mark.faults
@pytest.mark.parametrize("number", [1, 2])
def test_a_run_goes_on_on_other_devices_and_back(
    tmp_path, run_on_four_devices, compilation_cache, number
):
    expected = training_losses(run_on_four_devices)
    assert np.diff(sorted(expected)).min() > 3 * SAME_PICTURES * max(expected)
    before = run_on_four_devices
    for devices, start_step in (number, 6), (4, 8):
        workdir = copy_run(before, tmp_path / f"on {devices}", newest=start_step)
        env = on_devices(devices, compilation_cache)
        code, out, err = train_tiny(workdir, SLOWLY, env=env)
        assert code == 0, err
        assert f"on {devices} x" in out and f"resuming after step {start_step}" in out
        losses = training_losses(workdir)
        assert losses == pytest.approx(expected, rel=SAME_PICTURES, abs=0)
        before = workdir


@pytest.mark.faults
def test_one_checkpoint_evaluates_equally_on_1_2_and_4_devices(
    run_on_four_devices, compilation_cache
):
    """Each gives the row that the run itself wrote."""
    row = read_rows(run_on_four_devices / "metrics.jsonl")[-1]
    for number in (1, 2, 4):
        metrics = evaluated_on(number, run_on_four_devices, compilation_cache)
        expected = {name: row[name] for name in metrics}
        assert metrics == pytest.approx(expected, rel=1e-6, abs=0)
