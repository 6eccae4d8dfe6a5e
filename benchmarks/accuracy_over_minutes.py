"""Draws the accuracy of runs on CIFAR-10 over the minutes since their start.

    python benchmarks/accuracy_over_minutes.py --out=FILE.png LABEL=WORKDIR...

Runs that were stopped and resumed are refused, because their breaks would count as well.
"""

import argparse
import sys

from matplotlib.figure import Figure

from googlenet_flax.reports.record import RunRecord
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.files import file_path


def minutes_and_accuracies(path: str) -> tuple[list[float], list[float]]:
    """Reads the evaluations: minutes since the start of the run, and accuracies in %."""
    record = RunRecord.read(Workdir(path))
    dataset = record.config.dataset if record.config else "other data"
    # The curve starts at 10 %, the chance accuracy of CIFAR-10.
    if dataset.partition(":")[0] != "cifar10":
        sys.exit(f"{path} is a run on {dataset}, not on cifar10")
    if len(record.starts) != 1:
        sys.exit(f"{path} was started {len(record.starts)} times: its minutes are unknown")
    start, rows = record.starts[0]["time"], record.evaluations
    minutes = [(row["unix_seconds"] - start) / 60 for row in rows]
    return [0.0, *minutes], [10.0, *(100 * row["accuracy"] for row in rows)]


def main() -> None:
    """Draws a line for each run, which starts at chance accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=file_path, required=True, help="PNG file to write")
    parser.add_argument("runs", nargs="+", metavar="LABEL=WORKDIR")
    args = parser.parse_args()
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    for run in args.runs:
        label, _, workdir = run.rpartition("=")
        minutes, accuracies = minutes_and_accuracies(workdir)
        (line,) = axis.plot(minutes, accuracies, marker=".", label=label)
        last = f"{accuracies[-1]:.2f} %\n"
        axis.annotate(
            last, (minutes[-1], accuracies[-1]), color=line.get_color(), ha="center"
        )
    style = {"color": "#888888", "linewidth": 1, "linestyle": ":"}
    axis.axhline(78, label="the tutorial's 78 %", **style)
    axis.set(xlabel="minutes", ylabel="accuracy on the test images, %", ylim=(0, 100))
    axis.set_xlim(left=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower right")
    figure.savefig(args.out, dpi=150)


if __name__ == "__main__":
    main()
