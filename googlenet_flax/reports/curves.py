"""Figures of the metrics of one run, and of several runs side by side."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

from googlenet_flax.reports.record import RunRecord
from googlenet_flax.reports.style import (
    BLACK,
    BLUE,
    CYCLE,
    GREEN,
    ORANGE,
    VERMILLION,
    new_figure,
    styled,
)

SMOOTHED_FRACTION = 0.04  # Window of a smoothed line, as a part of all logged steps.
HEADS = {"aux_4a": (ORANGE, "o--"), "aux_4d": (GREEN, "s--")}  # Color and style.
LOG_RATIO = 20  # Ratio of largest to smallest value from which an axis is logarithmic.
LINE_STYLES = ("-", "--", ":", "-.")


def time_axis(records: Sequence[RunRecord]) -> tuple[list[int], str]:
    """Returns the steps in one unit of the x axis for each run, and the axis label.

    The unit is an epoch if the epoch length is known in all runs, and a step otherwise.
    """
    units = [record.epoch_steps for record in records if record.epoch_steps]
    if len(units) < len(records):
        return [1] * len(records), "training (steps)"
    length = f" of {units[0]:,} steps" if len(units) == 1 else ""
    return units, f"training (epochs{length})"


def smoothing_window(count: int) -> int:
    """Returns the odd number of values over which a smoothed point averages."""
    return 2 * int(SMOOTHED_FRACTION * count / 2) + 1


def smoothed(values: np.ndarray) -> np.ndarray:
    """Computes a centered running mean of `[N]` values; windows are cut at the ends."""
    window, ones = np.ones(smoothing_window(len(values))), np.ones(len(values))
    return np.convolve(values, window, "same") / np.convolve(ones, window, "same")


@styled
def classifier_figure(record: RunRecord, metric: str, y_label: str) -> Figure:
    """Draws `loss` or `accuracy` of the main classifier and of the heads.

    With a % in `y_label`, values are shown in percent.
    """
    (unit,), x_label = time_axis([record])
    scale = 100 if "%" in y_label else 1
    figure = new_figure(5.2)
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 2))

    def plot_training(ax: Axes, name: str, label: str, color: str) -> None:
        steps, values = record.series("train", name)
        if len(values):
            where, values = steps / unit, values * scale
            ax.plot(where, values, color=color, alpha=0.3, linewidth=0.8)
            ax.plot(where, smoothed(values), color=color, label=label)

    def plot_evaluation(ax: Axes, name: str, label: str, color: str, style: str) -> None:
        steps, values = record.series("eval", name)
        if len(values):
            ax.plot(steps / unit, values * scale, style, color=color, label=label)

    main = "accuracy" if metric == "accuracy" else f"main_{metric}"
    plot_training(top, main, "training batches", BLUE)
    plot_evaluation(top, main, "evaluation", VERMILLION, "o-")
    averaged = "evaluation, averaged weights"
    plot_evaluation(top, f"averaged_{main}", averaged, BLACK, "s--")
    for head, (color, style) in HEADS.items():
        plot_training(bottom, f"{head}_{metric}", f"{head}, training", color)
        plot_evaluation(bottom, f"{head}_{metric}", f"{head}, evaluation", color, style)
    _finish(top, "main classifier", y_label)
    _finish(bottom, "auxiliary heads", y_label)
    bottom.set_xlabel(x_label)
    return figure


def _finish(ax: Axes, title: str, y_label: str) -> None:
    """Sets title, scale and legend of a panel of curves."""
    ax.set(title=title, ylabel=y_label)
    lines = ax.get_lines()
    if not lines:
        ax.text(0.5, 0.5, "no data yet", transform=ax.transAxes, ha="center")
        return
    if "%" not in y_label:
        values = [np.asarray(line.get_ydata(), np.float64) for line in lines]
        _use_log_scale_where_wide(ax, np.concatenate(values))
    ax.legend()


def _use_log_scale_where_wide(ax: Axes, values: np.ndarray) -> None:
    """Makes the y axis logarithmic if positive `values` span more than `LOG_RATIO`."""
    values = values[np.isfinite(values)]
    if not values.size or values.min() <= 0 or values.max() < LOG_RATIO * values.min():
        return
    ax.set_yscale("log")
    decades = np.log10(values.max() / values.min())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.minorticks_off()


@styled
def rate_figure(
    record: RunRecord, name: str, y_label: str, *, has_median: bool = False, **line: Any
) -> Figure:
    """Draws a training metric over the logged steps, on a y axis from 0.

    `line` holds options of `Axes.plot`.
    """
    (unit,), x_label = time_axis([record])
    figure = new_figure(2.5)
    ax = figure.subplots()
    steps, rates = record.series("train", name)
    ax.plot(steps / unit, rates, color=BLUE, **line)
    if has_median:
        label = f"median {np.median(rates):,.1f}"
        ax.axhline(np.median(rates), color=VERMILLION, linestyle="--", label=label)
        ax.legend()
    ax.set(xlabel=x_label, ylabel=y_label)
    ax.set_ylim(bottom=0)
    return figure


@styled
def comparison_figure(
    records: Sequence[RunRecord], names: Sequence[str], metric: str, y_label: str
) -> Figure:
    """Draws one metric of the evaluations of several runs, with a legend of their names.

    The metric is that of averaged weights where a run has them. With a % in `y_label`,
    values are shown in percent.
    """
    units, x_label = time_axis(records)
    scale = 100 if "%" in y_label else 1
    figure = new_figure(3.4)
    ax = figure.subplots()
    looks = itertools.cycle(itertools.product(LINE_STYLES, CYCLE))
    runs = zip(records, names, units, looks, strict=False)
    for record, name, unit, (line, color) in runs:
        steps, values = record.series("eval", f"averaged_{metric}")
        if not len(values):
            steps, values = record.series("eval", metric)
        # Matplotlib leaves labels that begin with "_" out of the legend.
        label = f" {name}" if name.startswith("_") else name
        ax.plot(steps / unit, values * scale, f"o{line}", color=color, label=label)
    _finish(ax, "", y_label)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(x_label)
    return figure
