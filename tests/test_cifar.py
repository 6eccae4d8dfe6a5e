import dataclasses
import hashlib
import shutil
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.archives import (
    ARCHIVE_NAMES,
    CIFAR_FILES,
    CIFAR_FOLDERS,
    cifar_archive_bytes,
    tensorflow_forbidden,
)
from helpers.servers import serving
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.hashing import Hasher

from googlenet_flax.data import load_split
from googlenet_flax.data.builders import cifar
from googlenet_flax.runtime.errors import UserError

BUILDERS = {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}


def read_records(path, name, split):
    """Reads labels `[N, 1 or 2]` and images `[N, 32, 32, 3]` in the archive's order."""
    num_labels = 2 if name == "cifar100" else 1
    with tarfile.open(path) as tar:
        files = [f"{CIFAR_FOLDERS[name]}/{file}" for file in CIFAR_FILES[name][split]]
        data = b"".join(tar.extractfile(file).read() for file in files)
    records = np.frombuffer(data, np.uint8).reshape(-1, num_labels + 3 * 32 * 32)
    planes = np.split(records[:, num_labels:], 3, axis=1)
    images = np.stack([plane.reshape(-1, 32, 32) for plane in planes], axis=-1)
    return records[:, :num_labels], images


def archive_path(data_dir, name="cifar10"):
    return data_dir / ARCHIVE_NAMES[name]


def load(data_dir, split="train", name="cifar10", **options):
    return load_split(name, split, data_dir=str(data_dir), **options)


@pytest.fixture
def data_dir(monkeypatch, tmp_path):
    """Returns a folder with small archives: 100 + 20 images, and 50 + 50 of 100 classes."""
    for name, examples_per_file in (("cifar10", 20), ("cifar100", 50)):
        content, builder = cifar_archive_bytes(name, examples_per_file), BUILDERS[name]
        facts = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        archive = dataclasses.replace(builder.ARCHIVE, **facts)
        monkeypatch.setattr(builder, "ARCHIVE", archive)
        archive_path(tmp_path, name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "split", "sizes"),
    [
        ("cifar10", "train", {"train": 100, "test": 20}),
        ("cifar10", "test", {"train": 100, "test": 20}),
        ("cifar100", "test", {"train": 50, "test": 50}),
    ],
)
def test_it_and_stock_tfds_read_the_archives_images(data_dir, name, split, sizes):
    with tensorflow_forbidden():
        image_set = load(data_dir, split, name)
    labels, images = read_records(archive_path(data_dir, name), name, split)
    # TFDS sorts by the MD5 of the key, salted with the split's name (`core/shuffle.py`).
    order = sorted(range(sizes[split]), key=Hasher(split).hash_key)
    np.testing.assert_array_equal(image_set.images, images[order])
    np.testing.assert_array_equal(image_set.labels, labels[order, -1])
    num_classes = int(name.removeprefix("cifar"))
    assert image_set.class_names == tuple(f"label_{i}" for i in range(num_classes))

    stock = tfds.builder(name, data_dir=str(data_dir))
    assert not isinstance(stock, BUILDERS[name])
    assert stock.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    assert stock.info.features["label"].names == list(image_set.class_names)
    assert {name: info.num_examples for name, info in stock.info.splits.items()} == sizes
    examples = list(stock.as_data_source(split=split))
    for example, ours, record in zip(examples, image_set.images, order, strict=True):
        assert example["id"].decode() == f"{split}_{record:05d}"
        np.testing.assert_array_equal(example["image"], ours)
        stored = [example[name] for name in ("coarse_label", "label") if name in example]
        assert stored == labels[record].tolist()


@pytest.mark.parametrize("name", BUILDERS)
def test_builder_and_archive_are_those_of_stock_tfds(name, tmp_path):
    ours = BUILDERS[name](data_dir=tmp_path)
    stock = tfds.builder_cls(name)(data_dir=tmp_path)
    assert ours.info.full_name == stock.info.full_name
    assert ours.data_dir == stock.data_dir
    assert repr(ours.info.features) == repr(stock.info.features)
    assert ours.info.supervised_keys == stock.info.supervised_keys
    (recorded,) = [
        info
        for info in checksums.get_all_url_infos().values()
        if info.filename == ARCHIVE_NAMES[name]
    ]
    assert dataclasses.asdict(ours.ARCHIVE) == {
        "name": recorded.filename,
        "url": stock._cifar_info.url,
        "sha256": recorded.checksum,
        "size_bytes": recorded.size,
    }


def test_prepared_data_need_no_archive_which_may_lie_in_the_manual_folder(data_dir):
    path = archive_path(data_dir)
    manual = data_dir / "downloads" / "manual"
    manual.mkdir(parents=True)
    path = path.rename(manual / path.name)
    first = load(data_dir)
    path.unlink()
    np.testing.assert_array_equal(first.images, load(data_dir).images)


def test_another_process_may_prepare_the_set_first(data_dir, monkeypatch):
    def prepare_late(builder, prepare=cifar.Cifar10.prepare):
        prepare(builder)
        raise UserError("the destination exists already")

    monkeypatch.setattr(cifar.Cifar10, "prepare", prepare_late)
    assert len(load(data_dir, "test")) == 20


def test_the_archive_is_downloaded(data_dir, tmp_path_factory, monkeypatch):
    path = archive_path(data_dir)
    content = path.read_bytes()
    path.unlink()
    with serving({path.name: content}) as server:
        archive = dataclasses.replace(cifar.Cifar10.ARCHIVE, url=server.url(path.name))
        monkeypatch.setattr(cifar.Cifar10, "ARCHIVE", archive)
        assert len(load(data_dir, "test")) == 20
        (kept,) = (data_dir / "downloads/googlenet_flax").iterdir()
        assert kept.read_bytes() == content
        server.files.clear()
        other = tmp_path_factory.mktemp("other")
        with pytest.raises(UserError, match="404") as error:
            load(other)
        for part in (f"{other}/cifar10/3.0.2, {other}/{path.name}", "--config=digits"):
            assert part in str(error.value)
        shutil.copy(kept, other / "downloads/googlenet_flax")
        assert len(load(other, "train")) == 100
