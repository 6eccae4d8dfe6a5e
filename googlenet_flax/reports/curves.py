"""Figures of the metrics of one run, and of several runs side by side."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from googlenet_flax.reports.record import RunRecord
from googlenet_flax.reports.style import (
    BLACK,
    BLUE,
    CLASSIFIER_COLORS,
    CYCLE,
    VERMILLION,
    new_figure,
    styled,
    use_log_scale_where_wide,
)

SMOOTHED_FRACTION = 0.04  # Window of a smoothed line, as a part of all logged steps.
LOSSES = {"main": "main_loss", "aux_4a": "aux_4a_loss", "aux_4d": "aux_4d_loss"}
ACCURACIES = {"main": "accuracy", "aux_4a": "aux_4a_accuracy", "aux_4d": "aux_4d_accuracy"}
HEAD_MARKERS = {"aux_4a": "o", "aux_4d": "s"}
LINE_STYLES = ("-", "--", ":", "-.")


class XAxis(NamedTuple):
    """Unit and label of the axis of training time."""

    unit_steps: int  # 0 if the unit is an epoch, whose length differs between the runs.
    label: str


def x_axis(records: Sequence[RunRecord]) -> XAxis:
    """Chooses epochs if their length is known in all runs, and steps otherwise."""
    lengths = [record.epoch_steps for record in records]
    if not lengths or None in lengths:
        return XAxis(1, "training (steps)")
    if len(records) == 1 and lengths[0]:
        return XAxis(lengths[0], f"training (epochs of {lengths[0]:,} steps)")
    return XAxis(0, "training (epochs)")


def smoothed(values: np.ndarray) -> np.ndarray:
    """Computes a centered running mean of `[N]` values; windows are cut at the ends."""
    window = smoothing_window(len(values))
    sums = np.convolve(values, np.ones(window), "same")
    return sums / np.convolve(np.ones(len(values)), np.ones(window), "same")


def smoothing_window(count: int) -> int:
    """Chooses the number of values, always odd, that a smoothed point is the mean of."""
    return 2 * int(SMOOTHED_FRACTION * count / 2) + 1


@styled
def loss_figure(record: RunRecord) -> Figure:
    """Draws the cross-entropy of the main classifier and of the heads."""
    return _classifier_figure(record, LOSSES, "cross-entropy (nats)", percent=False)


@styled
def accuracy_figure(record: RunRecord) -> Figure:
    """Draws the accuracy of the main classifier and of the heads."""
    return _classifier_figure(record, ACCURACIES, "accuracy (%)", percent=True)


def _classifier_figure(
    record: RunRecord, names: Mapping[str, str], y_label: str, *, percent: bool
) -> Figure:
    scale = 100 if percent else 1
    x = x_axis([record])
    figure = new_figure(5.2)
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 2))

    def plot_training(ax: Axes, name: str, label: str, color: str) -> None:
        steps, values = record.series("train", name)
        if len(values):
            where, values = steps / x.unit_steps, values * scale
            ax.plot(where, values, color=color, alpha=0.3, linewidth=0.8)
            ax.plot(where, smoothed(values), color=color, label=label)

    def plot_evaluation(ax: Axes, name: str, label: str, color: str, style: str) -> None:
        steps, values = record.series("eval", name)
        if len(values):
            ax.plot(steps / x.unit_steps, values * scale, style, color=color, label=label)

    main = names["main"]
    averaged = f"averaged_{main}"
    plot_training(top, main, "training batches", BLUE)
    plot_evaluation(top, main, "evaluation", VERMILLION, "o-")
    plot_evaluation(top, averaged, "evaluation, averaged weights", BLACK, "s--")
    for head, marker in HEAD_MARKERS.items():
        name, color = names[head], CLASSIFIER_COLORS[head]
        plot_training(bottom, name, f"{head}, training", color)
        plot_evaluation(bottom, name, f"{head}, evaluation", color, f"{marker}--")
    for ax, title in ((top, "main classifier"), (bottom, "auxiliary heads")):
        _finish(ax, title, y_label, percent=percent)
    bottom.set_xlabel(x.label)
    return figure


def _finish(ax: Axes, title: str, y_label: str, *, percent: bool) -> None:
    """Sets title, scale and legend of a panel of curves."""
    ax.set_title(title)
    ax.set_ylabel(y_label)
    lines = ax.get_lines()
    if not lines:
        ax.text(0.5, 0.5, "no data yet", transform=ax.transAxes, ha="center")
        return
    if not percent:
        values = [np.asarray(line.get_ydata(), np.float64) for line in lines]
        use_log_scale_where_wide(ax, np.concatenate(values))
    ax.legend()


@styled
def learning_rate_figure(record: RunRecord) -> Figure:
    """Draws the learning rate of each logged step."""
    x = x_axis([record])
    figure = new_figure(2.5)
    ax = figure.subplots()
    steps, rates = record.series("train", "learning_rate")
    ax.plot(steps / x.unit_steps, rates, drawstyle="steps-pre", color=BLUE)
    ax.set_ylim(bottom=0)
    ax.set_xlabel(x.label)
    ax.set_ylabel("learning rate")
    return figure


@styled
def throughput_figure(record: RunRecord) -> Figure:
    """Draws images per second between logged steps, and their median."""
    x = x_axis([record])
    figure = new_figure(2.5)
    ax = figure.subplots()
    steps, rates = record.series("train", "images_per_second")
    ax.plot(steps / x.unit_steps, rates, color=BLUE, linewidth=0.8)
    if len(rates):
        median = float(np.median(rates))
        ax.axhline(median, color=VERMILLION, linestyle="--", label=f"median {median:,.1f}")
        ax.legend()
    ax.set_ylim(bottom=0)
    ax.set_xlabel(x.label)
    ax.set_ylabel("training (images/s)")
    return figure


@styled
def comparison_figure(
    records: Sequence[RunRecord], names: Sequence[str], metric: str, y_label: str
) -> Figure:
    """Draws one metric of the evaluations of several runs.

    Args:
      records: Records of the runs.
      names: Names of the runs for the legend.
      metric: Metric of the main classifier, with averaged weights if a run has them.
      y_label: Name and unit of the metric; with a % in it, values are shown in percent.
    """
    x, percent = x_axis(records), "%" in y_label
    figure = new_figure(3.4)
    ax = figure.subplots()
    looks = itertools.cycle(itertools.product(LINE_STYLES, CYCLE))
    for record, name, (line, color) in zip(records, names, looks, strict=False):
        steps, values = record.series("eval", f"averaged_{metric}")
        if not len(values):
            steps, values = record.series("eval", metric)
        unit = x.unit_steps or record.epoch_steps
        values = values * 100 if percent else values
        ax.plot(steps / unit, values, f"o{line}", color=color, label=name)
    _finish(ax, "", y_label, percent=percent)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(x.label)
    return figure
