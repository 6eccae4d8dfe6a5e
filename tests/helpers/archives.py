"""Archives with random images in the layout of CIFAR, and a guard against TensorFlow."""

import contextlib
import io
import sys
import tarfile
from unittest import mock

import numpy as np
from etils import epath

# The official layout, https://www.cs.toronto.edu/~kriz/cifar.html.
CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}
CIFAR_FILES = {
    "cifar10": {
        "train": [f"data_batch_{i}.bin" for i in range(1, 6)],
        "test": ["test_batch.bin"],
    },
    "cifar100": {"train": ["train.bin"], "test": ["test.bin"]},
}
# Label bytes of a record, in order: number of classes, and the file of their names.
CIFAR_LABELS = {
    "cifar10": {"label": (10, "batches.meta.txt")},
    "cifar100": {
        "coarse_label": (20, "coarse_label_names.txt"),
        "label": (100, "fine_label_names.txt"),
    },
}
ARCHIVE_NAMES = {"cifar10": "cifar-10-binary.tar.gz", "cifar100": "cifar-100-binary.tar.gz"}


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    """Returns a tar archive of files by name; a content of None is a symbolic link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
            member.size = len(content or b"")
            tar.addfile(member, io.BytesIO(content or b""))
    return buffer.getvalue()


def cifar_archive_bytes(name: str, examples_per_file: int) -> bytes:
    """Returns a tar.gz of `cifar10` or `cifar100` with random images and labels."""
    folder, labels = CIFAR_FOLDERS[name], CIFAR_LABELS[name]
    rng, contents = np.random.default_rng(0), {}
    for file in (file for files in CIFAR_FILES[name].values() for file in files):
        shape = examples_per_file, len(labels) + 3072
        records = rng.integers(0, 256, shape, dtype=np.uint8)
        records[:, : len(labels)] = np.arange(examples_per_file)[:, None] % 10
        contents[f"{folder}/{file}"] = records.tobytes()
    for feature, (number, file) in labels.items():
        names = "".join(f"{feature}_{i}\n" for i in range(number))
        contents[f"{folder}/{file}"] = (names + "\n").encode()  # Ends as the official file.
    return tar_of(contents, "w:gz")


@contextlib.contextmanager
def tensorflow_forbidden():
    """Fails if the code inside tries to import TensorFlow, whether installed or not."""
    epath.Path().exists()  # The first use looks once whether TensorFlow is installed.
    finder = mock.Mock(**{"find_spec.return_value": None})
    with mock.patch.object(sys, "meta_path", [finder, *sys.meta_path]):
        yield
    asked = {call.args[0].split(".")[0] for call in finder.find_spec.call_args_list}
    assert "tensorflow" not in asked
