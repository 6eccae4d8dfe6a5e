"""Shared parts of all commands: the argument parser and the setup around the work."""

import argparse
import contextlib
import re
import sys
from collections.abc import Container, Iterator

from absl import logging

from googlenet_flax.runtime.compilation_cache import use_compilation_cache
from googlenet_flax.runtime.errors import UserError, exit_on_run_error
from googlenet_flax.runtime.memory import keep_freed_memory


def argument_parser(name: str, module_docstring: str | None) -> argparse.ArgumentParser:
    """Creates the parser of a command, which is named as the user has called it.

    That is `googlenet NAME` or `python -m googlenet_flax.NAME`. The parser's description is
    the first line of the module's docstring.
    """
    module = f"googlenet_flax.{name}"
    is_module = module in sys.orig_argv
    return argparse.ArgumentParser(
        prog=f"python -m {module}" if is_module else f"googlenet {name.replace('_', '-')}",
        description=(module_docstring or "").partition("\n")[0],
    )


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that choose a trained network."""
    add = parser.add_argument
    add("--workdir", required=True, help="directory of a run or import")
    add("--checkpoint", default="best", help="checkpoint: best (default), latest or a step")


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that choose a split, with the names of the fields of the config."""
    add = parser.add_argument
    add("--dataset", help="data set (an import needs it); default: the run's")
    add("--data_dir", help="folder of the data; default: the run's, or TFDS's")
    add("--split", dest="eval_split", help="TFDS split; default: the run's eval_split")
    fraction_help = "tested part of a folder without splits; default: the run's"
    add("--eval_fraction", type=float, help=fraction_help)
    add("--batch_size", type=int, help="pictures per batch; default: the run's, or 32")
    bad_help = "what to do with an unreadable picture; default: the run's, or skip"
    add("--on_bad_image", choices=("stop", "skip"), help=bad_help)


@contextlib.contextmanager
def running(flags: Container[str] = ()) -> Iterator[None]:
    """Sets up the process around a command.

    An error ends the command with one line, and compiled programs are cached on disk. Where
    an error names a field of the config, and the command has a flag of that name among
    `flags`, the line names the flag.
    """
    logging.set_verbosity(logging.FATAL)  # Libraries also raise the errors that they log.
    use_compilation_cache()
    keep_freed_memory()

    def flag_of(field: re.Match) -> str:
        return f"--{field[1]}" if field[1] in flags else field[0]

    with exit_on_run_error():
        try:
            yield
        except UserError as error:
            message = re.sub(r"(?:--)?config\.(\w+)", flag_of, str(error))
            raise UserError(message) from error
