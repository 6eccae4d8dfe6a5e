"""Real runs of a tiny network as processes, and what they leave."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from googlenet_flax.config import Config
from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runs.metrics import read_rows
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.training.experiment import create_experiment

REPOSITORY = pathlib.Path(__file__).parent.parent
DIGITS = REPOSITORY / "configs" / "digits.py"
SEED = 1  # Whose last evaluation is the best one, on every JAX tested.
TINY_RUN = [
    "--config.width_multiplier=0.1",
    "--config.train_split=train[:40]",
    "--config.eval_split=test[:20]",
    "--config.batch_size=8",
    "--config.num_epochs=2",
    "--config.log_every_steps=1",
    "--config.checkpoint_every_steps=2",
    f"--config.seed={SEED}",
]
EPOCH_STEPS = 5
FINAL_STEP = 10
TIMEOUT_SECONDS = 240
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@contextlib.contextmanager
def heard(ignored=()):
    """What starts inside hears all signals but these, also where the tests ignore one."""
    inherited = {
        number: signal.signal(
            number, signal.SIG_IGN if number in ignored else signal.SIG_DFL
        )
        for number in SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in inherited.items():
            signal.signal(number, handler)


def start(command, *args, env=None, **options) -> subprocess.Popen:
    """The command as a process; `options` are those of `subprocess.Popen`."""
    return start_python("-m", f"googlenet_flax.{command}", *args, env=env, **options)


def start_python(*args, env=None, **options) -> subprocess.Popen:
    """The same of `python ARGS`, for a program that calls a command."""
    settings = {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # Much compiled, little run.
        **(env or {}),
    }
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(
        [sys.executable, *map(str, args)],
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **settings},
        **options,
    )


def run(command, *args, env=None, **options) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    return finish(start(command, *args, env=env, **options))


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """The same of a process that has been started."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        process.kill()
    return process.returncode, out, err


def start_tiny(workdir, *more, env, **options) -> subprocess.Popen:
    """Trains 10 steps, evaluates after 5 and 10, saves at 2, 4, 5, 6, 8 and 10."""
    return start("main", *tiny_flags(workdir), *more, env=env, **options)


def tiny_flags(workdir) -> list[str]:
    """The command line of this."""
    return [f"--config={DIGITS}", f"--workdir={workdir}", *TINY_RUN]


def train_tiny(workdir, *more, env, **options) -> tuple[int, str, str]:
    """The same to its end."""
    return finish(start_tiny(workdir, *more, env=env, **options))


def wait_for_line(process: subprocess.Popen, text: str) -> None:
    """Reads stderr up to a line that holds `text`."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return
    pytest.fail(f"the process ended without {text!r}: {''.join(lines)}")


def rows_without_timings(workdir: pathlib.Path) -> list[dict]:
    """`metrics.jsonl` without what differs between two runs of the same config."""
    return [
        {name: value for name, value in row.items() if "second" not in name}
        for row in read_rows(workdir / "metrics.jsonl")
    ]


def saved_leaves(workdir: pathlib.Path, step: int = FINAL_STEP) -> list[np.ndarray]:
    """All leaves of a checkpoint, of however many devices: weights, momentum and so on."""
    path = str(workdir / "checkpoints" / str(step))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        dict(ocp.checkpointables_metadata(path).metadata),
    )
    items = ocp.load_checkpointables(path, like)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(items)]


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """Of the checkpoints that are there."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdecimal())


def assert_same_run(
    workdir: pathlib.Path, expected: pathlib.Path, step: int = FINAL_STEP
) -> None:
    """Same final state bit for bit, and same `metrics.jsonl` but for timings."""
    assert rows_without_timings(workdir) == rows_without_timings(expected)
    states = saved_leaves(workdir, step), saved_leaves(expected, step)
    for ours, theirs in zip(*states, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def copy_run(
    run: pathlib.Path, target: pathlib.Path, *, newest: int = FINAL_STEP
) -> pathlib.Path:
    """A copy of a run, as if nothing had been saved after step `newest`."""
    shutil.copytree(run, target)
    for step in saved_steps(target):
        if step > newest:
            shutil.rmtree(target / "checkpoints" / str(step))
    return target


def restore_state(workdir: pathlib.Path, step: int):
    """State and description of a checkpoint, on one device."""
    with Workdir(workdir) as directory, Checkpoints(directory.checkpoints) as checkpoints:
        devices = jax.local_devices()[:1]
        experiment = create_experiment(Config.of_run(directory.read_config()), devices)
        state_like = jax.eval_shape(experiment.create_state)
        return checkpoints.restore(step, state_like, devices), checkpoints.describe(step)


def save_state(workdir: pathlib.Path, state, description, metrics=None) -> None:
    """Saves a checkpoint as the run does after an evaluation that gave `metrics`."""
    with Workdir(workdir) as directory, Checkpoints(directory.checkpoints) as checkpoints:
        checkpoints.save(state, description=description, metrics=metrics)


def last_line(err: str) -> str:
    """The line that says why a run ended; there must be no traceback."""
    assert "Traceback" not in err, err
    return err.splitlines()[-1]


def read_json(path: pathlib.Path) -> dict:
    """A JSON file."""
    return json.loads(path.read_text())
