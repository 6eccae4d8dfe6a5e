"""The shipped configs, read from their files."""

import pathlib
import sys
from unittest import mock

import ml_collections
from absl import flags
from helpers.paths import REPOSITORY
from ml_collections import config_flags

CONFIG_FILES = sorted((REPOSITORY / "configs").glob("*.py"))


def load_config(path: pathlib.Path, *overrides: str) -> ml_collections.ConfigDict:
    """Reads a config file and the overrides as `googlenet_flax.main` does."""
    flag_values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=flag_values, lock_config=True)
    argv = ["main", f"--config={path}", *overrides]
    with mock.patch.object(sys, "argv", argv):  # config_flags finds the overrides there.
        flag_values(argv)
    return flag_values.config


def named_config(name: str) -> dict:
    """Returns a shipped config, such as `digits`, as a dict."""
    return dict(load_config(REPOSITORY / "configs" / f"{name}.py"))
