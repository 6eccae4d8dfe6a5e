"""The flags of the commands that take a config file, with errors in one line."""

import functools
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags

from googlenet_flax.runtime.command import running
from googlenet_flax.runtime.errors import UserError, exit_on_run_error

flags.disclaim_key_flags()  # So that --help shows them as the command's own.


def define_config(default: str | None = None) -> flags.FlagHolder:
    """Defines `--config=FILE`, whose fields `--config.FIELD=VALUE` overrides."""
    return config_flags.DEFINE_config_file(
        "config", default, "The recipe.", lock_config=True
    )


def run(
    command: Callable[[], None],
    config: flags.FlagHolder,
    *,
    required: tuple[flags.FlagHolder, ...] = (),
) -> None:
    """Parses the command line, runs the command and ends the process.

    Args:
      command: May raise a `RunError`.
      config: From `define_config`.
      required: Flags that must be given.
    """

    def main(_: list[str]) -> None:
        with running():
            command()

    app.run(main, flags_parser=functools.partial(_parse_flags, config, required))


def _parse_flags(
    config: flags.FlagHolder, required: tuple[flags.FlagHolder, ...], argv: list[str]
) -> list[str]:
    """Parses like absl, but says in one line what is wrong."""
    logging.set_verbosity(logging.FATAL)  # ml_collections warns of what is raised below.
    with exit_on_run_error():
        try:
            rest = flags.FLAGS(argv)
            if config.value is not None:
                dict(config.value)  # A file that cannot be loaded fails at its first use.
            elif config.present:
                raise UserError(f"--{config.name} names a file that gives no config")
        except Exception as error:  # A config file is code: anything can go wrong in it.
            raise UserError(f"{_in_one_line(error)}; see --help") from error
        for flag in required:
            if not flag.present:
                raise UserError(f"--{flag.name} is missing; see --help")
        if rest[1:]:
            raise UserError(f"unknown argument {rest[1]!r}; see --help")
    return rest


def _in_one_line(error: Exception) -> str:
    message = str(error.args[0] if len(error.args) == 1 else error)
    if "Traceback" in message:
        flag, cause = message.partition(": ")[0], message.strip().splitlines()[-1]
        message = f"{flag} cannot be loaded ({cause})"
    if isinstance(error, OSError):  # The last line of ml_collections' report is the cause.
        message = f"{message.strip().splitlines()[-1]}: name a file with --config=FILE"
    message = message.replace("\\n", " ").replace("\\'", "'")  # A KeyError's own repr.
    message = " ".join(message.split())
    return message[1:-1] if message[0] == message[-1] == "'" else message
