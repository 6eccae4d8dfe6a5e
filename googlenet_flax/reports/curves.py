"""Figures of what a run wrote while it trained, and of several runs side by side."""

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
    CLASSIFIER_COLOURS,
    CYCLE,
    VERMILLION,
    new_figure,
    styled,
    use_log_scale_where_wide,
)

SMOOTHED_FRACTION = 0.04  # Of all logged steps, that a smoothed line averages over.
LOSSES = {"main": "main_loss", "aux_4a": "aux_4a_loss", "aux_4d": "aux_4d_loss"}
ACCURACIES = {"main": "accuracy", "aux_4a": "aux_4a_accuracy", "aux_4d": "aux_4d_accuracy"}
HEAD_MARKERS = {"aux_4a": "o", "aux_4d": "s"}
LINE_STYLES = ("-", "--", ":", "-.")


class XAxis(NamedTuple):
    """What is drawn along a run."""

    unit_steps: int
    label: str


def x_axis(records: Sequence[RunRecord]) -> XAxis:
    """Epochs where it is known how long they are in all runs, and steps otherwise."""
    lengths = [record.epoch_steps for record in records]
    if not lengths or None in lengths:
        return XAxis(1, "training (steps)")
    if len(records) == 1 and lengths[0]:
        return XAxis(lengths[0], f"training (epochs of {lengths[0]:,} steps)")
    return XAxis(0, "training (epochs)")


def smoothed(values: np.ndarray) -> np.ndarray:
    """A centred running mean of `[N]` values; at the ends over what there is."""
    window = smoothing_window(len(values))
    sums = np.convolve(values, np.ones(window), "same")
    return sums / np.convolve(np.ones(len(values)), np.ones(window), "same")


def smoothing_window(count: int) -> int:
    """Values that each point of a smoothed line is a mean of: an odd number."""
    return 2 * int(SMOOTHED_FRACTION * count / 2) + 1


@styled
def loss_figure(record: RunRecord) -> Figure:
    """Cross-entropy of the main classifier and of the heads."""
    return _classifier_figure(record, LOSSES, "cross-entropy (nats)", percent=False)


@styled
def accuracy_figure(record: RunRecord) -> Figure:
    """Accuracy of the main classifier and of the heads."""
    return _classifier_figure(record, ACCURACIES, "accuracy (%)", percent=True)


def _classifier_figure(
    record: RunRecord, names: Mapping[str, str], y_label: str, *, percent: bool
) -> Figure:
    scale = 100 if percent else 1
    x = x_axis([record])
    figure = new_figure(5.2)
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 2))

    def plot_training(ax: Axes, name: str, label: str, colour: str) -> None:
        steps, values = record.series("train", name)
        if len(values):
            where, values = steps / x.unit_steps, values * scale
            ax.plot(where, values, color=colour, alpha=0.3, linewidth=0.8)
            ax.plot(where, smoothed(values), color=colour, label=label)

    def plot_evaluation(ax: Axes, name: str, label: str, colour: str, style: str) -> None:
        steps, values = record.series("eval", name)
        if len(values):
            ax.plot(steps / x.unit_steps, values * scale, style, color=colour, label=label)

    main = names["main"]
    averaged = f"averaged_{main}"
    plot_training(top, main, "training batches", BLUE)
    plot_evaluation(top, main, "evaluation", VERMILLION, "o-")
    plot_evaluation(top, averaged, "evaluation, averaged weights", BLACK, "s--")
    for head, marker in HEAD_MARKERS.items():
        name, colour = names[head], CLASSIFIER_COLOURS[head]
        plot_training(bottom, name, f"{head}, training", colour)
        plot_evaluation(bottom, name, f"{head}, evaluation", colour, f"{marker}--")
    for ax, title in ((top, "main classifier"), (bottom, "auxiliary heads")):
        _finish(ax, title, y_label, percent=percent)
    bottom.set_xlabel(x.label)
    return figure


def _finish(ax: Axes, title: str, y_label: str, *, percent: bool) -> None:
    """Title, scale and legend of a panel of curves."""
    ax.set_title(title)
    ax.set_ylabel(y_label)
    lines = ax.get_lines()
    if not lines:
        ax.text(0.5, 0.5, "nothing was written yet", transform=ax.transAxes, ha="center")
        return
    if not percent:
        values = [np.asarray(line.get_ydata(), np.float64) for line in lines]
        use_log_scale_where_wide(ax, np.concatenate(values))
    ax.legend()


@styled
def learning_rate_figure(record: RunRecord) -> Figure:
    """The learning rate of each logged step."""
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
    """Images a second between logged steps, and their median."""
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
    """One metric of the evaluations of several runs.

    Args:
      records: Of the runs.
      names: What to call each.
      metric: Of the main classifier; of averaged weights where a run averages them.
      y_label: What it is, and its unit; in percent if it contains a %.
    """
    x, percent = x_axis(records), "%" in y_label
    figure = new_figure(3.4)
    ax = figure.subplots()
    looks = itertools.cycle(itertools.product(LINE_STYLES, CYCLE))
    for record, name, (line, colour) in zip(records, names, looks, strict=False):
        steps, values = record.series("eval", f"averaged_{metric}")
        if not len(values):
            steps, values = record.series("eval", metric)
        unit = x.unit_steps or record.epoch_steps
        values = values * 100 if percent else values
        ax.plot(steps / unit, values, f"o{line}", color=colour, label=name)
    _finish(ax, "", y_label, percent=percent)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(x.label)
    return figure
