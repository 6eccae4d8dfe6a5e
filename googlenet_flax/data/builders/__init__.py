"""Builders that write CIFAR and ImageNet as TFDS data sets, without TensorFlow.

They run once, when a data set is missing. `data.prepared` reads the result.
"""

import pathlib


def hand_placed_paths(file_name: str, data_dir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the paths where the user may put an archive: the data folder or TFDS's."""
    return [data_dir / file_name, data_dir / "downloads" / "manual" / file_name]


def find_archive(file_name: str, data_dir: pathlib.Path) -> pathlib.Path | None:
    """Returns the first of `hand_placed_paths` that exists, or None."""
    paths = hand_placed_paths(file_name, data_dir)
    return next((path for path in paths if path.is_file()), None)
