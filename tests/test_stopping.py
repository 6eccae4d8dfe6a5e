"""Signals that ask a run to stop, at any time."""

import signal
import time

import pytest
from helpers.processes import (
    SIGNALS,
    TIMEOUT_SECONDS,
    finish,
    finish_well,
    last_line,
    wait_for_line,
)
from helpers.tiny_run import (
    AFTER_A_REPORT,
    FINAL_STEP,
    assert_same_run,
    copy_run,
    rows_without_timings,
    saved_steps,
    start_tiny,
    train_well,
)

MAX_STOP_SECONDS = 10
# The signal comes at this step on every machine.
SIGNALLED = AFTER_A_REPORT.format(
    action=f"if step == 7: os.kill(os.getpid(), {signal.SIGTERM:d})"
)


def wait_for_write(process, workdir, step):
    """Waits until the checkpoint of a step is being written."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not list((workdir / "checkpoints").glob(f"{step}.*")):
        assert process.poll() is None and time.monotonic() < deadline
        assert step not in saved_steps(workdir)
        time.sleep(0.001)


def stop(process, number, send=True):
    """Sends the signal; returns stderr of the process, which must end soon."""
    sent = time.monotonic()
    if send:
        process.send_signal(number)
    code, _, err = finish(process)
    assert time.monotonic() - sent < MAX_STOP_SECONDS
    assert code == 128 + number, err
    return err


def assert_says_where(err, number, step):
    """Checks the last line of a stopped run."""
    name = signal.Signals(number).name
    assert last_line(err).startswith(
        f"googlenet_flax: stopped by {name} after step {step}; the state is saved: "
    )


def assert_stopped(workdir, err, number, step):
    """Checks that the run ended after a step, saved it, and did not evaluate it."""
    assert max(saved_steps(workdir)) == step
    assert_says_where(err, number, step)
    steps = [row["step"] for row in rows_without_timings(workdir)]
    assert steps == sorted([*range(1, step + 1), *([5] if step > 5 else [])])


@pytest.mark.faults
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("newest", [0, 6])
def test_stopped_while_it_compiles(tmp_path, finished_run, newest, number):
    workdir = copy_run(finished_run[0], tmp_path / "run", newest=newest)
    env = {"JAX_ENABLE_COMPILATION_CACHE": "0"}  # Compiling then takes a while.
    process = start_tiny(workdir, env=env)
    origin = "resuming after step 6" if newest else "from scratch"
    wait_for_line(process, origin, "stdout")
    err = stop(process, number)
    name = signal.Signals(number).name
    assert err == f"googlenet_flax: stopped by {name} before the first step\n"
    assert saved_steps(workdir) == ([6] if newest else [])
    out, _ = train_well(workdir, expected=finished_run[0])
    assert origin in out


@pytest.mark.faults
def test_stopped_while_it_compiles_another_size(tmp_path):
    """The run is saved before the step that is being compiled."""
    slowly = """
import sys, time
from googlenet_flax.training.experiment import Experiment
compile_train_step = Experiment.compile_train_step

def compile_slowly(self, step):
    if step:
        print("compiles", file=sys.stderr, flush=True)
        time.sleep(600)  # Nothing waits for this.
    return compile_train_step(self, step)

Experiment.compile_train_step = compile_slowly
"""
    flags = "--config.progressive_image_sizes=(32,)"
    flags = flags, "--config.progressive_image_size_epochs=(1,)"
    process = start_tiny(tmp_path / "run", *flags, before=slowly)
    wait_for_line(process, "compiles")
    err = stop(process, signal.SIGTERM)
    assert_says_where(err, signal.SIGTERM, 5)
    train_well(tmp_path / "run", *flags)


@pytest.mark.ci
def test_stopped_in_a_step(run_to_6):
    """Signals after step 7; the step after the signal is the last one."""
    process = start_tiny(run_to_6, before=SIGNALLED)
    wait_for_line(process, "step 7/")
    err = stop(process, signal.SIGTERM, send=False)
    assert_stopped(run_to_6, err, signal.SIGTERM, step=8)


def wait_for_step(step):
    return lambda process, _: wait_for_line(process, f"step {step}/")


# When the signal is sent, from which step the run has started, and where it may end.
WINDOWS = {
    "write": (lambda process, workdir: wait_for_write(process, workdir, 8), 6, (8, 9)),
    # The row before has just been written, and the first batch is compiled.
    "evaluation": (wait_for_step(10), 6, (10,)),
    "evaluation of an epoch": (wait_for_step(5), 0, (5,)),
    "between epochs": (
        lambda process, _: wait_for_line(process, "epoch 1, step 5: eval", "stdout"),
        0,
        (6, 7),
    ),
}


@pytest.mark.faults
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("number", SIGNALS)
def test_stopped_while_it_trains(tmp_path, finished_run, window, number):
    wait, newest, possible_steps = WINDOWS[window]
    workdir = copy_run(finished_run[0], tmp_path / "run", newest=newest)
    process = start_tiny(workdir)
    wait(process, workdir)
    err = stop(process, number)
    step = max(saved_steps(workdir))
    assert step in possible_steps
    assert_stopped(workdir, err, number, step)
    out, _ = train_well(workdir, expected=finished_run[0])
    assert f"resuming after step {step}" in out


@pytest.mark.faults
@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGINT, signal.SIGINT), (signal.SIGHUP, signal.SIGTERM)]
)
def test_a_second_signal_ends_it_at_once(run_to_6, first, second):
    process = start_tiny(run_to_6)
    wait_for_line(process, "step 10/")
    process.send_signal(first)
    # A signal that comes while the first is pending may be merged with it.
    while process.poll() is None:
        process.send_signal(second)
        time.sleep(0.01)
    code, _, err = finish(process)
    assert code == -second and err == ""
    assert 6 in saved_steps(run_to_6) and FINAL_STEP not in saved_steps(run_to_6)


@pytest.mark.faults
def test_signals_that_are_ignored_from_the_start_stay_so(run_to_6, finished_run):
    process = start_tiny(run_to_6, ignored=SIGNALS)
    wait_for_line(process, "step 7/")
    for number in SIGNALS:
        process.send_signal(number)
    finish_well(process)
    assert_same_run(run_to_6, finished_run[0])
