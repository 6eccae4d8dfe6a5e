"""Archives of CIFAR in the official layout, with random images."""

import io
import tarfile

import numpy as np

from googlenet_flax.data.builders import cifar


def cifar_archive_bytes(archive: cifar.Archive, examples_per_file: int) -> bytes:
    """A tar.gz in the official layout with random images and labels."""
    rng = np.random.default_rng(0)
    num_labels = len(archive.label_files)
    files = {
        name: rng.integers(0, 256, (examples_per_file, num_labels + 3072), dtype=np.uint8)
        for names in archive.files.values()
        for name in names
    }
    for records in files.values():
        records[:, :num_labels] = np.arange(examples_per_file)[:, None] % 10
    contents = {name: records.tobytes() for name, records in files.items()}
    for feature, name in archive.label_files.items():
        number = {"coarse_label": 20, "label": 10}[feature]
        if archive is cifar.CIFAR100 and feature == "label":
            number = 100
        names = "".join(f"{feature}_{i}\n" for i in range(number))
        contents[name] = (names + "\n").encode()  # The official file ends so.
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in contents.items():
            member = tarfile.TarInfo(f"{archive.folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
