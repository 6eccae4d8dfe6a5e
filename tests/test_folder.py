import errno
import multiprocessing
import os
import pathlib
import re
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from helpers.batches import assert_batch
from helpers.paths import REPOSITORY
from helpers.pictures import write_pictures
from helpers.processes import finish, start_python
from hypothesis import given
from hypothesis import strategies as st

from googlenet_flax.data import folder
from googlenet_flax.data.class_names import imagenet_class_names
from googlenet_flax.data.folder import load_folder
from googlenet_flax.data.image_set import PictureOptions
from googlenet_flax.runtime.errors import UserError


@pytest.fixture(scope="module")
def splits_dir(tmp_path_factory):
    """Writes 20 + 12 pictures to train on and 6 to evaluate on; do not change them."""
    root = tmp_path_factory.mktemp("with splits")
    write_pictures(root, {"train/Zoë b": 20, "train/ant": 12, "val/ant": 6})
    return root


@pytest.fixture(scope="module")
def classes_dir(tmp_path_factory):
    """Writes one folder of classes; tests must not change it."""
    root = tmp_path_factory.mktemp("classes")
    write_pictures(root, {"ant": 40, "bee": 9, "cat": 2, "dog": 1})
    return root


def load(split, root, **options):
    return load_folder(split, str(root), PictureOptions(storage_size=16, **options))


def relative_paths(folder_set, root):
    return [os.path.relpath(path, root) for path in folder_set.pictures.paths]


def test_folder_with_splits(splits_dir):
    train = load("train", splits_dir)
    assert len(train) == 32
    assert train.class_names == ("Zoë b", "ant")
    assert train.pictures.labels.dtype == np.int32
    paths = relative_paths(train, splits_dir)
    classes = [path.split(os.sep)[1] for path in paths]
    assert [train.class_names[label] for label in train.pictures.labels] == classes
    assert len(set(paths)) == 32
    val = load("val", splits_dir)
    assert val.class_names == train.class_names
    assert val.pictures.labels.tolist() == [1] * 6


def test_slices(splits_dir):
    whole = load("val[2:]+train[:80%]", splits_dir).pictures.paths
    val, train = (load(name, splits_dir).pictures.paths for name in ("val", "train"))
    assert whole == val[2:] + train[:26]


def test_slices_are_fair_samples(tmp_path):
    write_pictures(tmp_path, {f"train/{name}": 30 for name in "abc"})
    part = load("train[:50%]", tmp_path)
    assert (np.bincount(part.pictures.labels) >= 10).all()


def test_what_is_no_picture_is_left_out_and_links_are_followed(tmp_path, splits_dir, capfd):
    write_pictures(tmp_path, {"train/ant": 2, "train/bee/young": 2, "train/.cache": 1})
    for name in ("train/ant/.00.png", "train/ant/notes.txt", "train/00.png", "README"):
        (tmp_path / name).touch()
    for number in range(2):
        (tmp_path / "train" / "bee" / f"{number}.HEIC").touch()
    (tmp_path / "train" / "cat").symlink_to(splits_dir / "train" / "ant")
    train = load("train", tmp_path)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(
        "/train: files without the suffix of a picture are left out: 2 .HEIC, 1 .txt"
    )
    assert train.class_names == ("ant", "bee", "cat")
    assert sorted(train.pictures.labels) == [0, 0, 1, 1, *[2] * 12]


def test_data_dir_may_start_at_home(splits_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(splits_dir.parent))
    assert len(load("val", f"~/{splits_dir.name}")) == 6


def test_classes_of_a_network(splits_dir):
    val = load("val", splits_dir, class_names=("Zoë b", "wasp", "ant"))
    assert val.class_names == ("Zoë b", "wasp", "ant")
    assert val.pictures.labels.tolist() == [2] * 6
    with pytest.raises(UserError, match=r"'ant' of .*val is not among the 2"):
        load("val", splits_dir, class_names=("Zoë b", "wasp"))


def test_classes_of_a_network_need_no_train_split(tmp_path):
    write_pictures(tmp_path, {"test/ant": 1})
    assert len(load("test", tmp_path, class_names=("ant", "bee"))) == 1
    with pytest.raises(UserError, match="no folder train"):
        load("train", tmp_path, class_names=("ant", "bee"))


def test_one_folder_is_split(classes_dir, tmp_path):
    held_out = {"eval_fraction": 0.25}
    train, test = (load(split, classes_dir, **held_out) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("ant", "bee", "cat", "dog")
    assert np.bincount(train.pictures.labels).tolist() == [30, 7, 1, 1]
    assert np.bincount(test.pictures.labels).tolist() == [10, 2, 1]
    assert not set(train.pictures.paths) & set(test.pictures.paths)
    both = load("train+test", classes_dir, **held_out)
    assert set(both.pictures.paths) == {str(path) for path in classes_dir.rglob("*.png")}
    # The place of the folder does not matter.
    (tmp_path / "elsewhere").symlink_to(classes_dir)
    moved = load("test", tmp_path / "elsewhere", **held_out)
    there = relative_paths(moved, tmp_path / "elsewhere")
    assert there == relative_paths(test, classes_dir)


@given(
    st.sets(st.text("abc", min_size=1, max_size=5), min_size=2, max_size=30),
    st.text("d", min_size=1, max_size=3),
    st.floats(0.01, 0.99),
)
def test_a_new_file_moves_one_at_most(names, new, fraction):
    def held_out(paths):
        examples = [(path, 0) for path in sorted(paths)]
        parts = folder._hold_out(examples, fraction)
        train, test = parts["train"], parts["test"]
        assert train and test and sorted(train + test) == examples
        return set(test)

    before, after = held_out(names), held_out(names | {new})
    assert len(before ^ after) <= 2
    assert len(before - after) <= 1


def test_wordnet_numbers_are_the_classes_of_a_network_with_english_names(tmp_path):
    write_pictures(tmp_path, {"val/n01443537": 1, "val/n01440764": 2})
    english = imagenet_class_names()
    assert load("val", tmp_path, class_names=english).pictures.labels.tolist().count(0) == 2


TWO = {"train/a": 1, "train/b": 1}
CAPITALS = {"Training/a": 1, "Training/b": 1, "Testing/a": 1}


@pytest.mark.parametrize(
    ("held_out", "counts", "split", "words"),
    [
        (0, {}, "train", ["no folder train", "--config.eval_fraction=0.2"]),
        (0, {"test/ant": 1}, "test", ["no folder train"]),
        (0, {**TWO, "val/a": 1}, "test[:5]", ["'test[:5]'", "train, val", "train[:80%]"]),
        *((0, TWO, name, [f"unknown split {name!r}"]) for name in ("train[", "train[:x]")),
        (0, TWO, "", ["unknown split ''"]),
        (0, TWO, "train[:0]", ["no examples"]),
        (0.25, {**TWO, "test/a": 1}, "train", ["into test and train", "eval_fraction=0"]),
        (0.25, {**TWO, "val/a": 1}, "val", ["already split into train and val"]),
        (0.25, CAPITALS, "train", ["into Testing and Training", "eval_fraction=0"]),
        (0, CAPITALS, "train", ["rename Training to train"]),
        (0.25, {"a": 3, "b": 3}, "val", ["unknown split 'val'", "train (4 examples)"]),
        (0.25, {}, "train", ["holds no classes", "CLASS"]),
        (0, {"train": 3}, "train", ["train holds no classes"]),
        (0, {"train/ant": 3}, "train", ["only one class (ant)", "needs two"]),
        (0.25, {"a": 2, "b": 0}, "test", ["/b holds no pictures", ".jpg"]),
        (0, {**TWO, "test/zebra": 1}, "test", ["'zebra' of ", "add it to the train split"]),
    ],
)
def test_layouts_that_are_refused(tmp_path, held_out, counts, split, words):
    write_pictures(tmp_path, counts)
    with pytest.raises(UserError) as error:
        load(split, tmp_path, eval_fraction=held_out)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert str(tmp_path) in message or "eval_fraction" in message or "examples" in message
    assert "\n" not in message


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"data_dir is empty.*--config.data_dir=DIR"):
        load("train", "")
    (tmp_path / "file").touch()
    for name in ("file", "missing"):
        with pytest.raises(UserError, match=f"{name} is not a folder"):
            load("train", tmp_path / name)


def assert_pictures(batch, folder_set, indices):
    pictures = folder_set.pictures
    size = folder_set.storage_size
    assert_batch(batch, pictures.paths, pictures.labels, indices, size)


def test_few_batches_are_asked_for_ahead(splits_dir):
    train, asked = load("train", splits_dir), []

    class Recorded(Sequence):
        def __len__(self):
            return 10**9

        def __getitem__(self, position):
            asked.append(position)
            return np.zeros(32, np.int64)

    batches = train.batches(Recorded())
    next(batches)
    batches.close()
    assert max(asked) <= 4
    for thread in threading.enumerate():
        if thread.name.startswith("grain"):
            thread.join(timeout=10)
            assert not thread.is_alive()


@pytest.fixture
def broken_dir(tmp_path):
    """Writes 30 pictures to train on; 0, 1, 15 and 29 cannot be read."""
    write_pictures(tmp_path, {"train/ant": 15, "train/bee": 15})
    paths = load("train", tmp_path).pictures.paths
    for index in (0, 1, 15, 29):
        with open(paths[index], "wb") as file:
            file.write(b"" if index % 2 else b"Not a picture.")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_pictures_are_skipped(broken_dir, workers):
    train = load("train", broken_dir, on_bad_image="skip", decode_workers=workers)
    batches = list(train.batches(np.split(np.arange(30), 2)))
    replaced = [2, 2, *range(2, 15), 16, *range(16, 29), 2]
    for batch, indices in zip(batches, np.split(np.array(replaced), 2), strict=True):
        assert_pictures(batch, train, indices)
    readable = np.concatenate([batch["readable"] for batch in batches])
    assert np.flatnonzero(~readable).tolist() == [0, 1, 15, 29]
    reasons = dict.fromkeys((1, 15, 29), "empty file") | {0: "not a picture"}
    paths = train.pictures.paths
    assert train.unreadable == {paths[i]: reason for i, reason in reasons.items()}
    assert multiprocessing.active_children() == []


def test_unreadable_pictures_stop(broken_dir):
    train = load("train", broken_dir)
    batches = train.batches(np.split(np.arange(2, 30), 4))
    assert_pictures(next(batches), train, np.arange(2, 9))  # The broken file comes later.
    with pytest.raises(UserError) as error:
        list(batches)
    path = train.pictures.paths[15]
    assert str(error.value).startswith(f"{path} cannot be read (empty file): ")
    assert "--config.on_bad_image=skip" in str(error.value)


def test_a_picture_that_the_disk_cannot_read_has_a_fingerprint(tmp_path, monkeypatch):
    write_pictures(tmp_path, TWO)
    os.mkfifo(tmp_path / "train" / "b" / "pipe.png")
    pictures = load("train", tmp_path).pictures
    read_bytes, broken = pathlib.Path.read_bytes, []

    def read(path):
        assert path.is_file()  # Reading the pipe would block.
        if path in broken:
            raise OSError(errno.EIO, "Input/output error")
        return read_bytes(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", read)
    before = pictures.fingerprint
    broken.append(tmp_path / "train" / "a" / "00.png")
    assert len(pictures.fingerprint) == len(before) and pictures.fingerprint != before


def test_no_picture_is_readable(tmp_path):
    write_pictures(tmp_path, TWO)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    train = load("train", tmp_path, on_bad_image="skip")
    with pytest.raises(UserError, match=r"none of the 2 pictures.*\.png: empty file"):
        list(train.batches([np.arange(2)]))


PROGRAM = """
import multiprocessing, os, signal, sys, threading
from googlenet_flax.data.folder import load_folder
from googlenet_flax.data.image_set import PictureOptions
from googlenet_flax.data.sampler import TrainingOrder
from googlenet_flax.runtime.errors import UserError

def main():
    seen = []
    for number in signal.SIGINT, signal.SIGHUP:
        signal.signal(number, lambda number, _: seen.append(number))
    train = load_folder("train", sys.argv[1], PictureOptions(16, decode_workers=2))
    order = TrainingOrder(0, 0, 10**9, len(train), 16)
    batches = train.batches(order)
    timer = threading.Timer(0.5, os.killpg, (0, signal.SIGINT))
    timer.start()  # While the workers start.
    next(batches)
    timer.join()
    os.killpg(0, signal.SIGHUP)
    for _ in range(40):
        next(batches)  # More than was decoded ahead.
    batches.close()
    print(seen, multiprocessing.active_children())
    print("killing", file=sys.stderr, flush=True)
    batches = train.batches(order)
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    try:
        for _ in range(1000):
            next(batches)
    except UserError as error:
        print(error)

if __name__ == "__main__":
    main()
"""


def test_workers_ignore_signals_and_their_death_is_reported(splits_dir, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    env = {"PYTHONPATH": str(REPOSITORY)}
    process = start_python(program, splits_dir, env=env, start_new_session=True)
    code, out, err = finish(process)
    signals, death = out.splitlines()
    assert (code, signals) == (0, "[2, 1] []")
    assert err.startswith("killing\n")  # Nothing was said before.
    assert re.search(r"exit code -9\).*--config.decode_workers=0", death)
