"""CIFAR-10 and CIFAR-100 as TFDS data sets, prepared without TensorFlow.

The builders of TFDS extract the archive and encode the images with TensorFlow. The
builders in this module write the same data set (name, version, features, keys and order of
the examples) without it, and stock TFDS can read the result.
"""

import contextlib
import hashlib
import io
import pathlib
import socket
import tarfile
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import cifar as stock

from googlenet_flax.data.builders import find_archive, hand_placed_paths
from googlenet_flax.runtime.errors import UserError

IMAGE_SHAPE = (32, 32, 3)
PROBE_TIMEOUT_SECONDS = 2.0


class _CifarBuilder:
    """Overrides what the stock builders do with TensorFlow."""

    SHA256: str  # Digest of the official archive, as TFDS records it.

    def _split_generators(self: Any, dl_manager):
        archive = self._cifar_info
        path = self._find_archive() or pathlib.Path(dl_manager.download(archive.url))
        files = read_archive(path, self.SHA256, archive.url)
        for feature, name in zip(archive.label_keys, archive.label_files, strict=True):
            self.info.features[feature].names = files[name].decode().split()
        names = {"train": archive.train_files, "test": archive.test_files}
        return {
            split: self._read_examples(split, [files[name] for name in names[split]])
            for split in names
        }

    def _read_examples(self: Any, split: str, blobs: list[bytes]):
        # NOTE: The key determines the stored order; stock TFDS uses the same number.
        features = self._cifar_info.label_keys
        for index, (labels, image) in enumerate(parse_records(blobs, len(features))):
            png = io.BytesIO()
            PIL.Image.fromarray(image).save(png, format="PNG")
            png.seek(0)
            example = dict(zip(features, map(int, labels), strict=True))
            yield index, {"id": f"{split}_{index:05d}", "image": png, **example}

    def _find_archive(self: Any) -> pathlib.Path | None:
        name = self._cifar_info.url.rpartition("/")[2]
        return find_archive(name, pathlib.Path(self.data_dir_root))

    def prepare(self: Any) -> None:
        """Writes the data set as array_record, from an archive on disk or downloaded.

        Raises:
          UserError: The archive cannot be found or downloaded, or is not the official one.
        """
        url, root, reason = self._cifar_info.url, pathlib.Path(self.data_dir_root), ""
        if self._find_archive() or _can_connect(url):
            try:
                self.download_and_prepare(file_format="array_record")
                return
            except (OSError, tfds.download.DownloadError) as error:  # Or of requests.
                reason = f" ({error})"
        paths = [self.data_path, *hand_placed_paths(url.rpartition("/")[2], root)]
        places, host = ", ".join(map(str, paths)), urllib.parse.urlsplit(url).netloc
        raise UserError(
            f"data set {self.name!r} was not found (looked at {places}) and {host} cannot "
            f"be reached. Download {url} on another machine and put it into {root}, or "
            "point --config.data_dir at a folder that holds the prepared set, or train on "
            f"embedded data with --config=configs/digits.py{reason}"
        )


class Cifar10(_CifarBuilder, stock.Cifar10, skip_registration=True):
    """TFDS `cifar10` 3.0.2."""

    SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"


class Cifar100(_CifarBuilder, stock.Cifar100, skip_registration=True):
    """TFDS `cifar100` 3.0.2; `label` is the fine label."""

    SHA256 = "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"


def read_archive(path: pathlib.Path, sha256: str, url: str) -> dict[str, bytes]:
    """Reads the files of the archive into memory; nothing is extracted to disk.

    Raises:
      UserError: The file is not the official archive.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise UserError(
            f"{path} is not the official archive (SHA-256 {found}, expected {sha256}): "
            f"delete it and download {url} again"
        )
    with tarfile.open(path) as tar:
        files = [(info.name, tar.extractfile(info)) for info in tar if info.isfile()]
        return {pathlib.PurePath(name).name: file.read() for name, file in files if file}


def parse_records(
    blobs: list[bytes], num_labels: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields labels `[num_labels]` and image `[32, 32, 3]`, uint8, of each record.

    A record consists of its label bytes, then 1,024 red, 1,024 green and 1,024 blue bytes.
    """
    height, width, channels = IMAGE_SHAPE
    for blob in blobs:
        records = np.frombuffer(blob, np.uint8)
        records = records.reshape(-1, num_labels + height * width * channels)
        planes = records[:, num_labels:].reshape(-1, channels, height, width)
        images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
        yield from zip(records[:, :num_labels], images, strict=True)


def _can_connect(url: str) -> bool:
    """Returns True if the server answers soon; TFDS would retry for minutes."""
    parts = urllib.parse.urlsplit(url)
    address = parts.hostname, parts.port or 443
    answered = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection(address, timeout=PROBE_TIMEOUT_SECONDS).close()
            answered.set()

    # Runs in a thread, because the lookup of a host name has no timeout.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PROBE_TIMEOUT_SECONDS)
    return answered.is_set()
