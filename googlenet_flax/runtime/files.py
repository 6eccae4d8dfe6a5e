"""Atomic replacement of files."""

import contextlib
import os
import pathlib


def replace_file(path: pathlib.Path, content: bytes) -> None:
    """Writes a file atomically: a crash or an error leaves the old file unchanged.

    Raises:
      OSError: The file cannot be written; no temporary file is left behind.
    """
    # NOTE: Not derived from the file's name, which may have the maximum length already.
    temporary = path.with_name(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # The data must reach the disk before the rename.
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
