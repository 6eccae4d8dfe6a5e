"""Configs and data that cannot be trained on, and the errors that they cause."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import pickle
import shutil
import time

import pytest
from helpers.archives import tar_of
from helpers.paths import DIGITS
from helpers.pickles import CreatesFile
from helpers.pictures import png_header, write_pictures
from helpers.processes import last_line
from helpers.servers import cut_network
from helpers.tiny_run import (
    FINAL_STEP,
    copy_run,
    read_json,
    rows_without_timings,
    saved_steps,
    tiny_flags,
    train_badly,
    train_well,
)
from helpers.tiny_sets import TinyColour, TinyGrey, prepare

from googlenet_flax import import_weights, main
from googlenet_flax.data.builders import cifar
from googlenet_flax.importers.formats import FORMATS

NOT_FOUND_SECONDS = 5


@pytest.fixture
def refusal(tmp_path, refused):
    """Starts a run that is refused, and returns the line of the error."""
    workdir = tmp_path / "run"

    def refusal(*flags: str) -> str:
        line = refused(main, f"--config={DIGITS}", f"--workdir={workdir}", *flags)
        assert not (workdir / "checkpoints").exists()
        return line

    return refusal


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        ("--config.num_epochs=1.5", ["num_epochs", "1.5"]),
        ("--config.restart=maybe", ["restart", "maybe"]),
        ("--config.dataset=foo", ["unknown dataset 'foo'"]),
        ("--config.train_split=train[:20]", ["is 32 but", "batch_size=20 or less"]),
        # Four devices share a batch.
        ("--config.batch_size=30", ["set --config.batch_size=28 or 32"]),
        ("--config.batch_sise=8", ["config has no field 'batch_sise'", '"batch_size"']),
        ("--config.lr=0.1", ["config has no field 'lr'"]),
        ("--config=configs/nothing.py", ["configs/nothing.py"]),
        ("--config=nosuch", ["is neither a file nor", "cifar10_fast, cifar10_quick"]),
        ("--target=tpu:v5e:2x2", ["--target needs --dry_run"]),
        ("--dry_run --config.distributed=True", ["--dry_run plans one process"]),
        ("--workdir=/dev/null", ["workdir '/dev/null' cannot be used"]),
        ("--workdir=", ["--workdir"]),
        ("extra", ["unknown argument 'extra'"]),
    ],
)
def test_flags_that_are_refused(refusal, flag, parts):
    line = refusal(*flag.split())
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("config.batch_size = None", ["config.batch_size is None", "int"]),
        ("config.learning_rate = '0.1'", ["learning_rate", "float"]),
        ("config.momentums = 0.9", ['"momentums"', 'Did you mean "momentum"']),
        ("config.lr = 0.1", ['Key "lr" does not exist', "locked. ("]),
        ("config = None", ["config"]),
        ("assert config is None", ["--config", "AssertionError (", "mine.py, line "]),
        ("raise SystemExit('no disk')", ["--config", "no disk"]),
        ("oops(", ["mine.py"]),
        ("open('/no/names')", ["directory: '/no/names' (/", "/mine.py, line "]),
    ],
)
def test_config_files_that_are_refused(tmp_path, refusal, change, parts):
    file = tmp_path / "mine.py"
    text = DIGITS.read_text()
    file.write_text(text.replace("    return config", f"    {change}\n    return config"))
    line = refusal(f"--config={file}")
    assert all(part in line for part in parts), line


def test_a_resumed_run_must_be_the_same(finished_run, refused):
    workdir = finished_run[0]
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*.json*")}
    flags = "--config.variant=paper", "--config.batch_size=4"
    line = refused(main, *tiny_flags(workdir), *flags)
    assert "variant was 'bn' and is now 'paper'; batch_size was 8 and is now 4" in line
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.faults
def test_a_resumed_run_may_go_on_longer(finished_run, tmp_path):
    """Checks that a longer run and a rarer log are accepted and reported."""
    workdir = copy_run(finished_run[0], tmp_path / "run")
    flags = "--config.max_steps=12", "--config.log_every_steps=4"
    out, err = train_well(workdir, *flags)
    for change in ("max_steps was 0 and is now 12", "log_every_steps was 1 and is now 4"):
        assert change in out + err
    rows = rows_without_timings(workdir)
    assert rows[:12] == rows_without_timings(finished_run[0])
    assert [row["split"] for row in rows[12:]] == ["train", "eval"]
    assert {row["step"] for row in rows[12:]} == {12}
    assert 12 in saved_steps(workdir)
    assert read_json(workdir / "config.json")["max_steps"] == 12


@pytest.mark.parametrize("seconds", [0, 60])
def test_data_that_are_missing_without_a_network(tmp_path, monkeypatch, refusal, seconds):
    """Tries hosts that are unknown, and a lookup that takes a minute."""
    cut_network(monkeypatch, seconds)
    started = time.monotonic()
    line = refusal("--config.dataset=cifar10", f"--config.data_dir={tmp_path}")
    assert time.monotonic() - started < NOT_FOUND_SECONDS
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    for part in (str(tmp_path), url, "--config=digits"):
        assert part in line
    assert not list(tmp_path.rglob("*incomplete*"))


def test_an_archive_that_is_not_the_official_one(tmp_path, run_command):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(bytes(1000))
    where = f"--config={DIGITS}", f"--workdir={tmp_path / 'run'}"
    flags = "--config.dataset=cifar10", f"--config.data_dir={tmp_path}"
    code, _, err = run_command(main, *where, *flags)  # TFDS prints what it begins.
    assert code == 2
    line = last_line(err)
    assert str(path) in line and f"expected {cifar.Cifar10.ARCHIVE.sha256}" in line
    assert path.exists()
    assert not (tmp_path / "cifar10" / "3.0.2").exists()


@pytest.fixture
def tiny_grey(tmp_path):
    """Prepares `tiny_grey` in `tmp_path / "data"`; returns the folder of its files."""
    return pathlib.Path(prepare(TinyGrey, tmp_path / "data").data_dir)


@pytest.fixture
def refusal_of_set(tmp_path, refusal):
    """Returns the line that refuses a run on the set in `tmp_path / "data"`."""
    data = f"--config.data_dir={tmp_path / 'data'}"
    return lambda: refusal("--config.dataset=tiny_grey", "--config.batch_size=4", data)


def replace(path: pathlib.Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def halve(path: pathlib.Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def records(folder: pathlib.Path) -> pathlib.Path:
    return next(folder.glob("*train*array_record*"))


HALF_PREPARED = {
    "no records": lambda folder: records(folder).unlink(),
    "cut records": lambda folder: halve(records(folder)),
    "no features": lambda folder: (folder / "features.json").unlink(),
    "cut features": lambda folder: halve(folder / "features.json"),
    "cut info": lambda folder: halve(folder / "dataset_info.json"),
    # A killed preparation leaves such a folder.
    "killed": lambda folder: folder.rename(
        folder.with_name(f"incomplete.A1B2C3_{folder.name}")
    ),
}


@pytest.mark.parametrize("damage", HALF_PREPARED)
def test_a_half_prepared_directory(tmp_path, tiny_grey, refusal_of_set, damage):
    HALF_PREPARED[damage](tiny_grey)
    line = refusal_of_set()
    assert str(tmp_path / "data") in line and "tiny_grey" in line


def test_labels_out_of_range(tiny_grey, refusal_of_set):
    """Refuses files with a class that is not in the description."""
    (tiny_grey / "label.labels.txt").write_text("zero\none\n")
    replace(tiny_grey / "features.json", '"numClasses": "3"', '"numClasses": "2"')
    assert "labels run from 0 to 2 but there are 2 classes" in refusal_of_set()


def test_images_of_another_shape(tmp_path, tiny_grey, refusal_of_set):
    """Refuses color images that are described as gray."""
    color = prepare(TinyColour, tmp_path / "data")
    for theirs in pathlib.Path(color.data_dir).glob("*array_record*"):
        shutil.copy(theirs, tiny_grey / theirs.name.replace("colour", "grey"))
    line = refusal_of_set()
    assert "tiny_grey" in line and "cannot be read" in line


def test_a_set_as_tfrecord(tiny_grey, refusal_of_set):
    replace(tiny_grey / "dataset_info.json", '"array_record"', '"tfrecord"')
    line = refusal_of_set()
    assert "prepared as tfrecord" in line and "tfds convert_format" in line


@pytest.fixture
def pictures(tmp_path):
    """Writes ten pictures of each of two classes to train on and two to evaluate on."""
    counts = {"train/ant": 10, "train/bee": 10, "test/ant": 2, "test/bee": 2}
    write_pictures(tmp_path / "pictures", counts)
    return tmp_path / "pictures"


FOLDER = ["--config.dataset=folder", "--config.storage_size=16"]


@pytest.mark.faults
@pytest.mark.parametrize(("policy", "side"), [("stop", 10_000), ("skip", 60_000)])
def test_an_image_bomb(tmp_path, pictures, policy, side):
    bomb = pictures / "train" / "ant" / "bomb.png"
    bomb.write_bytes(png_header(side, side))
    flags = [
        *FOLDER,
        f"--config.data_dir={pictures}",
        f"--config.on_bad_image={policy}",
        "--config.train_split=train",
        "--config.eval_split=test",
        "--config.batch_size=4",
    ]
    if policy == "stop":
        line = train_badly(tmp_path / "run", *flags)
        assert f"{bomb} cannot be read (too large: " in line
    else:
        out, err = train_well(tmp_path / "run", *flags)
        last_line(err)
        assert f"{bomb} (too large: " in out
        assert FINAL_STEP in saved_steps(tmp_path / "run")


def test_an_archive_writes_nothing_anywhere(tmp_path):
    """Checks that files are read into memory by name, and that links are not followed."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "archive.tar.gz"
    evil = {"../evil": b"1", str(tmp_path / "absolute"): b"2", "cifar-bin/fine": b"3"}
    data = tar_of({**evil, "link": None}, "w:gz")
    path.write_bytes(data)
    archive = dataclasses.replace(
        cifar.Cifar10.ARCHIVE, sha256=hashlib.sha256(data).hexdigest()
    )
    expected = {"evil": b"1", "absolute": b"2", "fine": b"3"}
    assert cifar.read_archive(path, archive) == expected
    assert sorted(tmp_path.rglob("*")) == [folder, path]


def write_pickle(state, path):
    path.write_bytes(pickle.dumps(state, protocol=2))


def save_with_torch(state, path, zipped):
    torch = pytest.importorskip("torch")
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    torch.load(path, weights_only=False)
    assert state["fc.weight"].path.exists(), "the file is harmless: nothing is tested"
    state["fc.weight"].path.unlink()


@pytest.mark.parametrize(
    ("format_name", "write"),
    [
        *((name, write_pickle) for name in FORMATS),
        ("torchvision", functools.partial(save_with_torch, zipped=True)),
        ("torchvision", functools.partial(save_with_torch, zipped=False)),
    ],
)
def test_weights_that_would_run_code(tmp_path, run_command, format_name, write):
    path, created = tmp_path / "weights.pth", tmp_path / "created"
    write({"fc.weight": CreatesFile(created)}, path)
    flags = f"--from={format_name}", f"--weights={path}", f"--workdir={tmp_path / 'run'}"
    code, _, err = run_command(import_weights, *flags)
    assert code == 2, err
    assert path.name in last_line(err)
    assert not created.exists()
