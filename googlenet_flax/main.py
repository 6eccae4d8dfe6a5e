"""Trains GoogLeNet from a config file; short on purpose, `train.py` does the work.

python -m googlenet_flax.main --config=configs/cifar10.py --workdir=DIR
"""

from absl import app, flags, logging
from ml_collections import config_flags

from googlenet_flax.errors import UserError, exit_on_run_error
from googlenet_flax.train import train_and_evaluate

CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.", lock_config=True)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run; resumed if it exists."
)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses like absl, but says in one line what is wrong."""
    with exit_on_run_error():
        try:
            rest = flags.FLAGS(argv)
            if CONFIG.present:
                dict(CONFIG.value)  # A file that cannot be loaded fails at its first use.
        except Exception as error:  # A config file is code: anything can go wrong in it.
            raise UserError(f"{_in_one_line(error)}; see --help") from error
        for flag in (CONFIG, WORKDIR):
            if not flag.present:
                raise UserError(f"--{flag.name} is missing; see --help")
        if rest[1:]:
            raise UserError(f"unknown argument {rest[1]!r}; see --help")
    return rest


def _in_one_line(error: Exception) -> str:
    message = str(error.args[0] if len(error.args) == 1 else error)
    if isinstance(error, OSError):  # The last line of ml_collections' report is the cause.
        message = message.strip().splitlines()[-1]
    message = message.replace("\\n", " ").replace("\\'", "'")  # A KeyError's own repr.
    return " ".join(message.split()).removeprefix("'").removesuffix("'")


def _main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # The rest is libraries talking.
    with exit_on_run_error():
        train_and_evaluate(CONFIG.value, str(WORKDIR.value))


def main() -> None:
    """The command."""
    app.run(_main, flags_parser=_parse_flags)


if __name__ == "__main__":
    main()
