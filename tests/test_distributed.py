"""Several processes that train one network, as on a cluster, on one machine."""

import re
import signal
import socket
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.processes import finish, free_address, last_line, wait_for_line
from helpers.tiny_run import (
    FINAL_STEP,
    SLOW_STEPS,
    assert_same_run,
    copy_run,
    evaluate_tiny,
    on_devices,
    rows_of,
    rows_without_timings,
    saved_leaves,
    saved_steps,
    start_tiny,
    tiny_flags,
    train_badly,
    train_well,
)

from googlenet_flax import main
from googlenet_flax.runtime import distributed
from googlenet_flax.runtime.environment import local_devices, on_the_cpu
from googlenet_flax.runtime.errors import RunError, UserError

TOGETHER = "--config.distributed=True"
# Without batch norm and with a small learning rate, differences of rounding stay small.
GENTLE = ["--config.variant=seed", "--config.learning_rate=0.001"]
FULL_AT_STEP_3 = """
from googlenet_flax.runs.metrics import MetricsWriter
append = MetricsWriter._append

def append_a_little(self, line):
    if b'"step": 3' in line:
        raise OSError(28, "No space left on device")
    append(self, line)

MetricsWriter._append = append_a_little
"""
OTHER_PYTHON = "import platform; platform.python_version = lambda: '3.0.0'\n"
UNREADABLE = f"""
from orbax.checkpoint import v1
load = v1.load_checkpointables

def load_older(path, *args):
    if path.endswith("/{FINAL_STEP}"):
        raise OSError(116, "Stale file handle")
    return load(path, *args)

v1.load_checkpointables = load_older
"""
OTHER_DATA = """
from googlenet_flax.data.image_set import ImageSet
ImageSet.fingerprint = "other"
"""
LOST = re.compile(r"process \d has lost another process|another task died")


def start_together(workdir, *more, count=2, own=(), own_env=None, before="", env=None):
    """Starts a tiny run in several processes.

    `own` and `own_env` are additional flags and the environment of the last process.
    `before` holds Python statements that only the first process runs.
    """
    address, processes = free_address(), []
    for number in range(count):
        flags = [
            *more,
            TOGETHER,
            f"--coordinator_address={address}",
            f"--num_processes={count}",
            f"--process_id={number}",
        ]
        patch, each_env = before if number == 0 else "", env
        if number == count - 1:
            flags, each_env = [*flags, *own], own_env or env
        processes.append(start_tiny(workdir, *flags, before=patch, env=each_env))
    return processes


def finish_all(processes):
    """Waits for all processes; returns exit codes, stdouts and stderrs."""
    try:
        return list(zip(*map(finish, processes), strict=True))
    finally:
        for process in processes:
            process.kill()


def train_together(workdir, *more, expected=None, **options):
    """Trains to the end in several processes; returns the output of each.

    Its files must be the same as in `expected`, the workdir of another run.
    """
    codes, outs, errs = finish_all(start_together(workdir, *more, **options))
    assert set(codes) == {0}, errs
    if expected is not None:
        assert_same_run(workdir, expected)
    return outs, errs


def assert_close_runs(ours, theirs, step, rtol):
    """Compares the metrics and all leaves of the state."""
    rows = zip(rows_without_timings(ours), rows_without_timings(theirs), strict=True)
    for one, other in rows:
        assert one.keys() == other.keys()
        for name, value in one.items():
            expected = value if isinstance(value, str) else pytest.approx(value, rel=rtol)
            assert other[name] == expected
    leaves = zip(saved_leaves(ours, step), saved_leaves(theirs, step), strict=True)
    for one, other in leaves:
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * np.abs(other).max())


@pytest.mark.parametrize(
    ("count", "devices", "flags", "rtol"),
    [  # A sum over two devices is the same in any order, so the first case is exact.
        pytest.param(2, 1, ["--config.mixup_alpha=0.4"], 0, marks=pytest.mark.ci),
        pytest.param(4, 1, GENTLE, 1e-5, marks=pytest.mark.faults),
        pytest.param(2, 2, GENTLE, 1e-5, marks=pytest.mark.faults),
    ],
)
def test_they_train_what_one_process_trains(tmp_path, count, devices, flags, rtol):
    """Compares with as many devices of one process, also with mixup across the batch."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    flags = [*flags, "--config.max_steps=5"]
    train_well(alone, *flags, env=on_devices(count * devices))
    outs, errs = train_together(together, *flags, count=count, env=on_devices(devices))
    assert_close_runs(together, alone, step=5, rtol=rtol)
    assert f"on {count * devices} x cpu in {count} processes" in outs[0]
    assert "step 5/5" in errs[0]
    assert not any("GoogLeNet" in out or "step" in out for out in outs[1:])
    assert not any("step" in err for err in errs[1:])


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory):
    """Trains in two processes without an interruption, and returns the workdir."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    train_together(workdir)
    return workdir


@pytest.mark.faults
@pytest.mark.parametrize("count", [1, 4])
def test_other_processes_go_on(run_of_two, tmp_path, count):
    """Continues with another number of processes, which only changes rounding."""
    workdir = copy_run(run_of_two, tmp_path / "run", newest=6)
    flag = "--config.max_steps=7"
    if count == 1:
        out, _ = train_well(workdir, flag)
    else:
        (out, *_), _ = train_together(workdir, flag, count=count)
    assert "resuming after step 6" in out
    ours, theirs = (
        [row["loss"] for row in rows_without_timings(path) if row["step"] == 7]
        for path in (workdir, run_of_two)
    )
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)


@pytest.mark.faults
def test_one_process_evaluates_what_several_saved(run_of_two):
    last = rows_of(run_of_two, "eval")[-1]
    assert f"accuracy {last['accuracy']:.2%}" in evaluate_tiny(run_of_two)


@pytest.mark.faults
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("line", ["step 1/", "step 4/", "step 5/"])
def test_all_end_when_one_is_killed(run_of_two, tmp_path, victim, line):
    workdir = tmp_path / "run"
    processes = start_together(workdir)
    wait_for_line(processes[0], line)
    processes[victim].kill()
    began = time.monotonic()
    codes, _, errs = finish_all(processes)
    assert time.monotonic() - began < 60
    other = 1 - victim
    assert codes[victim] == -signal.SIGKILL
    assert codes[other] in (1, -signal.SIGABRT), errs[other]  # Ours, or JAX's own.
    assert LOST.search(errs[other]), errs[other]
    train_together(workdir, expected=run_of_two)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("count", "line", "number"),
    [
        (2, "step 3/", signal.SIGTERM),
        (2, "step 3/", signal.SIGINT),
        (2, "step 5/", signal.SIGTERM),  # The evaluation waits for a compilation.
        (1, "step 1/", signal.SIGTERM),
    ],
)
def test_a_signal_to_one_stops_all_at_the_same_step(
    finished_run, run_of_two, tmp_path, count, line, number
):
    workdir = tmp_path / "run"
    processes = start_together(workdir, count=count, before=SLOW_STEPS)
    wait_for_line(processes[0], line)
    sent = time.monotonic()
    processes[-1].send_signal(number)
    codes, _, errs = finish_all(processes)
    assert count > 1 or time.monotonic() - sent < 10
    assert codes == (128 + signal.SIGTERM,) * count, errs
    step = max(saved_steps(workdir))
    assert step < FINAL_STEP
    for err in errs:
        assert f"stopped by SIGTERM after step {step}" in last_line(err)
    if line == "step 5/":  # The evaluation ends early in all processes.
        assert step == 5
        rows = rows_without_timings(workdir)
        assert [row["split"] for row in rows] == ["train"] * 5
    expected = run_of_two if count == 2 else finished_run[0]
    outs, _ = train_together(workdir, count=count, expected=expected)
    assert f"resuming after step {step}" in outs[0]


@pytest.mark.faults
def test_a_damaged_checkpoint_is_set_aside_once(run_of_two, tmp_path):
    workdir = copy_run(run_of_two, tmp_path / "run")
    (workdir / "checkpoints" / str(FINAL_STEP) / "_CHECKPOINT_METADATA").unlink()
    _, errs = train_together(workdir, expected=run_of_two)
    assert f"{FINAL_STEP}.damaged" in errs[0] and not errs[1]
    assert (workdir / "checkpoints" / f"{FINAL_STEP}.damaged").is_dir()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"own": ["--config.seed=9"]}, "seed is 1 in process 0 and 9"),
        ({"own": ["--config.data_dir=/nowhere", "--config.dataset=folder"]}, "dataset is"),
        ({"own": ["--workdir={}/elsewhere"]}, "must be one directory that all processes"),
        ({"own": ["--workdir={}/link"]}, "the path of the workdir is"),
        ({"before": OTHER_PYTHON}, "Python is '3.0.0' in process 0 and "),
        ({"own_env": on_devices(2)}, "the processes have 1, 2 devices"),
        ({"before": OTHER_DATA}, "all processes must read the same data"),
        ({}, "checkpoints cannot be read"),
    ],
)
def test_what_one_has_otherwise_stops_all(tmp_path, options, part):
    """Checks that a fault that only one process can find stops all processes."""
    workdir = tmp_path / "run"
    if not options:
        workdir.mkdir()
        (workdir / "checkpoints").write_text("in the way")
    (tmp_path / "link").symlink_to(workdir)
    own = [flag.format(tmp_path) for flag in options.get("own", ())]
    codes, _, errs = finish_all(start_together(workdir, **{**options, "own": own}))
    assert codes == (2, 2), errs
    assert all(part in last_line(err) for err in errs)


@pytest.mark.faults
def test_a_checkpoint_that_one_process_cannot_read(run_of_two, tmp_path):
    """Checks that no process waits for the one that cannot read, and nothing is lost."""
    workdir, began = copy_run(run_of_two, tmp_path / "run"), time.monotonic()
    codes, _, errs = finish_all(start_together(workdir, before=UNREADABLE))
    assert time.monotonic() - began < 240  # Orbax's barrier waits for 300 s.
    assert codes == (1, 1), errs
    part = f"process 0 cannot use checkpoint {FINAL_STEP} in .*Stale file handle"
    assert all(re.search(part, last_line(err)) for err in errs)
    assert_same_run(workdir, run_of_two)


@pytest.mark.faults
def test_what_stops_the_first_is_told_by_all(tmp_path):
    processes = start_together(tmp_path / "run")
    wait_for_line(processes[0], "step 1/")
    codes, _, errs = finish_all(start_together(tmp_path / "run"))
    assert codes == (3, 3), errs
    for err in errs:
        assert f"is in use by process {processes[0].pid}" in last_line(err)
    codes, _, errs = finish_all(processes)
    assert codes == (0, 0), errs


@pytest.mark.faults
def test_what_only_the_first_one_meets_ends_all(tmp_path):
    """Fills the disk when the first process writes a row."""
    codes, _, errs = finish_all(start_together(tmp_path / "run", before=FULL_AT_STEP_3))
    assert codes[0] == 2 and "metrics.jsonl cannot be written" in last_line(errs[0])
    assert codes[1] in (1, -signal.SIGABRT), errs[1]
    assert LOST.search(errs[1]), errs[1]


ALONE_PARTS = ["--coordinator_address", "--num_processes", "--process_id", "Slurm"]


@pytest.mark.parametrize("flags", [[], ["--coordinator_address=localhost:1"]], ids=str)
@pytest.mark.ci
def test_a_process_that_cannot_know_the_others_says_what_it_needs(tmp_path, flags):
    line = train_badly(tmp_path / "run", TOGETHER, *flags)
    assert all(part in line for part in ALONE_PARTS)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        # The devices of this process are in use already, so it cannot join others.
        ([TOGETHER, "--coordinator_address=localhost:1"], ALONE_PARTS),
        ([TOGETHER, "--coordinator_address=host"], ["_address is 'host'", "HOST:PORT"]),
        (["--num_processes=2"], ["--num_processes needs --config.distributed=True"]),
        (["--process_id=-1"], ["process_id", "-1"]),
    ],
)
def test_flags_that_do_not_say_who_the_others_are(tmp_path, run_command, flags, parts):
    jax.devices()
    code, _, err = run_command(main, *tiny_flags(tmp_path / "run"), *flags)
    assert code == 2, err
    assert all(part in last_line(err) for part in parts)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def joined_alone(monkeypatch):
    """Returns `distributed.joined` for one process; it raises instead of exiting."""

    def leave(error):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(distributed, "_leave", leave)
    return distributed.joined


GLOO = (
    "UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:547] "
    "Connection closed by peer [127.0.0.1]:30930"
)
BARRIER = "Timeout waiting at barrier 'save'. The original error raised was: ABORTED: gone"


# jaxlib 0.10.2 raises the first two errors in `process_allgather` and in `pmap`, and Orbax
# the third one during a save.
@pytest.mark.parametrize(
    ("error", "part"),
    [
        (ValueError(GLOO), "Connection closed by peer"),
        (jax.errors.JaxRuntimeError(GLOO), "Connection closed by peer"),
        (TimeoutError(BARRIER), "Timeout waiting at barrier"),
    ],
    ids=["all-gather", "step", "save"],
)
def test_what_the_collectives_say_of_a_loss_is_told(joined_alone, error, part):
    words = f"process 0 has lost another process .*{part}.*the same command"
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


def test_an_address_of_ipv6_is_reached_without_its_brackets(joined_alone, monkeypatch):
    connect = mock.Mock()
    monkeypatch.setattr(socket, "create_connection", connect)
    with joined_alone("[::1]:1234", 2, 1):
        assert connect.call_args.args == (("::1", 1234),)


def test_a_field_that_one_process_lacks_is_named(monkeypatch):
    facts = [{"seed": 1}, {"seed": 1, "mixup_alpha": 0.5}]
    monkeypatch.setattr(distributed, "exchange", lambda _: facts)
    with pytest.raises(UserError, match="mixup_alpha is None in process 0"):
        distributed.check_same(facts[0], "start them alike")


def test_processes_with_unequal_numbers_of_devices_are_refused(monkeypatch):
    owners = [mock.Mock(process_index=number) for number in (0, 0, 1)]
    monkeypatch.setattr(jax, "devices", lambda: owners)
    monkeypatch.setattr(distributed, "num_processes", lambda: 2)
    with pytest.raises(UserError, match="the processes have 2, 1 devices"):
        distributed.check_devices()


def test_the_cpu_is_used_if_jax_may_use_it(monkeypatch):
    other = jax.devices()[3]
    with jax.default_device(other):
        with on_the_cpu():
            assert jnp.zeros(1).devices() == {jax.devices("cpu")[0]}
        # As with JAX_PLATFORMS=cuda.
        monkeypatch.setattr(jax, "local_devices", mock.Mock(side_effect=RuntimeError))
        with on_the_cpu():
            assert jnp.zeros(1).devices() == {other}


def test_devices_that_jax_cannot_use_are_no_traceback(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", mock.Mock(side_effect=AssertionError))
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UserError, match="there is none for JAX_PLATFORMS=cuda; unset it"):
        local_devices()


@pytest.mark.faults
@pytest.mark.parametrize("flags", [[], ["--config.dtype=bfloat16"], [TOGETHER]], ids=str)
def test_no_device_is_used_before_this_is_told(tmp_path, flags):
    if TOGETHER in flags:
        address = f"--coordinator_address={free_address()}"
        flags = [*flags, address, "--num_processes=1", "--process_id=0"]
    process = start_tiny(tmp_path / "run", *flags, env={"JAX_PLATFORMS": "cuda"})
    code, _, err = finish(process)
    assert code == 2 and "JAX cannot use its devices: " in last_line(err), err


def test_a_first_process_that_never_comes(monkeypatch, capsys):
    monkeypatch.setattr(distributed, "JOIN_SECONDS", 0.3)
    monkeypatch.setattr(distributed, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(distributed, "PROBE_SECONDS", 0.1)
    address = free_address()
    with pytest.raises(RunError) as caught, distributed.joined(address, 2, 1):
        pass
    assert caught.value.exit_code == 1  # It may come later, so a restart can help.
    assert f"process 1 cannot reach process 0 at {address}" in str(caught.value)
    waiting = f"googlenet_flax: process 1 waits for process 0 at {address}\n"
    assert capsys.readouterr().err == waiting
