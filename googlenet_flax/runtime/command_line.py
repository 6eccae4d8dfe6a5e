"""Command-line flags of the commands that take a config file."""

import functools
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags

from googlenet_flax.runtime.command import running
from googlenet_flax.runtime.errors import UserError, exit_on_run_error

flags.disclaim_key_flags()  # --help then lists the flags under the command.


def define_config(default: str | None = None) -> flags.FlagHolder:
    """Defines `--config=FILE`; `--config.FIELD=VALUE` overrides a field of it."""
    return config_flags.DEFINE_config_file(
        "config", default, "Config file with the recipe.", lock_config=True
    )


def run(
    command: Callable[[], None],
    config: flags.FlagHolder,
    *,
    required: tuple[flags.FlagHolder, ...] = (),
) -> None:
    """Parses the command line, runs the command and ends the process.

    The command may raise a `RunError`. Flags in `required` must be given.
    """

    def main(_: list[str]) -> None:
        with running():
            command()

    app.run(main, flags_parser=functools.partial(_parse_flags, config, required))


def _parse_flags(
    config: flags.FlagHolder, required: tuple[flags.FlagHolder, ...], argv: list[str]
) -> list[str]:
    """Parses the flags as absl does, but reports an error in one line."""
    logging.set_verbosity(logging.FATAL)  # ml_collections also logs the error.
    with exit_on_run_error():
        try:
            rest = flags.FLAGS(argv)
            if config.value is not None:
                dict(config.value)  # ml_collections loads the file at its first use.
            elif config.present:
                raise UserError(
                    f"--{config.name} names a file whose get_config returns None"
                )
        except Exception as error:  # A config file may raise anything.
            raise UserError(f"{_in_one_line(error)}; see --help") from error
        for flag in required:
            if not flag.present:
                raise UserError(f"--{flag.name} is missing; see --help")
        if rest[1:]:
            raise UserError(f"unknown argument {rest[1]!r}; see --help")
    return rest


def _in_one_line(error: Exception) -> str:
    """Formats an error of absl or ml_collections as one line."""
    message = str(error.args[0] if len(error.args) == 1 else error)
    if "Traceback" in message:
        flag, cause = message.partition(": ")[0], message.strip().splitlines()[-1]
        message = f"{flag} cannot be loaded ({cause})"
    if isinstance(error, OSError):  # ml_collections puts the cause last.
        message = f"{message.strip().splitlines()[-1]}: name a file with --config=FILE"
    message = message.replace("\\n", " ").replace("\\'", "'")  # A KeyError holds a repr.
    message = " ".join(message.split())
    return message[1:-1] if message[0] == message[-1] == "'" else message
