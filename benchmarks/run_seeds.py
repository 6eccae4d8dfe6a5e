"""Runs a recipe with several seeds; prints its row of docs/results.md and draws its curves.

    python benchmarks/run_seeds.py --config=configs/digits.py --seeds=0,1,2 --workdir=DIR

Run it in the root of the clone, or name a recipe as in `--config=digits`. Further arguments
(--config.FIELD=VALUE) are passed to every run. An interrupted series is resumed. Accuracies
are those of the last evaluation, not of the best one.
"""

import argparse
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from googlenet_flax.reports.comparison_page import create_comparison_page
from googlenet_flax.reports.record import RunRecord
from googlenet_flax.runs.metrics import read_rows
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.files import file_path

REPOSITORY = pathlib.Path(__file__).parent.parent
ACCURACIES: Mapping[str, str] = {
    "accuracy": "accuracy, %",
    "averaged_accuracy": "averaged weights, %",
    "aux_4a_accuracy": "head 4a, %",
    "aux_4d_accuracy": "head 4d, %",
}

Row = dict[str, Any]  # A row of metrics.jsonl or of the table.


def seed_numbers(text: str) -> list[int]:
    """Parses the option `--seeds`."""
    return [int(number) for number in text.split(",")]


def train(arguments: Sequence[str], seed: int, workdir: pathlib.Path) -> float | None:
    """Trains a run to its end, unless it is finished already.

    Returns:
      Duration of the command in seconds; None if the run was interrupted.
    """
    finished = workdir.with_suffix(".seconds")
    is_fresh = not workdir.exists()
    command = [sys.executable, "-m", "googlenet_flax.main", *arguments]
    command += [f"--config.seed={seed}", f"--workdir={workdir}"]
    started = time.monotonic()
    code = subprocess.run(command, check=False).returncode
    if code:  # It refuses a finished run of another config, too.
        sys.exit(code)
    if not finished.exists():
        seconds = time.monotonic() - started if is_fresh else 0.0
        finished.write_text(f"{seconds}\n")
    return float(finished.read_text()) or None


def train_all(
    arguments: Sequence[str], seeds: Sequence[int], folder: pathlib.Path
) -> tuple[list[list[Row]], list[float | None]]:
    """Trains a run for each seed; returns the rows and the seconds of each run."""
    workdirs = {seed: folder.absolute() / f"seed-{seed}" for seed in seeds}
    folder.mkdir(parents=True, exist_ok=True)
    seconds = [train(arguments, seed, workdir) for seed, workdir in workdirs.items()]
    return [read_rows(path / "metrics.jsonl") for path in workdirs.values()], seconds


def summarize(runs: Sequence[list[Row]], seconds: Sequence[float | None]) -> Row:
    """Computes the columns of the row: means over the seeds and standard deviations."""
    lasts = [[row for row in rows if row["split"] == "eval"][-1] for rows in runs]
    speed = "images_per_second"
    rates = [row[speed] for rows in runs for row in rows if speed in row]
    durations = [time for time in seconds if time]
    columns = {
        "seconds a run": f"{statistics.median(durations):.0f}" if durations else "resumed",
        "images/s": f"{statistics.median(rates):.0f}",
        "seeds": str(len(runs)),
    }
    for name, title in ACCURACIES.items():
        if name in lasts[0]:
            columns[title] = _mean([100 * last[name] for last in lasts])
    return columns


def _mean(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def markdown(columns: Mapping[str, str]) -> str:
    """Formats a Markdown table of one row."""
    lines = [columns.keys(), ["---"] * len(columns), columns.values()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _hardware() -> str:
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return f"{os.cpu_count()} CPU cores ({platform.machine()})"
    return f"{len(devices)} x {devices[0].device_kind}"


def main() -> None:
    """Trains all runs, prints the row and draws the curves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--config", required=True, help="the recipe")
    parser.add_argument(
        "--seeds", type=seed_numbers, default="0,1,2", help="numbers, separated by commas"
    )
    parser.add_argument("--workdir", type=file_path, required=True)
    flags, more = parser.parse_known_args()
    arguments = [f"--config={flags.config}", *more]
    runs, seconds = train_all(arguments, flags.seeds, flags.workdir)
    git = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, check=False, capture_output=True, text=True).stdout
    row = {
        "command": f"`{shlex.join(arguments)}`",
        "commit": commit.strip() or "unknown",
        "hardware": _hardware(),
        **summarize(runs, seconds),
    }
    print(markdown(row))
    workdirs = [flags.workdir / f"seed-{seed}" for seed in flags.seeds]
    curves = flags.workdir / "curves.html"
    page = create_comparison_page([RunRecord.read(Workdir(path)) for path in workdirs])
    page.write(curves)
    print(f"\ncurves: {curves}")


if __name__ == "__main__":
    main()
