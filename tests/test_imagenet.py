"""Preparation, streaming and training of ImageNet 2012 from fabricated archives."""

import contextlib
import dataclasses
import errno
import functools
import io
import os
import resource
import shutil
import tarfile
from unittest import mock

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source, array_record_module
from helpers.archives import tar_of, tensorflow_forbidden
from helpers.batches import assert_batch
from tensorflow_datasets.core.utils import shard_utils
from tensorflow_datasets.datasets.imagenet2012 import (
    imagenet2012_dataset_builder as stock_module,
)
from tensorflow_datasets.datasets.imagenet2012 import imagenet_common
from tensorflow_datasets.proto import tf_example_pb2

from googlenet_flax.data import PictureOptions, load_split
from googlenet_flax.data.builders import imagenet
from googlenet_flax.data.builders.imagenet import Imagenet2012
from googlenet_flax.data.class_names import readable_names, wordnet_ids
from googlenet_flax.data.picture_set import PictureSet
from googlenet_flax.data.sampler import TrainingOrder
from googlenet_flax.runtime.errors import UserError

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
# Names in the stock builder's lists of pictures to repair.
PNG_NAME, CMYK_NAME = "n02105855_2933.JPEG", "n01739381_1309.JPEG"
CLASSES = ("n01440764", "n01739381", "n02105855", "n15075141")
NUM_VALIDATION = 9
MANY_SHARDS_BYTES = 4000  # With this minimum, small splits have several shards.


def encoded(pixels, kind="JPEG"):
    file, mode = io.BytesIO(), "CMYK" if pixels.shape[2] == 4 else "RGB"
    image = PIL.Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes())
    image.save(file, format=kind, quality=100)
    return file.getvalue()


def draw(rng, channels=3):
    """Draws the pixels of a small picture, smooth enough to survive JPEG."""
    rows, columns = np.indices((*rng.integers(20, 70, 2), 1))[:2]
    waves = np.sin(rows * rng.uniform(0, 0.2, channels) + columns * 0.1 + rng.uniform(0, 6))
    return np.uint8(127 + 100 * waves)


@dataclasses.dataclass(frozen=True)
class Official:
    """The content of the fabricated archives."""

    train: dict[str, bytes]  # Keys are file names.
    validation: dict[str, bytes]
    odd: dict[str, np.ndarray]  # The pixels of the pictures that are repaired.
    archives: dict[str, bytes]  # Keys are the file names of the archives.


@pytest.fixture(scope="module")
def official():
    rng = np.random.default_rng(0)
    odd = {PNG_NAME: draw(rng), CMYK_NAME: draw(rng, channels=4)}
    names = [f"{number}_{i}.JPEG" for number in CLASSES for i in range(6)]
    train = {name: encoded(draw(rng)) for name in names}
    train |= {PNG_NAME: encoded(odd[PNG_NAME], "PNG"), CMYK_NAME: encoded(odd[CMYK_NAME])}
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, NUM_VALIDATION + 1)]
    validation = {name: encoded(draw(rng)) for name in rng.permutation(names)}
    inner = {
        f"{number}.tar": tar_of({k: v for k, v in train.items() if k.startswith(number)})
        for number in CLASSES
    }
    archives = {TRAIN: tar_of(inner), VALIDATION: tar_of(validation)}
    return Official(train, validation, odd, archives)


def write_archives(official, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in official.archives.items():
        (folder / name).write_bytes(content)


@contextlib.contextmanager
def taken_for_official(official):
    """Makes the builder expect the sizes of the fabricated archives."""
    small = {
        split: dataclasses.replace(
            archive,
            size_bytes=len(official.archives[archive.file_name]),
            num_pictures=len(getattr(official, split)),
        )
        for split, archive in Imagenet2012.ARCHIVES.items()
    }
    shards = mock.patch.object(shard_utils.ShardConfig, "min_shard_size", MANY_SHARDS_BYTES)
    with mock.patch.object(Imagenet2012, "ARCHIVES", small), shards:
        yield


@pytest.fixture
def own_dir(official, tmp_path):
    """Returns a folder that holds only the archives."""
    write_archives(official, tmp_path)
    with taken_for_official(official):
        yield tmp_path


def load(data_dir, split, **options) -> PictureSet:
    pictures = PictureOptions(storage_size=32, **options)
    return load_split("imagenet2012", split, data_dir=str(data_dir), pictures=pictures)


@pytest.fixture(scope="module")
def data_dir(official, tmp_path_factory):
    """Returns a folder with the prepared data set; tests must not change it."""
    folder = tmp_path_factory.mktemp("data")
    write_archives(official, folder / "downloads" / "manual")
    with taken_for_official(official), tensorflow_forbidden():
        assert len(load(folder, "train")) == len(official.train)
    shutil.rmtree(folder / "downloads")
    return folder


def stored(data_dir, split):
    """Returns the examples as stock TFDS reads them, with encoded pictures."""
    builder = tfds.builder("imagenet2012", data_dir=data_dir)
    assert not isinstance(builder, Imagenet2012)
    decoders = {"image": tfds.decode.SkipDecoding()}
    return list(builder.as_data_source(split=split, decoders=decoders))


def test_builder_and_archives_are_those_of_stock_tfds(tmp_path):
    ours = Imagenet2012(data_dir=tmp_path)
    stock = tfds.builder_cls("imagenet2012")(data_dir=tmp_path)
    assert ours.info.full_name == stock.info.full_name
    assert ours.data_dir == stock.data_dir
    assert ours.info.description == stock.info.description
    assert ours.info.citation == stock.info.citation
    sizes = {url.rsplit("/", 1)[-1]: info.size for url, info in stock.url_infos.items()}
    assert sizes == {a.file_name: a.size_bytes for a in ours.ARCHIVES.values()}
    # https://image-net.org/challenges/LSVRC/2012/
    numbers = {name: archive.num_pictures for name, archive in ours.ARCHIVES.items()}
    assert numbers == {"train": 1_281_167, "validation": 50_000}


class StockImagenet(stock_module.Builder, skip_registration=True):
    """The stock builder without TensorFlow, which repairs no picture."""

    name = "imagenet2012"

    def _split_generators(self, dl_manager):
        official = self.OFFICIAL
        labels_path = imagenet_common.label_names_file().with_name("validation_labels.txt")
        labels = dict(
            zip(sorted(official.validation), labels_path.read_text().split(), strict=False)
        )
        archives = {
            name: tfds.download.iter_archive(
                io.BytesIO(content), tfds.download.ExtractMethod.TAR_STREAM
            )
            for name, content in official.archives.items()
        }
        return {
            "train": self._generate_examples(archives[TRAIN]),
            "validation": self._generate_examples(archives[VALIDATION], labels),
        }

    def _fix_image(self, image_fname, image):
        return image


def test_stock_tfds_reads_the_records_of_the_stock_builder(data_dir, official, tmp_path):
    StockImagenet.OFFICIAL = official
    stock = StockImagenet(data_dir=tmp_path, file_format="array_record")
    stock.download_and_prepare()
    info = tfds.builder("imagenet2012", data_dir=data_dir).info
    assert info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    assert info.features["label"].names == list(wordnet_ids())
    assert info.splits["train"].num_shards > 1
    for split, size in [("train", 26), ("validation", 9)]:
        assert info.splits[split].num_examples == size
        ours, theirs = stored(data_dir, split), stored(tmp_path, split)
        names = [example["file_name"].decode() for example in ours]
        assert len(names) == size and names != sorted(names)
        for our, their in zip(ours, theirs, strict=True):
            repaired = their["file_name"].decode() in {PNG_NAME, CMYK_NAME}
            assert (our["image"] != their["image"]) == repaired
            del our["image"], their["image"]
            assert our == their


def test_two_kinds_of_pictures_are_repaired(data_dir, official):
    pictures = {e["file_name"].decode(): e["image"] for e in stored(data_dir, "train")}
    cyan_to_yellow, black = np.split(255.0 - official.odd[CMYK_NAME], [3], axis=2)
    expected = {PNG_NAME: official.odd[PNG_NAME], CMYK_NAME: cyan_to_yellow * black / 255}
    for name, pixels in expected.items():
        image = PIL.Image.open(io.BytesIO(pictures[name]))
        assert (image.format, image.mode) == ("JPEG", "RGB")
        # Tables of ones are those of quality 100.
        assert all(set(table) == {1} for table in image.quantization.values())
        assert np.abs(np.asarray(image, np.float64) - pixels).mean() < 4


def test_class_names_are_words_in_the_networks_order(data_dir):
    names = load(data_dir, "train").class_names
    # https://image-net.org/challenges/LSVRC/2012/browse-synsets
    words = {
        "n01440764": "tench, Tinca tinca",
        "n02105855": "Shetland sheepdog, Shetland sheep dog, Shetland",
        "n15075141": "toilet tissue, toilet paper, bathroom tissue",
    }
    assert len(names) == 1000
    for number, name in words.items():
        assert names[wordnet_ids().index(number)] == name
    assert readable_names(["n01440764", "cat"]) == ("tench, Tinca tinca", "cat")


def test_batches_are_the_decoded_records(data_dir):
    train, examples = load(data_dir, "train"), stored(data_dir, "train")
    order = TrainingOrder(0, 0, 9, 26, 6)
    with tensorflow_forbidden():
        batches = list(train.batches(order))
    pictures, labels = ([e[name] for e in examples] for name in ("image", "label"))
    for batch, indices in zip(batches, order, strict=True):
        assert_batch(batch, pictures, labels, indices, size=32)
        assert batch["readable"].all()
    assert train.unreadable == {}


def shard_of(data_dir, record):
    """Returns the file of `train` that holds a record, and its position there."""
    info = Imagenet2012(data_dir=data_dir).info.splits["train"]
    for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
        if record < length:
            return path, record
        record -= length
    raise IndexError(record)


@pytest.fixture
def writable_dir(data_dir, tmp_path):
    return shutil.copytree(data_dir, tmp_path / "copy")


def cut_short(record):
    """Returns the record with half of its picture."""
    example = tf_example_pb2.Example.FromString(record)
    image = example.features.feature["image"].bytes_list
    image.value[0] = image.value[0][: len(image.value[0]) // 2]
    return example.SerializeToString()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_short, "truncated"),
        (lambda record: b"\xff" * 9, "broken record: Error parsing message"),
        (lambda record: b"", "broken record: not enough values to unpack"),
    ],
)
def test_a_broken_record_is_named(writable_dir, damage, reason):
    path, number = shard_of(writable_dir, 3)
    records = list(array_record_data_source.ArrayRecordDataSource([str(path)]))
    records[number] = damage(records[number])
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    with pytest.raises(UserError) as error:
        list(load(writable_dir, "train").batches([np.arange(6)]))
    name, message = "imagenet2012 train record 3", str(error.value)
    assert message.startswith(f"{name} cannot be read ({reason}")
    assert message.endswith("prepare the data set again, or set --config.on_bad_image=skip")

    train = load(writable_dir, "train[2:]", on_bad_image="skip")
    (batch,) = train.batches([np.arange(4)])
    assert batch["readable"].tolist() == [True, False, True, True]
    assert batch["index"].tolist() == [0, 2, 2, 3]
    assert list(train.unreadable) == [name]


def test_a_record_without_a_class_is_no_example(data_dir):
    train = load(data_dir, "train")
    few = dataclasses.replace(train.pictures, num_classes=0)
    refused = r"record 1 cannot be read \(its label is \d+, but there are 0 classes"
    with pytest.raises(UserError, match=refused):
        list(dataclasses.replace(train, pictures=few).batches([np.array([1])]))


def test_a_missing_shard_is_found_at_the_door(writable_dir):
    path, _ = shard_of(writable_dir, 3)
    path.unlink()
    with pytest.raises(UserError, match="No such file") as error:
        load(writable_dir, "train")
    assert str(path) in str(error.value)
    assert len(load(writable_dir, "validation")) == NUM_VALIDATION


def test_the_limit_of_open_files_is_raised_by_the_shards(data_dir):
    shards = Imagenet2012(data_dir=data_dir).info.splits["train"].num_shards
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 99, hard))
        load(data_dir, "train")
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == soft - 99 + shards
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("there", [[], [TRAIN]])
def test_missing_archives_are_named_at_once(official, tmp_path, there):
    for name in there:
        (tmp_path / name).write_bytes(official.archives[name])
    with pytest.raises(UserError) as error:
        load(tmp_path, "train")
    missing = " and ".join(name for name in (TRAIN, VALIDATION) if name not in there)
    places = f"{tmp_path}/imagenet2012/5.1.0, {tmp_path}, {tmp_path}/downloads/manual"
    ways_out = "https://image-net.org/", "--config.data_dir", "--config.dataset=folder"
    for part in (f"nor {missing} to prepare it", places, *ways_out):
        assert part in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == there


UNKNOWN = "ILSVRC2012_val_00050001.JPEG"
PICTURE = {"n01440764_1.JPEG": b"JPEG"}


def test_an_archive_that_may_not_be_read_is_not_called_damaged(own_dir, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tarfile, "open", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)") as error:
        load(own_dir, "train")
    assert "download" not in str(error.value)
    assert_nothing_prepared(own_dir)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (TRAIN, lambda whole: whole[:-1], "bytes, expected"),
        (TRAIN, lambda whole: whole[: len(whole) // 2], "unexpected end of data"),
        (TRAIN, lambda whole: tar_of({"n01440764.tar": b"\1" * 1024}), "invalid header"),
        (TRAIN, lambda whole: tar_of(PICTURE), "it holds n01440764_1.JPEG"),
        (TRAIN, lambda whole: tar_of({"n00000000.tar": b""}), "it holds n00000000.tar"),
        (TRAIN, lambda whole: tar_of({"n01440764.tar": tar_of(PICTURE)}), "1 pictures"),
        (VALIDATION, lambda whole: tar_of(PICTURE), "it holds n01440764_1.JPEG"),
        (VALIDATION, lambda whole: tar_of({UNKNOWN: b"JPEG"}), f"it holds {UNKNOWN}"),
    ],
)
def test_other_archives_are_refused(official, own_dir, monkeypatch, name, content, reason):
    data = content(official.archives[name])
    (own_dir / name).write_bytes(data)
    if "bytes" not in reason:  # The builder accepts the size.
        split = "train" if name == TRAIN else "validation"
        fake = dataclasses.replace(Imagenet2012.ARCHIVES[split], size_bytes=len(data))
        archives = {**Imagenet2012.ARCHIVES, split: fake}
        monkeypatch.setattr(Imagenet2012, "ARCHIVES", archives)
    with pytest.raises(UserError) as error:
        load(own_dir, "train")
    message = str(error.value)
    assert f"{own_dir / name} is not the official archive of imagenet2012" in message
    assert reason in message and "https://image-net.org" in message
    assert_nothing_prepared(own_dir)


def assert_nothing_prepared(data_dir):
    assert not Imagenet2012(data_dir=data_dir).is_prepared()
    assert list((data_dir / "imagenet2012").iterdir()) == []


def test_a_full_disk_is_seen_before_anything_is_written(own_dir, monkeypatch):
    left = own_dir / "imagenet2012" / "incomplete.ABC123_5.1.0"
    left.mkdir(parents=True)
    free = mock.Mock(free=1000)
    monkeypatch.setattr(imagenet.shutil, "disk_usage", lambda path: free)
    with pytest.raises(UserError, match=r"cannot be written into .* GiB are needed") as e:
        load(own_dir, "train")
    assert f"delete {left} of an interrupted preparation, or" in str(e.value)
    left.rmdir()
    assert_nothing_prepared(own_dir)


def cannot_be_read_to_its_end(pread, *args):
    return pread(*args)[:-1]


def interrupt(pread, *args):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("read", "error", "message"),
    [
        (cannot_be_read_to_its_end, UserError, r"cannot be written .* read to its end"),
        (interrupt, KeyboardInterrupt, None),
    ],
)
def test_an_interrupted_preparation_leaves_nothing(
    official, own_dir, monkeypatch, read, error, message
):
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", functools.partial(read, os.pread))
        with pytest.raises(error, match=message):
            load(own_dir, "train")
    assert_nothing_prepared(own_dir)
    assert len(load(own_dir, "train")) == len(official.train)
