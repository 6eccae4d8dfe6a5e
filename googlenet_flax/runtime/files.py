"""Files that are replaced whole or not at all."""

import contextlib
import os
import pathlib


def replace_file(path: pathlib.Path, content: bytes) -> None:
    """Writes a file so that a crash or an error leaves the old one as it was.

    Raises:
      OSError: It cannot be written, and nothing else is left beside it.
    """
    # Its own name, not one made of the file's, which may be as long as a name can be.
    temporary = path.with_name(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # Before the new name can be seen.
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
