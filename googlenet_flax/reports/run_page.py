"""Page of one run."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from sklearn.metrics import confusion_matrix

from googlenet_flax.config import Config
from googlenet_flax.reports import answer_figures, curves, look_inside
from googlenet_flax.reports.answers import (
    Answers,
    most_confused,
    reliability_bins,
    score_classes,
)
from googlenet_flax.reports.page import Page, number, percent
from googlenet_flax.reports.record import RunRecord
from googlenet_flax.reports.style import name_label, pictures_figure
from googlenet_flax.runs.checkpoint import best_name
from googlenet_flax.runs.metrics import UNIX_SECONDS
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runtime.environment import describe_environment
from googlenet_flax.training.losses import TOP_K

MOST_CONFUSED = 15  # Number of confused pairs to list.
NAMED_CLASSES = 3  # Classes listed for a picture and each classifier.
MISTAKE_COLUMNS, FILTER_COLUMNS = 4, 8
MAX_OPEN_ROWS = 30  # A longer table is folded.
# Metrics of an evaluation: title of the column and format.
EVALUATION_COLUMNS = {
    "step": ("step", ","),
    "epoch": ("epoch", ","),
    "loss": ("total loss", ".4f"),
    "accuracy": ("accuracy", ".2%"),
    "top5": ("top-5", ".2%"),
    "aux_4a_accuracy": ("aux_4a", ".2%"),
    "aux_4d_accuracy": ("aux_4d", ".2%"),
    "averaged_loss": ("averaged: loss", ".4f"),
    "averaged_accuracy": ("averaged: accuracy", ".2%"),
    "eval_seconds": ("seconds", ".1f"),
}


@dataclasses.dataclass(frozen=True)
class Tested:
    """Predictions for a split, and the pictures of the most confident mistakes."""

    split: str  # Data set and split, in words.
    split_size: int  # Number of examples in the split.
    examples: np.ndarray  # Numbers of the readable examples in the split, int64 [N].
    labels: np.ndarray  # int64 [N]
    answers: Mapping[str, Answers]  # By the names of the classifiers.
    mistakes: np.ndarray  # Rows of the most confident mistakes, int [n].
    names: Sequence[str]  # Names of the pictures of the mistakes.
    pictures: np.ndarray  # Pictures of the mistakes, uint8 [n, H, W, 3].


@dataclasses.dataclass(frozen=True)
class Material:
    """Contents of the page of a run; a part that is None has a reason in `missing`."""

    record: RunRecord
    missing: Sequence[str] = ()
    predictor: Predictor | None = None
    tested: Tested | None = None
    view: look_inside.View | None = None

    @property
    def checkpoint(self) -> str:
        """The step of the checkpoint and the kind of its weights, in words."""
        config = self.record.config
        weights = "weights as imported"
        if config is not None:
            averaged = f"averaged weights, {config.averaging}"
            weights = "weights as trained" if config.averaging == "none" else averaged
        return f"{self.predictor.checkpoint_step:,} ({weights})" if self.predictor else ""


def create_run_page(material: Material) -> Page:
    """Creates the page of a run from the parts that are there."""
    record, predictor = material.record, material.predictor
    page = Page(f"Run {record.name}")
    page.text(_headline(record))
    for reason in material.missing:
        page.missing(reason)
    for note in predictor.description.notes if predictor else ():
        page.text(f"The network has {note}.")
    if record.rows and record.config:
        _add_training(page, record, record.config)
    if predictor and material.tested:
        names = predictor.description.class_names
        _add_answers(page, material.checkpoint, material.tested, names)
    if predictor:
        _add_inside(page, predictor, material.view)
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
        words = name.replace("averaged_", "averaged weights' ")
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
    smooth = "Lines show each logged step."
    if window > 1:
        smooth = (
            f"Light lines show each logged step, dark ones the running mean over {window}."
        )
    last = record.evaluations[-1] if record.evaluations else {}
    for name, metric, label, form, caption in (
        ("loss", "main_loss", "cross-entropy (nats)", ".4f", "Cross-entropy"),
        ("accuracy", "accuracy", "accuracy (%)", ".2%", "Accuracy"),
    ):
        value = number(last.get(metric), form)
        words = f"the last evaluation gave {value}" if value else "no evaluation yet"
        page.figure(
            name,
            curves.classifier_figure(record, name, label),
            caption=f"{caption} of the main classifier (above) and of the two auxiliary "
            f"heads (below). {smooth} Points are evaluations of the whole "
            f"{config.eval_split} split.",
            alt=f"Curves of training and evaluation {name} over training time for the main "
            f"classifier and both heads; {words}.",
        )
    _add_evaluations(page, record)
    page.figure(
        "learning_rate",
        curves.rate_figure(record, "learning_rate", "learning rate", drawstyle="steps-pre"),
        caption="Learning rate of each logged step.",
        alt="The learning rate over training time.",
    )
    name, label = "images_per_second", "training (images/s)"
    _, rates = record.series("train", name)
    if len(rates):
        page.figure(
            "throughput",
            curves.rate_figure(record, name, label, has_median=True, linewidth=0.8),
            caption="Training images per second between logged steps; compilation, "
            "evaluation and saving are left out.",
            alt=f"Images per second over training time; median {np.median(rates):,.1f}.",
        )


def _add_evaluations(page: Page, record: RunRecord) -> None:
    """Adds a table of all evaluations, without columns that no row has."""
    rows = record.evaluations
    names = [name for name in EVALUATION_COLUMNS if any(name in row for row in rows)]
    if rows:
        page.table(
            [EVALUATION_COLUMNS[name][0] for name in names],
            [[number(row.get(n), EVALUATION_COLUMNS[n][1]) for n in names] for row in rows],
            caption="Evaluations",
            folded=len(rows) > MAX_OPEN_ROWS,
        )


def _add_answers(page: Page, checkpoint: str, tested: Tested, names: Sequence[str]) -> None:
    main, labels = tested.answers["main"], tested.labels
    count, size = len(labels), tested.split_size
    page.section("Predictions")
    some = f"all {size:,}" if count == size else f"{count:,} of the {size:,}"
    page.text(f"Checkpoint {checkpoint} on {some} examples of {tested.split}.")
    header = ["classifier", "accuracy", "top-5", "cross-entropy", "mean confidence"]
    page.table(
        [*header, "calibration error"],
        [
            [
                name,
                percent(each.correct.mean()),
                percent((each.label_rank < TOP_K).mean()),
                number(-each.label_log_probability.mean(), ".4f"),
                percent(each.confidence.mean()),
                percent(reliability_bins(each).error),
            ]
            for name, each in tested.answers.items()
        ],
        caption=f"Scores on {count:,} examples",
    )
    _add_confusions(page, labels, main, names)
    _add_classes(page, labels, main, names)
    _add_calibration(page, main)
    _add_mistakes(page, tested, names)


def _add_confusions(
    page: Page, labels: np.ndarray, main: Answers, names: Sequence[str]
) -> None:
    page.heading("Confusions")
    confusions = confusion_matrix(labels, main.predicted, labels=range(len(names)))
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
    if pairs := most_confused(confusions, MOST_CONFUSED):
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
    listed = len(answer_figures.worst_classes(scores))
    some = f" of the {listed} classes with the lowest F1" if listed < len(names) else ""
    if listed == np.count_nonzero(scores.support) < len(names):
        some = f" of the {listed} classes with examples"
    page.heading("Classes")
    page.figure(
        "classes",
        answer_figures.per_class_figure(scores, names),
        caption="Precision (share of correct predictions of a class) and recall (share of "
        f"the examples of a class that are predicted correctly){some}.",
        alt="Precision and recall of each class; the table below has the numbers.",
    )
    page.table(
        ["class", "number", "precision", "recall", "F1", "examples"],
        [
            [name, number(i), percent(p), percent(r), percent(f1), number(support)]
            for i, (name, p, r, f1, support) in enumerate(zip(names, *scores, strict=True))
        ],
        caption=f"Precision, recall and F1 of the {len(names):,} classes",
        folded=len(names) > MAX_OPEN_ROWS,
    )


def _add_calibration(page: Page, main: Answers) -> None:
    calibration = reliability_bins(main)
    page.heading("Calibration")
    page.figure(
        "calibration",
        answer_figures.calibration_figure(calibration),
        caption="Accuracy of the main classifier by its confidence. Where a bar ends below "
        "the dashed line, the classifier is overconfident. The expected calibration error "
        f"is {calibration.error:.2%} ({len(calibration.sizes)} bins). The lower panel "
        "shows the share of examples in each bin.",
        alt="Reliability diagram: accuracy over confidence, and the share of examples in "
        f"each bin; expected calibration error {calibration.error:.2%}.",
    )


def _add_mistakes(page: Page, tested: Tested, names: Sequence[str]) -> None:
    main, rows = tested.answers["main"], tested.mistakes
    page.heading("Most confident mistakes")
    if not len(rows):
        page.text("There are no mistakes.")
        return
    predicted = [names[i] for i in main.predicted[rows]]
    true = [names[i] for i in tested.labels[rows]]
    mistakes = [
        (pixels, f"{name_label(guess)}, {sure:.0%}\ntrue: {name_label(label)}")
        for pixels, guess, label, sure in zip(
            tested.pictures, predicted, true, main.confidence[rows], strict=True
        )
    ]
    wrong = np.sum(~main.correct)
    some = f"{len(rows)} of {wrong:,}" if len(rows) < wrong else f"All {wrong}"
    page.figure(
        "mistakes",
        pictures_figure(mistakes, MISTAKE_COLUMNS, title_height_inches=0.45),
        caption=f"{some} mistakes of the main classifier, the most confident ones first, "
        "at the size of the network's input. Above each picture are the predicted class, "
        "the confidence and the true class. The table below names the pictures in the same "
        "order.",
        alt="; ".join(f"{a} taken for {b}" for a, b in zip(true, predicted, strict=True)),
    )
    sure = map(percent, main.confidence[rows])
    page.table(
        ["true class", "predicted class", "confidence", "picture"],
        list(zip(true, predicted, sure, tested.names, strict=True)),
        caption="Pictures of the most confident mistakes",
    )


def _add_inside(page: Page, predictor: Predictor, view: look_inside.View | None) -> None:
    page.section("Inside the network")
    names = predictor.description.class_names
    kernel = np.asarray(predictor.variables["params"]["conv1"]["conv"]["kernel"])
    height, width, _, count = kernel.shape
    order = predictor.description.preprocess.channel_order
    filters = [(pixels, "") for pixels in look_inside.filter_pictures(kernel, order)]
    page.figure(
        "filters",
        pictures_figure(filters, FILTER_COLUMNS, title_height_inches=0),
        caption=f"The {count} filters of conv1, {height}x{width} pixels each, as colors. "
        "A weight of 0 is gray, and all filters share one scale.",
        alt="The filters of the first convolution as small color pictures.",
    )
    if view is None:
        return
    page.heading(f"One picture: {view.name}")
    rows = []
    for name, scores in view.log_probabilities.items():
        best = np.argsort(-scores, kind="stable")[:NAMED_CLASSES]
        for i in best:
            title = name if i == best[0] else ""
            rows.append([title, names[i], percent(np.exp(scores[i]))])
    header = ["classifier", "class", "probability"]
    page.table(header, rows, caption="Predictions for the picture")
    page.figure(
        "grad_cam",
        look_inside.evidence_figure(view, names),
        caption="Grad-CAM: color marks where the maps of a block raise the score of the "
        "class that the classifier predicts. Each picture has its own scale.",
        alt="The picture, and overlays of the evidence of: "
        + ", ".join(f"{each.classifier} at {each.block}" for each in view.evidence),
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
    record, seconds = material.record, material.record.session_seconds
    page.section("The run")
    facts = {"workdir": str(record.path)}
    if record.rows and UNIX_SECONDS in record.rows[-1]:
        facts["last row of metrics"] = _utc(record.rows[-1][UNIX_SECONDS])
    if seconds:
        facts["time"] = (
            f"{duration(sum(seconds))} in {len(seconds)} "
            f"start{'s' if len(seconds) > 1 else ''}, each until its last row. This "
            "includes compilation, evaluation and saving, but not reading the data before "
            "the start"
        )
    elif record.rows:
        facts["time"] = "not recorded: starts.jsonl or the rows' unix_seconds are missing"
    if material.predictor:
        facts["checkpoint"] = material.checkpoint
    header = ["what", "value"]
    page.table(header, facts.items(), caption="Facts")
    if record.config:
        fields = sorted(record.config.to_dict().items())
        rows = [(name, repr(value)) for name, value in fields]
        page.table(["field", "value"], rows, caption="Config of the run")
    else:
        page.table(header, record.imported_from.items(), caption="Imported from")
    if record.starts:
        starts = [
            (
                _utc(start["time"]),
                number(start["step"]),
                ", ".join(f"{what} {it}" for what, it in start["environment"].items()),
            )
            for start in record.starts
        ]
        columns = ["time", "after step", "made with"]
        page.table(columns, starts, caption="Starts of the run")
    environment = describe_environment(jax.local_devices() if material.predictor else None)
    page.table(header, environment.items(), caption="Report made with")


def _utc(unix_seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(unix_seconds, datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def duration(seconds: float) -> str:
    """Formats a duration in hours and minutes, or in minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
