"""ImageNet 2012 as a TFDS data set, prepared without TensorFlow.

The builder of TFDS reads the two official archives with TensorFlow and shuffles them
through a copy on disk. The builder in this module first lists the position of each picture
in the archives, then reads the pictures in the order in which TFDS stores them. Name,
version, features and keys are the same, and stock TFDS can read the result. Memory holds
the list (1.3 million names) and one shard at a time.
"""

import dataclasses
import io
import itertools
import os
import pathlib
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar, NamedTuple

import PIL.Image
import tensorflow_datasets as tfds
import tqdm
from tensorflow_datasets.core.hashing import Hasher
from tensorflow_datasets.core.utils import shard_utils
from tensorflow_datasets.datasets.imagenet2012 import (
    imagenet2012_dataset_builder as stock,
)
from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

from googlenet_flax.data.builders import find_archive, hand_placed_paths, write_set
from googlenet_flax.data.class_names import wordnet_ids
from googlenet_flax.runtime.errors import UserError

HOMEPAGE = "https://image-net.org/"
READ_THREADS = 16  # The pictures of a shard are scattered over the archive.
REPAIRED = frozenset({*stock.CMYK_IMAGES, *stock.PNG_IMAGES})
REPAIRED_QUALITY = 100  # JPEG quality, as in the builder of TFDS.
SPACE_FACTOR = 1.05  # Disk space per byte of pictures, with array_record's overhead.
VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


class Member(NamedTuple):
    """A picture in an archive."""

    name: str
    label: str  # WordNet ID of the class.
    offset: int  # Position of the first byte in the archive.
    size_bytes: int


@dataclasses.dataclass(frozen=True)
class Archive:
    """The official archive of one split."""

    file_name: str
    size_bytes: int  # The size that TFDS records.
    num_pictures: int
    list_members: Callable[[tarfile.TarFile], Iterator[Member]]


def _list_train(archive: tarfile.TarFile) -> Iterator[Member]:
    """Lists the pictures in the archive of each class, such as `n01440764.tar`."""
    known = frozenset(wordnet_ids())
    for inner in archive:
        label, suffix = os.path.splitext(inner.name)
        file = archive.extractfile(inner)
        if file is None or suffix != ".tar" or label not in known:
            raise ValueError(f"it holds {inner.name}")
        with tarfile.open(fileobj=file, mode="r:") as pictures:
            for info in pictures:
                offset = inner.offset_data + info.offset_data
                yield Member(info.name, label, offset, info.size)


def _list_validation(archive: tarfile.TarFile) -> Iterator[Member]:
    """Lists the pictures; the number in a file name determines the label."""
    labels_file = imagenet_common.label_names_file().with_name("validation_labels.txt")
    labels = labels_file.read_text().split()
    for info in archive:
        match = VALIDATION_NAME.fullmatch(info.name)
        if match is None or not 1 <= int(match[1]) <= len(labels):
            raise ValueError(f"it holds {info.name}")
        label = labels[int(match[1]) - 1]
        yield Member(info.name, label, info.offset_data, info.size)


class Imagenet2012(tfds.core.ShardBasedBuilder, skip_registration=True):
    """TFDS `imagenet2012` 5.1.0, without its split `test`, whose labels are not public."""

    VERSION = tfds.core.Version("5.1.0")
    # TFDS's own builder defines the features, and its folder holds the description.
    pkg_dir_path = stock.Builder._get_pkg_dir_path()
    _info = stock.Builder._info
    ARCHIVES: ClassVar[dict[str, Archive]] = {
        "train": Archive(
            "ILSVRC2012_img_train.tar", 147_897_477_120, 1_281_167, _list_train
        ),
        "validation": Archive(
            "ILSVRC2012_img_val.tar", 6_744_924_160, 50_000, _list_validation
        ),
    }

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager  # There is nothing to download.
        root = pathlib.Path(self.data_dir_root)
        paths, members = {}, {}
        for split, archive in self.ARCHIVES.items():  # Checks before writing.
            path = find_archive(archive.file_name, root)
            assert path is not None
            paths[split], members[split] = path, list_members(archive, path)
        pictures_bytes = sum(m.size_bytes for part in members.values() for m in part)
        needed, free = SPACE_FACTOR * pictures_bytes, shutil.disk_usage(root).free
        if free < needed:
            gib = 2**30
            raise OSError(f"{needed / gib:.1f} GiB are needed and {free / gib:.1f} free")
        return {
            split: [
                partial(_read_shard, paths[split], shard, f"{split}, shard {number}")
                for number, shard in enumerate(_shards(members[split], split))
            ]
            for split in self.ARCHIVES
        }

    def prepare(self) -> None:
        """Writes the data set as array_record from the two archives.

        Raises:
          UserError: An archive is missing or not the official one, or the disk is full.
        """
        root = pathlib.Path(self.data_dir_root)
        names = [archive.file_name for archive in self.ARCHIVES.values()]
        missing = [name for name in names if find_archive(name, root) is None]
        if missing:
            places = [self.data_path, *hand_placed_paths("", root)]
            raise UserError(
                f"data set 'imagenet2012' was not found, nor {' and '.join(missing)} to "
                f"prepare it from (looked at {', '.join(map(str, places))}). Download "
                f"{' and '.join(names)} from {HOMEPAGE} (an account is needed) and put "
                f"them into {root}; --config.data_dir names another folder. A tree of "
                "pictures in folders is read with --config.dataset=folder"
            )
        write_set(self)


def list_members(archive: Archive, path: pathlib.Path) -> list[Member]:
    """Lists the pictures of an archive, in the archive's order.

    Raises:
      UserError: The file cannot be read, or is not the official archive.
    """
    try:
        # NOTE: No digest is checked, because that would read 155 GB once more.
        size_bytes = path.stat().st_size
        if size_bytes != archive.size_bytes:
            raise ValueError(f"{size_bytes} bytes, expected {archive.size_bytes}")
        with tarfile.open(path, mode="r:") as tar:
            found = archive.list_members(tar)
            title, total = f"listing {path.name}", archive.num_pictures
            members = list(tqdm.tqdm(found, title, total, leave=False, disable=None))
        if len(members) != archive.num_pictures:
            raise ValueError(f"{len(members)} pictures, expected {archive.num_pictures}")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): check its permissions and "
            "its disk"
        ) from error
    except (ValueError, tarfile.TarError) as error:
        raise UserError(
            f"{path} is not the official archive of imagenet2012 ({error}): download it "
            f"again from {HOMEPAGE}"
        ) from error
    return members


def _shards(members: Sequence[Member], split: str) -> list[list[Member]]:
    """Orders the pictures and divides them into shards as TFDS does."""
    hasher = Hasher(split)
    ordered = sorted(members, key=lambda member: hasher.hash_key(member.name))
    size_bytes = sum(member.size_bytes for member in members)
    count = shard_utils.ShardConfig.calculate_number_shards(size_bytes, len(ordered))
    ends = shard_utils.get_shard_boundaries(len(ordered), count)
    return [ordered[start:end] for start, end in itertools.pairwise([0, *ends])]


def _read_shard(
    path: pathlib.Path, members: Sequence[Member], title: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields keys and examples; TFDS holds a shard in memory until it is written."""
    with path.open("rb") as file, ThreadPoolExecutor(READ_THREADS) as pool:
        contents = pool.map(partial(_read_member, file.fileno()), members)
        pairs = zip(members, contents, strict=True)
        bar = tqdm.tqdm(pairs, title, len(members), leave=False, disable=None)
        for member, content in bar:
            example = {"label": member.label, "file_name": member.name}
            yield member.name, {"image": io.BytesIO(content), **example}


def _read_member(descriptor: int, member: Member) -> bytes:
    """Reads a picture; a PNG or CMYK JPEG becomes an RGB JPEG, as TFDS stores it."""
    content = os.pread(descriptor, member.size_bytes, member.offset)
    if len(content) != member.size_bytes:
        raise OSError(f"{member.name} cannot be read to its end")
    if member.name not in REPAIRED:
        return content
    jpeg = io.BytesIO()
    with PIL.Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
        image.convert("RGB").save(jpeg, format="JPEG", quality=REPAIRED_QUALITY)
    return jpeg.getvalue()
