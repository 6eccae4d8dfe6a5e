"""Checkpoints that are not what was saved: named, kept, and never used."""

import math
import os
import pathlib
import pickle
import random
import shutil

import jax
import numpy as np
import pytest
from helpers.processes import last_line, run
from helpers.tiny_run import (
    FINAL_STEP,
    assert_same_run,
    copy_run,
    read_json,
    restore_state,
    save_state,
    saved_steps,
    tiny_flags,
    train_tiny,
)

from googlenet_flax import evaluate, main
from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.train import train_and_evaluate


def files_in(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


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


def truncate(item: pathlib.Path, share: float = 0.5) -> None:
    path = largest_file(item)
    os.truncate(path, int(path.stat().st_size * share))


def change_the_label(step: pathlib.Path) -> None:
    path = step / "_CHECKPOINT_METADATA"
    text = path.read_text()
    assert "float32[10]" in text
    path.write_text(text.replace("float32[10]", "float32[11]", 1))


def take_another_steps_weights(step: pathlib.Path) -> None:
    shutil.rmtree(step / "variables")
    shutil.copytree(step.parent / "6" / "variables", step / "variables")


def empty_the_folder(step: pathlib.Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def put_a_file_there(step: pathlib.Path) -> None:
    shutil.rmtree(step)
    step.write_text("not a checkpoint")


DAMAGES = {
    "flipped bit": lambda step: flip_bit_in(step / "progress"),
    "truncated file": lambda step: truncate(step / "variables"),
    "empty file": lambda step: truncate(step / "progress", 0),
    "lost file": lambda step: largest_file(step / "variables").unlink(),
    "lost item": lambda step: shutil.rmtree(step / "progress"),
    "lost label": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
    "changed label": change_the_label,
    "another step's weights": take_another_steps_weights,
    "empty folder": empty_the_folder,
    "file": put_a_file_there,
}


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_is_named_kept_and_trained_again(
    finished_run, compilation_cache, tmp_path, damage
):
    workdir = copy_run(finished_run[0], tmp_path / "run")
    checkpoints = workdir / "checkpoints"
    for step in ("8", "10"):
        DAMAGES[damage](checkpoints / step)
    contents = files_in(checkpoints)
    code, out, err = train_tiny(workdir, env=compilation_cache)
    assert code == 0, err
    assert "resuming after step 6" in out
    last_line(err)
    (line,) = [line for line in err.splitlines() if "damaged" in line]
    assert "8: " in line and "10: " in line
    assert "8.damaged" in line and "10.damaged" in line
    assert_same_run(workdir, finished_run[0])
    assert saved_steps(workdir) == [6, 8, FINAL_STEP]
    after = files_in(checkpoints)
    for name, data in contents.items():
        step, slash, rest = name.partition("/")
        aside = name if step == "6" else f"{step}.damaged{slash}{rest}"
        assert after[aside] == data


def test_a_flipped_bit_among_other_litter(finished_run, tmp_path):
    """The newest step is unsound, and what is no checkpoint does not count."""
    workdir = copy_run(finished_run[0], tmp_path / "run")
    folder = workdir / "checkpoints"
    flip_bit_in(folder / "10" / "variables")
    (folder / "999").mkdir()
    (folder / "1000").write_text("a file named like a step")
    (folder / "garbage.bin").write_bytes(random.Random(0).randbytes(1000))
    stale = folder / "12.orbax-checkpoint-tmp-3"
    shutil.copytree(folder / "8", stale)
    (folder / "008").mkdir()
    before = files_in(folder)
    expected, _ = restore_state(workdir, 8)
    with Checkpoints(folder) as checkpoints:
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), expected)
        state = checkpoints.restore_newest(like, jax.local_devices()[:1])
        strays, named = checkpoints.strays, checkpoints.name_damaged()
        aside = {path.name for path in checkpoints.set_damaged_aside()}
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert set(strays) == {"008", "garbage.bin", stale.name}
    assert all(f"{step}: " in named for step in ("10", "999", "1000"))
    assert aside == {"10.damaged", "999.damaged", "1000.damaged"}
    there = {path.name for path in folder.iterdir()}
    assert there == {"6", "8", "008", "garbage.bin", stale.name} | aside
    after = files_in(folder)
    for name, data in before.items():
        step, slash, rest = name.partition("/")
        kept = f"{step}.damaged{slash}{rest}" if step in ("10", "1000") else name
        assert after[kept] == data


def names_of_files(finished: pathlib.Path, step: int) -> list[str]:
    return list(files_in(finished / "checkpoints" / str(step)))


# An item's files, by what their names begin with; the rest of some is random.
FILES = [
    "_CHECKPOINT_METADATA",
    "commit_success.txt",
    *[
        f"{item}/{name}"
        for item in ("variables", "progress")
        for name in (
            "_METADATA",
            "_sharding",
            "array_metadatas/process_0",
            "commit_success.txt",
            "manifest.ocdbt",
            "d/",
            "ocdbt.process_0/manifest.ocdbt",
            "ocdbt.process_0/d/",
        )
    ],
]
FLIPS = [
    *[(name, 0) for name in FILES],
    *[(name, seed) for name in FILES if name.endswith("/d/") for seed in range(1, 5)],
]


@pytest.mark.faults
@pytest.mark.parametrize(("name", "seed"), FLIPS)
def test_a_flipped_bit_anywhere_changes_no_result(
    finished_run, compilation_cache, tmp_path, name, seed
):
    """Either it is found, or it is one that nothing reads."""
    workdir = copy_run(finished_run[0], tmp_path / "run", newest=8)
    newest = workdir / "checkpoints" / "8"
    paths = [newest / path for path in names_of_files(workdir, 8) if path.startswith(name)]
    assert paths, f"the layout has changed: there is no {name}"
    chooser = random.Random(f"{name} {seed}")
    path = chooser.choice(paths)
    flip_bit(path, chooser.randrange(path.stat().st_size * 8))
    code, out, err = train_tiny(workdir, env=compilation_cache)
    assert code == 0, err
    last_line(err)
    found = (workdir / "checkpoints" / "8.damaged").exists()
    assert f"resuming after step {6 if found else 8}" in out
    assert ("damaged checkpoints in" in err) == found
    assert_same_run(workdir, finished_run[0])


@pytest.fixture
def ruined_run(finished_run, tmp_path):
    """No checkpoint of it can be read, each for another reason."""
    workdir = copy_run(finished_run[0], tmp_path / "run")
    damages = {"6": "truncated file", "8": "lost label", "10": "lost file"}
    for step, damage in damages.items():
        DAMAGES[damage](workdir / "checkpoints" / step)
    return workdir


def test_a_run_without_a_sound_checkpoint_is_not_started_over(ruined_run, run_command):
    before = files_in(ruined_run)
    code, _, err = run_command(main, *tiny_flags(ruined_run))
    assert code == 2
    line = last_line(err)
    for part in ("6: ", "8: ", "10: ", "--config.restart=True"):
        assert part in line
    after = files_in(ruined_run)
    assert before.pop(".lock") != after.pop(".lock")
    assert after == before


def test_a_run_without_its_config_is_refused_and_left_alone(finished_run, tmp_path):
    workdir = copy_run(finished_run[0], tmp_path / "run")
    config = Workdir(workdir).read_config()
    (workdir / "config.json").unlink()
    before = files_in(workdir)
    message = "config.json is missing, but the checkpoints of the run are there"
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config, workdir)
    with pytest.raises(UserError, match=message):
        Predictor.load(Workdir(workdir), "best", jax.devices())
    after = files_in(workdir)
    assert before.pop(".lock") != after.pop(".lock")
    assert after == before


@pytest.mark.faults
def test_restart_starts_over_and_keeps_the_ruins(
    ruined_run, finished_run, compilation_cache
):
    before = files_in(ruined_run / "checkpoints")
    code, out, err = train_tiny(ruined_run, "--config.restart=True", env=compilation_cache)
    assert code == 0, err
    assert "from scratch" in out
    assert_same_run(ruined_run, finished_run[0])
    after = files_in(ruined_run / "checkpoints")
    for name, data in before.items():
        step, _, rest = name.partition("/")
        assert after[f"{step}.damaged/{rest}"] == data
    code, out, err = train_tiny(ruined_run, env=compilation_cache)
    assert code == 0, err
    assert "finished before" in out and "left alone" in err


@pytest.mark.faults
def test_restart_changes_nothing_where_a_sound_one_is(
    finished_run, compilation_cache, tmp_path
):
    workdir = copy_run(finished_run[0], tmp_path / "run", newest=8)
    code, out, err = train_tiny(workdir, "--config.restart=True", env=compilation_cache)
    assert code == 0, err
    assert "resuming after step 8" in out
    assert_same_run(workdir, finished_run[0])


@pytest.mark.faults
def test_a_second_damage_of_the_same_step_is_kept_beside_the_first(
    finished_run, compilation_cache, tmp_path
):
    workdir = copy_run(finished_run[0], tmp_path / "run")
    for aside in ("10.damaged", "10.damaged-2"):
        truncate(workdir / "checkpoints" / "10" / "variables")
        code, _, err = train_tiny(workdir, env=compilation_cache)
        assert code == 0, err
        assert aside in err
    assert (workdir / "checkpoints" / "10.damaged").is_dir()
    assert (workdir / "checkpoints" / "10.damaged-2").is_dir()
    assert_same_run(workdir, finished_run[0])


@pytest.mark.parametrize("name", ["best", "latest", "10"])
def test_evaluate_refuses_a_damaged_checkpoint(finished_run, run_command, tmp_path, name):
    workdir = copy_run(finished_run[0], tmp_path / "run")
    flip_bit_in(workdir / "checkpoints" / "10" / "variables")
    before = files_in(workdir)
    flags = f"--workdir={workdir}", f"--checkpoint={name}"
    code, out, err = run_command(evaluate, *flags)
    assert code == 2 and not out
    line = last_line(err)
    assert "checkpoint 10" in line and "damaged" in line and "changed" in line
    assert files_in(workdir) == before


def test_a_damaged_momentum_is_no_matter_to_evaluate(finished_run, tmp_path):
    workdir = copy_run(finished_run[0], tmp_path / "run")
    flip_bit_in(workdir / "checkpoints" / "10" / "progress")
    predictor = Predictor.load(Workdir(workdir), "latest", jax.devices())
    assert jax.tree.leaves(predictor.variables)


def test_another_networks_checkpoint_is_compared_leaf_by_leaf(
    finished_run, run_command, tmp_path
):
    workdir = copy_run(finished_run[0], tmp_path / "run")
    config = read_json(workdir / "config.json")
    with Workdir(workdir) as directory:
        directory.write_config({**config, "width_multiplier": 0.2})
    flag = "--config.width_multiplier=0.2"
    code, _, err = run_command(main, *tiny_flags(workdir), flag)
    assert code == 2
    (line,) = err.splitlines()
    assert "checkpoint 10 does not fit this network" in line
    assert "there and float32[" in line and "width_multiplier" in line
    assert saved_steps(workdir) == [6, 8, 10]


def save_again(workdir: pathlib.Path, step: int, accuracy: float) -> None:
    """Saves the newest step as if its evaluation had given this accuracy."""
    save_state(workdir, *restore_state(workdir, step), {"accuracy": accuracy})


@pytest.mark.faults
def test_worse_evaluations_never_evict_the_newest(
    finished_run, compilation_cache, tmp_path
):
    workdir = copy_run(finished_run[0], tmp_path / "run", newest=6)
    save_again(workdir, 6, 1.0)
    code, out, err = train_tiny(workdir, "--config.num_epochs=4", env=compilation_cache)
    assert code == 0, err
    assert "best step 6" in out
    assert saved_steps(workdir) == [6, 16, 18, 20]


@pytest.mark.faults
def test_a_nan_is_never_the_best(finished_run, compilation_cache, tmp_path):
    workdir = copy_run(finished_run[0], tmp_path / "run", newest=6)
    save_again(workdir, 6, 0.01)
    newest = pathlib.Path("checkpoints", "8")
    shutil.copytree(finished_run[0] / newest, workdir / newest)
    save_again(workdir, 8, math.nan)
    flags = f"--workdir={workdir}", "--checkpoint=best", "--json"
    code, out, err = run("evaluate", *flags, env=compilation_cache)
    assert code == 0, err
    assert '"step": 6' in out
    code, out, err = train_tiny(workdir, env=compilation_cache)
    assert code == 0, err
    assert "best step 10" in out
    assert saved_steps(workdir) == [6, 8, 10]


class CreatesFile:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.faults
def test_a_checkpoint_full_of_pickles_runs_no_code(
    finished_run, compilation_cache, tmp_path
):
    workdir = copy_run(finished_run[0], tmp_path / "run")
    data = pickle.dumps(CreatesFile(tmp_path / "created"))
    pickle.loads(data)
    (tmp_path / "created").unlink()
    for name in names_of_files(workdir, 10):
        (workdir / "checkpoints" / "10" / name).write_bytes(data)
    for name in names_of_files(workdir, 8):
        if name != "_CHECKPOINT_METADATA":  # So that the rest is looked at.
            (workdir / "checkpoints" / "8" / name).write_bytes(data)
    code, out, err = train_tiny(workdir, env=compilation_cache)
    assert code == 0, err
    assert "resuming after step 6" in out
    assert not (tmp_path / "created").exists()
    assert_same_run(workdir, finished_run[0])
