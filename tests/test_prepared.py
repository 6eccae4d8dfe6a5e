import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.tiny_sets import (
    LABEL,
    SIZES,
    TinyColour,
    TinyGrey,
    expected_images,
    image,
    prepare,
    set_of,
)

from googlenet_flax.data import PictureOptions, load_split, prepared
from googlenet_flax.runtime.errors import UserError

GREY, NUMBER = image(28, 28, 1), tfds.features.Scalar(np.int64)
AnySize = set_of("AnySize", image=image(None, None, 3), label=LABEL)
Mnist = set_of("Mnist", image=GREY, label=LABEL)  # TFDS knows its name and version.
TinyAlpha = set_of("TinyAlpha", image=image(6, 9, 4), label=LABEL)
UNFIT = {
    "no_label": (set_of("NoLabel", image=GREY), "label"),
    "number_label": (set_of("NumberLabel", image=GREY, label=NUMBER), "label"),
    "deep": (set_of("Deep", image=image(9, 9, 1, dtype=np.uint16), label=LABEL), "uint16"),
    "no_image": (set_of("NoImage", label=LABEL), "image"),
}


@pytest.mark.parametrize(
    ("builder_class", "name", "shape"),
    [
        (TinyColour, "tiny_colour", (6, 9, 3)),
        (TinyAlpha, "tiny_alpha", (6, 9, 4)),
        (Mnist, "mnist:3.0.1", (28, 28, 1)),
    ],
)
def test_prepared_sets_are_read_exactly(tmp_path, builder_class, name, shape):
    prepare(builder_class, tmp_path)
    image_set = load_split(name, "train", data_dir=str(tmp_path))
    expected = expected_images("train", slice(None), shape)
    np.testing.assert_array_equal(image_set.images, expected)
    assert image_set.labels.dtype == np.int32
    assert image_set.labels.tolist() == [i % 3 for i in range(SIZES["train"])]
    assert image_set.class_names == ("zero", "one", "two")


@pytest.fixture(scope="module")
def tiny_grey(tmp_path_factory):
    """Returns a data_dir with `tiny_grey`; tests must not change it."""
    data_dir = tmp_path_factory.mktemp("data")
    prepare(TinyGrey, data_dir)
    return str(data_dir)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("train+test", [("train", slice(None)), ("test", slice(None))]),
        ("test[1:3]+train[:2]", [("test", slice(1, 3)), ("train", slice(2))]),
        ("train[-3:]", [("train", slice(-3, None))]),
        ("train[50%:]", [("train", slice(6, None))]),
        ("test[2:2]+train[:1]", [("train", slice(1))]),
    ],
)
def test_slices(tiny_grey, monkeypatch, spec, parts):
    monkeypatch.setattr(prepared, "READ_CHUNK_EXAMPLES", 5)
    image_set = load_split("tiny_grey", spec, data_dir=tiny_grey)
    expected = [expected_images(split, rows, (28, 28, 1)) for split, rows in parts]
    np.testing.assert_array_equal(image_set.images, np.concatenate(expected))
    labels = [i % 3 for split, rows in parts for i in range(SIZES[split])[rows]]
    assert image_set.labels.tolist() == labels


def test_data_dir_may_start_at_home(tiny_grey, monkeypatch):
    monkeypatch.setenv("HOME", tiny_grey)
    assert len(load_split("tiny_grey", "test", data_dir="~")) == 5


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        # TFDS does the same: a split that is smaller than asked for is an error.
        ("tiny_grey", "train[10:100]", ["train[10:100]"]),
        ("tiny_grey", "validation", ["'validation'", "train (12 examples), test (5 ex"]),
        ("tiny_grey", "train[3:3]", ["no examples"]),
        ("tiny_grey", "train[:0]+test[5:]", ["no examples"]),
        ("no_such_set", "train", ["unknown dataset 'no_such_set'", "DIR"]),
        ("cifar10:9.9.9", "train", ["unknown dataset 'cifar10:9.9.9'", "DIR"]),
        ("mnist", "train", ["'mnist' is not prepared", "tfds build mnist", "DIR"]),
    ],
)
def test_sets_and_splits_that_are_not_there(tiny_grey, name, spec, words):
    with pytest.raises(UserError) as error:
        load_split(name, spec, data_dir=tiny_grey)
    message = str(error.value).replace(tiny_grey, "DIR")
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", UNFIT)
def test_sets_that_cannot_be_classified(tmp_path, name):
    builder_class, message = UNFIT[name]
    prepare(builder_class, tmp_path)
    with pytest.raises(UserError, match=message) as error:
        load_split(name, "train", data_dir=str(tmp_path))
    assert name in str(error.value)


def load_any_size(data_dir, spec):
    options = PictureOptions(storage_size=9)
    return load_split("any_size", spec, data_dir=str(data_dir), pictures=options)


def test_images_of_any_size_are_streamed(tmp_path):
    prepare(AnySize, tmp_path)
    picture_set = load_any_size(tmp_path, "train[10:]+test[1:3]")
    assert picture_set.class_names == ("zero", "one", "two")
    assert (len(picture_set), picture_set.storage_size) == (4, 9)
    (batch,) = picture_set.batches([np.arange(4)])
    parts = ("train", slice(10, None)), ("test", slice(1, 3))
    expected = [expected_images(split, rows, (7, 7, 3)) for split, rows in parts]
    np.testing.assert_array_equal(batch["image"][:, :7, :7], np.concatenate(expected))
    assert batch["label"].tolist() == [10 % 3, 11 % 3, 1, 2]
    assert batch["extent"].tolist() == [[7, 7]] * 4
    names = [picture_set.name(index) for index in range(4)]
    assert names[1:3] == ["any_size train record 11", "any_size test record 1"]


def test_streamed_sets_have_a_fingerprint_wherever_they_lie(tmp_path):
    prepare(AnySize, tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")

    def fingerprint(place, spec):
        return load_any_size(tmp_path / place, spec).fingerprint

    assert fingerprint("here", "train") == fingerprint("there", "train")
    assert fingerprint("here", "train") != fingerprint("here", "train[:10]")
    assert fingerprint("here", "train[:2]") != fingerprint("here", "train[1:3]")
    (shard,) = (tmp_path / "there").rglob("*train.array_record*")
    shard.write_bytes(shard.read_bytes() + b"\0")
    assert fingerprint("here", "train") != fingerprint("there", "train")


def test_set_larger_than_memory(tiny_grey, monkeypatch):
    monkeypatch.setattr(prepared, "MAX_MEMORY_FRACTION", 0)
    with pytest.raises(UserError, match="memory"):
        load_split("tiny_grey", "train", data_dir=tiny_grey)
