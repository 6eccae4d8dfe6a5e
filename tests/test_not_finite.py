"""Numbers that run away: named at once, and nothing that is not finite is saved."""

import pathlib

import jax
import numpy as np
import PIL.Image
import pytest
from helpers.processes import last_line, run
from helpers.tiny_run import (
    SEED,
    copy_run,
    restore_state,
    rows_without_timings,
    save_state,
    saved_steps,
    train_tiny,
)

from googlenet_flax.data.folder import load_folder
from googlenet_flax.data.picture_options import PictureOptions
from googlenet_flax.data.sampler import TrainingOrder
from googlenet_flax.runs.checkpoint import Checkpoints

SIZE = 16
# Black stays 0 and white becomes infinite, for want of pictures that hold a NaN.
POISON = [
    "--config.dataset=folder",
    f"--config.storage_size={SIZE}",
    "--config.train_split=train",
    "--config.eval_split=test",
    "--config.input_scale=255",
    "--config.input_std=(1e-36, 1e-36, 1e-36)",
]


def write_pictures(root: pathlib.Path) -> None:
    """40 black pictures to train on and 10 to evaluate on, of two classes."""
    black = PIL.Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8))
    for split, count in (("train", 20), ("test", 5)):
        for name in ("ant", "bee"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                black.save(folder / f"{number:02}.png")


def poison(path: str) -> None:
    PIL.Image.fromarray(np.full((SIZE, SIZE, 3), 255, np.uint8)).save(path)


def path_seen_first_at(step: int, root: pathlib.Path) -> str:
    """Of a picture in the batch of that step and, in this epoch, in no other."""
    train = load_folder("train", str(root), PictureOptions(SIZE))
    order = TrainingOrder(SEED, 0, step, num_examples=len(train), batch_size=8)
    return train.pictures.paths[order[step - 1][3]]


@pytest.mark.parametrize(
    ("every", "saved"),
    [((1, 2), [2]), ((1, 0), []), ((5, 0), []), ((100, 1), [1, 2]), ((100, 2), [2])],
)
@pytest.mark.faults
def test_a_poisoned_batch(compilation_cache, tmp_path, every, saved):
    log_every_steps, checkpoint_every_steps = every
    write_pictures(tmp_path)
    poison(path_seen_first_at(3, tmp_path))
    flags = [
        *POISON,
        f"--config.data_dir={tmp_path}",
        f"--config.log_every_steps={log_every_steps}",
        f"--config.checkpoint_every_steps={checkpoint_every_steps}",
    ]
    workdir = tmp_path / "run"
    code, _, err = train_tiny(workdir, *flags, env=compilation_cache)
    assert code == 4, err
    line = last_line(err)
    assert "loss is nan" in line and "at step 3:" in line
    assert all(row["step"] < 3 for row in rows_without_timings(workdir))
    assert saved_steps(workdir) == saved


@pytest.mark.faults
def test_a_poisoned_evaluation(compilation_cache, tmp_path):
    """A NaN is no accuracy that could be the best."""
    write_pictures(tmp_path)
    poison(str(tmp_path / "test" / "ant" / "00.png"))
    workdir, flag = tmp_path / "run", f"--config.data_dir={tmp_path}"
    code, _, err = train_tiny(workdir, *POISON, flag, env=compilation_cache)
    assert code == 4, err
    line = last_line(err)
    assert "loss is nan" in line and "at step 5:" in line
    rows = rows_without_timings(workdir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert saved_steps(workdir) == [2, 4]
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        assert checkpoints.best_step is None


@pytest.mark.faults
@pytest.mark.parametrize("log_every_steps", [1, 4])
def test_a_huge_learning_rate(compilation_cache, tmp_path, log_every_steps):
    flags = [
        "--config.variant=seed",
        "--config.learning_rate=1e9",
        f"--config.log_every_steps={log_every_steps}",
        "--config.checkpoint_every_steps=1",
        "--config.num_epochs=20",
    ]
    workdir = tmp_path / "run"
    code, _, err = train_tiny(workdir, *flags, env=compilation_cache)
    assert code == 4, err
    line = last_line(err)
    assert "at step" in line or "after step" in line
    assert "lower --config.learning_rate" in line
    assert saved_steps(workdir) == [1]
    assert_finite(workdir, 1)
    code, _, again = train_tiny(workdir, *flags, env=compilation_cache)
    assert code == 4
    assert last_line(again) == line
    assert saved_steps(workdir) == [1]


def assert_finite(workdir: pathlib.Path, step: int) -> None:
    state, _ = restore_state(workdir, step)
    for leaf in jax.tree.leaves(state):
        assert np.isfinite(leaf).all()


def overflow(workdir: pathlib.Path, step: int, head: str) -> None:
    """Gives a head a bias of finite numbers whose difference is infinite."""
    state, description = restore_state(workdir, step)
    params = jax.device_get(state.params)
    layer = params if head == "main" else params[head]
    bias = np.where(np.arange(10) % 2, 3e38, -3e38).astype(np.float32)
    layer["classifier"]["bias"] = bias
    save_state(workdir, state.replace(params=params), description)


@pytest.mark.parametrize(
    "head",
    [
        "aux_4d",
        pytest.param("aux_4a", marks=pytest.mark.faults),
        pytest.param("main", marks=pytest.mark.faults),
    ],
)
def test_infinity_in_one_head_only(finished_run, compilation_cache, tmp_path, head):
    workdir = copy_run(finished_run[0], tmp_path / "run", newest=8)
    overflow(workdir, 8, head)
    rows = rows_without_timings(workdir)
    code, _, err = train_tiny(workdir, env=compilation_cache)
    assert code == 4, err
    line = last_line(err)
    losses = {f"{name}_loss" for name in ("main", "aux_4a", "aux_4d")}
    assert {name for name in losses if name in line} == {f"{head}_loss"}
    assert f"{head}_loss is inf" in line and "at step 9:" in line
    assert rows_without_timings(workdir) == rows[:9]  # One of them is an evaluation.
    assert saved_steps(workdir) == [6, 8]


@pytest.mark.faults
def test_infinity_that_an_evaluation_finds(finished_run, compilation_cache, tmp_path):
    workdir = copy_run(finished_run[0], tmp_path / "run")
    overflow(workdir, 10, "aux_4a")
    code, _, err = train_tiny(workdir, env=compilation_cache)
    assert code == 4, err  # The evaluation at step 10 is repeated and fails.
    assert "aux_4a_loss is inf" in last_line(err) and "at step 10:" in last_line(err)
    flags = f"--workdir={workdir}", "--checkpoint=8"
    code, _, err = run("evaluate", *flags, env=compilation_cache)
    assert code == 0, err
    assert saved_steps(workdir) == [6, 8, 10]
