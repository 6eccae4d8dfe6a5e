"""CIFAR-10 and CIFAR-100 as TFDS data sets, prepared without TensorFlow.

The builders of TFDS extract the archive and encode the images with TensorFlow. The
builders in this module write the same data set (name, version, features, keys and order of
the examples) without it, and stock TFDS can read the result.
"""

import dataclasses
import hashlib
import io
import pathlib
import socket
import tarfile
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from googlenet_flax.data.builders.archives import find_archive, hand_placed_paths
from googlenet_flax.runtime.errors import UserError

IMAGE_SHAPE = (32, 32, 3)
PROBE_TIMEOUT_SECONDS = 2.0
HOMEPAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
CITATION = """@techreport{Krizhevsky09learningmultiple,
  author = {Alex Krizhevsky},
  title = {Learning multiple layers of features from tiny images},
  institution = {University of Toronto},
  year = {2009}
}"""


@dataclasses.dataclass(frozen=True)
class Archive:
    """The official binary archive of one data set, and its content."""

    url: str
    size_bytes: int  # Size and digest are those that TFDS records.
    sha256: str
    folder: str
    files: dict[str, tuple[str, ...]]  # Split to names of its files.
    # Label feature to the file with its class names, in the order of the label bytes.
    label_files: dict[str, str]

    @property
    def file_name(self) -> str:
        """File name at the end of the URL."""
        return self.url.rsplit("/", 1)[-1]


CIFAR10 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    size_bytes=170052171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder="cifar-10-batches-bin",
    files={
        "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        "test": ("test_batch.bin",),
    },
    label_files={"label": "batches.meta.txt"},
)
CIFAR100 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    size_bytes=168513733,
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    folder="cifar-100-binary",
    files={"train": ("train.bin",), "test": ("test.bin",)},
    label_files={
        "coarse_label": "coarse_label_names.txt",
        "label": "fine_label_names.txt",
    },
)


class _CifarBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("3.0.2")
    ARCHIVE: Archive
    NUM_CLASSES: Mapping[str, int]

    def _info(self) -> tfds.core.DatasetInfo:
        labels = {
            name: tfds.features.ClassLabel(num_classes=number)
            for name, number in self.NUM_CLASSES.items()
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="32x32 color photographs, 50,000 to train and 10,000 to test.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=IMAGE_SHAPE),
                    **labels,
                }
            ),
            supervised_keys=("image", "label"),
            homepage=HOMEPAGE,
            citation=CITATION,
        )

    def _split_generators(self, dl_manager):
        archive = self.ARCHIVE
        path = find_archive(archive.file_name, pathlib.Path(self.data_dir_root))
        if path is None:
            path = pathlib.Path(dl_manager.download(archive.url))
        verify_archive(archive, path)
        files = read_archive(archive, path)
        for feature, name in archive.label_files.items():
            self.info.features[feature].names = files[name].decode().split()
        return {
            split: self._generate_examples(split, [files[name] for name in names])
            for split, names in archive.files.items()
        }

    def _generate_examples(self, split: str, blobs: list[bytes]):
        # NOTE: The key determines the stored order; stock TFDS uses the same number.
        label_names = list(self.ARCHIVE.label_files)
        for index, (labels, image) in enumerate(parse_records(blobs, len(label_names))):
            png = io.BytesIO()
            PIL.Image.fromarray(image).save(png, format="PNG")
            png.seek(0)
            yield (
                index,
                {
                    "id": f"{split}_{index:05d}",
                    "image": png,
                    **dict(zip(label_names, map(int, labels), strict=True)),
                },
            )


class Cifar10(_CifarBuilder, skip_registration=True):
    """TFDS `cifar10` 3.0.2."""

    ARCHIVE = CIFAR10
    NUM_CLASSES = MappingProxyType({"label": 10})


class Cifar100(_CifarBuilder, skip_registration=True):
    """TFDS `cifar100` 3.0.2; `label` is the fine label."""

    ARCHIVE = CIFAR100
    NUM_CLASSES = MappingProxyType({"label": 100, "coarse_label": 20})


BUILDERS = {"cifar10": Cifar10, "cifar100": Cifar100}


def prepare(builder: _CifarBuilder) -> None:
    """Writes the data set as array_record, from an archive found on disk or downloaded.

    Raises:
      UserError: The archive cannot be found or downloaded, or is not the official one.
    """
    archive, root = builder.ARCHIVE, pathlib.Path(builder.data_dir_root)
    if find_archive(archive.file_name, root) is None and not _can_connect(archive.url):
        raise UserError(_not_found_message(builder))
    try:
        builder.download_and_prepare(file_format="array_record")
    except UserError:
        raise
    except OSError as error:  # requests' errors are OSErrors too
        raise UserError(f"{_not_found_message(builder)} ({error})") from error
    except tfds.download.DownloadError as error:
        raise UserError(f"{_not_found_message(builder)} ({error})") from error


def verify_archive(archive: Archive, path: pathlib.Path) -> None:
    """Checks size and SHA-256 of an archive.

    Raises:
      UserError: The file is not the official archive.
    """
    size_bytes = path.stat().st_size
    if size_bytes != archive.size_bytes:
        found, expected = f"{size_bytes} bytes", f"{archive.size_bytes} bytes"
    else:
        with path.open("rb") as file:
            found = f"SHA-256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
        expected = f"SHA-256 {archive.sha256}"
    if found != expected:
        raise UserError(
            f"{path} is not the official archive ({found}, expected {expected}): delete it "
            f"and download {archive.url} again"
        )


def read_archive(archive: Archive, path: pathlib.Path) -> dict[str, bytes]:
    """Reads the files of the archive into memory; nothing is extracted to disk.

    Raises:
      UserError: The file is not a tar archive, or a member is missing.
    """
    names = [*archive.label_files.values()]
    names += [name for files in archive.files.values() for name in files]
    try:
        with tarfile.open(path) as tar:
            members = {name: tar.getmember(f"{archive.folder}/{name}") for name in names}
            contents = {name: tar.extractfile(m) for name, m in members.items()}
            return {name: file.read() for name, file in contents.items() if file}
    except (KeyError, tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path} cannot be read as the CIFAR archive: {error}") from error


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
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    answered = threading.Event()

    def connect() -> None:
        try:
            address = (parts.hostname, port)
            socket.create_connection(address, timeout=PROBE_TIMEOUT_SECONDS).close()
        except OSError:
            return
        answered.set()

    # Runs in a thread, because the lookup of a host name has no timeout.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PROBE_TIMEOUT_SECONDS)
    return answered.is_set()


def _not_found_message(builder: _CifarBuilder) -> str:
    archive, root = builder.ARCHIVE, pathlib.Path(builder.data_dir_root)
    prepared = root / builder.name / str(builder.version)
    places = ", ".join(map(str, [prepared, *hand_placed_paths(archive.file_name, root)]))
    host = urllib.parse.urlsplit(archive.url).hostname
    return (
        f"data set {builder.name!r} was not found (looked at {places}) and {host} cannot "
        f"be reached. Download {archive.url} on another machine and put it into {root}, or "
        "point --config.data_dir at a folder that holds the prepared set, or train on "
        "embedded data with --config=configs/digits.py"
    )
