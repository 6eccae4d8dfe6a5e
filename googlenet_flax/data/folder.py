"""Your own pictures: one folder for each class, with or without folders for the splits."""

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

MAX_READ_BYTES = 2**28  # Takes about half a second to read and to digest.
SPLIT_FOLDERS = frozenset({"train", "test", "val", "valid", "validation"})

_Listing = dict[str, list[str]]  # Class to paths below the folder of pictures.


@dataclasses.dataclass(frozen=True)
class FilePictures:
    """Picture files, as `picture_set.PictureSource` asks for them."""

    root: str
    paths: tuple[str, ...]  # All begin with `root`.
    labels: np.ndarray  # int32 [N]
    remedy = "delete or mend it and start in another --workdir"

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def fingerprint(self) -> str:
        """A digest of the paths below the root, the labels, and the files.

        Of a file it covers the size, and in a set of at most `MAX_READ_BYTES` also the
        content. Reading more would delay every start.
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
        """Path and label."""
        return self.paths[index], int(self.labels[index])

    def name(self, index: int) -> str:
        """The path, with bytes that `print` refuses escaped."""
        return printable(self.paths[index])


def load_folder(split: str, data_dir: str, options: PictureOptions) -> Split:
    """Lists the pictures of a split.

    They lie in `DIR/SPLIT/CLASS/`, or, where `eval_fraction` is above 0, in `DIR/CLASS/`:
    then that fraction of each class is the split `test` and the rest is `train`. A file's
    place depends on its path alone as far as it can, so files that are added move few
    others; and so does its place in the order, so a slice such as `train[:10%]` is a fair
    sample of all classes.

    Args:
      split: In TFDS notation: `train`, `train[:80%]+val`.
      data_dir: The folder `DIR`.
      options: How to split and read it.

    Raises:
      UserError: The folder is not laid out in either way, or holds no such split.
    """
    from googlenet_flax.data.picture_set import PictureSet  # noqa: PLC0415 - slow

    root = _find_root(data_dir)
    class_names, listings = _list_splits(root, split, options)
    examples = {name: _in_order(listing) for name, listing in listings.items()}
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
    """The size of a regular file that can be read; 0 for anything else."""
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
    """The class names and the splits that `split` may name."""
    names = {part.partition("[")[0].strip() for part in split.split("+")}
    if not 0 <= options.eval_fraction < 1:
        raise UserError(
            f"eval_fraction is {options.eval_fraction}: it must be 0 (the folder has "
            "splits) or between 0 and 1"
        )
    if options.eval_fraction > 0:
        _refuse_split_folders(root, names)
        class_names = options.class_names or _trained_classes(root)
        listing = _list_classes(root, root, class_names)
        return class_names, _hold_out(listing, options.eval_fraction)
    needed = names if options.class_names else names | {"train"}
    _check_split_folders(root, split, needed)
    class_names = options.class_names or _trained_classes(os.path.join(root, "train"))
    return class_names, {
        name: _list_classes(root, os.path.join(root, name), class_names)
        for name in sorted(names)
    }


def _refuse_split_folders(root: str, names: set[str]) -> None:
    found = sorted((names | SPLIT_FOLDERS) & set(_subfolders(root)))
    if "train" in found and len(found) > 1:
        raise UserError(
            f"{root} is already split into {' and '.join(found)}: set "
            "--config.eval_fraction=0"
        )


def _check_split_folders(root: str, split: str, needed: set[str]) -> None:
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


def _trained_classes(folder: str) -> tuple[str, ...]:
    """The classes that `folder`, the training split, has folders for."""
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
    """The pictures of each class folder in `folder`."""
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
    """Names of the folders in `folder`, sorted; hidden ones are left out."""
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
    """Splits every class; one with a single picture is trained on."""
    listings: dict[str, _Listing] = {"train": {}, "test": {}}
    for name, paths in listing.items():
        count = min(max(1, round(fraction * len(paths))), len(paths) - 1)
        ordered = sorted(paths, key=_digest)
        listings["test"][name], listings["train"][name] = ordered[:count], ordered[count:]
    return listings


def _in_order(listing: _Listing) -> list[tuple[str, str]]:
    """Path and class of every picture."""
    pairs = [(path, name) for name, paths in listing.items() for path in paths]
    return sorted(pairs, key=lambda pair: _digest(pair[0]))


def _digest(path: str) -> bytes:
    return hashlib.sha256(os.fsencode(path)).digest()
