"""Runs our network and its peers in turn and prints a table of their speeds.

    python benchmarks/compare.py --environments=DIR

The script needs only Python's standard library. README.md in this folder explains the
table.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
import sys
import venv
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

BENCHMARKS = pathlib.Path(__file__).parent
REPOSITORY = BENCHMARKS.parent
OURS = "ours"
SPEEDS = ("train_images_per_second", "eval_images_per_second")

Record = dict[str, Any]  # A measurement or an error of one contender in one round.


class ContenderError(Exception):
    """Error for a contender that gave no figures; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Settings of the measurement, the same for every contender."""

    dtype: str
    batch_size: int
    image_size: int
    seconds: float  # Duration of the measurement of each of the two figures.


@dataclasses.dataclass(frozen=True)
class Contender:
    """A program that prints a JSON object with its figures as its last line."""

    environment: str  # Name of its environment, described in requirements-NAME.txt.
    program: tuple[str, ...]  # Arguments of Python.
    prefix: str = "--"  # Start of the flags that set the fields of `Work`.

    def arguments(self, work: Work) -> list[str]:
        """Returns the arguments of Python that measure this work."""
        fields = dataclasses.asdict(work)
        seconds = fields.pop("seconds")
        flags = [f"{self.prefix}{name}={value}" for name, value in fields.items()]
        return [*self.program, *flags, f"--seconds={seconds}"]


def peer(environment: str, *switches: str) -> Contender:
    """Creates the contender whose script has the name of its environment."""
    return Contender(environment, (str(BENCHMARKS / f"{environment}.py"), *switches))


CONTENDERS: Mapping[str, Contender] = {
    OURS: Contender(
        "ours",
        ("-m", "googlenet_flax.benchmark", "--json", "--config=configs/cifar10.py"),
        "--config.",
    ),
    "stock_flax": peer("stock_flax"),
    "keras_tensorflow": peer("keras_tensorflow"),
    "keras_tensorflow_jit": peer("keras_tensorflow", "--jit"),
    "pytorch": peer("pytorch"),
    "pytorch_compile": peer("pytorch", "--compile"),
}
# TensorFlow with XLA trains tens of times slower on a CPU. Keras does not use it there.
ONLY_IF_ASKED_FOR = ("keras_tensorflow_jit",)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of the table: a contender and the settings of its measurement."""

    name: str
    work: Work
    command: tuple[str, ...]


def make_environment(name: str, folder: pathlib.Path) -> str:
    """Makes a virtual environment, unless it exists and its requirements are the same.

    Returns:
      The path of its interpreter.

    Raises:
      ContenderError: pip failed, or the folder is not a virtual environment.
    """
    requirements = BENCHMARKS / f"requirements-{name.replace('_', '-')}.txt"
    python = folder / "bin" / "python"
    installed = folder / "installed.txt"
    if installed.exists() and installed.read_text() == requirements.read_text():
        return str(python)
    if folder.exists() and not (folder / "pyvenv.cfg").exists():
        raise ContenderError(f"{folder} exists, but is not a virtual environment")
    print(f"making the environment of {name} in {folder}", file=sys.stderr)
    try:
        venv.create(folder, clear=True, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ContenderError(
            f"{folder} cannot be made ({error}); Debian needs the package python3-venv"
        ) from error
    pip_install = [str(python), "-m", "pip", "install", "-q", "-r", str(requirements)]
    run(pip_install, timeout_seconds=3600)
    shutil.copy(requirements, installed)  # Last, so that an incomplete one is made again.
    return str(python)


def run(command: Sequence[str], *, timeout_seconds: float) -> str:
    """Runs a program in the repository's root and returns its stdout.

    Raises:
      ContenderError: The program failed. Its stderr is printed.
    """
    try:
        process = subprocess.run(
            command,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ContenderError(f"not finished after {timeout_seconds:g} s") from None
    except OSError as error:
        raise ContenderError(str(error)) from None
    if process.returncode:
        print(process.stderr, file=sys.stderr)
        code = f"exit code {process.returncode}"
        raise ContenderError(cause(process.stderr) or code)
    return process.stdout


def last_line(text: str) -> str:
    """Returns the last line that is not blank, or "" if there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def cause(stderr: str) -> str:
    """Returns the first line of the last exception in an output, or else the last line."""
    named = re.findall(r"^[\w.]+(?:Error|Exception)\b.*", stderr, re.MULTILINE)
    return named[-1] if named else last_line(stderr)


def read_answer(stdout: str, work: Work) -> Record:
    """Reads the figures, the device and other facts from a contender's last line.

    Raises:
      ContenderError: The line is not valid, or the settings of the measurement differ.
    """
    try:
        answer = json.loads(last_line(stdout))
        for key in (*SPEEDS, "device", "dtype", "batch_size", "image_size"):
            found = answer[key]
            if found != (asked := getattr(work, key, found)):
                raise ContenderError(f"it measured {key} {found}, not {asked}")
    except (ValueError, TypeError) as error:
        raise ContenderError(f"the last line is not a JSON object: {error}") from None
    except KeyError as error:
        raise ContenderError(f"the last line has no {error}") from None
    return answer


def run_rounds(
    entries: Sequence[Entry], *, rounds: int, timeout_seconds: float
) -> list[Record]:
    """Runs the contenders in the order A B C, A B C, ...

    In this order, a drift of the machine's speed affects all contenders. A contender that
    fails is left out of later rounds.
    """
    records, failed = [], set()
    for number in range(1, rounds + 1):
        for entry in entries:
            if entry in failed:
                continue
            record = {"round": number, "name": entry.name, "dtype": entry.work.dtype}
            try:
                stdout = run(entry.command, timeout_seconds=timeout_seconds)
                record |= read_answer(stdout, entry.work)
                train, forward = (figure(record[speed]) for speed in SPEEDS)
                summary = f"train {train} img/s, forward {forward} img/s"
            except ContenderError as error:
                failed.add(entry)
                record["error"] = str(error)
                summary = f"failed: {error}"
            records.append(record)
            title = f"round {number} of {rounds}: {entry.name} {entry.work.dtype}"
            print(f"{title}: {summary}", file=sys.stderr)
    return records


def figure(value: float) -> str:
    """Formats a figure with three digits or more and without an exponent."""
    decimals = next((n for n, limit in ((2, 10), (1, 100)) if value < limit), 0)
    return f"{value:.{decimals}f}"


def spread(values: Iterable[float]) -> str:
    """Formats minimum, median and maximum; returns a dash if there are no values."""
    if not (values := list(values)):
        return "-"
    return " / ".join(figure(f(values)) for f in (min, statistics.median, max))


def table(records: Sequence[Record]) -> str:
    """Formats a Markdown table with a line for every contender and dtype.

    Each contender is compared with our network in the same dtype and the same round.
    """
    by_round = {(r["round"], r["dtype"]): r for r in records if r["name"] == OURS}
    head = ["contender", "dtype", "device"]
    head += ["train img/s", "ours / it", "forward img/s", "ours / it"]
    lines = [row(head), row(["---"] * 3 + ["---:"] * 4)]
    for key in dict.fromkeys((record["name"], record["dtype"]) for record in records):
        own = [record for record in records if (record["name"], record["dtype"]) == key]
        if error := own[-1].get("error"):
            lines.append(row([*key, f"failed: {escape(error)}", "", "", "", ""]))
            continue
        cells = [*key, own[-1]["device"]]
        for speed in SPEEDS:
            ratios = [
                ours[speed] / record[speed]
                for record in own
                if key[0] != OURS
                and (ours := by_round.get((record["round"], record["dtype"])))
                and speed in ours
            ]
            cells += [spread(record[speed] for record in own), spread(ratios)]
        lines.append(row(cells))
    return "\n".join(lines)


def row(cells: Iterable[str]) -> str:
    """Formats a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def escape(text: str) -> str:
    """Escapes text for a cell of a Markdown table."""
    return text.replace("|", "\\|")


def parse_flags() -> argparse.Namespace:
    """Parses the command line; an error in it ends the program with exit code 2."""
    usual = ",".join(name for name in CONTENDERS if name not in ONLY_IF_ASKED_FOR)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--environments", metavar="DIR", help="where to make virtual environments")
    add(
        "--python",
        metavar="NAME=PATH",
        action="append",
        default=[],
        help="interpreter of an environment that exists already",
    )
    add("--only", default=usual, help=f"contenders to run, from {','.join(CONTENDERS)}")
    add("--dtypes", default="float32", help="float32, bfloat16 or float32,bfloat16")
    add("--batch_size", type=int, default=32)
    add("--image_size", type=int, default=224)
    add("--seconds", type=float, default=5.0, help="duration of each measurement")
    add("--rounds", type=int, default=5)
    add("--timeout_seconds", type=float, default=1800, help="time limit of one run")
    add("--output", metavar="FILE.json", help="file for the figures of every round")
    flags = parser.parse_args()
    environments = {contender.environment for contender in CONTENDERS.values()}
    dtypes = ("float32", "bfloat16")
    split_lists(
        parser, flags, {"only": CONTENDERS, "dtypes": dtypes, "python": environments}
    )
    if flags.rounds < 1:
        parser.error("--rounds must be at least 1")
    needed = {CONTENDERS[name].environment for name in flags.only}
    if not flags.environments and (missing := sorted(needed - set(flags.python))):
        parser.error(f"give --environments=DIR or --python {missing[0]}=PATH")
    return flags


def split_lists(
    parser: argparse.ArgumentParser,
    flags: argparse.Namespace,
    known: Mapping[str, Iterable[str]],
) -> None:
    """Splits `--only`, `--dtypes` and `--python`; an unknown value ends the program."""
    flags.only, flags.dtypes = flags.only.split(","), flags.dtypes.split(",")
    flags.python = dict(pair.partition("=")[::2] for pair in flags.python)
    for flag, values in known.items():
        if unknown := sorted(set(getattr(flags, flag)) - set(values)):
            parser.error(f"--{flag} has {unknown[0]!r} but must be of {', '.join(values)}")


def absolute_path(path: str) -> pathlib.Path:
    """Makes a path absolute, since contenders run in another directory.

    Links are not followed: the interpreter of an environment is a link out of it.
    """
    return pathlib.Path(path).expanduser().absolute()


def compare(flags: argparse.Namespace) -> list[Record]:
    """Runs the contenders that the flags name, in environments that exist or are made."""
    pythons = {name: str(absolute_path(path)) for name, path in flags.python.items()}
    errors: dict[str, str] = {}
    for name in {CONTENDERS[contender].environment for contender in flags.only}:
        if name not in pythons:
            try:
                folder = absolute_path(flags.environments) / name
                pythons[name] = make_environment(name, folder)
            except ContenderError as error:
                errors[name] = str(error)
    records, entries = [], []
    for dtype in flags.dtypes:
        work = Work(dtype, flags.batch_size, flags.image_size, flags.seconds)
        for name in flags.only:
            contender = CONTENDERS[name]
            if error := errors.get(contender.environment):
                records.append({"round": 0, "name": name, "dtype": dtype, "error": error})
            else:
                command = (pythons[contender.environment], *contender.arguments(work))
                entries.append(Entry(name, work, command))
    limits = {"rounds": flags.rounds, "timeout_seconds": flags.timeout_seconds}
    return records + run_rounds(entries, **limits)


def main() -> None:
    """Prints the table; the exit code is 1 if a contender failed."""
    flags = parse_flags()
    records = compare(flags)
    print(table(records))
    if flags.output:
        raw = {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "flags": vars(flags),
            "records": records,
        }
        absolute_path(flags.output).write_text(json.dumps(raw, indent=1) + "\n")
    sys.exit(any("error" in record for record in records))


if __name__ == "__main__":
    main()
