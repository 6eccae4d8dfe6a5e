"""Keeps what XLA compiled for the next process, in a folder of the user's."""

import os
import pathlib
from contextlib import suppress
from typing import Any

import jax

# A run leaves some 3 MB. What other networks, versions and CPUs compiled piles up.
MAX_BYTES = 500_000_000


def use_compilation_cache() -> None:
    """Turns on JAX's persistent cache; for commands, before anything is compiled.

    It lies in `~/.cache/googlenet_flax/compilation` (`$XDG_CACHE_HOME` replaces
    `~/.cache`), and is left out where that cannot be written. `JAX_COMPILATION_CACHE_DIR`
    names another folder, which is then JAX's own affair, and
    `JAX_ENABLE_COMPILATION_CACHE=0` turns it off.
    """
    config: Any = jax.config  # Has an attribute for each option.
    is_chosen = config.jax_compilation_cache_dir is not None  # "" is a choice, too.
    if is_chosen or not config.jax_enable_compilation_cache:
        return
    try:
        folder = _user_cache() / "googlenet_flax" / "compilation"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # What lies there will be run: it must not come from somebody else.
        is_ours = folder.stat().st_uid == os.getuid()
    except (OSError, RuntimeError):  # The latter where there is no home.
        return
    if is_ours and os.access(folder, os.W_OK | os.X_OK):
        _forget_oldest(folder)
        config.update("jax_compilation_cache_dir", str(folder))
        config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _user_cache() -> pathlib.Path:
    chosen = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    return chosen if chosen.is_absolute() else pathlib.Path.home() / ".cache"


def _forget_oldest(folder: pathlib.Path) -> None:
    """Deletes what was not used for longest, until the rest fits into `MAX_BYTES`.

    JAX could do so itself, but stops storing after a crash at the wrong moment.
    """
    entries = []
    for path in filter(pathlib.Path.is_file, folder.iterdir()):
        with suppress(OSError):  # Another process may be deleting, too.
            status = path.stat()
            last_use = max(status.st_atime, status.st_mtime)
            entries.append((last_use, status.st_size, path))
    excess_bytes = sum(size for _, size, _ in entries) - MAX_BYTES
    for _, size, path in sorted(entries):
        if excess_bytes <= 0:
            break
        with suppress(OSError):
            path.unlink()
        excess_bytes -= size
