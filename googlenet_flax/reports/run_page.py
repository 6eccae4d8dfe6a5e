"""Page of one run."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from googlenet_flax.config import Config
from googlenet_flax.reports import answer_figures, curves, look_inside
from googlenet_flax.reports.answers import (
    Answers,
    SplitAnswers,
    calibrate,
    count_confusions,
    most_confused,
    score_classes,
)
from googlenet_flax.reports.page import Cell, Number, Page, number, percent
from googlenet_flax.reports.record import RunRecord, best_name
from googlenet_flax.runtime.environment import describe_environment
from googlenet_flax.training.description import ModelDescription
from googlenet_flax.training.losses import TOP_K

MOST_CONFUSED = 15  # Number of confused pairs to list.
NAMED_CLASSES = 3  # Classes listed for a picture and each classifier.
MAX_OPEN_ROWS = 30  # A longer table is folded.


@dataclasses.dataclass(frozen=True)
class Network:
    """Contents of a checkpoint that the page shows."""

    checkpoint_step: int
    description: ModelDescription
    weights: str  # Kind of the weights, in words.
    conv1: np.ndarray  # Kernel [h, w, 3, N].


@dataclasses.dataclass(frozen=True)
class Tested:
    """Predictions for a split, and the pictures of the most confident mistakes."""

    answers: SplitAnswers
    split: str  # Data set and split, in words.
    split_size: int  # Number of examples in the split.
    mistakes: np.ndarray  # Rows of `answers`, int [n].
    pictures: np.ndarray  # Pictures of the mistakes, uint8 [n, H, W, 3].


@dataclasses.dataclass(frozen=True)
class Inside:
    """View of one picture."""

    view: look_inside.View
    name: str  # Description of the picture, in words.


@dataclasses.dataclass(frozen=True)
class Material:
    """Contents of the page of a run; a part that is None has a reason in `missing`."""

    record: RunRecord
    network: Network | None = None
    tested: Tested | None = None
    inside: Inside | None = None
    missing: Sequence[str] = ()


def create_run_page(material: Material) -> Page:
    """Creates the page of a run from the parts that are there."""
    record = material.record
    page = Page(f"Run {record.name}")
    page.text(_headline(record))
    for reason in material.missing:
        page.missing(reason)
    if record.rows and record.config:
        _add_training(page, record, record.config)
    if material.network and material.tested:
        _add_answers(page, material.network, material.tested)
    if material.network:
        _add_inside(page, material.network, material.inside)
    _add_settings(page, material)
    return page


def _headline(record: RunRecord) -> str:
    """Describes the run and its progress in a few sentences."""
    config = record.config
    if config is None:
        return "Imported weights; they were not trained here."
    done = f"{record.steps:,} steps done"
    if record.total_steps:
        share = record.steps / record.total_steps
        done = f"{record.steps:,} of {record.total_steps:,} steps done ({share:.0%})"
    best = ""
    if record.best:
        name = best_name(record.best)
        words = name.replace("_", " of ", 1).replace("averaged of", "averaged weights'")
        best = (
            f" Best {words}: {record.best[name]:.2%}, after step {record.best['step']:,}."
        )
    return (
        f"GoogLeNet {config.variant!r} on {config.dataset!r} "
        f"({config.train_split}), {config.image_size} px: {done}.{best}"
    )


def _add_training(page: Page, record: RunRecord, config: Config) -> None:
    page.section("Training")
    steps, _ = record.series("train", "main_loss")
    window = curves.smoothing_window(len(steps))
    smooth = (
        f"Light lines show each logged step, dark ones the running mean over {window}."
        if window > 1
        else "Lines show each logged step."
    )
    page.figure(
        "loss",
        curves.loss_figure(record),
        caption=f"Cross-entropy of the main classifier (above) and of the two auxiliary "
        f"heads (below). {smooth} Points are evaluations of the whole "
        f"{config.eval_split} split.",
        alt="Curves of training and evaluation loss over training time for the main "
        f"classifier and both heads; {_last_words(record, 'main_loss', '.4f')}",
    )
    page.figure(
        "accuracy",
        curves.accuracy_figure(record),
        caption="Accuracy, drawn in the same way.",
        alt="Curves of training and evaluation accuracy over training time for the main "
        f"classifier and both heads; {_last_words(record, 'accuracy', '.2%')}",
    )
    _add_evaluations(page, record)
    page.figure(
        "learning_rate",
        curves.learning_rate_figure(record),
        caption="Learning rate of each logged step.",
        alt="The learning rate over training time.",
    )
    _, rates = record.series("train", "images_per_second")
    if len(rates):
        page.figure(
            "throughput",
            curves.throughput_figure(record),
            caption="Training images per second between logged steps; compilation, "
            "evaluation and saving are left out.",
            alt=f"Images per second over training time; median {np.median(rates):,.1f}.",
        )


def _last_words(record: RunRecord, name: str, form: str) -> str:
    """Describes the last evaluation, for readers who do not see the curve."""
    evaluations = record.evaluations
    if not evaluations or name not in evaluations[-1]:
        return "there is no evaluation yet."
    return f"the last evaluation gave {format(evaluations[-1][name], form)}."


def _add_evaluations(page: Page, record: RunRecord) -> None:
    """Adds a table of all evaluations, without columns that no row has."""
    columns = {
        "loss": ("total loss", lambda value: number(value, ".4f")),
        "accuracy": ("accuracy", percent),
        "top5": ("top-5", percent),
        "aux_4a_accuracy": ("aux_4a", percent),
        "aux_4d_accuracy": ("aux_4d", percent),
        "averaged_loss": ("averaged: loss", lambda value: number(value, ".4f")),
        "averaged_accuracy": ("averaged: accuracy", percent),
        "eval_seconds": ("seconds", lambda value: number(value, ".1f")),
    }
    rows = record.evaluations
    shown = {name: columns[name] for name in columns if any(name in row for row in rows)}
    if rows:
        page.table(
            ["step", "epoch", *(title for title, _ in shown.values())],
            [
                [number(row["step"]), number(row["epoch"])]
                + [form(row.get(name)) for name, (_, form) in shown.items()]
                for row in rows
            ],
            caption="Evaluations",
            folded=len(rows) > MAX_OPEN_ROWS,
        )


def _add_answers(page: Page, network: Network, tested: Tested) -> None:
    answers, names = tested.answers, network.description.class_names
    main, labels = answers.classifiers["main"], answers.labels
    page.section("Predictions")
    count, size = len(labels), tested.split_size
    some = f"all {size:,}" if count == size else f"{count:,} of the {size:,}"
    page.text(
        f"Checkpoint {network.checkpoint_step:,} ({network.weights}) on {some} examples of "
        f"{tested.split}."
    )
    _add_scores(page, answers)
    confusions = count_confusions(labels, main.predicted, len(names))
    _add_confusions(page, confusions, names)
    _add_classes(page, labels, main, names)
    _add_calibration(page, labels, main)
    _add_mistakes(page, tested, names)


def _add_scores(page: Page, answers: SplitAnswers) -> None:
    """Adds a table with a row of scores for each classifier."""
    rows = []
    for name, one in answers.classifiers.items():
        correct = one.are_correct(answers.labels)
        rows.append(
            [
                name,
                percent(float(correct.mean())),
                percent(float(np.mean(one.label_rank < TOP_K))),
                number(-one.label_log_probability.mean(), ".4f"),
                percent(float(one.confidence.mean())),
                percent(calibrate(one.confidence, correct).error),
            ]
        )
    header = ["classifier", "accuracy", "top-5", "cross-entropy", "mean confidence"]
    page.table(
        [*header, "calibration error"],
        rows,
        caption=f"Scores on {len(answers.labels):,} examples",
    )


def _add_confusions(page: Page, confusions: np.ndarray, names: Sequence[str]) -> None:
    page.heading("Confusions")
    pairs = most_confused(confusions, MOST_CONFUSED)
    if len(names) <= answer_figures.MAX_MATRIX_CLASSES:
        has_counts = answer_figures.count_size(confusions) > 0
        numbers = " Numbers are counts of examples." if has_counts else ""
        page.figure(
            "confusion",
            answer_figures.confusion_figure(confusions, names),
            caption="Examples by true class (rows) and by the class that the main "
            f"classifier predicts (columns). The color is the share of the row.{numbers}",
            alt=f"Confusion matrix of {len(names)} classes; on the diagonal are "
            f"{np.trace(confusions):,} of {confusions.sum():,} examples.",
        )
    if pairs:
        page.table(
            ["true class", "predicted class", "examples", "share of the true class"],
            [
                [names[i], names[j], number(count), percent(count / confusions[i].sum())]
                for i, j, count in pairs
            ],
            caption="Most frequent mistakes",
        )


def _add_classes(
    page: Page, labels: np.ndarray, main: Answers, names: Sequence[str]
) -> None:
    scores = score_classes(labels, main.predicted, len(names))
    listed = answer_figures.worst_classes(scores)
    page.heading("Classes")
    page.figure(
        "classes",
        answer_figures.per_class_figure(scores, names),
        caption="Precision (share of correct predictions of a class) and recall (share of "
        "the examples of a class that are predicted correctly)"
        + (
            "."
            if len(listed) == len(names)
            else f" of the {len(listed)} classes with the lowest F1."
        ),
        alt="Precision and recall of each class; the table below has the numbers.",
    )
    page.table(
        ["class", "number", "precision", "recall", "F1", "examples"],
        [
            [name, number(i), percent(p), percent(r), percent(f1), number(int(support))]
            for i, (name, p, r, f1, support) in enumerate(zip(names, *scores, strict=True))
        ],
        caption=f"Precision, recall and F1 of the {len(names):,} classes",
        folded=len(names) > MAX_OPEN_ROWS,
    )


def _add_calibration(page: Page, labels: np.ndarray, main: Answers) -> None:
    calibration = calibrate(main.confidence, main.are_correct(labels))
    page.heading("Calibration")
    page.figure(
        "calibration",
        answer_figures.calibration_figure(calibration),
        caption="Accuracy of the main classifier by its confidence. Where a bar ends below "
        "the dashed line, the classifier is overconfident. The expected calibration error "
        f"is {calibration.error:.2%} ({len(calibration.count)} bins). The lower panel "
        "shows the share of examples in each bin.",
        alt="Reliability diagram: accuracy over confidence, and the share of examples in "
        f"each bin; expected calibration error {calibration.error:.2%}.",
    )


def _add_mistakes(page: Page, tested: Tested, names: Sequence[str]) -> None:
    answers, rows = tested.answers, tested.mistakes
    main = answers.classifiers["main"]
    page.heading("Most confident mistakes")
    if not len(rows):
        page.text("There is no mistake.")
        return
    predicted = [names[i] for i in main.predicted[rows]]
    true = [names[i] for i in answers.labels[rows]]
    wrong = int(np.sum(~main.are_correct(answers.labels)))
    some = f"{len(rows)} of {wrong:,}" if len(rows) < wrong else f"All {wrong}"
    page.figure(
        "mistakes",
        answer_figures.mistakes_figure(
            tested.pictures, true, predicted, main.confidence[rows]
        ),
        caption=f"{some} mistakes of the main classifier, the most confident ones first, "
        "at the size of the network's input. In the split they are the examples "
        f"{', '.join(map(str, answers.examples[rows]))}.",
        alt="; ".join(f"{a} taken for {b}" for a, b in zip(true, predicted, strict=True)),
    )


def _add_inside(page: Page, network: Network, inside: Inside | None) -> None:
    page.section("Inside the network")
    order = network.description.preprocess.channel_order
    page.figure(
        "filters",
        look_inside.filters_figure(network.conv1, order),
        caption=f"The {network.conv1.shape[-1]} filters of conv1, "
        f"{network.conv1.shape[0]}x{network.conv1.shape[1]} pixels each, as colors. A "
        "weight of 0 is gray, and all filters share one scale.",
        alt="The filters of the first convolution as small color pictures.",
    )
    if inside is None:
        return
    view, names = inside.view, network.description.class_names
    page.heading(f"One picture: {inside.name}")
    rows = []
    for name, probabilities in view.probabilities.items():
        best = np.argsort(-probabilities, kind="stable")[:NAMED_CLASSES]
        rows += [
            [name if i == best[0] else "", names[i], percent(probabilities[i])]
            for i in best
        ]
    page.table(
        ["classifier", "class", "probability"], rows, caption="Predictions for the picture"
    )
    page.figure(
        "grad_cam",
        look_inside.evidence_figure(view, names),
        caption="Grad-CAM: color marks where the maps of a block raise the score of the "
        "class that the classifier predicts. Each picture has its own scale.",
        alt="The picture, and overlays of the evidence of: "
        + ", ".join(f"{one.classifier} at {one.block}" for one in view.evidence),
    )
    page.figure(
        "activations",
        look_inside.maps_figure(view),
        caption="Outputs of the blocks for this picture: the mean over channels, and the "
        f"{look_inside.STRONGEST_CHANNELS} channels with the largest mean. Each map has "
        "its own scale, with dark for the smallest value.",
        alt=f"Activation maps of {len(view.maps)} inception blocks, from fine to coarse.",
    )


def _add_settings(page: Page, material: Material) -> None:
    record = material.record
    page.section("The run")
    facts: dict[str, str] = {"workdir": str(record.path)}
    if record.written_at is not None:
        moment = datetime.datetime.fromtimestamp(record.written_at, datetime.UTC)
        facts["last row of metrics"] = f"{moment:%Y-%m-%d %H:%M:%S} UTC"
    if record.session_seconds:
        starts = len(record.session_seconds)
        facts["time"] = (
            f"{duration(sum(record.session_seconds))} in {starts} "
            f"start{'s' if starts > 1 else ''}, each until its last row. This includes "
            "compilation, evaluation and saving, but not reading the data before the start"
        )
    elif record.rows:
        facts["time"] = "not recorded: starts.jsonl or the rows' unix_seconds are missing"
    if material.network:
        facts["checkpoint"] = (
            f"{material.network.checkpoint_step:,} ({material.network.weights})"
        )
    page.table(["what", "value"], list(facts.items()), caption="Facts")
    if record.config:
        fields = sorted(record.config.to_dict().items())
        rows = [(name, repr(value)) for name, value in fields]
        page.table(["field", "value"], rows, caption="Config of the run")
    else:
        origin = list(record.imported_from.items())
        page.table(["what", "value"], origin, caption="Imported from")
    if record.starts:
        page.table(
            ["time", "after step", "made with"],
            [_start_cells(start) for start in record.starts],
            caption="Starts of the run",
        )
    devices = jax.local_devices() if material.network else None
    page.table(
        ["what", "value"],
        list(describe_environment(devices).items()),
        caption="Report made with",
    )


def _start_cells(start: Mapping[str, Any]) -> list[Cell]:
    moment = datetime.datetime.fromtimestamp(start["time"], datetime.UTC)
    programs = (f"{name} {version}" for name, version in start["environment"].items())
    time = f"{moment:%Y-%m-%d %H:%M:%S} UTC"
    return [time, Number(f"{start['step']:,}"), ", ".join(programs)]


def duration(seconds: float) -> str:
    """Formats a duration in hours and minutes, or in minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
