"""Checks that a resumed run reads the same data as before."""

import dataclasses
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.pictures import write_pictures

from googlenet_flax.data import folder
from googlenet_flax.data.image_set import ImageSet
from googlenet_flax.runs.metrics import read_rows
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.train import train_and_evaluate
from googlenet_flax.training import experiment

CLASSES = ("apple", "berry", "cherry")


def config(data_dir, **fields):
    return {
        **{"dataset": "folder", "data_dir": str(data_dir), "storage_size": 16},
        **{"variant": "seed", "width_multiplier": 0.1, "image_size": 80},
        **{"batch_size": 4, "max_steps": 3, "log_every_steps": 1},
        **fields,
    }


def count_step(state, batch, seed, **_):
    """Takes the place of the training step, which takes long to compile."""
    return dataclasses.replace(state, step=state.step + 1), {"loss": jnp.float32(1)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_networks):
    """Writes pictures and makes three steps with them; tests must not change them."""
    root = tmp_path_factory.mktemp("same data")
    folders = [f"{split}/{name}" for split in ("train", "test") for name in CLASSES]
    write_pictures(root / "pictures", dict.fromkeys(folders, 4), ".bmp", side=12)
    # Any rounding would change these numbers.
    metrics = {"loss": 2.302585092994046, "accuracy": 1 / 12, "top5": 5 / 12}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "train_step", count_step)
        patch.setattr(experiment.Experiment, "evaluate", lambda *_, **__: metrics)
        train_and_evaluate(config(root / "pictures"), root / "run")
    return root


@pytest.fixture
def copy(finished, tmp_path):
    """Copies pictures and run."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def rename_class(pictures):
    for split in ("train", "test"):
        (pictures / split / "apple").rename(pictures / split / "zapple")


def add_picture(pictures):
    source = pictures / "train" / "apple" / "00.bmp"
    shutil.copy(source, source.with_name("09.bmp"))


def remove_test_picture(pictures):
    (pictures / "test" / "berry" / "00.bmp").unlink()


def change_pixel(pictures):
    path = pictures / "train" / "cherry" / "03.bmp"
    content = bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)


def swap_labels(pictures):
    apple, berry = (pictures / "train" / name / "01.bmp" for name in ("apple", "berry"))
    content = apple.read_bytes()
    apple.write_bytes(berry.read_bytes())
    berry.write_bytes(content)


NOT_THE_SAME = "the 12 examples of train_split are not the same"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (rename_class, "the classes were apple, .* and are now berry, cherry, zapple"),
        (add_picture, "train_split had 12 examples and now has 13"),
        (remove_test_picture, "eval_split had 12 examples and now has 11"),
        (change_pixel, NOT_THE_SAME),
        (swap_labels, NOT_THE_SAME),
    ],
)
def test_other_data_are_refused(copy, change, complaint):
    change(copy / "pictures")
    before = {path: path.read_bytes() for path in (copy / "run").glob("*.json*")}
    with pytest.raises(UserError, match=complaint) as error:
        train_and_evaluate(config(copy / "pictures", max_steps=6), copy / "run")
    assert "--config.init_from" in str(error.value) and "\n" not in str(error.value)
    assert before == {path: path.read_bytes() for path in (copy / "run").glob("*.json*")}
    assert [path.name for path in (copy / "run" / "checkpoints").iterdir()] == ["3"]


def test_large_sets_are_known_by_names_and_sizes(copy, monkeypatch):
    monkeypatch.setattr(folder, "MAX_READ_BYTES", 100)
    before = load(copy).fingerprint
    change_pixel(copy / "pictures")
    assert load(copy).fingerprint == before
    path = copy / "pictures" / "train" / "cherry" / "03.bmp"
    path.write_bytes(path.read_bytes() + b"\0")
    assert load(copy).fingerprint != before


def load(root):
    options = folder.PictureOptions(storage_size=16)
    return folder.load_folder("train", str(root / "pictures"), options)


def test_sets_in_memory_are_known_by_all_pixels_and_labels():
    images, labels = np.zeros((4, 2, 2, 1), np.uint8), np.arange(4, dtype=np.int32)
    brighter = images.copy()
    brighter[3, 1, 1] = 1
    sets = (images, labels), (brighter, labels), (images, labels[::-1])
    prints = [ImageSet(*each, tuple("abcd")).fingerprint for each in sets]
    assert len(set(prints)) == 3
    assert ImageSet(images.copy(), labels, tuple("abcd")).fingerprint == prints[0]


def test_a_checkpoint_without_data_is_compared_by_its_classes(copy, monkeypatch):
    monkeypatch.setattr("googlenet_flax.runs.manifest.DataDescription", lambda **_: None)
    rename_class(copy / "pictures")
    with pytest.raises(UserError, match="the classes were apple"):
        train_and_evaluate(config(copy / "pictures", max_steps=4), copy / "run")


def test_a_run_that_has_lost_its_checkpoints_keeps_its_metrics(copy):
    metrics = copy / "run" / "metrics.jsonl"
    row = metrics.read_text().splitlines()[-1]
    assert '"eval"' in row
    metrics.write_text(metrics.read_text() + f"{row}\n{row}\n")
    shutil.rmtree(copy / "run" / "checkpoints")
    before = metrics.read_bytes()
    with pytest.raises(UserError, match=r"checkpoints are gone: restore .*restart=True"):
        train_and_evaluate(config(copy / "pictures"), copy / "run")
    assert metrics.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(("evaluations", "restart"), [(2, False), (3, True)])
def test_a_run_begins_again_without_its_checkpoints(copy, evaluations, restart):
    """Needs `restart` after three evaluations; two can precede the first checkpoint."""
    metrics = copy / "run" / "metrics.jsonl"
    row = metrics.read_text().splitlines()[-1]
    metrics.write_text(metrics.read_text() + f"{row}\n" * (evaluations - 1))
    shutil.rmtree(copy / "run" / "checkpoints")
    train_and_evaluate(config(copy / "pictures", restart=restart), copy / "run")
    assert [row["split"] for row in read_rows(metrics)].count("eval") == 1


@pytest.mark.parametrize("max_steps", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_torn_row_of_an_evaluation_is_written_again(copy, capfd, max_steps):
    # Data that were moved count as the same data.
    pictures = (copy / "pictures").rename(copy / "elsewhere")
    metrics = copy / "run" / "metrics.jsonl"
    rows = read_rows(metrics)
    metrics.write_bytes(metrics.read_bytes()[:-20])
    train_and_evaluate(config(pictures, max_steps=max_steps), copy / "run")
    written = read_rows(metrics)
    assert written[: len(rows) - 1] == rows[:-1]
    lost = {name: value for name, value in rows[-1].items() if "second" not in name}
    again = written[len(rows) - 1]
    assert again.pop("unix_seconds") > rows[-1]["unix_seconds"]
    assert again == lost and lost["split"] == "eval"
    assert "evaluation after step 3; it is written again" in capfd.readouterr().err
    assert written[-1]["step"] == max_steps
