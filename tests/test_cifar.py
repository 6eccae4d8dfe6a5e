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
from conftest import REPOSITORY
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
    return archive


@pytest.mark.parametrize(("split", "size"), [("train", 100), ("test", 20)])
def test_cifar10_holds_the_archives_images_in_stock_order(small_cifar10, split, size):
    labels, images = read_records(
        archive_path(small_cifar10), FILES["cifar10"][split], num_labels=1
    )
    image_set = load_split("cifar10", split, data_dir=str(small_cifar10))
    order = stored_order(split, size)
    assert order != sorted(order)
    np.testing.assert_array_equal(image_set.images, images[order])
    np.testing.assert_array_equal(image_set.labels, labels[order, 0])
    assert image_set.class_names == tuple(f"label_{i}" for i in range(10))


def test_stock_tfds_reads_what_was_prepared(small_cifar10):
    prepared = load_split("cifar10", "train", data_dir=str(small_cifar10))
    labels, images = read_records(
        archive_path(small_cifar10), FILES["cifar10"]["train"], num_labels=1
    )
    stock = tfds.builder("cifar10", data_dir=str(small_cifar10))
    assert not isinstance(stock, cifar.Cifar10)
    assert str(stock.version) == "3.0.2"
    assert stock.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    assert stock.info.supervised_keys == ("image", "label")
    assert stock.info.features["label"].names == [f"label_{i}" for i in range(10)]
    sizes = {name: split.num_examples for name, split in stock.info.splits.items()}
    assert sizes == {"train": 100, "test": 20}

    examples = list(tfds.data_source("cifar10", split="train", data_dir=str(small_cifar10)))
    ids = [example["id"].decode() for example in examples]
    assert ids == [f"train_{i:05d}" for i in stored_order("train", 100)]
    for example, ours in zip(examples, prepared.images, strict=True):
        record = int(example["id"].decode().removeprefix("train_"))
        np.testing.assert_array_equal(example["image"], images[record])
        np.testing.assert_array_equal(example["image"], ours)
        assert example["label"] == labels[record, 0]


def test_cifar100_has_coarse_and_fine_labels(small_cifar100):
    labels, images = read_records(
        archive_path(small_cifar100, "cifar100"), FILES["cifar100"]["test"], num_labels=2
    )
    image_set = load_split("cifar100", "test", data_dir=str(small_cifar100))
    order = stored_order("test", 50)
    np.testing.assert_array_equal(image_set.images, images[order])
    np.testing.assert_array_equal(image_set.labels, labels[order, 1])
    assert image_set.class_names == tuple(f"label_{i}" for i in range(100))

    stock = tfds.builder("cifar100", data_dir=str(small_cifar100))
    assert str(stock.version) == "3.0.2"
    assert stock.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    names = stock.info.features["coarse_label"].names
    assert names == [f"coarse_label_{i}" for i in range(20)]
    for example in stock.as_data_source(split="test"):
        record = int(example["id"].decode().removeprefix("test_"))
        assert example["coarse_label"] == labels[record, 0]
        assert example["label"] == labels[record, 1]


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


def test_archive_in_the_manual_folder_is_found(small_cifar10):
    manual = small_cifar10 / "downloads" / "manual"
    manual.mkdir(parents=True)
    path = archive_path(small_cifar10)
    path.rename(manual / path.name)
    assert len(load_split("cifar10", "test", data_dir=str(small_cifar10))) == 20


def test_prepared_data_need_no_archive(small_cifar10):
    first = load_split("cifar10", "train", data_dir=str(small_cifar10))
    archive_path(small_cifar10).unlink()
    again = load_split("cifar10", "train", data_dir=str(small_cifar10))
    np.testing.assert_array_equal(first.images, again.images)


def test_archive_of_the_wrong_size_is_refused(small_cifar10):
    path = archive_path(small_cifar10)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="bytes, expected") as error:
        load_split("cifar10", "train", data_dir=str(small_cifar10))
    assert str(path) in str(error.value)


def test_archive_with_the_wrong_digest_is_refused(small_cifar10):
    path = archive_path(small_cifar10)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="SHA-256") as error:
        load_split("cifar10", "train", data_dir=str(small_cifar10))
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
    with pytest.raises(
        UserError, match=r"'cifar10' is not prepared in .*training prepares"
    ):
        load_split("cifar10", "train", data_dir=str(small_cifar10), may_prepare=False)
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
        load_split("cifar10", "train", data_dir=str(tmp_path))
    assert time.monotonic() - start < 5
    over.set()
    for part in (
        str(tmp_path),
        cifar.CIFAR10.url,
        "--config.data_dir",
        "configs/digits.py",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path_factory):
    """A folder and the URL under which it is served."""
    folder = tmp_path_factory.mktemp("server")
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()
        thread.join()


@pytest.fixture
def served_cifar10(server, small_cifar10, monkeypatch):
    """An empty data_dir, and the archive on a server."""
    folder, url = server
    path = archive_path(small_cifar10)
    path.rename(folder / path.name)
    replace_archive(monkeypatch, url=f"{url}/{path.name}")
    return small_cifar10, folder / path.name


def test_archive_is_downloaded(served_cifar10):
    data_dir, path = served_cifar10
    labels, images = read_records(path, FILES["cifar10"]["train"], num_labels=1)
    image_set = load_split("cifar10", "train", data_dir=str(data_dir))
    order = stored_order("train", 100)
    np.testing.assert_array_equal(image_set.images, images[order])
    np.testing.assert_array_equal(image_set.labels, labels[order, 0])


def test_download_is_verified(served_cifar10, monkeypatch):
    data_dir, _ = served_cifar10
    replace_archive(monkeypatch, sha256="0" * 64)
    with pytest.raises(UserError, match="SHA-256"):
        load_split("cifar10", "train", data_dir=str(data_dir))


def test_download_that_is_gone_is_the_users_error(served_cifar10):
    data_dir, path = served_cifar10
    path.unlink()
    with pytest.raises(UserError, match="404"):
        load_split("cifar10", "train", data_dir=str(data_dir))


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
