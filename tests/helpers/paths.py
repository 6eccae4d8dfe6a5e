"""Paths of the repository and of the config that most tests use."""

import pathlib

REPOSITORY = pathlib.Path(__file__).parents[2]
DIGITS = REPOSITORY / "configs" / "digits.py"
