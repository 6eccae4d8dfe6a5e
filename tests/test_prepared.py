import io
import json
import shutil
from types import MappingProxyType

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from googlenet_flax.data import PictureOptions, load_split, prepared
from googlenet_flax.runtime.errors import UserError

SIZES = {"train": 12, "test": 5}
GREY = tfds.features.Image(shape=(28, 28, 1))
COLOUR = tfds.features.Image(shape=(6, 9, 3))
VARIABLE = tfds.features.Image(shape=(None, None, 3))
DEEP = tfds.features.Image(shape=(28, 28, 1), dtype=np.uint16)
LABEL = tfds.features.ClassLabel(names=["zero", "one", "two"])


def pixels(split, index, shape):
    rng = np.random.default_rng([len(split), index])
    return rng.integers(0, 256, shape, dtype=np.uint8)


class TinySet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("3.0.1")
    # Keeps the order of the keys, so that the tests need not undo TFDS's.
    ORDERED = True
    FEATURES = MappingProxyType({"image": GREY, "label": LABEL})

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(dict(self.FEATURES)),
            disable_shuffling=self.ORDERED,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split):
        shape = [size or 7 for size in self.FEATURES.get("image", GREY).shape]
        for index in range(SIZES[split]):
            png = io.BytesIO()
            image = pixels(split, index, shape)
            PIL.Image.fromarray(image.squeeze()).save(png, format="PNG")
            png.seek(0)
            example = {"image": png, "label": index % 3}
            yield index, {name: example[name] for name in self.FEATURES}


class TinyGrey(TinySet, skip_registration=True):
    pass


class TinyColour(TinySet, skip_registration=True):
    FEATURES = MappingProxyType({"image": COLOUR, "label": LABEL})


class Mnist(TinySet, skip_registration=True):
    """What TFDS itself knows by this name and version."""


class NoLabel(TinySet, skip_registration=True):
    FEATURES = MappingProxyType({"image": GREY})


class NumberLabel(TinySet, skip_registration=True):
    FEATURES = MappingProxyType({"image": GREY, "label": tfds.features.Scalar(np.int64)})


class Deep(TinySet, skip_registration=True):
    FEATURES = MappingProxyType({"image": DEEP, "label": LABEL})


class NoImage(TinySet, skip_registration=True):
    FEATURES = MappingProxyType({"label": LABEL})


class AnySize(TinySet, skip_registration=True):
    FEATURES = MappingProxyType({"image": VARIABLE, "label": LABEL})


def prepare(builder_class, data_dir):
    builder = builder_class(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return builder


def expected_images(split, rows, shape):
    return np.stack([pixels(split, i, shape) for i in range(SIZES[split])[rows]])


@pytest.mark.parametrize(
    ("builder_class", "name", "shape"),
    [
        (TinyGrey, "tiny_grey", (28, 28, 1)),
        (TinyColour, "tiny_colour", (6, 9, 3)),
        (Mnist, "mnist", (28, 28, 1)),
        (Mnist, "mnist:3.0.1", (28, 28, 1)),
    ],
)
def test_prepared_sets_are_read_exactly(tmp_path, builder_class, name, shape):
    prepare(builder_class, tmp_path)
    for split, size in SIZES.items():
        image_set = load_split(name, split, data_dir=str(tmp_path))
        np.testing.assert_array_equal(
            image_set.images, expected_images(split, slice(None), shape)
        )
        assert image_set.labels.dtype == np.int32
        assert image_set.labels.tolist() == [i % 3 for i in range(size)]
        assert image_set.class_names == ("zero", "one", "two")


@pytest.fixture(scope="module")
def tiny_grey(tmp_path_factory):
    """A data_dir with `tiny_grey`; tests must not change it."""
    data_dir = tmp_path_factory.mktemp("data")
    prepare(TinyGrey, data_dir)
    return str(data_dir)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("train[2:5]", [("train", slice(2, 5))]),
        ("train+test", [("train", slice(None)), ("test", slice(None))]),
        ("test[1:3]+train[:2]", [("test", slice(1, 3)), ("train", slice(2))]),
        ("train[-3:]", [("train", slice(-3, None))]),
        ("train[50%:]", [("train", slice(6, None))]),
        ("test[2:2]+train[:1]", [("train", slice(1))]),
    ],
)
def test_slices(tiny_grey, spec, parts):
    image_set = load_split("tiny_grey", spec, data_dir=tiny_grey)
    expected = [expected_images(split, rows, (28, 28, 1)) for split, rows in parts]
    np.testing.assert_array_equal(image_set.images, np.concatenate(expected))
    labels = [i % 3 for split, rows in parts for i in range(SIZES[split])[rows]]
    assert image_set.labels.tolist() == labels


def test_slice_beyond_the_end_is_refused(tiny_grey):
    # As TFDS itself does: a set smaller than thought is not silently taken.
    with pytest.raises(UserError, match=r"train\[10:100\]"):
        load_split("tiny_grey", "train[10:100]", data_dir=tiny_grey)


def test_long_sets_are_read_in_chunks(tiny_grey, monkeypatch):
    monkeypatch.setattr(prepared, "READ_CHUNK_EXAMPLES", 5)
    image_set = load_split("tiny_grey", "train", data_dir=tiny_grey)
    np.testing.assert_array_equal(
        image_set.images, expected_images("train", slice(None), (28, 28, 1))
    )


def test_data_dir_may_start_at_home(tiny_grey, monkeypatch):
    monkeypatch.setenv("HOME", tiny_grey)
    assert len(load_split("tiny_grey", "test", data_dir="~")) == 5


def test_the_order_is_the_stored_one(tmp_path, monkeypatch):
    monkeypatch.setattr(TinyGrey, "ORDERED", False)
    prepare(TinyGrey, tmp_path)
    stock = tfds.data_source("tiny_grey", split="train", data_dir=tmp_path)
    image_set = load_split("tiny_grey", "train", data_dir=str(tmp_path))
    np.testing.assert_array_equal(image_set.images, [row["image"] for row in stock])
    assert image_set.labels.tolist() != [i % 3 for i in range(12)]


def test_unknown_data_set(tmp_path):
    with pytest.raises(UserError, match="unknown dataset 'no_such_set'") as error:
        load_split("no_such_set", "train", data_dir=str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_unknown_split_names_those_there_are(tiny_grey):
    with pytest.raises(UserError, match="'validation'") as error:
        load_split("tiny_grey", "validation", data_dir=tiny_grey)
    assert "train (12 examples), test (5 examples)" in str(error.value)


@pytest.mark.parametrize("spec", ["train[3:3]", "train[12:]", "train[:0]+test[5:]"])
def test_empty_slice(tiny_grey, spec):
    with pytest.raises(UserError, match="no examples"):
        load_split("tiny_grey", spec, data_dir=tiny_grey)


@pytest.mark.parametrize(
    ("builder_class", "name", "message"),
    [
        (NoLabel, "no_label", "label"),
        (NumberLabel, "number_label", "label"),
        (Deep, "deep", "uint16"),
        (NoImage, "no_image", "image"),
    ],
)
def test_sets_that_cannot_be_classified(tmp_path, builder_class, name, message):
    prepare(builder_class, tmp_path)
    with pytest.raises(UserError) as error:
        load_split(name, "train", data_dir=str(tmp_path))
    assert message in str(error.value)
    assert name in str(error.value)


def test_images_of_any_size_are_streamed(tmp_path):
    prepare(AnySize, tmp_path)
    spec, data_dir = "train[10:]+test[1:3]", str(tmp_path)
    picture_set = load_split(
        "any_size", spec, data_dir=data_dir, pictures=PictureOptions(storage_size=9)
    )
    assert picture_set.class_names == ("zero", "one", "two")
    assert (len(picture_set), picture_set.storage_size) == (4, 9)
    (batch,) = picture_set.batches([np.arange(4)])
    expected = [
        *expected_images("train", slice(10, None), (7, 7, 3)),
        *expected_images("test", slice(1, 3), (7, 7, 3)),
    ]
    np.testing.assert_array_equal(batch["image"][:, :7, :7], expected)
    assert batch["label"].tolist() == [10 % 3, 11 % 3, 1, 2]
    assert batch["extent"].tolist() == [[7, 7]] * 4
    names = [picture_set.pictures.name(index) for index in range(4)]
    assert names == [
        *("any_size train record 10", "any_size train record 11"),
        *("any_size test record 1", "any_size test record 2"),
    ]


def test_streamed_sets_have_a_fingerprint_wherever_they_lie(tmp_path):
    prepare(AnySize, tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")

    def fingerprint(place, spec):
        options = PictureOptions(storage_size=9)
        return load_split(
            "any_size", spec, data_dir=str(tmp_path / place), pictures=options
        ).fingerprint

    assert fingerprint("here", "train") == fingerprint("there", "train")
    assert fingerprint("here", "train") != fingerprint("here", "train[:10]")
    assert fingerprint("here", "train[:2]") != fingerprint("here", "train[1:3]")
    (shard,) = (tmp_path / "there").rglob("*train.array_record*")
    shard.write_bytes(shard.read_bytes() + b"\0")
    assert fingerprint("here", "train") != fingerprint("there", "train")


def test_tfrecord_is_refused(tmp_path):
    builder = prepare(TinyGrey, tmp_path)
    # Writing TFRecord needs TensorFlow; the record of the format is enough here.
    path = builder.data_path / "dataset_info.json"
    info = json.loads(path.read_text())
    assert info["fileFormat"] == "array_record"
    path.write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="prepared as tfrecord") as error:
        load_split("tiny_grey", "train", data_dir=str(tmp_path))
    assert str(builder.data_dir) in str(error.value)
    assert "tfds convert_format" in str(error.value)


def test_known_set_that_is_not_prepared(tmp_path):
    with pytest.raises(UserError, match="'mnist' is not prepared") as error:
        load_split("mnist", "train", data_dir=str(tmp_path))
    assert "tfds build mnist" in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_set_larger_than_memory(tiny_grey, monkeypatch):
    monkeypatch.setattr(prepared, "MAX_MEMORY_FRACTION", 0)
    with pytest.raises(UserError, match="memory"):
        load_split("tiny_grey", "train", data_dir=tiny_grey)
