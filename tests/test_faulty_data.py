"""Configs and data that cannot be trained on, said in one line by the command itself."""

import io
import json
import os
import pathlib
import pickle
import shutil
import tarfile
import textwrap
import time

import numpy as np
import PIL.Image
import pytest
from helpers.pictures import png_header
from helpers.tiny_sets import TinyColour, TinyGrey, prepare
from tiny_run import (
    DIGITS,
    FINAL_STEP,
    assert_same_run,
    copy_run,
    last_line,
    read_json,
    rows_without_timings,
    run,
    saved_steps,
    train_tiny,
)

from googlenet_flax.data.builders import cifar
from googlenet_flax.importers.formats import FORMATS
from googlenet_flax.runtime.errors import UserError


def faults(*values):
    return pytest.param(*values, marks=pytest.mark.faults)


def refusal(tmp_path: pathlib.Path, *flags: str, env=None) -> str:
    """The one line with which a run ends that never began."""
    workdir = tmp_path / "run"
    where = f"--config={DIGITS}", f"--workdir={workdir}"
    code, out, err = run("main", *where, *flags, env=env)
    assert code == 2, err
    assert not out
    assert len(err.splitlines()) == 1, err
    assert not (workdir / "checkpoints").exists()
    return last_line(err)


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        faults("--config.input_std=(1.0,1.0)", ["input_std is (1.0, 1.0)", "3 numbers"]),
        faults("--config.input_std=(1.0,0.0,1.0)", ["(1.0, 0.0, 1.0)", "above 0"]),
        faults("--config.input_mean=('a','b','c')", ["input_mean", "3 numbers"]),
        faults("--config.learning_rate=nan", ["learning_rate is nan", "from 0"]),
        faults("--config.learning_rate=inf", ["learning_rate is inf", "from 0"]),
        faults("--config.num_epochs=1.5", ["num_epochs", "1.5"]),
        faults("--config.flip=2", ["flip", "2"]),
        faults("--config.max_steps=99999999999", ["max_steps is 99999999999"]),
        faults("--config.restart=maybe", ["restart", "maybe"]),
        faults("--config.eval_every_epochs=0", ["eval_every_epochs is 0", "from 1"]),
    ],
)
def test_flags_that_are_refused(tmp_path, flag, parts):
    line = refusal(tmp_path, flag)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("config.batch_size = None", ["config.batch_size is None", "int"]),
        faults("config.variant = None", ["config.variant is None", "one of seed"]),
        faults("config.input_mean = [0.5]", ["config.input_mean is", "3 numbers"]),
        faults("config.learning_rate = '0.1'", ["learning_rate", "float"]),
        faults("config.momentums = 0.9", ["'momentums'", "did you mean 'momentum'"]),
        faults("del config.seed", ["lacks the field 'seed'"]),
        faults("raise ValueError('mine')", ["mine"]),
        faults("config = None", ["config"]),
        faults("oops(", ["mine.py"]),
    ],
)
def test_config_files_that_are_refused(tmp_path, change, parts):
    file = tmp_path / "mine.py"
    text = DIGITS.read_text()
    file.write_text(text.replace("    return config", f"    {change}\n    return config"))
    line = refusal(tmp_path, f"--config={file}")
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (
            ["--config.variant=paper", "--config.batch_size=4", "--config.momentum=0.5"],
            [
                "variant was 'bn' and is now 'paper'",
                "batch_size was 8 and is now 4",
                "momentum was 0.9 and is now 0.5",
            ],
        ),
        faults(["--config.dataset=cifar10"], ["dataset was 'digits' and is now 'cifar10'"]),
        faults(["--config.train_split=train[:48]"], ["'train[:40]'", "'train[:48]'"]),
        faults(["--config.learning_rate=1"], ["learning_rate was 0.05 and is now 1"]),
        faults(["--config.seed=2"], ["seed was 1 and is now 2"]),
        faults(["--config.image_size=96"], ["image_size was 80 and is now 96"]),
        faults(["--config.dtype=bfloat16"], ["dtype was 'float32' and is now 'bfloat16'"]),
    ],
)
def test_a_resumed_run_must_be_the_same(finished_run, compilation_cache, flags, parts):
    workdir = finished_run[0]
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*.json*")}
    code, out, err = train_tiny(workdir, *flags, env=compilation_cache)
    assert code == 2 and not out
    line = last_line(err)
    assert all(part in line for part in parts), line
    assert len(err.splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.faults
def test_a_resumed_run_may_go_on_longer(finished_run, compilation_cache, tmp_path):
    """And be logged less; both are said."""
    workdir = copy_run(finished_run[0], tmp_path / "run")
    flags = "--config.max_steps=12", "--config.log_every_steps=4"
    code, out, err = train_tiny(workdir, *flags, env=compilation_cache)
    assert code == 0, err
    for change in (
        "max_steps was 0 and is now 12",
        "log_every_steps was 1 and is now 4",
    ):
        assert change in out + err
    rows = rows_without_timings(workdir)
    assert rows[:12] == rows_without_timings(finished_run[0])
    assert [(row["step"], row["split"]) for row in rows[12:]] == [
        (12, "train"),
        (12, "eval"),
    ]
    assert 12 in saved_steps(workdir)
    assert read_json(workdir / "config.json")["max_steps"] == 12


@pytest.mark.faults
def test_a_resumed_run_that_changes_nothing_says_nothing_of_it(
    finished_run, compilation_cache, tmp_path
):
    workdir = copy_run(finished_run[0], tmp_path / "run", newest=8)
    flag = "--config.max_steps=10"
    code, _, err = train_tiny(workdir, flag, env=compilation_cache)
    assert code == 0, err
    assert_same_run(workdir, finished_run[0])
    code, out, err = train_tiny(workdir, flag, env=compilation_cache)
    assert code == 0 and "finished before" in out
    assert "is now" not in out + err


@pytest.fixture
def offline(tmp_path):
    """Environment of processes that reach no host: names stay unknown, or unanswered."""

    def make(*, seconds: float) -> dict[str, str]:
        program = f"""
            import socket, time

            def refuse(*args, **kwargs):
                time.sleep({seconds})
                raise OSError("Network is unreachable")

            socket.getaddrinfo = socket.create_connection = refuse
            socket.socket.connect = refuse
        """
        folder = tmp_path / "site"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(textwrap.dedent(program))
        path = [str(folder), os.environ.get("PYTHONPATH", "")]
        return {"PYTHONPATH": os.pathsep.join(path)}

    return make


@pytest.mark.parametrize("seconds", [0, faults(60)])
def test_data_that_are_missing_without_a_network(tmp_path, offline, seconds):
    env = offline(seconds=seconds)
    started = time.monotonic()
    refusal(tmp_path, "--config.dataset=no_such_set", env=env)
    start_seconds = time.monotonic() - started
    started = time.monotonic()
    flags = "--config.dataset=cifar10", f"--config.data_dir={tmp_path}"
    line = refusal(tmp_path, *flags, env=env)
    assert time.monotonic() - started < start_seconds + 5
    for part in (str(tmp_path), cifar.CIFAR10.url, "configs/digits.py"):
        assert part in line
    assert not list(tmp_path.rglob("*.incomplete*"))


@pytest.mark.parametrize(
    ("size_bytes", "message"),
    [
        faults(1000, "1000 bytes, expected 170052171 bytes"),
        (cifar.CIFAR10.size_bytes, f"expected SHA-256 {cifar.CIFAR10.sha256}"),
    ],
)
def test_an_archive_that_is_not_the_official_one(tmp_path, size_bytes, message):
    path = tmp_path / cifar.CIFAR10.file_name
    path.touch()
    os.truncate(path, size_bytes)
    where = f"--config={DIGITS}", f"--workdir={tmp_path / 'run'}"
    flags = "--config.dataset=cifar10", f"--config.data_dir={tmp_path}"
    code, _, err = run("main", *where, *flags)  # TFDS says what it begins.
    assert code == 2
    line = last_line(err)
    assert str(path) in line and message in line
    assert path.exists()
    assert not (tmp_path / "cifar10" / "3.0.2").exists()


@pytest.fixture
def tiny_grey(tmp_path):
    """A data_dir with `tiny_grey`, and the folder in it that holds its files."""
    builder = prepare(TinyGrey, tmp_path / "data")
    return tmp_path / "data", pathlib.Path(builder.data_dir)


def refusal_of_set(tmp_path, data_dir, name="tiny_grey") -> str:
    flags = [
        f"--config.dataset={name}",
        f"--config.data_dir={data_dir}",
        "--config.batch_size=4",
        "--config.width_multiplier=0.1",
        "--config.num_epochs=1",
    ]
    return refusal(tmp_path, *flags)


def edit_json(path: pathlib.Path, change) -> None:
    contents = read_json(path)
    change(contents)
    path.write_text(json.dumps(contents))


def lose_a_record_file(folder: pathlib.Path) -> None:
    next(folder.glob("*train*array_record*")).unlink()


def cut_a_record_file(folder: pathlib.Path) -> None:
    path = next(folder.glob("*train*array_record*"))
    os.truncate(path, path.stat().st_size // 2)


def empty_a_record_file(folder: pathlib.Path) -> None:
    os.truncate(next(folder.glob("*train*array_record*")), 0)


def lose_the_features(folder: pathlib.Path) -> None:
    (folder / "features.json").unlink()


def lose_the_info(folder: pathlib.Path) -> None:
    (folder / "dataset_info.json").unlink()


def cut_the_info(folder: pathlib.Path) -> None:
    path = folder / "dataset_info.json"
    os.truncate(path, path.stat().st_size // 2)


def cut_the_features(folder: pathlib.Path) -> None:
    path = folder / "features.json"
    os.truncate(path, path.stat().st_size // 2)


def leave_unfinished(folder: pathlib.Path) -> None:
    """As a preparation that was killed does."""
    folder.rename(folder.with_name(f"incomplete.A1B2C3_{folder.name}"))


@pytest.mark.parametrize(
    "damage",
    [
        lose_a_record_file,
        faults(cut_a_record_file),
        faults(empty_a_record_file),
        faults(lose_the_features),
        faults(lose_the_info),
        faults(cut_the_info),
        faults(cut_the_features),
        faults(leave_unfinished),
    ],
    ids=lambda damage: damage.__name__,
)
def test_a_half_prepared_directory(tmp_path, tiny_grey, damage):
    data_dir, folder = tiny_grey
    damage(folder)
    line = refusal_of_set(tmp_path, data_dir)
    assert str(data_dir) in line and "tiny_grey" in line


def test_labels_out_of_range(tmp_path, tiny_grey):
    """The files hold a class that the set says it has not."""
    data_dir, folder = tiny_grey
    names = folder / "label.labels.txt"
    names.write_text("zero\none\n")
    edit_json(
        folder / "features.json",
        lambda features: features["featuresDict"]["features"]["label"].update(
            classLabel={"numClasses": "2"}
        ),
    )
    line = refusal_of_set(tmp_path, data_dir)
    assert "labels run from 0 to 2 but there are 2 classes" in line


@pytest.mark.faults
def test_images_of_another_shape(tmp_path):
    """The files hold colour where the set says grey."""
    grey = prepare(TinyGrey, tmp_path / "data")
    colour = prepare(TinyColour, tmp_path / "data")
    for theirs in pathlib.Path(colour.data_dir).glob("*array_record*"):
        name = theirs.name.replace("tiny_colour", "tiny_grey")
        shutil.copy(theirs, pathlib.Path(grey.data_dir) / name)
    line = refusal_of_set(tmp_path, tmp_path / "data")
    assert "tiny_grey" in line


@pytest.mark.faults
def test_a_set_as_tfrecord(tmp_path, tiny_grey):
    data_dir, folder = tiny_grey
    info = folder / "dataset_info.json"
    edit_json(info, lambda contents: contents.update(fileFormat="tfrecord"))
    line = refusal_of_set(tmp_path, data_dir)
    assert "prepared as tfrecord" in line and "tfds convert_format" in line


@pytest.mark.faults
@pytest.mark.parametrize(
    "flag", ["--config.train_split=train[:0]", "--config.eval_split=test[360:]"]
)
def test_a_split_without_examples(tmp_path, flag):
    assert "no examples" in refusal(tmp_path, flag)


@pytest.mark.faults
def test_a_split_smaller_than_a_batch(tmp_path):
    line = refusal(tmp_path, "--config.train_split=train[:20]")
    assert "batch_size" in line and "20" in line


def write_picture(path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (16, 16, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(path)


@pytest.fixture
def pictures(tmp_path):
    """Ten of each of two classes to train on and two to evaluate on."""
    folder = tmp_path / "pictures"
    for split, count in (("train", 10), ("test", 2)):
        for name in ("ant", "bee"):
            for number in range(count):
                write_picture(folder / split / name / f"{number}.png")
    return folder


FOLDER = ["--config.dataset=folder", "--config.storage_size=16"]


@pytest.mark.faults
def test_a_class_that_is_in_the_test_split_only(tmp_path, pictures):
    write_picture(pictures / "test" / "cat" / "0.png")
    line = refusal(tmp_path, *FOLDER, f"--config.data_dir={pictures}")
    assert "class 'cat'" in line and "add it to the train split" in line


@pytest.mark.faults
@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_an_image_bomb(tmp_path, pictures, compilation_cache, policy, side):
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
    code, out, err = train_tiny(tmp_path / "run", *flags, env=compilation_cache)
    if policy == "stop":
        assert code == 2, err
        assert f"{bomb} cannot be read (too large: " in last_line(err)
    else:
        assert code == 0, err
        last_line(err)
        assert f"{bomb} (too large: " in out
        assert FINAL_STEP in saved_steps(tmp_path / "run")


def tar_of(path: pathlib.Path, members: dict[str, bytes | None]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
                tar.addfile(member)
            else:
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_an_archive_writes_nothing_anywhere(tmp_path):
    """Its files are read in memory, by name; the rest of it is not looked at."""
    archive = cifar.CIFAR10
    names = [name for names in archive.files.values() for name in names]
    members = {f"{archive.folder}/{name}": b"x" for name in names}
    members |= {f"{archive.folder}/batches.meta.txt": b"x"}
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / archive.file_name
    evil = {"../evil": b"x", str(tmp_path / "absolute"): b"x", "link": None}
    tar_of(path, evil | members)
    assert set(cifar.read_archive(archive, path)) == {*names, "batches.meta.txt"}
    assert sorted(tmp_path.rglob("*")) == [folder, path]
    tar_of(path, members | {f"{archive.folder}/test_batch.bin": None})
    with pytest.raises(UserError, match="cannot be read"):
        cifar.read_archive(archive, path)


class CreatesFile:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.faults
@pytest.mark.parametrize("format_name", FORMATS)
def test_weights_that_would_run_code(tmp_path, format_name):
    path, created = tmp_path / "weights.pth", tmp_path / "created"
    path.write_bytes(pickle.dumps({"fc.weight": CreatesFile(created)}, protocol=2))
    flags = f"--from={format_name}", f"--weights={path}", f"--workdir={tmp_path / 'run'}"
    code, _, err = run("import_weights", *flags)
    assert code == 2, err
    assert path.name in last_line(err)
    assert not created.exists()
