"""Official archives that a person has downloaded by hand, and where they are looked for."""

import pathlib


def hand_placed_paths(file_name: str, data_dir: pathlib.Path) -> list[pathlib.Path]:
    """Where a person would put an archive: the data folder, or TFDS's place for it."""
    return [data_dir / file_name, data_dir / "downloads" / "manual" / file_name]


def find_archive(file_name: str, data_dir: pathlib.Path) -> pathlib.Path | None:
    """The archive in one of these places, or None."""
    paths = hand_placed_paths(file_name, data_dir)
    return next((path for path in paths if path.is_file()), None)
