"""The page of one run."""

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

MOST_CONFUSED = 15  # Pairs to list.
NAMED_CLASSES = 3  # For a picture, by each classifier.
MAX_OPEN_ROWS = 30  # A longer table is folded.


@dataclasses.dataclass(frozen=True)
class Network:
    """What a checkpoint holds, for a report."""

    checkpoint_step: int
    description: ModelDescription
    weights: str  # Which ones, in words.
    conv1: np.ndarray  # Kernel [h, w, 3, N].


@dataclasses.dataclass(frozen=True)
class Tested:
    """Answers for a split, and the pictures of the most confident mistakes."""

    answers: SplitAnswers
    split: str  # Which one, in words.
    split_size: int  # Examples in it.
    mistakes: np.ndarray  # Rows of `answers`, int [n].
    pictures: np.ndarray  # uint8 [n, H, W, 3]


@dataclasses.dataclass(frozen=True)
class Inside:
    """A view of one picture."""

    view: look_inside.View
    name: str  # Of the picture, in words.


@dataclasses.dataclass(frozen=True)
class Material:
    """All that the page of a run is made of; None with a reason in `missing`."""

    record: RunRecord
    network: Network | None = None
    tested: Tested | None = None
    inside: Inside | None = None
    missing: Sequence[str] = ()


def create_run_page(material: Material) -> Page:
    """The page of a run, of what there is."""
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
    """What the run is, and how far it came, in a few sentences."""
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
        f"Light: each logged step; full: their running mean over {window}."
        if window > 1
        else "Each logged step."
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
        caption="The same for the share of right answers.",
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
    """The last evaluation in words, for who cannot see the curve."""
    evaluations = record.evaluations
    if not evaluations or name not in evaluations[-1]:
        return "there is no evaluation yet."
    return f"the last evaluation gave {format(evaluations[-1][name], form)}."


def _add_evaluations(page: Page, record: RunRecord) -> None:
    """A table of all evaluations; columns that no row has are left out."""
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
    page.section("Answers")
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
    """A row of numbers for each classifier."""
    rows = []
    for name, one in answers.classifiers.items():
        right = one.right(answers.labels)
        rows.append(
            [
                name,
                percent(float(right.mean())),
                percent(float(np.mean(one.label_rank < TOP_K))),
                number(-one.label_log_probability.mean(), ".4f"),
                percent(float(one.confidence.mean())),
                percent(calibrate(one.confidence, right).error),
            ]
        )
    header = ["classifier", "accuracy", "top-5", "cross-entropy", "mean confidence"]
    page.table(
        [*header, "calibration error"],
        rows,
        caption=f"Of {len(answers.labels):,} examples",
    )


def _add_confusions(page: Page, confusions: np.ndarray, names: Sequence[str]) -> None:
    page.heading("Confusions")
    pairs = most_confused(confusions, MOST_CONFUSED)
    if len(names) <= answer_figures.MAX_MATRIX_CLASSES:
        numbers = " Numbers are examples." if answer_figures.count_size(confusions) else ""
        page.figure(
            "confusion",
            answer_figures.confusion_figure(confusions, names),
            caption="Examples of each true class (rows) by what the main classifier said "
            f"(columns); colour is the share of the row.{numbers}",
            alt=f"Confusion matrix of {len(names)} classes; on the diagonal are "
            f"{np.trace(confusions):,} of {confusions.sum():,} examples.",
        )
    if pairs:
        page.table(
            ["true class", "predicted class", "times", "of the true class"],
            [
                [names[i], names[j], number(count), percent(count / confusions[i].sum())]
                for i, j, count in pairs
            ],
            caption="The commonest mistakes",
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
        caption="Precision (of what was called so, the share that is) and recall (of what "
        "is so, the share that was called so)"
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
    calibration = calibrate(main.confidence, main.right(labels))
    page.heading("Calibration")
    page.figure(
        "calibration",
        answer_figures.calibration_figure(calibration),
        caption="How often the main classifier is right when it is so sure. Bars below the "
        "dashed line: surer than it should be. Expected calibration error "
        f"{calibration.error:.2%} ({len(calibration.count)} bins). Below: how many "
        "examples are in each bin.",
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
    said = [names[i] for i in main.predicted[rows]]
    truth = [names[i] for i in answers.labels[rows]]
    wrong = int(np.sum(~main.right(answers.labels)))
    some = f"{len(rows)} of {wrong:,}" if len(rows) < wrong else f"All {wrong}"
    page.figure(
        "mistakes",
        answer_figures.mistakes_figure(tested.pictures, truth, said, main.confidence[rows]),
        caption=f"{some} mistakes of the main classifier, those that it was surest of "
        "first, as the network is shown them. In the split they are the examples "
        f"{', '.join(map(str, answers.examples[rows]))}.",
        alt="; ".join(f"{a} taken for {b}" for a, b in zip(truth, said, strict=True)),
    )


def _add_inside(page: Page, network: Network, inside: Inside | None) -> None:
    page.section("Inside the network")
    order = network.description.preprocess.channel_order
    page.figure(
        "filters",
        look_inside.filters_figure(network.conv1, order),
        caption=f"The {network.conv1.shape[-1]} filters of conv1, "
        f"{network.conv1.shape[0]}x{network.conv1.shape[1]} pixels each, as colours: a "
        "weight of 0 is grey, and all share one scale.",
        alt="The filters of the first convolution as small colour pictures.",
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
        ["classifier", "class", "probability"], rows, caption="What the network says"
    )
    page.figure(
        "grad_cam",
        look_inside.evidence_figure(view, names),
        caption="Grad-CAM: coloured is where the maps of a block speak for the class that "
        "the classifier predicts, in each picture on a scale of its own.",
        alt="The picture, and overlays of the evidence of: "
        + ", ".join(f"{one.classifier} at {one.block}" for one in view.evidence),
    )
    page.figure(
        "activations",
        look_inside.maps_figure(view),
        caption="What the blocks hand on for this picture: the mean over channels, and the "
        f"{look_inside.STRONGEST_CHANNELS} channels with the largest mean. Each map has a "
        "scale of its own, dark is its smallest value.",
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
            f"start{'s' if starts > 1 else ''}, each until its last row; compilation, "
            "evaluation and saving included, reading the data before it not"
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
            [_start(start) for start in record.starts],
            caption="Starts of the run",
        )
    devices = jax.local_devices() if material.network else None
    page.table(
        ["what", "value"],
        list(describe_environment(devices).items()),
        caption="Report made with",
    )


def _start(start: Mapping[str, Any]) -> list[Cell]:
    moment = datetime.datetime.fromtimestamp(start["time"], datetime.UTC)
    programs = (f"{name} {version}" for name, version in start["environment"].items())
    time = f"{moment:%Y-%m-%d %H:%M:%S} UTC"
    return [time, Number(f"{start['step']:,}"), ", ".join(programs)]


def duration(seconds: float) -> str:
    """A time in words, to the second."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
