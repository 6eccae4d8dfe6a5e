"""Access to the shipped configs."""

import pathlib
import sys
from unittest import mock

import ml_collections
from absl import flags
from helpers.paths import REPOSITORY

from googlenet_flax.config import MAX_NUMBER
from googlenet_flax.runtime import command_line

CONFIG_FILES = sorted((REPOSITORY / "configs").glob("*.py"))
# Fields that put every later event (decay of the rate, averaging, change of the image size,
# evaluation) after the end of any run.
NEVER = {
    **{"schedule": "staircase", "decay_every_epochs": 10**8, "decay_rate": 0.5},
    **{"averaging": "polyak", "average_from_epoch": MAX_NUMBER},
    **{"progressive_image_sizes": (96,), "progressive_image_size_epochs": (MAX_NUMBER,)},
    "eval_every_epochs": MAX_NUMBER,
}


def load_config(recipe: pathlib.Path | str, *overrides: str) -> ml_collections.ConfigDict:
    """Reads a recipe by its path or name, and the overrides, as `main` does."""
    flag_values = flags.FlagValues()
    command_line.define_config(flag_values=flag_values)
    argv = ["main", f"--config={recipe}", *overrides]
    with mock.patch.object(sys, "argv", argv):  # config_flags finds the overrides there.
        flag_values(argv)
    return flag_values.config


def named_config(name: str) -> dict:
    """Returns a shipped config, such as `digits`, as a dict."""
    return dict(load_config(name))
