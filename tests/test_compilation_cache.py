import os

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from googlenet_flax.runtime import compilation_cache
from googlenet_flax.runtime.compilation_cache import use_compilation_cache

SETTINGS = {
    "jax_compilation_cache_dir": None,
    "jax_enable_compilation_cache": True,
    "jax_persistent_cache_min_compile_time_secs": 1.0,
}


@pytest.fixture(autouse=True)
def unset_cache(monkeypatch, tmp_path):
    """Resets JAX's settings of the cache, and gives the test its own home folder."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    for name, value in SETTINGS.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


def used_folder() -> str | None:
    use_compilation_cache()
    return jax.config.jax_compilation_cache_dir


def compile_something() -> None:
    jax.jit(lambda x: x * 2)(jnp.arange(3)).block_until_ready()


def test_it_lies_in_the_cache_of_the_user(tmp_path):
    folder = tmp_path / ".cache" / "googlenet_flax" / "compilation"
    assert used_folder() == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    compile_something()  # Programs that compile quickly are stored too.
    assert any(entry.name.startswith("jit__lambda") for entry in folder.iterdir())


@pytest.mark.parametrize(
    ("home", "used"),
    [
        ("{}/caches", "caches"),
        ("caches", ".cache"),  # The XDG specification ignores relative paths.
    ],
)
def test_the_user_may_keep_caches_elsewhere(tmp_path, monkeypatch, home, used):
    monkeypatch.setenv("XDG_CACHE_HOME", home.format(tmp_path))
    assert used_folder() == str(tmp_path / used / "googlenet_flax" / "compilation")


@pytest.mark.parametrize(
    ("option", "value", "used"),
    [
        ("jax_compilation_cache_dir", "", ""),
        ("jax_compilation_cache_dir", "elsewhere", "elsewhere"),
        ("jax_enable_compilation_cache", False, None),
    ],
)
def test_options_of_jax_are_respected(tmp_path, option, value, used):
    jax.config.update(option, value)
    assert used_folder() == used
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 1.0
    assert not list(tmp_path.iterdir())


SPOILERS = {
    # Permissions do not apply to root.
    "read-only": lambda patch, home: patch.setattr(os, "access", lambda *_: False),
    "a file": lambda patch, home: (home / ".cache").write_text(""),
    "another's": lambda patch, home: patch.setattr(
        os, "getuid", lambda: home.stat().st_uid + 1
    ),
}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)
def test_a_folder_that_is_of_no_use_is_left_alone(monkeypatch, tmp_path, spoil):
    spoil(monkeypatch, tmp_path)
    assert used_folder() is None


def test_what_was_not_used_for_longest_goes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "MAX_BYTES", 250)
    folder = tmp_path / ".cache" / "googlenet_flax" / "compilation"
    (folder / "a_folder").mkdir(parents=True)
    for name, written, read in [("a", 3, 3), ("b", 1, 1), ("c", 0, 4), ("d", 2, 2)]:
        (folder / name).write_bytes(bytes(100))
        os.utime(folder / name, (read, written))
    use_compilation_cache()
    assert {path.name for path in folder.iterdir()} == {"a", "c", "a_folder"}
