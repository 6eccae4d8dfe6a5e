"""Checkpoints that are not what was saved: named, kept, and never used."""

import math
import os
import pathlib
import pickle
import random
import shutil

import jax
import pytest
from tiny_run import (
    FINAL_STEP,
    assert_same_run,
    copy_run,
    last_line,
    read_json,
    run,
    saved_steps,
    train_tiny,
)

from googlenet_flax.config import Config
from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.train import train_and_evaluate
from googlenet_flax.training.experiment import create_experiment


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
    """Where the numbers are."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip_bit_in_the_weights(step: pathlib.Path) -> None:
    path = largest_file(step / "variables")
    flip_bit(path, path.stat().st_size * 4)


def flip_bit_in_the_momentum(step: pathlib.Path) -> None:
    path = largest_file(step / "progress")
    flip_bit(path, path.stat().st_size * 4)


def truncate(step: pathlib.Path) -> None:
    path = largest_file(step / "variables")
    os.truncate(path, path.stat().st_size // 2)


def empty_a_file(step: pathlib.Path) -> None:
    os.truncate(largest_file(step / "progress"), 0)


def lose_a_file(step: pathlib.Path) -> None:
    largest_file(step / "variables").unlink()


def lose_an_item(step: pathlib.Path) -> None:
    shutil.rmtree(step / "progress")


def lose_the_label(step: pathlib.Path) -> None:
    (step / "_CHECKPOINT_METADATA").unlink()


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


DAMAGES = [
    flip_bit_in_the_momentum,
    truncate,
    empty_a_file,
    lose_a_file,
    lose_an_item,
    lose_the_label,
    change_the_label,
    take_another_steps_weights,
    empty_the_folder,
    put_a_file_there,
]


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_step_is_named_kept_and_trained_again(
    finished_run, compilation_cache, tmp_path, damage
):
    workdir = copy_run(finished_run[0], tmp_path / "run")
    checkpoints = workdir / "checkpoints"
    for step in ("8", "10"):
        damage(checkpoints / step)
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


def test_a_flipped_bit_among_other_litter(finished_run, compilation_cache, tmp_path):
    """The newest step is unsound, and nothing that is no checkpoint counts."""
    workdir = copy_run(finished_run[0], tmp_path / "run")
    checkpoints = workdir / "checkpoints"
    flip_bit_in_the_weights(checkpoints / "10")
    (checkpoints / "999").mkdir()
    (checkpoints / "1000").write_text("a file named like a step")
    (checkpoints / "garbage.bin").write_bytes(random.Random(0).randbytes(1000))
    stale = checkpoints / "12.orbax-checkpoint-tmp-3"
    shutil.copytree(checkpoints / "8", stale)
    (checkpoints / "008").mkdir()
    litter = {
        name: data
        for name, data in files_in(checkpoints).items()
        if not name.startswith(("6/", "8/"))
    }
    code, out, err = train_tiny(workdir, env=compilation_cache)
    assert code == 0, err
    assert "resuming after step 8" in out
    last_line(err)
    left, damaged = err.splitlines()[:2]
    for name in ("008", "garbage.bin", stale.name):
        assert name in left
    for step in ("10", "999", "1000"):
        assert f"{step}: " in damaged and f"{step}.damaged" in damaged
    assert_same_run(workdir, finished_run[0])
    there = {path.name for path in checkpoints.iterdir()}
    aside = {"10.damaged", "999.damaged", "1000.damaged"}
    assert there == {"6", "8", "10", "008", "garbage.bin", stale.name} | aside
    after = files_in(checkpoints)
    for name, data in litter.items():
        step, slash, rest = name.partition("/")
        aside = f"{step}.damaged{slash}{rest}" if step in ("10", "1000") else name
        assert after[aside] == data


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
    damages = {"6": truncate, "8": lose_the_label, "10": lose_a_file}
    for step, damage in damages.items():
        damage(workdir / "checkpoints" / step)
    return workdir


def test_a_run_without_a_sound_checkpoint_is_not_started_over(
    ruined_run, compilation_cache
):
    before = files_in(ruined_run)
    code, _, err = train_tiny(ruined_run, env=compilation_cache)
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
        truncate(workdir / "checkpoints" / "10")
        code, _, err = train_tiny(workdir, env=compilation_cache)
        assert code == 0, err
        assert aside in err
    assert (workdir / "checkpoints" / "10.damaged").is_dir()
    assert (workdir / "checkpoints" / "10.damaged-2").is_dir()
    assert_same_run(workdir, finished_run[0])


@pytest.mark.parametrize(
    "name",
    [
        "best",
        pytest.param("latest", marks=pytest.mark.faults),
        pytest.param("10", marks=pytest.mark.faults),
    ],
)
@pytest.mark.faults
def test_evaluate_refuses_a_damaged_checkpoint(
    finished_run, compilation_cache, tmp_path, name
):
    workdir = copy_run(finished_run[0], tmp_path / "run")
    flip_bit_in_the_weights(workdir / "checkpoints" / "10")
    before = files_in(workdir)
    flags = f"--workdir={workdir}", f"--checkpoint={name}"
    code, out, err = run("evaluate", *flags, env=compilation_cache)
    assert code == 2 and not out
    line = last_line(err)
    assert "checkpoint 10" in line and "damaged" in line and "changed" in line
    assert files_in(workdir) == before


@pytest.mark.faults
def test_a_damaged_momentum_is_no_matter_to_evaluate(
    finished_run, compilation_cache, tmp_path
):
    workdir = copy_run(finished_run[0], tmp_path / "run")
    flip_bit_in_the_momentum(workdir / "checkpoints" / "10")
    code, _, err = run("evaluate", f"--workdir={workdir}", env=compilation_cache)
    assert code == 0, err


@pytest.mark.faults
def test_another_networks_checkpoint_is_compared_leaf_by_leaf(
    finished_run, compilation_cache, tmp_path
):
    workdir = copy_run(finished_run[0], tmp_path / "run")
    config = read_json(workdir / "config.json")
    with Workdir(workdir) as directory:
        directory.write_config({**config, "width_multiplier": 0.2})
    flag = "--config.width_multiplier=0.2"
    code, _, err = train_tiny(workdir, flag, env=compilation_cache)
    assert code == 2
    line = last_line(err)
    assert "checkpoint 10 does not fit this network" in line
    assert "there and float32[" in line and "width_multiplier" in line
    assert len(err.splitlines()) == 1
    assert saved_steps(workdir) == [6, 8, 10]


def save_again(workdir: pathlib.Path, step: int, metrics: dict[str, float]) -> None:
    """As if the evaluation at `step`, the newest, had said `metrics`."""
    with Workdir(workdir) as directory, Checkpoints(directory.checkpoints) as checkpoints:
        devices = jax.local_devices()[:1]
        experiment = create_experiment(Config.of_run(directory.read_config()), devices)
        state_like = jax.eval_shape(experiment.create_state)
        state = checkpoints.restore(step, state_like, devices)
        description = checkpoints.describe(step)
        checkpoints.save(state, description=description, metrics=metrics)


@pytest.mark.faults
def test_worse_evaluations_never_evict_the_newest(
    finished_run, compilation_cache, tmp_path
):
    workdir = copy_run(finished_run[0], tmp_path / "run", newest=6)
    save_again(workdir, 6, {"accuracy": 1.0})
    code, out, err = train_tiny(workdir, "--config.num_epochs=4", env=compilation_cache)
    assert code == 0, err
    assert "best step 6" in out
    assert saved_steps(workdir) == [6, 16, 18, 20]


@pytest.mark.faults
def test_a_nan_is_never_the_best(finished_run, compilation_cache, tmp_path):
    workdir = copy_run(finished_run[0], tmp_path / "run", newest=6)
    save_again(workdir, 6, {"accuracy": 0.01})
    newest = pathlib.Path("checkpoints", "8")
    shutil.copytree(finished_run[0] / newest, workdir / newest)
    save_again(workdir, 8, {"accuracy": math.nan})
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
