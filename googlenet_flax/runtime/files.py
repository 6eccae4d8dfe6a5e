"""Output files, their checks and atomic replacement, and the cache of the user."""

import contextlib
import os
import pathlib
import secrets
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from googlenet_flax.runtime.errors import RESUME, UserError, writing

OUT_HINT = "fix that, or name another file with --out=FILE"


def user_cache_folder(name: str) -> pathlib.Path:
    """Returns the folder of this name in the cache of the user, which may not exist yet.

    It is `~/.cache/googlenet_flax/NAME`; `$XDG_CACHE_HOME` replaces `~/.cache`.

    Raises:
      RuntimeError: The user has no home directory.
    """
    chosen = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification ignores a relative path.
    home = chosen if chosen.is_absolute() else pathlib.Path.home() / ".cache"
    return home / "googlenet_flax" / name


def file_path(text: str) -> pathlib.Path:
    """Returns the path of the file that a flag names; `~` is the home directory."""
    return pathlib.Path(os.path.expanduser(text))


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file that atomically takes the place of `path` when the block ends.

    A crash or an error leaves the old file unchanged. Links are followed.

    Raises:
      OSError: The file cannot be written; no temporary file is left behind.
    """
    path = pathlib.Path(os.path.realpath(path))  # Otherwise the link would be replaced.
    # NOTE: The name is random. One made from the name of the file could be too long, and
    # one made from the number of the process could be in use by another host.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # The data must reach the disk before the rename.
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def replace_file(path: pathlib.Path, content: bytes, hint: str = RESUME) -> None:
    """Writes a file as `replacing` does.

    Raises:
      UserError: The file cannot be written, for example because the disk is full. The
        message ends with `hint`.
    """
    with writing(path, hint), replacing(path) as file:
        file.write(content)


def check_writable(file: pathlib.Path) -> None:
    """Raises a `UserError` unless the file that `--out` names can be written."""
    with writing(file, OUT_HINT):
        if file.exists() and not file.is_file():
            raise UserError(f"{file} is not a file: name another with --out=FILE")
        tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(file))).close()
