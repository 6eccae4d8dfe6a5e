"""Figures of predictions for a split: confusions, classes and calibration."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from googlenet_flax.reports.answers import Calibration, PerClass
from googlenet_flax.reports.style import (
    BLACK,
    BLUE,
    VERMILLION,
    name_label,
    new_figure,
    styled,
)

MAX_NAMED_CLASSES = 30  # With more classes the names along a matrix cannot be read.
SMALLEST_COUNT_POINTS = 5.0  # Smallest font size of a count in a matrix.
MAX_MATRIX_CLASSES = 200  # With more classes a cell is smaller than three pixels.
MAX_LISTED_CLASSES = 30


def count_size(confusions: np.ndarray) -> float:
    """Chooses the font size in points of the counts in a matrix; 0 if it is too small."""
    digits = len(str(confusions.max()))
    size = min(9.0, 400 / (len(confusions) * digits))  # The widest count fits in a cell.
    return size if size >= SMALLEST_COUNT_POINTS else 0.0


@styled
def confusion_figure(confusions: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draws counts `[K, K]`, true classes in rows, colored by the share of the row."""
    classes = len(class_names)
    shares = confusions / np.maximum(confusions.sum(axis=1, keepdims=True), 1)
    figure = new_figure(6.6)
    ax = figure.subplots()
    image = ax.imshow(shares * 100, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    ax.grid(False)
    by_number = "" if classes <= MAX_NAMED_CLASSES else ", by number"
    if classes <= MAX_NAMED_CLASSES:
        names = [name_label(name) for name in class_names]
        is_crowded = max(map(len, names)) * classes > 45
        ax.set_xticks(range(classes), names, rotation=90 if is_crowded else 0)
        ax.set_yticks(range(classes), names)
        ax.tick_params(length=0, labelsize=min(9.0, 200 / classes))
    size = count_size(confusions)
    text = {"ha": "center", "va": "center", "fontsize": size}
    for row, column in np.argwhere(confusions) if size else ():
        color = "white" if shares[row, column] > 0.5 else BLACK
        ax.text(column, row, f"{confusions[row, column]}", color=color, **text)
    ax.set(xlabel=f"predicted class{by_number}", ylabel=f"true class{by_number}")
    share = "share of the true class (%)"
    figure.colorbar(image, ax=ax, label=share, location="top", aspect=50)
    return figure


@styled
def per_class_figure(scores: PerClass, class_names: Sequence[str]) -> Figure:
    """Draws precision and recall of the classes that `worst_classes` lists."""
    order = worst_classes(scores)
    rows = np.arange(len(order))
    precision, recall = 100 * scores.precision[order], 100 * scores.recall[order]
    figure = new_figure(1.3 + 0.21 * len(order))
    ax = figure.subplots()
    ax.hlines(rows, precision, recall, "#999999")
    hollow = {"color": VERMILLION, "markerfacecolor": "none", "markersize": 8}
    ax.plot(precision, rows, "o", color=BLUE, label="precision")
    ax.plot(recall, rows, "D", label="recall", **hollow)
    ax.set_yticks(rows, [name_label(class_names[i]) for i in order])
    ax.set(xlabel="precision, recall (%)", ylim=(len(order) - 0.4, -0.6))
    ax.set_xlim(min(ax.get_xlim()[0], 90), 101)  # Autoscaling goes beyond 100 %.
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def worst_classes(scores: PerClass) -> np.ndarray:
    """Returns the classes with the lowest F1, sorted by their numbers, int `[n]`.

    There are at most `MAX_LISTED_CLASSES`. Classes without examples are left out.
    """
    known = np.flatnonzero(scores.support > 0)
    worst = known[np.argsort(scores.f1[known], kind="stable")]
    return np.sort(worst[:MAX_LISTED_CLASSES])


@styled
def calibration_figure(calibration: Calibration) -> Figure:
    """Draws a reliability diagram: accuracy over confidence, and the size of each bin."""
    sizes, bins = calibration.sizes, len(calibration.sizes)
    edges = 100 * np.arange(bins) / bins
    options = {"width": 100 / bins, "align": "edge", "color": BLUE, "edgecolor": "white"}
    figure = new_figure(4.8)
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    top.bar(edges, 100 * np.nan_to_num(calibration.accuracy), **options)
    top.plot([0, 100], [0, 100], "--", color=BLACK, label="perfectly calibrated")
    means = 100 * calibration.confidence, 100 * calibration.accuracy
    top.plot(*means, "o", color=VERMILLION, label="mean of the bin")
    top.set(ylabel="accuracy (%)", ylim=(0, 105))
    top.legend(loc="upper left")
    bottom.bar(edges, 100 * sizes / sizes.sum(), **options)
    x_label = "confidence in the predicted class (%)"
    bottom.set(ylabel="examples (%)", xlabel=x_label, xlim=(0, 100))
    return figure
