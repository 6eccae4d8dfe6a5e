"""Shared parts of all commands: the argument parser and the setup around the work."""

import argparse
import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

from absl import logging as absl_logging

from googlenet_flax.runtime.compilation_cache import use_compilation_cache
from googlenet_flax.runtime.errors import UserError, exit_on_run_error, out_of_memory_hint
from googlenet_flax.runtime.memory import keep_freed_memory

# Fields of the config that are flags of the commands which read a split.
DATA_FIELDS = (
    *("dataset", "data_dir", "eval_split", "eval_fraction"),
    *("batch_size", "on_bad_image", "decode_workers"),
)


def argument_parser(name: str, module_docstring: str | None) -> argparse.ArgumentParser:
    """Creates the parser of a command.

    Its help names the command as the user has called it: `googlenet NAME` or
    `python -m googlenet_flax.NAME`. Its description is the first line of the module's
    docstring.
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
    """Adds the flags that choose a split; all but `--split` are named as config fields."""
    add = parser.add_argument
    add("--dataset", help="data set (an import needs it); default: the run's")
    add("--data_dir", help="folder of the data; default: the run's, or TFDS's")
    add("--split", dest="eval_split", help="TFDS split; default: the run's eval_split")
    fraction_help = "fraction of each class of a folder to test on; default: the run's"
    add("--eval_fraction", type=float, help=fraction_help)
    batch_help = "pictures per batch; default: one accumulation step of the run, or 32"
    add("--batch_size", type=int, help=batch_help)
    bad_help = "what to do with an unreadable picture; default: the run's, or skip"
    add("--on_bad_image", choices=("stop", "skip"), help=bad_help)
    workers_help = "processes that decode, or 0 to use threads; default: the run's"
    add("--decode_workers", type=int, help=workers_help)


def data_fields(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the flags of `add_data_flags` by field; one that was not given is None."""
    return {name: getattr(args, name) for name in DATA_FIELDS}


def name_flags(message: str) -> str:
    """Replaces config fields in an error message, such as `--config.data_dir`, by flags."""
    fields = "|".join(DATA_FIELDS)
    message = message.replace("config.eval_split", "config.split")
    return re.sub(rf"(?:--)?config\.({fields}|split)\b", r"--\1", message)


@contextlib.contextmanager
def running(*, reads_split: bool = False) -> Iterator[None]:
    """Sets up the process around a command.

    An error ends the command with one line, and compiled programs are cached on disk.
    `reads_split` is true for a command with the flags of `add_data_flags`; its error
    messages then name these flags instead of fields of the config.
    """
    # Libraries raise the errors that they log, so their logs are silenced. That of
    # xla_bridge is kept, because nothing else says why JAX uses no GPU.
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("jax._src.xla_bridge").setLevel("WARNING")
    use_compilation_cache()
    keep_freed_memory()
    with exit_on_run_error():
        try:
            with out_of_memory_hint(
                "lower the batch size, or end other programs that use the device"
            ):
                yield
        except UserError as error:
            if not reads_split:
                raise
            raise UserError(name_flags(str(error))) from error
