"""Builders that write CIFAR and ImageNet as TFDS data sets, without TensorFlow.

They run once, when a data set is missing. `data.prepared` reads the result.
"""

import pathlib

import tensorflow_datasets as tfds

from googlenet_flax.runtime.errors import UserError


def hand_placed_paths(file_name: str, data_dir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the paths where the user may put an archive.

    They are in the data folder and in its `downloads/manual`, as TFDS expects.
    """
    return [data_dir / file_name, data_dir / "downloads" / "manual" / file_name]


def find_archive(file_name: str, data_dir: pathlib.Path) -> pathlib.Path | None:
    """Returns the first of `hand_placed_paths` that exists, or None."""
    paths = hand_placed_paths(file_name, data_dir)
    return next((path for path in paths if path.is_file()), None)


def write_set(builder: tfds.core.DatasetBuilder) -> None:
    """Writes a data set as array_record.

    Raises:
      UserError: The data set cannot be written, for example because the disk is full.
    """
    try:
        builder.download_and_prepare(file_format="array_record")
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeErrors.
        folder = pathlib.Path(builder.data_path).parent
        left = sorted(map(str, folder.glob("*incomplete*")))
        old = f", delete {', '.join(left)} of an interrupted preparation" if left else ""
        raise UserError(
            f"data set {builder.name!r} cannot be written into {builder.data_dir_root} "
            f"({error}): fix that{old}, or choose another folder with --config.data_dir"
        ) from error
