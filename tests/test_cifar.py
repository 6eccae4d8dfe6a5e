import dataclasses
import functools
import http.server
import io
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.paths import REPOSITORY
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.hashing import Hasher

from googlenet_flax.data import load_split
from googlenet_flax.data.builders import cifar
from googlenet_flax.runtime.errors import UserError

# The official layout, https://www.cs.toronto.edu/~kriz/cifar.html.
FILES = {
    "cifar10": {
        "train": [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)],
        "test": ["cifar-10-batches-bin/test_batch.bin"],
    },
    "cifar100": {
        "train": ["cifar-100-binary/train.bin"],
        "test": ["cifar-100-binary/test.bin"],
    },
}


def read_records(path, files, num_labels):
    """Labels `[N, num_labels]` and images `[N, 32, 32, 3]` in the archive's order."""
    with tarfile.open(path) as tar:
        data = b"".join(tar.extractfile(name).read() for name in files)
    records = np.frombuffer(data, np.uint8).reshape(-1, num_labels + 3 * 32 * 32)
    planes = [
        records[:, start : start + 1024].reshape(-1, 32, 32)
        for start in range(num_labels, num_labels + 3072, 1024)
    ]
    return records[:, :num_labels], np.stack(planes, axis=-1)


def stored_order(split, size):
    """The running numbers in the order stock TFDS stores them.

    `core/shuffle.py`: sorted by the MD5 of the key, salted with the split's name.
    """
    return sorted(range(size), key=Hasher(split).hash_key)


def archive_path(data_dir, name="cifar10"):
    return data_dir / cifar.BUILDERS[name].ARCHIVE.file_name


def replace_archive(monkeypatch, **fields):
    archive = dataclasses.replace(cifar.Cifar10.ARCHIVE, **fields)
    monkeypatch.setattr(cifar.Cifar10, "ARCHIVE", archive)


def load(data_dir, split="train", name="cifar10", **options):
    return load_split(name, split, data_dir=str(data_dir), **options)


def assert_images(image_set, path, split):
    """Compares a split with the archive's images in stock order."""
    name = "cifar100" if "100" in path.name else "cifar10"
    labels, images = read_records(path, FILES[name][split], 1 + (name == "cifar100"))
    order = stored_order(split, len(images))
    assert order != sorted(order)
    np.testing.assert_array_equal(image_set.images, images[order])
    np.testing.assert_array_equal(image_set.labels, labels[order, -1])


@pytest.mark.parametrize(
    ("name", "split", "sizes"),
    [
        ("cifar10", "train", {"train": 100, "test": 20}),
        ("cifar10", "test", {"train": 100, "test": 20}),
        ("cifar100", "test", {"train": 50, "test": 50}),
    ],
)
def test_it_and_stock_tfds_read_the_archives_images(request, name, split, sizes):
    data_dir = request.getfixturevalue(f"small_{name}")
    path, num_classes = archive_path(data_dir, name), int(name.removeprefix("cifar"))
    image_set = load(data_dir, split, name)
    assert_images(image_set, path, split)
    assert image_set.class_names == tuple(f"label_{i}" for i in range(num_classes))

    stock = tfds.builder(name, data_dir=str(data_dir))
    assert not isinstance(stock, cifar.BUILDERS[name])
    assert str(stock.version) == "3.0.2"
    assert stock.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    assert stock.info.supervised_keys == ("image", "label")
    assert stock.info.features["label"].names == list(image_set.class_names)
    assert {name: info.num_examples for name, info in stock.info.splits.items()} == sizes
    labels, _ = read_records(path, FILES[name][split], 1 + (name == "cifar100"))
    order = stored_order(split, sizes[split])
    examples = list(stock.as_data_source(split=split))
    ids = [example["id"].decode() for example in examples]
    assert ids == [f"{split}_{record:05d}" for record in order]
    for example, ours, record in zip(examples, image_set.images, order, strict=True):
        np.testing.assert_array_equal(example["image"], ours)
        stored = [example[name] for name in ("coarse_label", "label") if name in example]
        assert stored == labels[record].tolist()
    if name == "cifar100":
        names = stock.info.features["coarse_label"].names
        assert names == [f"coarse_label_{i}" for i in range(20)]


def test_cifar100s_first_byte_is_the_coarse_label():
    # The official page: <1 x coarse label><1 x fine label><3072 x pixel>.
    record = np.zeros(3074, np.uint8)
    record[:2] = 3, 77
    ((labels, _),) = cifar.parse_records([record.tobytes()], num_labels=2)
    named = dict(zip(cifar.CIFAR100.label_files, labels.tolist(), strict=True))
    assert named == {"coarse_label": 3, "label": 77}


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_features_are_those_of_the_stock_builder(name, tmp_path):
    ours, stock = cifar.BUILDERS[name](data_dir=tmp_path), tfds.builder_cls(name)
    stock = stock(data_dir=tmp_path)
    assert ours.info.full_name == stock.info.full_name
    assert ours.data_dir == stock.data_dir
    assert repr(ours.info.features) == repr(stock.info.features)


@pytest.mark.parametrize("archive", [cifar.CIFAR10, cifar.CIFAR100])
def test_archives_are_those_tfds_has_on_record(archive):
    recorded = checksums.get_all_url_infos()[archive.url]
    assert archive.size_bytes == recorded.size
    assert archive.sha256 == recorded.checksum
    assert archive.file_name == recorded.filename


def test_prepared_data_need_no_archive_which_may_lie_in_the_manual_folder(small_cifar10):
    path = archive_path(small_cifar10)
    manual = small_cifar10 / "downloads" / "manual"
    manual.mkdir(parents=True)
    path = path.rename(manual / path.name)
    first = load(small_cifar10)
    path.unlink()
    np.testing.assert_array_equal(first.images, load(small_cifar10).images)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "bytes, expected"),
        (lambda data: data[:999] + bytes([data[999] ^ 1]) + data[1000:], "SHA-256"),
    ],
)
def test_another_archive_is_refused(small_cifar10, damage, message):
    path = archive_path(small_cifar10)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        load(small_cifar10)
    assert str(path) in str(error.value)
    # Nothing half prepared stays behind.
    assert not cifar.Cifar10(data_dir=small_cifar10).is_prepared()


@pytest.mark.parametrize("fraction", [0, 0.5, 0.99])
def test_truncated_archive_cannot_be_read(small_cifar10, fraction):
    path = archive_path(small_cifar10)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(UserError, match="cannot be read") as error:
        cifar.read_archive(cifar.CIFAR10, path)
    assert str(path) in str(error.value)


def test_archive_without_a_file_cannot_be_read(tmp_path):
    path = tmp_path / "empty.tar.gz"
    with tarfile.open(path, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("cifar-10-batches-bin/readme.html"), io.BytesIO())
    with pytest.raises(UserError, match=r"batches\.meta\.txt") as error:
        cifar.read_archive(cifar.CIFAR10, path)
    assert str(path) in str(error.value)


def test_a_set_is_not_prepared_where_it_may_not_be(small_cifar10):
    before = sorted(small_cifar10.rglob("*"))
    with pytest.raises(UserError, match=r"'cifar10' is not prepared in .*training"):
        load(small_cifar10, may_prepare=False)
    assert sorted(small_cifar10.rglob("*")) == before


@pytest.mark.parametrize("network", ["refused", "silent"])
def test_without_network_the_error_is_quick_and_says_what_to_do(
    monkeypatch, tmp_path, network
):
    over = threading.Event()

    def create_connection(*args, **kwargs):
        if network == "silent":  # As a name server that never answers.
            over.wait(30)
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", create_connection)
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert time.monotonic() - start < 5
    over.set()
    places = str(tmp_path), cifar.CIFAR10.url, "--config.data_dir", "configs/digits.py"
    assert all(part in str(error.value) for part in places)
    assert "\n" not in str(error.value)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def served_cifar10(small_cifar10, tmp_path_factory, monkeypatch):
    """An empty data_dir, and the archive on a server."""
    folder = tmp_path_factory.mktemp("server")
    path = archive_path(small_cifar10)
    path = path.rename(folder / path.name)
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/{path.name}"
        replace_archive(monkeypatch, url=url)
        yield small_cifar10, path
        server.shutdown()
        thread.join()


def test_archive_is_downloaded(served_cifar10):
    data_dir, path = served_cifar10
    assert_images(load(data_dir), path, "train")


def test_download_is_verified(served_cifar10, monkeypatch):
    replace_archive(monkeypatch, sha256="0" * 64)
    with pytest.raises(UserError, match="SHA-256"):
        load(served_cifar10[0])


def test_download_that_is_gone_is_the_users_error(served_cifar10):
    data_dir, path = served_cifar10
    path.unlink()
    with pytest.raises(UserError, match="404"):
        load(data_dir)


def test_nothing_imports_tensorflow(small_cifar10, tmp_path_factory):
    # An importable stand-in, so that an attempt is seen where TensorFlow is not installed.
    stand_in = tmp_path_factory.mktemp("stand_in")
    (stand_in / "tensorflow").mkdir()
    (stand_in / "tensorflow" / "__init__.py").write_text(
        "raise SystemExit('TensorFlow was imported')"
    )
    archive = cifar.Cifar10.ARCHIVE
    script = f"""
import dataclasses, sys
import googlenet_flax.data
from googlenet_flax.data.builders import cifar
assert len(googlenet_flax.data.load_split("digits", "test", data_dir="")) == 360
cifar.Cifar10.ARCHIVE = dataclasses.replace(
    cifar.CIFAR10, size_bytes={archive.size_bytes}, sha256="{archive.sha256}"
)
cifar10 = googlenet_flax.data.load_split("cifar10", "test", data_dir={str(small_cifar10)!r})
assert len(cifar10) == 20
assert "tensorflow" not in sys.modules
"""
    path = [str(stand_in), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    )
