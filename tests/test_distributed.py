"""Several processes that train one network, as on a cluster, on one machine."""

import re
import signal
import socket
import time

import jax
import numpy as np
import pytest
from distributed_steps import train_and_save
from helpers.paths import REPOSITORY
from helpers.processes import (
    finish,
    heard,
    last_line,
    run,
    start,
    start_python,
    wait_for_line,
)
from helpers.tiny_run import (
    FINAL_STEP,
    copy_run,
    rows_without_timings,
    saved_leaves,
    saved_steps,
    tiny_flags,
    train_tiny,
)

from googlenet_flax import main
from googlenet_flax.runtime import distributed
from googlenet_flax.runtime.errors import RunError, UserError

TWO_DEVICES = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
# Without batch norm and with small steps, so that rounding stays what it is.
GENTLE = ("--config.variant=seed", "--config.learning_rate=0.001", "--config.max_steps=5")
FULL_AT_STEP_3 = """
import os
from googlenet_flax.runs.metrics import MetricsWriter
append = MetricsWriter._append

def append_a_little(self, line):
    if b'"step": 3' in line:
        raise OSError(28, "No space left on device")
    append(self, line)

MetricsWriter._append = append_a_little
from googlenet_flax.main import main
main()
"""
LOST = re.compile(r"process \d has lost another one|another task died")


def free_address():
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def flags_of(workdir, address, number, count):
    """The command line of one of the processes."""
    return [
        *tiny_flags(workdir),
        "--config.distributed=True",
        f"--coordinator_address={address}",
        f"--num_processes={count}",
        f"--process_id={number}",
    ]


def start_together(workdirs, *more, env, own=()):
    """A tiny run in as many processes as there are workdirs; `own` flags for the last."""
    address, count = free_address(), len(workdirs)
    processes = []
    for number, workdir in enumerate(workdirs):
        flags = [*flags_of(workdir, address, number, count), *more]
        with heard():
            last = own if number == count - 1 else ()
            processes.append(start("main", *flags, *last, env=env))
    return processes


def finish_all(processes):
    """Exit codes, outputs and errors."""
    try:
        return list(zip(*map(finish, processes), strict=True))
    finally:
        for process in processes:
            process.kill()


def train_together(workdir, count, *more, env):
    """A tiny run to its end; what was printed by each process."""
    codes, outs, errs = finish_all(start_together([workdir] * count, *more, env=env))
    assert set(codes) == {0}, errs
    return outs, errs


def assert_close_runs(ours, theirs, step, rtol):
    """Metrics and all leaves of the state."""
    rows = zip(rows_without_timings(ours), rows_without_timings(theirs), strict=True)
    for one, other in rows:
        assert one.keys() == other.keys()
        for name, value in one.items():
            expected = value if isinstance(value, str) else pytest.approx(value, rel=rtol)
            assert other[name] == expected
    leaves = zip(saved_leaves(ours, step), saved_leaves(theirs, step), strict=True)
    for one, other in leaves:
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * np.abs(other).max())


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.faults)])
def test_small_steps_are_those_of_one_process(tmp_path, compilation_cache, count):
    """With four devices in each; losses, evaluation and what is read back from disk."""
    address = free_address()
    processes = [
        start_python(
            REPOSITORY / "tests" / "distributed_steps.py",
            *(address, count, number, tmp_path / "together"),
            env=compilation_cache,
        )
        for number in range(count)
    ]
    expected = train_and_save(tmp_path / "alone")
    codes, _, errs = finish_all(processes)
    assert set(codes) == {0}, errs
    for number in range(count):
        with np.load(f"{tmp_path / 'together'}-{number}.npz") as results:
            assert results.keys() == expected.keys()
            for name, value in expected.items():
                scale = np.abs(value).max()
                np.testing.assert_allclose(results[name], value, atol=1e-5 * scale)


@pytest.mark.faults
@pytest.mark.parametrize("count", [2, 4])
def test_they_train_what_one_process_trains(compilation_cache, tmp_path, count):
    alone, together = tmp_path / "alone", tmp_path / "together"
    code, _, err = train_tiny(alone, *GENTLE, env=compilation_cache)
    assert code == 0, err
    outs, errs = train_together(together, count, *GENTLE, env=compilation_cache)
    assert_close_runs(together, alone, step=5, rtol=1e-5)
    assert f"on {count} x cpu in {count} processes" in outs[0]
    assert "step 5/5" in errs[0]
    assert not any("GoogLeNet" in out or "step" in out for out in outs[1:])
    assert not any("step" in err for err in errs[1:])


@pytest.fixture(scope="module")
def run_of_two(compilation_cache, tmp_path_factory):
    """A run of two processes that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    train_together(workdir, 2, env=compilation_cache)
    return workdir


@pytest.mark.faults
@pytest.mark.parametrize(
    ("flags", "step"),
    [([], FINAL_STEP), (["--config.mixup_alpha=0.4", "--config.max_steps=3"], 3)],
    ids=["plain", "mixup"],
)
def test_two_processes_are_as_good_as_two_devices(compilation_cache, tmp_path, flags, step):
    """Equality bit for bit, also where examples are mixed across the whole batch."""
    train_together(tmp_path / "two", 2, *flags, env=compilation_cache)
    env = {**compilation_cache, "XLA_FLAGS": TWO_DEVICES}
    code, _, err = train_tiny(tmp_path / "one", *flags, env=env)
    assert code == 0, err
    assert_close_runs(tmp_path / "two", tmp_path / "one", step=step, rtol=0)


@pytest.mark.faults
@pytest.mark.parametrize("count", [1, 2, 4])
def test_other_processes_go_on(run_of_two, compilation_cache, tmp_path, count):
    """From step 6; what differs is the rounding of sums over other shares."""
    workdir = copy_run(run_of_two, tmp_path / "run", newest=6)
    flags = ("--config.max_steps=7",)
    if count == 1:
        code, out, err = train_tiny(workdir, *flags, env=compilation_cache)
        assert code == 0, err
    else:
        (out, *_), _ = train_together(workdir, count, *flags, env=compilation_cache)
    assert "resuming after step 6" in out
    step_7 = [
        [row["loss"] for row in rows_without_timings(path) if row["step"] == 7]
        for path in (workdir, run_of_two)
    ]
    assert step_7[0][0] == pytest.approx(step_7[1][0], rel=1e-4)


@pytest.mark.faults
def test_one_process_evaluates_what_several_saved(run_of_two, compilation_cache):
    code, out, err = run("evaluate", f"--workdir={run_of_two}", env=compilation_cache)
    assert code == 0, err
    last = [row for row in rows_without_timings(run_of_two) if row["split"] == "eval"][-1]
    assert f"accuracy {last['accuracy']:.2%}" in out


@pytest.mark.faults
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("line", ["step 1/", "step 4/", "step 5/"])
def test_all_end_when_one_is_killed(run_of_two, compilation_cache, tmp_path, victim, line):
    workdir = tmp_path / "run"
    processes = start_together([workdir] * 2, env=compilation_cache)
    wait_for_line(processes[0], line)
    processes[victim].kill()
    began = time.monotonic()
    codes, _, errs = finish_all(processes)
    assert time.monotonic() - began < 60
    other = 1 - victim
    assert codes[victim] == -signal.SIGKILL
    assert codes[other] in (1, -signal.SIGABRT), errs[other]  # Ours, or JAX's own.
    assert LOST.search(errs[other]), errs[other]
    train_together(workdir, 2, env=compilation_cache)
    assert_close_runs(workdir, run_of_two, step=FINAL_STEP, rtol=0)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("step 3/", signal.SIGTERM),
        ("step 3/", signal.SIGINT),
        ("step 5/", signal.SIGTERM),  # The evaluation's first batch has to be compiled.
    ],
)
def test_a_signal_to_one_stops_all_at_the_same_step(
    run_of_two, compilation_cache, tmp_path, line, number
):
    workdir = tmp_path / "run"
    processes = start_together([workdir] * 2, env=compilation_cache)
    wait_for_line(processes[0], line)
    processes[1].send_signal(number)
    codes, _, errs = finish_all(processes)
    assert codes == (128 + signal.SIGTERM,) * 2, errs
    step = max(saved_steps(workdir))
    for err in errs:
        assert f"stopped by SIGTERM after step {step}" in last_line(err)
    if line == "step 5/":  # The evaluation of all processes is broken off.
        assert step == 5
        rows = rows_without_timings(workdir)
        assert [row["split"] for row in rows] == ["train"] * 5
    train_together(workdir, 2, env=compilation_cache)
    assert_close_runs(workdir, run_of_two, step=FINAL_STEP, rtol=0)


@pytest.mark.faults
def test_a_damaged_checkpoint_is_set_aside_once(run_of_two, compilation_cache, tmp_path):
    workdir = copy_run(run_of_two, tmp_path / "run")
    (workdir / "checkpoints" / str(FINAL_STEP) / "_CHECKPOINT_METADATA").unlink()
    _, errs = train_together(workdir, 2, env=compilation_cache)
    assert f"{FINAL_STEP}.damaged" in errs[0] and not errs[1]
    assert (workdir / "checkpoints" / f"{FINAL_STEP}.damaged").is_dir()
    assert_close_runs(workdir, run_of_two, step=FINAL_STEP, rtol=0)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("own", "parts"),
    [
        (["--config.learning_rate=0.5"], ["learning_rate is 0.05 in process 0 and 0.5"]),
        (["--config.data_dir=/nowhere", "--config.dataset=folder"], ["dataset is"]),
        (["--workdir=elsewhere"], ["must be one directory that all processes see"]),
    ],
)
def test_what_one_has_otherwise_stops_all(compilation_cache, tmp_path, own, parts):
    own = [flag.replace("elsewhere", str(tmp_path / "elsewhere")) for flag in own]
    processes = start_together([tmp_path / "run"] * 2, env=compilation_cache, own=own)
    codes, _, errs = finish_all(processes)
    assert codes == (2, 2), errs
    for err in errs:
        assert all(part in last_line(err) for part in parts)


@pytest.mark.faults
def test_what_stops_the_first_is_told_by_all(compilation_cache, tmp_path):
    processes = start_together([tmp_path / "run"] * 2, env=compilation_cache)
    wait_for_line(processes[0], "step 1/")
    others = start_together([tmp_path / "run"] * 2, env=compilation_cache)
    codes, _, errs = finish_all(others)
    assert codes == (3, 3), errs
    for err in errs:
        assert f"is in use by process {processes[0].pid}" in last_line(err)
    codes, _, errs = finish_all(processes)
    assert codes == (0, 0), errs


@pytest.mark.faults
def test_checkpoints_that_cannot_be_written_end_all(compilation_cache, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "checkpoints").write_text("in the way")
    processes = start_together([workdir] * 2, env=compilation_cache)
    codes, _, errs = finish_all(processes)
    assert codes == (2, 2), errs
    for err in errs:
        assert "checkpoints cannot be written" in last_line(err)


@pytest.mark.faults
def test_what_only_the_first_one_meets_ends_all(compilation_cache, tmp_path):
    """Such as a disk that is full for its rows."""
    address, workdir = free_address(), tmp_path / "run"
    first, other = (flags_of(workdir, address, number, 2) for number in range(2))
    processes = [
        start_python("-c", FULL_AT_STEP_3, *first, env=compilation_cache),
        start("main", *other, env=compilation_cache),
    ]
    wait_for_line(processes[0], "step 2/")
    began = time.monotonic()
    codes, _, errs = finish_all(processes)
    assert time.monotonic() - began < 60
    assert codes[0] == 2 and "metrics.jsonl cannot be written" in last_line(errs[0])
    assert codes[1] in (1, -signal.SIGABRT), errs[1]
    assert LOST.search(errs[1]), errs[1]


ALONE_PARTS = ["--coordinator_address", "--num_processes", "--process_id", "Slurm"]


@pytest.mark.faults
@pytest.mark.parametrize("more", [[], ["--coordinator_address=localhost:1"]])
def test_a_process_that_cannot_tell_who_the_others_are(tmp_path, more):
    flags = *tiny_flags(tmp_path / "run"), "--config.distributed=True", *more
    code, _, err = run("main", *flags)
    assert code == 2, err
    assert all(part in last_line(err) for part in ALONE_PARTS)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--config.distributed=True"], ALONE_PARTS),
        (
            ["--config.distributed=True", "--coordinator_address=localhost"],
            ["--coordinator_address is 'localhost'", "HOST:PORT"],
        ),
        (["--num_processes=2"], ["--num_processes needs --config.distributed=True"]),
    ],
)
def test_flags_that_do_not_say_who_the_others_are(tmp_path, run_command, flags, parts):
    jax.devices()  # Once they are in use, no process can join others.
    code, _, err = run_command(main, *tiny_flags(tmp_path / "run"), *flags)
    assert code == 2, err
    assert all(part in last_line(err) for part in parts)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def joined_alone(monkeypatch):
    """`distributed.joined` without others; where it would end the process, it raises."""

    def leave(error):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(distributed, "_leave", leave)
    return distributed.joined


@pytest.mark.parametrize(
    "error",
    [
        # As jaxlib 0.10.2 raises them, from `process_allgather` and from `pmap`.
        ValueError(
            "UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:"
            "547] Connection closed by peer [127.0.0.1]:30930"
        ),
        jax.errors.JaxRuntimeError(
            "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:"
            "547] Connection closed by peer [127.0.0.1]:19658"
        ),
    ],
    ids=["gather", "pmap"],
)
def test_what_the_collectives_say_of_a_loss_is_told(joined_alone, error):
    words = "process 0 has lost another one .*Connection closed by peer.*the same command"
    with pytest.raises(RunError, match=words), joined_alone():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("there is no class 'socket' in this connection of barriers"),
        ValueError("data_dir is UNKNOWN: no connection"),
        jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes differ"),
    ],
    ids=["words", "words and code", "runtime"],
)
def test_other_errors_are_left_as_they_are(joined_alone, error):
    with pytest.raises(type(error)) as caught, joined_alone():
        raise error
    assert caught.value is error


def test_a_first_process_that_never_comes(monkeypatch, capsys):
    monkeypatch.setattr(distributed, "JOIN_SECONDS", 0.3)
    monkeypatch.setattr(distributed, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(distributed, "PROBE_SECONDS", 0.1)
    address = free_address()
    with pytest.raises(UserError) as caught, distributed.joined(address, 2, 1):
        pass
    assert f"process 1 cannot reach process 0 at {address}" in str(caught.value)
    waiting = f"googlenet_flax: process 1 waits for process 0 at {address}\n"
    assert capsys.readouterr().err == waiting


def test_one_process_is_all_there_is():
    assert distributed.is_first() and distributed.num_processes() == 1
    assert distributed.process_rows(12) == slice(0, 12)
    assert distributed.sum_over_all({"loss": 0.1}) == {"loss": 0.1}
    assert distributed.first_says(True) and not distributed.first_says(False)
    distributed.check_same({"seed": 1}, "never told")
