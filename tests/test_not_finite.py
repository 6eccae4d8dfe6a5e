"""Losses that are not finite, which are reported at once and never saved."""

import pathlib

import jax
import numpy as np
import PIL.Image
import pytest
from helpers.tiny_run import (
    copy_run,
    evaluate_tiny,
    picture_of_batch,
    restore_state,
    rows_without_timings,
    save_state,
    saved_steps,
    train_badly,
)

from googlenet_flax.runs.checkpoint import Checkpoints

SIZE = 16
# Black stays 0 and white becomes infinite, because pictures cannot hold a NaN.
POISON = [
    "--config.dataset=folder",
    f"--config.storage_size={SIZE}",
    "--config.train_split=train",
    "--config.eval_split=test",
    "--config.input_scale=255",
    "--config.input_std=(1e-36, 1e-36, 1e-36)",
]


def save_picture(value: int, path: pathlib.Path) -> None:
    PIL.Image.fromarray(np.full((SIZE, SIZE, 3), value, np.uint8)).save(path)


@pytest.fixture
def pictures(tmp_path):
    """Writes 40 black pictures to train on and 10 to evaluate on, of two classes."""
    for split, count in (("train", 20), ("test", 5)):
        for name in ("ant", "bee"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                save_picture(0, folder / f"{number:02}.png")
    return tmp_path / "pictures"


def train_on(pictures, workdir, **fields) -> str:
    """Trains; returns the line that says which loss is not finite."""
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    folder = f"--config.data_dir={pictures}"
    return train_badly(workdir, *POISON, folder, *flags, code=4)


@pytest.mark.parametrize(
    ("log_every_steps", "checkpoint_every_steps", "saved"),
    [(1, 2, [2]), (1, 0, []), (5, 0, []), (100, 1, [1, 2]), (100, 2, [2])],
)
@pytest.mark.faults
def test_a_poisoned_batch(
    pictures, tmp_path, log_every_steps, checkpoint_every_steps, saved
):
    save_picture(255, picture_of_batch(pictures, 2, SIZE))
    workdir = tmp_path / "run"
    line = train_on(
        pictures,
        workdir,
        log_every_steps=log_every_steps,
        checkpoint_every_steps=checkpoint_every_steps,
    )
    assert "loss is nan" in line and "at step 3:" in line
    assert all(row["step"] < 3 for row in rows_without_timings(workdir))
    assert saved_steps(workdir) == saved


@pytest.mark.faults
def test_a_poisoned_evaluation(pictures, tmp_path):
    """Checks that an evaluation that is NaN is never the best."""
    save_picture(255, pictures / "test" / "ant" / "00.png")
    workdir = tmp_path / "run"
    line = train_on(pictures, workdir)
    assert "loss is nan" in line and "at step 5:" in line
    rows = rows_without_timings(workdir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert saved_steps(workdir) == [2, 4]
    assert Checkpoints(workdir / "checkpoints").best_step is None


@pytest.mark.faults
@pytest.mark.parametrize("log_every_steps", [1, 4])
def test_a_huge_learning_rate(tmp_path, log_every_steps):
    flags = [
        "--config.variant=seed",
        "--config.learning_rate=1e9",
        f"--config.log_every_steps={log_every_steps}",
        "--config.checkpoint_every_steps=1",
        "--config.num_epochs=20",
    ]
    workdir = tmp_path / "run"
    lines = set()
    for _ in range(2):  # The run ends in the same way when it is started again.
        lines.add(train_badly(workdir, *flags, code=4))
        assert saved_steps(workdir) == [1]
    (line,) = lines
    assert "at step" in line or "after step" in line
    assert "lower --config.learning_rate" in line
    state, _ = restore_state(workdir, 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def overflow(workdir: pathlib.Path, step: int, head: str) -> None:
    """Sets a head's bias to finite numbers whose difference is infinite."""
    state, description = restore_state(workdir, step)
    params = jax.device_get(state.params)
    layer = params if head == "main" else params[head]
    bias = np.where(np.arange(10) % 2, 3e38, -3e38).astype(np.float32)
    layer["classifier"]["bias"] = bias
    save_state(workdir, state.replace(params=params), description)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param("aux_4d", marks=pytest.mark.ci),
        pytest.param("aux_4a", marks=pytest.mark.faults),
        pytest.param("main", marks=pytest.mark.faults),
    ],
)
def test_infinity_in_one_head_only(finished_run, tmp_path, head):
    workdir = copy_run(finished_run[0], tmp_path / "run", newest=8)
    overflow(workdir, 8, head)
    rows = rows_without_timings(workdir)
    line = train_badly(workdir, code=4)
    losses = {f"{name}_loss" for name in ("main", "aux_4a", "aux_4d")}
    assert {name for name in losses if name in line} == {f"{head}_loss"}
    assert f"{head}_loss is inf" in line and "at step 9:" in line
    assert rows_without_timings(workdir) == rows[:9]  # One of them is an evaluation.
    assert saved_steps(workdir) == [6, 8]


@pytest.mark.faults
def test_infinity_that_an_evaluation_finds(finished_run, tmp_path):
    workdir = copy_run(finished_run[0], tmp_path / "run")
    overflow(workdir, 10, "aux_4a")
    line = train_badly(workdir, code=4)  # The evaluation at step 10 is repeated and fails.
    assert "aux_4a_loss is inf" in line and "at step 10:" in line
    evaluate_tiny(workdir, "--checkpoint=8")
    assert saved_steps(workdir) == [6, 8, 10]
