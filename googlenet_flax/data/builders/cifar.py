"""CIFAR-10 and CIFAR-100 as TFDS data sets, prepared without TensorFlow.

The builders of TFDS extract the archive and encode the images with TensorFlow. The
builders in this module write the same data set (name, version, features, keys and order of
the examples) without it, and stock TFDS can read the result.
"""

import hashlib
import io
import itertools
import pathlib
import tarfile
from typing import Any

import numpy as np
import PIL.Image
from tensorflow_datasets.image_classification import cifar as stock

from googlenet_flax.data.builders import find_archive, hand_placed_paths, write_set
from googlenet_flax.runtime.downloads import RemoteFile, fetch
from googlenet_flax.runtime.errors import UserError


class _CifarBuilder:
    """Overrides what the stock builders do with TensorFlow."""

    ARCHIVE: RemoteFile
    _archive: pathlib.Path  # Set by `prepare`.

    def _split_generators(self: Any, dl_manager):
        del dl_manager  # `prepare` downloads the archive.
        names = self._cifar_info
        files = read_archive(self._archive, self.ARCHIVE)
        for feature, name in zip(names.label_keys, names.label_files, strict=True):
            self.info.features[feature].names = files[name].decode().split()
        splits = {"train": names.train_files, "test": names.test_files}
        return {
            split: self._read_examples(split, [files[name] for name in splits[split]])
            for split in splits
        }

    def _read_examples(self: Any, split: str, blobs: list[bytes]):
        features = self._cifar_info.label_keys
        # A record: its label bytes, then 1,024 red, 1,024 green and 1,024 blue bytes.
        shape = -1, len(features) + 3 * 32 * 32
        files = (np.frombuffer(blob, np.uint8).reshape(shape) for blob in blobs)
        # NOTE: The key determines the stored order; stock TFDS uses the same number.
        for index, record in enumerate(itertools.chain.from_iterable(files)):
            labels, planes = np.split(record, [len(features)])
            png = io.BytesIO()
            image = planes.reshape(3, 32, 32).transpose(1, 2, 0)
            PIL.Image.fromarray(image).save(png, format="PNG")
            png.seek(0)
            example = dict(zip(features, map(int, labels), strict=True))
            yield index, {"id": f"{split}_{index:05d}", "image": png, **example}

    def prepare(self: Any) -> None:
        """Writes the data set as array_record, from an archive on disk or downloaded.

        Raises:
          UserError: The archive cannot be found or downloaded, or is not the official one,
            or the data set cannot be written.
        """
        root, name = pathlib.Path(self.data_dir_root), self.ARCHIVE.name
        try:
            self._archive = find_archive(name, root) or fetch(
                self.ARCHIVE, root / "downloads" / "googlenet_flax"
            )
        except UserError as error:
            places = ", ".join(map(str, [self.data_path, *hand_placed_paths(name, root)]))
            raise UserError(
                f"data set {self.name!r} was not found (looked at {places}): {error}, or "
                "point --config.data_dir at a folder that holds the prepared set, or train "
                "on embedded data with --config=digits"
            ) from error
        write_set(self)


class Cifar10(_CifarBuilder, stock.Cifar10, skip_registration=True):
    """TFDS `cifar10` 3.0.2."""

    ARCHIVE = RemoteFile(
        name="cifar-10-binary.tar.gz",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        size_bytes=170_052_171,
    )


class Cifar100(_CifarBuilder, stock.Cifar100, skip_registration=True):
    """TFDS `cifar100` 3.0.2; `label` is the fine label."""

    ARCHIVE = RemoteFile(
        name="cifar-100-binary.tar.gz",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        size_bytes=168_513_733,
    )


def read_archive(path: pathlib.Path, archive: RemoteFile) -> dict[str, bytes]:
    """Reads the files of the archive into memory; nothing is extracted to disk.

    Raises:
      UserError: The file is not the official archive.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != archive.sha256:
        raise UserError(
            f"{path} is not the official archive (SHA-256 {found}, expected "
            f"{archive.sha256}): delete it and download {archive.url} again"
        )
    with tarfile.open(path) as tar:
        files = [(info.name, tar.extractfile(info)) for info in tar if info.isfile()]
        return {pathlib.PurePath(name).name: file.read() for name, file in files if file}
