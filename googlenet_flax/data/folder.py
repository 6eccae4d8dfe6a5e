"""Folders of pictures: one folder per class, with or without folders for splits."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from googlenet_flax.data import splits
from googlenet_flax.data.decode import SUFFIXES, find_images, printable
from googlenet_flax.data.image_set import Split
from googlenet_flax.data.picture_options import PictureOptions
from googlenet_flax.runtime.errors import MissingDataError, UserError

MAX_READ_BYTES = 2**28  # Reading and hashing take about half a second.
SPLIT_FOLDERS = frozenset({"train", "test", "val", "valid", "validation"})

_Listing = dict[str, list[str]]  # Class name to paths relative to the root folder.


@dataclasses.dataclass(frozen=True)
class FilePictures:
    """Picture files; implements `picture_set.PictureSource`."""

    root: str
    paths: tuple[str, ...]  # All begin with `root`.
    labels: np.ndarray  # int32 [N]
    remedy = "delete or mend it and start in another --workdir"

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def fingerprint(self) -> str:
        """A digest of the relative paths, the labels and the files.

        The digest covers the size of each file. If all files together have at most
        `MAX_READ_BYTES` it also covers their content; reading more would delay every
        start.
        """
        names = [path.removeprefix(self.root) for path in self.paths]
        sizes = [_size_bytes(path) for path in self.paths]
        facts = repr((names, self.labels.tolist(), sizes))
        digest = hashlib.blake2b(facts.encode(), digest_size=16)
        if sum(sizes) <= MAX_READ_BYTES:
            for path, size in zip(self.paths, sizes, strict=True):
                digest.update(pathlib.Path(path).read_bytes() if size else b"")
        return digest.hexdigest()

    def read(self, index: int) -> tuple[str, int]:
        """Returns the path and the label."""
        return self.paths[index], int(self.labels[index])

    def name(self, index: int) -> str:
        """Returns the path as printable text."""
        return printable(self.paths[index])


def load_folder(split: str, data_dir: str, options: PictureOptions) -> Split:
    """Lists the pictures of a split.

    The pictures are in `DIR/SPLIT/CLASS/` or, if `eval_fraction` is above 0, in
    `DIR/CLASS/`. In the second case that fraction of each class is the split `test` and
    the rest is `train`.

    Pictures are split and ordered by a digest of their paths. New files therefore change
    the split of few others, and a slice such as `train[:10%]` is a random sample of all
    classes.

    Args:
      split: Split in TFDS notation: `train`, `train[:80%]+val`.
      data_dir: The folder `DIR`.
      options: How the folder is split and the pictures are read.

    Raises:
      UserError: The folder has neither layout, or no such split.
    """
    from googlenet_flax.data.picture_set import PictureSet  # noqa: PLC0415 - slow

    root = _find_root(data_dir)
    class_names, listings = _list_splits(root, split, options)
    examples = {name: _ordered_by_digest(listing) for name, listing in listings.items()}
    sizes = {name: len(listing) for name, listing in examples.items()}
    positions = splits.split_positions(split, sizes)
    chosen = [example for name, rows in positions for example in examples[name][rows]]
    label_of = {name: label for label, name in enumerate(class_names)}
    return PictureSet(
        FilePictures(
            root=root,
            paths=tuple(os.path.join(root, path) for path, _ in chosen),
            labels=np.array([label_of[name] for _, name in chosen], np.int32),
        ),
        class_names=class_names,
        storage_size=options.storage_size,
        on_bad_image=options.on_bad_image,
        decode_workers=options.decode_workers,
    )


def _size_bytes(file: str) -> int:
    """Returns the size of a readable regular file, and 0 for anything else."""
    is_readable = os.path.isfile(file) and os.access(file, os.R_OK)
    return os.path.getsize(file) if is_readable else 0


def _find_root(data_dir: str) -> str:
    if not data_dir:
        raise UserError(
            "data_dir is empty: name the folder of your pictures with --config.data_dir=DIR"
        )
    root = os.path.abspath(os.path.expanduser(data_dir))
    if not os.path.isdir(root):
        raise MissingDataError(
            f"{root} is not a folder: point --config.data_dir at the one of your pictures"
        )
    return root


def _list_splits(
    root: str, split: str, options: PictureOptions
) -> tuple[tuple[str, ...], dict[str, _Listing]]:
    """Returns the class names, and the listings of the splits that `split` names."""
    names = {part.partition("[")[0].strip() for part in split.split("+")}
    if not 0 <= options.eval_fraction < 1:
        raise UserError(
            f"eval_fraction is {options.eval_fraction}: it must be 0 (the folder has "
            "splits) or between 0 and 1"
        )
    if options.eval_fraction > 0:
        _check_not_split(root, names)
        class_names = options.class_names or _training_classes(root)
        listing = _list_classes(root, root, class_names)
        return class_names, _hold_out(listing, options.eval_fraction)
    needed = names if options.class_names else names | {"train"}
    _check_split_folders(root, split, needed)
    class_names = options.class_names or _training_classes(os.path.join(root, "train"))
    return class_names, {
        name: _list_classes(root, os.path.join(root, name), class_names)
        for name in sorted(names)
    }


def _check_not_split(root: str, names: set[str]) -> None:
    """Rejects a root folder that is already split into folders."""
    found = sorted((names | SPLIT_FOLDERS) & set(_subfolders(root)))
    if "train" in found and len(found) > 1:
        raise UserError(
            f"{root} is already split into {' and '.join(found)}: set "
            "--config.eval_fraction=0"
        )


def _check_split_folders(root: str, split: str, needed: set[str]) -> None:
    """Rejects a root folder without the needed folders for splits."""
    found = _subfolders(root)
    missing = needed - set(found)
    if "train" in missing:
        raise UserError(
            f"{root} has no folder train: put the pictures into {root}/train/CLASS and "
            f"{root}/test/CLASS, or set --config.eval_fraction=0.2 to split one folder of "
            "classes"
        )
    if missing:
        raise UserError(
            f"unknown split {split!r}: {root} has the folders {', '.join(found)}; slices "
            "are written as in TFDS, for example train[:80%]+val"
        )


def _training_classes(folder: str) -> tuple[str, ...]:
    """Returns the names of the class folders of the training split."""
    names = _subfolders(folder)
    if not names:
        raise UserError(
            f"{folder} holds no classes: put the pictures of each class into a folder of "
            f"its own, {folder}/CLASS"
        )
    if len(names) == 1:
        raise UserError(
            f"{folder} holds only one class ({names[0]}) and training needs two: add the "
            "folder of another, or point --config.data_dir at the folder of the classes"
        )
    return tuple(names)


def _list_classes(root: str, folder: str, class_names: Sequence[str]) -> _Listing:
    """Lists the pictures of each class folder in `folder`."""
    listing = {}
    for name in _subfolders(folder):
        class_folder = os.path.join(folder, name)
        if name not in class_names:
            raise UserError(
                f"class {name!r} of {folder} is not among the {len(class_names)} that are "
                f"trained: add it to the train split, or remove {class_folder}"
            )
        paths = [str(path) for path in find_images(class_folder)]
        if not paths:
            raise UserError(
                f"{class_folder} holds no pictures ({' '.join(sorted(SUFFIXES))}): add "
                "some or delete the folder"
            )
        listing[name] = [path.removeprefix(os.path.join(root, "")) for path in paths]
    return listing


def _subfolders(folder: str) -> list[str]:
    """Returns the sorted names of the folders in `folder`, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.is_dir() and not entry.name.startswith(".")
            )
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}") from error


def _hold_out(listing: _Listing, fraction: float) -> dict[str, _Listing]:
    """Splits every class into `train` and `test`; a single picture goes into `train`."""
    listings: dict[str, _Listing] = {"train": {}, "test": {}}
    for name, paths in listing.items():
        count = min(max(1, round(fraction * len(paths))), len(paths) - 1)
        ordered = sorted(paths, key=_digest)
        listings["test"][name], listings["train"][name] = ordered[:count], ordered[count:]
    return listings


def _ordered_by_digest(listing: _Listing) -> list[tuple[str, str]]:
    """Returns path and class of every picture, in the order of the examples."""
    pairs = [(path, name) for name, paths in listing.items() for path in paths]
    return sorted(pairs, key=lambda pair: _digest(pair[0]))


def _digest(path: str) -> bytes:
    return hashlib.sha256(os.fsencode(path)).digest()
