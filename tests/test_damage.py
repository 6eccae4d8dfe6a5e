"""Damaged checkpoints, which are named, kept and never used."""

import os
import pathlib
import pickle
import random
import shutil

import jax
import numpy as np
import pytest
from helpers.pickles import CreatesFile
from helpers.processes import last_line
from helpers.tiny_run import (
    FINAL_STEP,
    copy_run,
    read_json,
    restore_state,
    saved_steps,
    tiny_flags,
    train_well,
)

from googlenet_flax import evaluate, main
from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.train import train_and_evaluate

pytestmark = pytest.mark.usefixtures("small_inceptions")


@pytest.fixture
def run_copy(finished_run, tmp_path):
    """Copies the finished run for a test that damages it."""
    return copy_run(finished_run[0], tmp_path / "run")


def files_in(folder: pathlib.Path) -> dict[str, bytes]:
    """Reads all files except the lock, which names the latest process."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def assert_kept(before: dict[str, bytes], after: dict[str, bytes], renamed) -> None:
    """Checks that all files are unchanged and that those of `renamed` are set aside."""
    for name, data in before.items():
        step, slash, rest = name.partition("/")
        kept = f"{step}.damaged{slash}{rest}" if step in renamed else name
        assert after[kept] == data


def flip_bit(path: pathlib.Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position // 8] ^= 1 << position % 8
    path.write_bytes(data)


def largest_file(folder: pathlib.Path) -> pathlib.Path:
    """Returns the file that holds the numbers."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip_bit_in(item: pathlib.Path) -> None:
    path = largest_file(item)
    flip_bit(path, path.stat().st_size * 4)


def change_the_label(step: pathlib.Path) -> None:
    path = step / "_CHECKPOINT_METADATA"
    text = path.read_text()
    assert "float32[10]" in text
    path.write_text(text.replace("float32[10]", "float32[11]", 1))


def take_another_steps_weights(step: pathlib.Path) -> None:
    shutil.rmtree(step / "variables")
    shutil.copytree(step.parent / "6" / "variables", step / "variables")


def put_a_file_there(step: pathlib.Path) -> None:
    shutil.rmtree(step)
    step.write_text("not a checkpoint")


DAMAGES = {
    "flipped bit": lambda step: flip_bit_in(step / "progress"),
    "truncated file": lambda step: os.truncate(largest_file(step / "variables"), 1000),
    "empty file": lambda step: os.truncate(largest_file(step / "progress"), 0),
    "lost file": lambda step: largest_file(step / "variables").unlink(),
    "lost item": lambda step: shutil.rmtree(step / "progress"),
    "lost label": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
    "changed label": change_the_label,
    "another step's weights": take_another_steps_weights,
    "file": put_a_file_there,
}


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_is_named_kept_and_trained_again(finished_run, run_copy, damage):
    checkpoints = run_copy / "checkpoints"
    for step in ("8", "10"):
        DAMAGES[damage](checkpoints / step)
    before = files_in(checkpoints)
    out, err = train_well(run_copy, expected=finished_run[0])
    assert "resuming after step 6" in out
    last_line(err)
    (line,) = [line for line in err.splitlines() if "damaged" in line]
    assert all(part in line for part in ("8: ", "10: ", "8.damaged", "10.damaged"))
    assert saved_steps(run_copy) == [6, 8, FINAL_STEP]
    assert_kept(before, files_in(checkpoints), renamed={"8", "10"})


@pytest.mark.ci
def test_a_flipped_bit_among_other_litter(run_copy):
    """Checks that the newest intact step is restored and all other files stay."""
    folder = run_copy / "checkpoints"
    flip_bit_in(folder / "10" / "variables")
    (folder / "999").mkdir()
    (folder / "999.damaged").mkdir()  # An older damage of this step.
    (folder / "1000").write_text("a file named like a step")
    (folder / "garbage.bin").write_bytes(random.Random(0).randbytes(1000))
    stale = folder / "12.orbax-checkpoint-tmp-3"
    shutil.copytree(folder / "8", stale)
    (folder / "008").mkdir()
    others = {"008", "garbage.bin", "999.damaged", stale.name}
    before = files_in(folder)
    expected, _ = restore_state(run_copy, 8)
    with Checkpoints(folder) as checkpoints:
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), expected)
        state = checkpoints.restore_newest(like, jax.local_devices()[:1])
        strays, named = checkpoints.strays, checkpoints.describe_damaged()
        aside = {path.name for path in checkpoints.set_damaged_aside()}
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert set(strays) == others
    assert all(f"{step}: " in named for step in ("10", "999", "1000"))
    assert aside == {"10.damaged", "999.damaged-2", "1000.damaged"}
    assert {path.name for path in folder.iterdir()} == {"6", "8"} | others | aside
    assert_kept(before, files_in(folder), renamed={"10", "1000"})


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(24))
def test_a_flipped_bit_anywhere_changes_no_result(finished_run, tmp_path, seed):
    """Checks that a flipped bit is found, unless nothing reads that bit."""
    workdir = copy_run(finished_run[0], tmp_path / "run", newest=8)
    chooser = random.Random(seed)
    newest = workdir / "checkpoints" / "8"
    full = [name for name, content in files_in(newest).items() if content]
    path = newest / chooser.choice(full)  # Orbax's marker file is empty.
    flip_bit(path, chooser.randrange(path.stat().st_size * 8))
    out, err = train_well(workdir, expected=finished_run[0])
    last_line(err)
    found = (workdir / "checkpoints" / "8.damaged").exists()
    assert f"resuming after step {6 if found else 8}" in out
    assert ("damaged checkpoints in" in err) == found


@pytest.fixture
def ruined_run(run_copy):
    """Returns a run in which each checkpoint is unreadable for another reason."""
    damages = {"6": "truncated file", "8": "lost label", "10": "lost file"}
    for step, damage in damages.items():
        DAMAGES[damage](run_copy / "checkpoints" / step)
    return run_copy


def test_a_run_without_a_sound_checkpoint_is_not_started_over(ruined_run, refused):
    before = files_in(ruined_run)
    line = refused(main, *tiny_flags(ruined_run))
    assert all(part in line for part in ("6: ", "8: ", "10: ", "--config.restart=True"))
    assert files_in(ruined_run) == before


@pytest.mark.faults
def test_restart_starts_over_and_keeps_the_ruins(ruined_run, finished_run):
    before = files_in(ruined_run / "checkpoints")
    flag = "--config.restart=True"
    out, _ = train_well(ruined_run, flag, expected=finished_run[0])
    assert "from scratch" in out
    assert_kept(before, files_in(ruined_run / "checkpoints"), renamed={"6", "8", "10"})
    out, err = train_well(ruined_run, flag)  # It does not start over.
    assert "finished before" in out and "ignored files" in err


def test_a_run_without_its_config_is_refused_and_left_alone(run_copy):
    config = Workdir(run_copy).read_config()
    (run_copy / "config.json").unlink()
    before = files_in(run_copy)
    message = "config.json is missing, but the checkpoints of the run are there"
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config, run_copy)
    with pytest.raises(UserError, match=message):
        Predictor.load(Workdir(run_copy), "best", jax.devices())
    assert files_in(run_copy) == before


def test_evaluate_refuses_a_damaged_checkpoint(run_copy, refused):
    flip_bit_in(run_copy / "checkpoints" / "10" / "variables")
    before = files_in(run_copy)
    line = refused(evaluate, f"--workdir={run_copy}")
    assert "checkpoint 10" in line and "damaged" in line and "changed" in line
    assert files_in(run_copy) == before


def test_a_damaged_momentum_is_no_matter_to_evaluate(run_copy):
    flip_bit_in(run_copy / "checkpoints" / "10" / "progress")
    predictor = Predictor.load(Workdir(run_copy), "latest", jax.devices())
    assert jax.tree.leaves(predictor.variables)


def test_another_networks_checkpoint_is_compared_leaf_by_leaf(run_copy, refused):
    config = read_json(run_copy / "config.json")
    Workdir(run_copy).write_config({**config, "width_multiplier": 0.2})
    line = refused(main, *tiny_flags(run_copy), "--config.width_multiplier=0.2")
    assert "checkpoint 10 does not fit this network" in line
    assert "there and float32[" in line and "width_multiplier" in line
    assert saved_steps(run_copy) == [6, 8, 10]


@pytest.mark.faults
def test_a_checkpoint_full_of_pickles_runs_no_code(finished_run, run_copy, tmp_path):
    data = pickle.dumps(CreatesFile(tmp_path / "created"))
    pickle.loads(data)
    (tmp_path / "created").unlink()
    for step in ("8", "10"):
        for path in (run_copy / "checkpoints" / step).rglob("*"):
            # The label of step 8 stays, so that the other files are checked.
            if path.is_file() and (step, path.name) != ("8", "_CHECKPOINT_METADATA"):
                path.write_bytes(data)
    out, _ = train_well(run_copy, expected=finished_run[0])
    assert "resuming after step 6" in out
    assert not (tmp_path / "created").exists()
