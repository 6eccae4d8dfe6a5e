"""Stores the programs that XLA compiles, so that later processes can reuse them."""

import os
import pathlib
from contextlib import suppress
from typing import Any

import jax

from googlenet_flax.runtime.files import user_cache_folder

# One run adds about 3 MB; runs of other networks, versions and CPUs add more.
MAX_BYTES = 500_000_000


def use_compilation_cache() -> None:
    """Turns on JAX's persistent compilation cache.

    Commands call this before anything is compiled. The cache is in
    `~/.cache/googlenet_flax/compilation` (`$XDG_CACHE_HOME` replaces `~/.cache`); without
    write access to that folder nothing is cached. `JAX_COMPILATION_CACHE_DIR` selects
    another folder, which JAX then manages alone, and `JAX_ENABLE_COMPILATION_CACHE=0`
    turns the cache off.
    """
    config: Any = jax.config  # Its type declares no attributes for the options.
    is_chosen = config.jax_compilation_cache_dir is not None  # "" counts as a choice.
    if is_chosen or not config.jax_enable_compilation_cache:
        return
    try:
        folder = user_cache_folder("compilation")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # JAX executes the cached programs, so they must not come from another user.
        is_ours = folder.stat().st_uid == os.getuid()
    except (OSError, RuntimeError):  # RuntimeError: no home directory.
        return
    if is_ours and os.access(folder, os.W_OK | os.X_OK):
        _delete_least_recently_used(folder)
        config.update("jax_compilation_cache_dir", str(folder))
        config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _delete_least_recently_used(folder: pathlib.Path) -> None:
    """Deletes the least recently used files until the rest fits into `MAX_BYTES`.

    JAX can do this itself, but a crash at the wrong moment makes it stop storing.
    """
    entries = []
    for path in filter(pathlib.Path.is_file, folder.iterdir()):
        with suppress(OSError):  # Another process may have deleted the file.
            status = path.stat()
            last_use = max(status.st_atime, status.st_mtime)
            entries.append((last_use, status.st_size, path))
    total_bytes = 0
    for _, size, path in sorted(entries, reverse=True):
        total_bytes += size
        if total_bytes > MAX_BYTES:
            with suppress(OSError):
                path.unlink()
