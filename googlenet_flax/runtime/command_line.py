"""Command-line flags of the commands that take a config file."""

import functools
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from googlenet_flax.runtime.command import running
from googlenet_flax.runtime.errors import UserError, exit_on_run_error

HELP_FLAGS = {"help", "helpshort", "helpfull", "helpxml", "?"}  # Those of absl.

flags.disclaim_key_flags()  # --help then lists the flags under the command.


def find_recipes() -> dict[str, pathlib.Path]:
    """Returns the config files of the package by name, such as `digits`.

    An installed package holds them itself; in a clone they lie beside the package.
    """
    package = pathlib.Path(__file__).parents[1]
    files = [*package.glob("configs/*.py")] or package.parent.glob("configs/*.py")
    return {file.stem: file for file in sorted(files)}


class _RecipeParser(config_flags.config_flags.ConfigFileFlagParser):
    """Parser of the name of a recipe or the path of a config file."""

    def parse(self, path: str) -> Any:
        recipes, path = find_recipes(), os.path.expanduser(path)
        if path not in recipes and not os.path.exists(path.partition(":")[0]):
            raise UserError(
                f"--{self.name}={path} is neither a file nor a recipe: name one of "
                f"{', '.join(recipes)}"
            )
        return super().parse(str(recipes.get(path, path)))


def define_config(
    default: str | None = None, flag_values: flags.FlagValues = flags.FLAGS
) -> flags.FlagHolder:
    """Defines `--config`, the name of a recipe or the path of a config file.

    `--config.FIELD=VALUE` overrides a field of it.
    """
    holder = config_flags.DEFINE_config_file(
        "config", None, "Name of a recipe, such as digits, or a config file.", flag_values
    )
    flag_values["config"].parser = _RecipeParser("config")
    flags.set_default(holder, default)
    return holder


def run(command: Callable[[], None], config: flags.FlagHolder) -> None:
    """Parses the command line, runs the command and ends the process.

    The command may raise a `RunError`. `--config` is required unless it has a default.
    """

    def main(_: list[str]) -> None:
        with running():
            command()

    app.run(main, flags_parser=functools.partial(_parse_flags, config))


def _parse_flags(config: flags.FlagHolder, argv: list[str]) -> list[str]:
    """Parses the flags as absl does, but reports an error in one line."""
    logging.set_verbosity(logging.FATAL)  # ml_collections also logs the error.
    with exit_on_run_error():
        try:
            rest = flags.FLAGS(argv)
            if config.value is not None:
                dict(config.value)  # ml_collections loads the file at its first use.
            elif config.present:
                raise UserError(
                    f"--{config.name} names a file whose get_config returns None: end it "
                    "with `return config`"
                )
        except SystemExit as error:
            names = {argument.lstrip("-").partition("=")[0] for argument in argv[1:]}
            if names & HELP_FLAGS:
                sys.exit()  # absl has printed the help, after which it exits with 1.
            raise UserError(
                f"--{config.name} names a file that exits Python ({error.code}): return "
                "a config from its get_config instead"
            ) from error
        except BrokenPipeError:  # The reader of --help has read enough.
            raise
        except Exception as error:  # A config file may raise anything.
            text = "".join(traceback.format_exception(error))
            place = r'File "(.+)", line (\d+), in (?:get_config|<module>)$'
            places = re.findall(place, text, re.MULTILINE)
            where = "".join(f" ({file}, line {line})" for file, line in places[-1:])
            if isinstance(error, OSError) and not places:  # The file itself is missing.
                where = f": name a file with --{config.name}=FILE"
            raise UserError(f"{_in_one_line(error)}{where}; see --help") from error
        if config.value is None:
            raise UserError(
                f"--{config.name} is missing: name a recipe, such as digits, or a config "
                f"file with --{config.name}=NAME"
            )
        if rest[1:]:
            raise UserError(f"unknown argument {rest[1]!r}; see --help")
    return rest


def _in_one_line(error: Exception) -> str:
    """Formats an error of absl or ml_collections as one line."""
    message = str(error.args[0] if len(error.args) == 1 else error)
    if error.args and isinstance(error.args[0], KeyError):  # An unknown field.
        message = str(error.args[0].args[0]).replace("'\n", "'. ")
        message = re.sub(r' Other fields present: "\{.*\}"', "", message)
        if message.startswith("'"):  # A flag has named the field.
            message = f"config has no field {message}"
    if "Traceback" in message:
        flag, cause = message.partition(": ")[0], message.strip().splitlines()[-1]
        message = f"{flag} cannot be loaded ({cause})"
    if isinstance(error, OSError):  # ml_collections puts the cause last.
        message = message.strip().splitlines()[-1]
    message = message.replace("\\n", " ").replace("\\'", "'")  # A KeyError holds a repr.
    silent = f"--config names a file whose get_config raises {type(error).__name__}"
    message = " ".join(message.split()) or silent
    return message[1:-1] if message[0] == message[-1] == "'" else message
