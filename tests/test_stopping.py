"""Signals that ask a run to stop, whatever it is doing."""

import signal
import socket
import time

import pytest
from helpers import tiny_run
from helpers.processes import (
    SIGNALS,
    TIMEOUT_SECONDS,
    finish,
    heard,
    last_line,
    start_python,
    wait_for_line,
)
from helpers.tiny_run import (
    FINAL_STEP,
    assert_same_run,
    copy_run,
    rows_without_timings,
    saved_steps,
    tiny_flags,
    train_tiny,
)

MAX_STOP_SECONDS = 10
each_signal = [
    SIGNALS[0],
    *(pytest.param(n, marks=pytest.mark.faults) for n in SIGNALS[1:]),
]
NOT_COMPILED = {"JAX_ENABLE_COMPILATION_CACHE": "0"}  # So that it takes its time.

# As on a cluster, where each of several processes is started so.
DISTRIBUTED = """
import sys
import jax
jax.distributed.initialize(sys.argv.pop(1), num_processes=1, process_id=0)
from googlenet_flax.main import main
main()
"""

# However busy the machine is, the signal comes at this step.
SIGNALLED = """
import os, sys
from googlenet_flax.runtime.progress import Progress
number, report = int(sys.argv.pop(1)), Progress.report

def report_and_signal(self, step, **about):
    report(self, step, **about)
    if step == 7:
        os.kill(os.getpid(), number)

Progress.report = report_and_signal
from googlenet_flax.main import main
main()
"""


def start_tiny(workdir, env, ignored=()):
    """A tiny run that hears all signals but these."""
    with heard(ignored):
        return tiny_run.start_tiny(workdir, env=env)


def start_signalled(workdir, env, number):
    """A tiny run that gets a signal while it reports step 7."""
    with heard():
        return start_python("-c", SIGNALLED, int(number), *tiny_flags(workdir), env=env)


def wait_for_output(process, text):
    """Reads stdout up to a line that holds `text`."""
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(f"the process ended without {text!r}: {process.stderr.read()}")


def wait_for_write(process, workdir, step):
    """Until the checkpoint of a step is being written."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not list((workdir / "checkpoints").glob(f"{step}.*")):
        assert process.poll() is None and time.monotonic() < deadline
        assert step not in saved_steps(workdir)
        time.sleep(0.001)


def stop(process, number):
    """Sends the signal; returns stderr."""
    sent = time.monotonic()
    process.send_signal(number)
    return finish_stopped(process, number, sent)


def finish_stopped(process, number, sent):
    """What the process says at its end, soon after the signal was sent."""
    code, _, err = finish(process)
    assert time.monotonic() - sent < MAX_STOP_SECONDS
    assert code == 128 + number, err
    return err


def assert_says_where(err, number, step):
    """The one line that a stopped run ends with."""
    name = signal.Signals(number).name
    assert last_line(err) == (
        f"googlenet_flax: stopped by {name} after step {step}; the state is saved: "
        "run the same command to go on"
    )


def assert_stopped(workdir, err, number, step):
    """Asserts that the run ended after that step, saved, and before an evaluation of it."""
    assert max(saved_steps(workdir)) == step
    assert_says_where(err, number, step)
    steps = [row["step"] for row in rows_without_timings(workdir)]
    evaluated = [5] if step > 5 else []
    assert steps == sorted([*range(1, step + 1), *evaluated])


def assert_goes_on(workdir, expected, env, after_step):
    """Under the same command, to the same end."""
    code, out, err = train_tiny(workdir, env=env)
    assert code == 0, err
    assert f"resuming after step {after_step}" in out
    assert_same_run(workdir, expected)


@pytest.mark.faults
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("newest", [0, 6])
def test_stopped_while_it_compiles(
    tmp_path, finished_run, compilation_cache, newest, number
):
    workdir = tmp_path / "run"
    if newest:
        copy_run(finished_run[0], workdir, newest=newest)
    process = start_tiny(workdir, env=NOT_COMPILED)
    wait_for_output(process, "resuming after step 6" if newest else "from scratch")
    err = stop(process, number)
    name = signal.Signals(number).name
    assert err == f"googlenet_flax: stopped by {name} before the first step\n"
    assert saved_steps(workdir) == ([6] if newest else [])
    if newest:
        assert_goes_on(workdir, finished_run[0], compilation_cache, after_step=6)
    else:
        assert rows_without_timings(workdir) == []


@pytest.mark.parametrize("number", each_signal)
def test_stopped_in_a_step(tmp_path, finished_run, compilation_cache, number):
    """The step after the signal, which comes when step 7 has been made, is the last."""
    workdir = copy_run(finished_run[0], tmp_path / "run", newest=6)
    process = start_signalled(workdir, compilation_cache, number)
    wait_for_line(process, "step 7/")
    err = finish_stopped(process, number, time.monotonic())
    assert_stopped(workdir, err, number, step=8)


# When the signal is sent, from which step the run has started, and where it may end.
WINDOWS = {
    "step": (lambda process, _: wait_for_line(process, "step 7/"), 6, (8, 9)),
    "write": (lambda process, workdir: wait_for_write(process, workdir, 8), 6, (8, 9)),
    # Its first batch is compiled, too; the row before it has just been written.
    "evaluation": (lambda process, _: wait_for_line(process, "step 10/"), 6, (10,)),
    "evaluation of an epoch": (lambda p, _: wait_for_line(p, "step 5/"), 0, (5,)),
    "between epochs": (
        lambda process, _: wait_for_output(process, "epoch 1, step 5: eval"),
        0,
        (6, 7),
    ),
}


@pytest.mark.faults
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("number", SIGNALS)
def test_stopped_while_it_trains(tmp_path, finished_run, compilation_cache, window, number):
    wait, newest, possible_steps = WINDOWS[window]
    workdir = tmp_path / "run"
    if newest:
        copy_run(finished_run[0], workdir, newest=newest)
    process = start_tiny(workdir, env=compilation_cache)
    wait(process, workdir)
    err = stop(process, number)
    step = max(saved_steps(workdir))
    assert step in possible_steps
    assert_stopped(workdir, err, number, step)
    assert_goes_on(workdir, finished_run[0], compilation_cache, after_step=step)


def send_until_it_ends(process, number):
    """The first may come while the one before it waits to be heard."""
    while process.poll() is None:
        process.send_signal(number)
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGHUP, signal.SIGTERM),
    ],
)
@pytest.mark.faults
def test_a_second_signal_ends_it_at_once(
    tmp_path, finished_run, compilation_cache, first, second
):
    workdir = copy_run(finished_run[0], tmp_path / "run", newest=6)
    process = start_tiny(workdir, env=compilation_cache)
    wait_for_line(process, "step 10/")
    process.send_signal(first)
    send_until_it_ends(process, second)
    code, _, err = finish(process)
    assert code == -second and err == ""
    assert 6 in saved_steps(workdir) and FINAL_STEP not in saved_steps(workdir)


@pytest.mark.faults
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_ignored_from_the_start_stays_so(
    tmp_path, finished_run, compilation_cache, number
):
    workdir = copy_run(finished_run[0], tmp_path / "run", newest=6)
    process = start_tiny(workdir, compilation_cache, ignored=[number])
    wait_for_line(process, "step 7/")
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 0, err
    assert_same_run(workdir, finished_run[0])


def start_distributed(workdir, env):
    """A cluster of this one process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return start_python("-c", DISTRIBUTED, address, *tiny_flags(workdir), env=env)


@pytest.mark.faults
@pytest.mark.parametrize("line", ["step 1/", "step 3/"])
def test_a_notice_of_preemption_is_honoured(
    tmp_path, finished_run, compilation_cache, line
):
    workdir = tmp_path / "run"
    process = start_distributed(workdir, compilation_cache)
    wait_for_line(process, line)
    err = stop(process, signal.SIGTERM)
    step = max(saved_steps(workdir))
    assert 1 <= step < FINAL_STEP
    assert_says_where(err, signal.SIGTERM, step)
    code, out, err = finish(start_distributed(workdir, compilation_cache))
    assert code == 0, err
    assert f"resuming after step {step}" in out
    assert_same_run(workdir, finished_run[0])
