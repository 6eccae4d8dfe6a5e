"""Runs a recipe with several seeds; prints its row of docs/results.md and draws its curves.

    python benchmarks/run_seeds.py --config=configs/digits.py --seeds=0,1,2 --workdir=DIR

Further arguments (--config.FIELD=VALUE) go to every run. A series that was interrupted goes
on. All figures are those of the last step, not of the best.
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
import matplotlib as mpl
import matplotlib.pyplot as plt

from googlenet_flax.runs.metrics import read_rows

REPOSITORY = pathlib.Path(__file__).parent.parent
ACCURACIES: Mapping[str, str] = {
    "accuracy": "accuracy, %",
    "averaged_accuracy": "averaged weights, %",
    "aux_4a_accuracy": "head 4a, %",
    "aux_4d_accuracy": "head 4d, %",
}

Row = dict[str, Any]  # Of metrics.jsonl.


def seed_numbers(text: str) -> list[int]:
    """Of the option `--seeds`."""
    return [int(number) for number in text.split(",")]


def train(arguments: Sequence[str], seed: int, workdir: pathlib.Path) -> float | None:
    """Trains to the end.

    Returns:
      Seconds from command to result; None if the run did not go through at once.
    """
    finished = workdir.with_suffix(".seconds")
    if finished.exists():
        return float(finished.read_text()) or None
    is_fresh = not workdir.exists()
    command = [sys.executable, "-m", "googlenet_flax.main", *arguments]
    command += [f"--config.seed={seed}", f"--workdir={workdir}"]
    started = time.monotonic()
    code = subprocess.run(command, check=False, cwd=REPOSITORY).returncode
    if code:
        sys.exit(code)
    seconds = time.monotonic() - started if is_fresh else 0.0
    finished.write_text(f"{seconds}\n")
    return seconds or None


def summarise(runs: Mapping[int, list[Row]], seconds: Sequence[float | None]) -> Row:
    """The columns of the row: means over the seeds, with the standard deviation."""
    lasts = [[row for row in rows if row["split"] == "eval"][-1] for rows in runs.values()]
    paces = [
        row["images_per_second"]
        for rows in runs.values()
        for row in rows
        if "images_per_second" in row
    ]
    whole = [time for time in seconds if time]
    columns = {
        "seconds a run": f"{statistics.median(whole):.0f}" if whole else "resumed",
        "images/s": f"{statistics.median(paces):.0f}",
        "seeds": str(len(runs)),
    }
    for name, title in ACCURACIES.items():
        if name in lasts[0]:
            columns[title] = _mean([100 * last[name] for last in lasts])
    return columns


def _mean(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def draw_curves(runs: Mapping[int, list[Row]], file: pathlib.Path) -> None:
    """Loss and accuracy over the epochs, a line for each seed."""
    mpl.use("Agg")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for rows in runs.values():
        for split, colour in (("train", "#0072B2"), ("eval", "#D55E00")):  # Okabe-Ito.
            chosen = [row for row in rows if row["split"] == split]
            for axis, name, scale in zip(axes, ("loss", "accuracy"), (1, 100), strict=True):
                steps = [row["step"] for row in chosen]
                values = [scale * row[name] for row in chosen]
                # Evaluations may be few: their points show how many.
                marker = "." if split == "eval" else None
                style = {"color": colour, "linewidth": 1, "alpha": 0.7, "marker": marker}
                axis.plot(steps, values, label=split, **style)
    for axis, title in zip(
        axes, ("loss, heads at their weight", "accuracy, %"), strict=True
    ):
        axis.set(xlabel="step", ylabel=title)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].legend(handles[:2], labels[:2], frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def markdown(columns: Mapping[str, str]) -> str:
    """A table of one row."""
    lines = [columns.keys(), ["---"] * len(columns), columns.values()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _hardware() -> str:
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return f"{os.cpu_count()} CPU cores ({platform.machine()})"
    return f"{len(devices)} x {devices[0].device_kind}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--config", required=True, help="the recipe")
    parser.add_argument(
        "--seeds", type=seed_numbers, default="0,1,2", help="numbers, with commas"
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    flags, more = parser.parse_known_args()
    arguments = [f"--config={flags.config}", *more]
    flags.workdir.mkdir(parents=True, exist_ok=True)
    workdirs = {seed: flags.workdir.absolute() / f"seed-{seed}" for seed in flags.seeds}
    seconds = [train(arguments, seed, workdir) for seed, workdir in workdirs.items()]
    runs = {
        seed: read_rows(workdir / "metrics.jsonl") for seed, workdir in workdirs.items()
    }
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        check=False,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    ).stdout.strip()
    curves = flags.workdir / "curves.png"
    draw_curves(runs, curves)
    row = {
        "command": f"`{shlex.join(arguments)}`",
        "commit": commit or "unknown",
        "hardware": _hardware(),
        **summarise(runs, seconds),
    }
    print(f"{markdown(row)}\n\ncurves: {curves}")


if __name__ == "__main__":
    main()
