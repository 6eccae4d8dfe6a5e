"""Folders of pictures: one folder per class, with or without folders for splits."""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import os
import pathlib

import numpy as np

from googlenet_flax.data.decode import SUFFIXES, find_files, is_picture, printable
from googlenet_flax.data.image_set import PictureOptions, Split
from googlenet_flax.data.splits import split_positions
from googlenet_flax.runtime.distributed import tell_once
from googlenet_flax.runtime.errors import MissingDataError, UserError

MAX_READ_BYTES = 2**28  # Reading and hashing take about half a second.
# These names are compared with folder names in lower case.
TRAIN_FOLDERS = frozenset({"train", "training"})
SPLIT_FOLDERS = TRAIN_FOLDERS | {"test", "testing", "val", "valid", "validation"}

_Example = tuple[str, int]  # Path relative to the root folder, and label.


@dataclasses.dataclass(frozen=True)
class FilePictures:
    """Picture files; implements `picture_set.PictureSource`."""

    root: str
    paths: tuple[str, ...]  # All begin with `root`.
    labels: np.ndarray  # int32 [N]
    remedy = "delete or repair it (a run then needs a new --workdir: its data change)"

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def fingerprint(self) -> str:
        """A digest of the relative paths, the labels and the size of each file.

        If all files together have at most `MAX_READ_BYTES`, the digest also covers the
        content of the readable ones; reading more would delay every start.
        """
        names = [path.removeprefix(self.root) for path in self.paths]
        sizes = [_size_bytes(path) for path in self.paths]
        facts = repr((names, self.labels.tolist(), sizes))
        digest = hashlib.blake2b(facts.encode(), digest_size=16)
        if sum(sizes) <= MAX_READ_BYTES:
            for path, size in zip(self.paths, sizes, strict=True):
                # The decoder meets the error too, and treats it as `on_bad_image` says.
                with contextlib.suppress(OSError):
                    digest.update(pathlib.Path(path).read_bytes() if size else b"")
        return digest.hexdigest()

    def read(self, index: int) -> tuple[str, int]:
        """Returns the path and the label."""
        return self.paths[index], int(self.labels[index])

    def name(self, index: int) -> str:
        """Returns the path as printable text."""
        return printable(self.paths[index])


def load_folder(split: str, data_dir: str, options: PictureOptions) -> Split:
    """Lists the pictures of a split of a folder.

    Pictures are split and ordered by a digest of their paths. New files therefore change
    the split of few others, and a slice such as `train[:10%]` is a random sample of all
    classes.

    `data_dir` holds `SPLIT/CLASS/` for each split and class, or `CLASS/` for each class if
    `options.eval_fraction` is above 0. That fraction of each class is then the split
    `test`, and the rest is `train`. `split` is in TFDS notation.

    Raises:
      MissingDataError: There is no such folder.
      UserError: The folder has another layout or no such split, cannot be listed, or holds
        a class that is empty or not among the classes of the split `train`.
    """
    from googlenet_flax.data.picture_set import PictureSet  # noqa: PLC0415 - slow

    root = _find_root(data_dir)
    class_names, parts = _list_splits(root, split, options)
    examples = {name: sorted(part, key=_digest) for name, part in parts.items()}
    positions = split_positions(split, {name: len(examples[name]) for name in examples})
    chosen = [examples[name][row] for name, rows in positions for row in rows]
    return PictureSet(
        FilePictures(
            root=root,
            paths=tuple(os.path.join(root, path) for path, _ in chosen),
            labels=np.array([label for _, label in chosen], np.int32),
        ),
        class_names,
        options,
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
            f"{root} is not a folder: set --config.data_dir to your folder of pictures"
        )
    return root


def _list_splits(
    root: str, split: str, options: PictureOptions
) -> tuple[tuple[str, ...], dict[str, list[_Example]]]:
    """Returns the class names, and the examples of the splits that `split` names."""
    found = _subfolders(root)
    names = {part.partition("[")[0].strip() for part in split.split("+")}
    train = next((name for name in found if name.lower() in TRAIN_FOLDERS), None)
    if options.eval_fraction > 0:
        parts = [n for n in found if n in names or n.lower() in SPLIT_FOLDERS]
        if train and len(parts) > 1:
            raise UserError(
                f"{root} is already split into {' and '.join(parts)}: set "
                "--config.eval_fraction=0"
            )
        class_names = options.class_names or _training_classes(root)
        examples = _list_classes(root, root, class_names)
        return class_names, _hold_out(examples, options.eval_fraction)
    missing = (names if options.class_names else names | {"train"}) - set(found)
    if "train" in missing:
        remedy = (
            f"rename {train} to train"
            if train
            else f"put the pictures into {root}/train/CLASS and {root}/test/CLASS, or set "
            "--config.eval_fraction=0.2 to split them"
        )
        raise UserError(f"{root} has no folder train: {remedy}")
    if missing:
        flags = "--config.eval_fraction=0.2"
        if options.class_names:  # A trained network reads one split.
            parent, own = os.path.split(root)
            flags = f"--config.data_dir={parent} --config.eval_split={own}"
        raise UserError(
            f"unknown split {split!r}: {root} has the folders {', '.join(found)}: name one "
            "of them, or slices such as train[:80%]+val; if the folders are classes, set "
            f"{flags}"
        )
    class_names = options.class_names or _training_classes(os.path.join(root, "train"))
    return class_names, {
        name: _list_classes(root, os.path.join(root, name), class_names)
        for name in sorted(names)
    }


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


def _list_classes(root: str, folder: str, class_names: tuple[str, ...]) -> list[_Example]:
    """Lists the pictures of each class folder in `folder`, class by class.

    The name of a folder may also be the WordNet ID of an ImageNet class.
    """
    prefix, examples, others = os.path.join(root, ""), [], collections.Counter()
    names = words = _subfolders(folder)
    if not set(names) <= set(class_names):
        from googlenet_flax.data.class_names import readable_names  # noqa: PLC0415 - slow

        words = readable_names(names)
    for name, word in zip(names, words, strict=True):
        class_folder = os.path.join(folder, name)
        if word not in class_names:
            raise UserError(
                f"class {name!r} of {folder} is not among the {len(class_names)} that are "
                f"trained (such as {', '.join(class_names[:3])}): add it to the train "
                f"split, or rename or remove {class_folder}"
            )
        label, files = class_names.index(word), find_files(class_folder)
        paths = list(filter(is_picture, files))
        examples += [(str(path).removeprefix(prefix), label) for path in paths]
        others.update(printable(p.suffix or p.name) for p in files if not is_picture(p))
        if not paths:
            raise UserError(
                f"{class_folder} holds no pictures ({' '.join(sorted(SUFFIXES))}): add "
                "some or delete the folder"
            )
    if others:
        counts = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
        tell_once(f"{folder}: files without the suffix of a picture are left out: {counts}")
    return examples


def _subfolders(folder: str) -> list[str]:
    """Returns the sorted names of the folders in `folder`, without hidden ones."""
    try:
        names = [path.name for path in pathlib.Path(folder).iterdir() if path.is_dir()]
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}") from error
    return sorted(name for name in names if not name.startswith("."))


def _hold_out(examples: list[_Example], fraction: float) -> dict[str, list[_Example]]:
    """Splits every class into `train` and `test`; a single picture goes into `train`."""
    parts = {"train": [], "test": []}
    for _, group in itertools.groupby(examples, key=lambda example: example[1]):
        ordered = sorted(group, key=_digest)
        count = min(max(1, round(fraction * len(ordered))), len(ordered) - 1)
        parts["test"] += ordered[:count]
        parts["train"] += ordered[count:]
    return parts


def _digest(example: _Example) -> bytes:
    return hashlib.sha256(os.fsencode(example[0])).digest()
