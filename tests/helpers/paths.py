"""Where the repository and the config of most tests lie."""

import pathlib

REPOSITORY = pathlib.Path(__file__).parents[2]
DIGITS = REPOSITORY / "configs" / "digits.py"
