"""Real runs of a tiny network, and readers of their files.

The network has three narrow blocks instead of nine, so that it compiles in seconds; a test
that continues such a run in its own process needs the fixture `small_inceptions`.
"""

import json
import pathlib
import shutil
import subprocess
from unittest import mock

import jax
import numpy as np
from helpers.networks import SMALL_INCEPTIONS
from helpers.paths import DIGITS
from helpers.processes import XLA_FLAGS, finish, finish_well, last_line, start
from orbax.checkpoint import v1 as ocp

from googlenet_flax.config import Config
from googlenet_flax.data.folder import load_folder
from googlenet_flax.data.image_set import PictureOptions
from googlenet_flax.data.sampler import TrainingOrder
from googlenet_flax.model import googlenet
from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runs.metrics import read_rows
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.training.experiment import create_experiment

BATCH_SIZE = 8
SEED = 1  # With this seed the last evaluation is the best one, on every JAX tested.
TINY_RUN = [
    "--config.width_multiplier=0.1",
    "--config.train_split=train[:40]",
    "--config.eval_split=test[:20]",
    f"--config.batch_size={BATCH_SIZE}",
    "--config.num_epochs=2",
    "--config.log_every_steps=1",
    "--config.checkpoint_every_steps=2",
    f"--config.seed={SEED}",
]
EPOCH_STEPS = 5
FINAL_STEP = 10
SMALL = """
import sys
sys.path.append("tests")
from helpers.networks import SMALL_INCEPTIONS
from googlenet_flax.model import googlenet
googlenet.INCEPTIONS = SMALL_INCEPTIONS
"""

# Python statements that make a run execute `action` after each report of a step.
AFTER_A_REPORT = """
import os, time
from googlenet_flax.runtime.progress import Progress
report = Progress.report

def report_and_act(self, step, **about):
    report(self, step, **about)
    {action}

Progress.report = report_and_act
"""
# JAX reports a preemption after some seconds, which is longer than tiny steps take.
SLOW_STEPS = AFTER_A_REPORT.format(action="time.sleep(0.5)")


def start_small(command, *args, before="", **options) -> subprocess.Popen:
    """Starts a command in which every network has three blocks; see `start`."""
    return start(command, *args, before=SMALL + before, **options)


def start_tiny(workdir, *more, **options) -> subprocess.Popen:
    """Trains 10 steps, evaluates after 5 and 10, saves at 2, 4, 5, 6, 8 and 10."""
    return start_small("main", *tiny_flags(workdir), *more, **options)


def on_devices(number: int) -> dict[str, str]:
    """Returns the environment of a process with this number of devices."""
    return {"XLA_FLAGS": f"{XLA_FLAGS} --xla_force_host_platform_device_count={number}"}


def tiny_flags(workdir) -> list[str]:
    """Returns the command line of a tiny run."""
    return [f"--config={DIGITS}", f"--workdir={workdir}", *TINY_RUN]


def train_well(workdir, *more, expected=None, **options) -> tuple[str, str]:
    """Runs a tiny run to its end, without an error; returns stdout and stderr.

    Its files must be the same as in `expected`, the workdir of another run.
    """
    out, err = finish_well(start_tiny(workdir, *more, **options))
    if expected is not None:
        assert_same_run(workdir, expected)
    return out, err


def train_badly(workdir, *more, code=2, **options) -> str:
    """Runs a tiny run that ends with an exit code; returns the line of the error."""
    ended, _, err = finish(start_tiny(workdir, *more, **options))
    assert ended == code, err
    return last_line(err)


def evaluate_tiny(workdir, *more, **options) -> str:
    """Evaluates a tiny run in a process; returns stdout."""
    out, _ = finish_well(start_small("evaluate", f"--workdir={workdir}", *more, **options))
    return out


def rows_of(workdir: pathlib.Path, split: str) -> list[dict]:
    """Reads the rows of `metrics.jsonl` of training ("train") or evaluation ("eval")."""
    return [row for row in read_rows(workdir / "metrics.jsonl") if row["split"] == split]


def rows_without_timings(workdir: pathlib.Path) -> list[dict]:
    """Reads `metrics.jsonl` without what differs between two runs of a config."""
    return [
        {name: value for name, value in row.items() if "second" not in name}
        for row in read_rows(workdir / "metrics.jsonl")
    ]


def saved_leaves(workdir: pathlib.Path, step: int = FINAL_STEP) -> list[np.ndarray]:
    """Reads all leaves of a checkpoint, of any number of devices."""
    path = str(workdir / "checkpoints" / str(step))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        dict(ocp.checkpointables_metadata(path).metadata),
    )
    items = ocp.load_checkpointables(path, like)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(items)]


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints that are there."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdecimal())


def assert_same_run(
    workdir: pathlib.Path, expected: pathlib.Path, step: int = FINAL_STEP
) -> None:
    """Compares the final states bit for bit, and `metrics.jsonl` but for timings."""
    assert rows_without_timings(workdir) == rows_without_timings(expected)
    states = saved_leaves(workdir, step), saved_leaves(expected, step)
    for ours, theirs in zip(*states, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def picture_of_batch(root: pathlib.Path, position: int, storage_size: int) -> str:
    """Returns the path of a picture in batch `position`, from 0, of the first epoch.

    The first picture of the split is left out: it is also read before the first step, for
    the shape of a batch.
    """
    train = load_folder("train", str(root), PictureOptions(storage_size))
    order = TrainingOrder(SEED, 0, position + 1, len(train), BATCH_SIZE)
    return train.pictures.paths[next(index for index in order[position] if index)]


def copy_run(
    run: pathlib.Path, target: pathlib.Path, *, newest: int = FINAL_STEP
) -> pathlib.Path:
    """Copies a run, as if nothing had been saved after step `newest`."""
    shutil.copytree(run, target)
    for step in saved_steps(target):
        if step > newest:
            shutil.rmtree(target / "checkpoints" / str(step))
    return target


def restore_state(workdir: pathlib.Path, step: int):
    """Restores state and description of a checkpoint on one device."""
    with Workdir(workdir) as directory, Checkpoints(directory.checkpoints) as checkpoints:
        devices = jax.local_devices()[:1]
        config = Config.of_run(directory.read_config())
        with mock.patch.object(googlenet, "INCEPTIONS", SMALL_INCEPTIONS):
            experiment = create_experiment(config, devices)
            state_like = experiment.state_like
        state = checkpoints.restore(step, state_like, devices)
        return state, checkpoints.manifests[step].description


def save_state(workdir: pathlib.Path, state, description) -> None:
    """Saves a checkpoint as the run does between evaluations."""
    with Workdir(workdir) as directory, Checkpoints(directory.checkpoints) as checkpoints:
        checkpoints.save(state, description=description)


def read_json(path: pathlib.Path) -> dict:
    """Reads a JSON file."""
    return json.loads(path.read_text())
