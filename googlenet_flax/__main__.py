"""Runs a command of the package by its name, as in `googlenet train --config=digits`."""

import argparse
import pathlib
import runpy
import sys

from googlenet_flax.version import __version__


def find_commands() -> dict[str, str]:
    """Returns the first line of each command's docstring, keyed by the command's module.

    Commands are the modules at the top of the package that define `main`. They are read
    and not imported, because importing them all takes seconds.
    """
    paths = sorted(pathlib.Path(__file__).parent.glob("[!_]*.py"))
    texts = {path.stem: path.read_text(encoding="utf-8") for path in paths}
    return {
        name: text.partition("\n")[0].strip('"')
        for name, text in texts.items()
        if "\ndef main(" in text
    }


def main() -> None:
    """Runs the command that the first argument names."""
    summaries = find_commands()
    modules = {name.replace("_", "-"): name for name in summaries if name != "main"}
    modules = {"train": "main", **modules}
    lines = [f"  {name:16}{summaries[module]}" for name, module in modules.items()]
    parser = argparse.ArgumentParser(
        prog="googlenet",
        description="GoogLeNet (Inception v1) in JAX and Flax.",
        epilog="\n".join(["commands:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"googlenet_flax {__version__}"
    parser.add_argument("--version", action="version", version=version)
    command_help = "command to run; `googlenet COMMAND --help` explains its arguments"
    parser.add_argument("command", metavar="COMMAND", choices=modules, help=command_help)
    first = [argument.replace("_", "-") for argument in sys.argv[1:2]]
    module = modules[parser.parse_args(first).command]
    del sys.argv[1]
    # absl flags and worker processes expect the command to run as `__main__`.
    runpy.run_module(f"googlenet_flax.{module}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
