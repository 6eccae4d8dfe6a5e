"""What a network says of every example of a split, and how good that is."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from googlenet_flax.data import Split
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.training.evaluation import padded_batches

CALIBRATION_BINS = 15  # Guo et al. 2017, "On Calibration of Modern Neural Networks".


@dataclasses.dataclass(frozen=True)
class Answers:
    """Of one classifier, each `[N]`."""

    predicted: np.ndarray  # int64, the likeliest class
    confidence: np.ndarray  # float64, its probability
    label_log_probability: np.ndarray  # float64
    label_rank: np.ndarray  # int64, other classes at least as likely as the label

    def right(self, labels: np.ndarray) -> np.ndarray:
        """Where the likeliest class is the label, bool `[N]`."""
        return self.predicted == labels


@dataclasses.dataclass(frozen=True)
class SplitAnswers:
    """Of every classifier, for the examples that could be read."""

    examples: np.ndarray  # int64 [N], their numbers in the split
    labels: np.ndarray  # int64 [N]
    classifiers: Mapping[str, Answers]  # `main` first.


def collect_answers(
    predictor: Predictor, split: Split, *, batch_size: int, max_examples: int
) -> SplitAnswers:
    """Runs the network over a split.

    Args:
      predictor: The network.
      split: As it was evaluated on.
      batch_size: Examples at a time, a multiple of the devices.
      max_examples: Take this many, spread evenly; 0 takes all.

    Raises:
      UserError: No example can be read.
    """
    count = min(max_examples or len(split), len(split))
    chosen = np.arange(count) * len(split) // count
    examples, labels, parts = [], [], []
    for batch in padded_batches(split, chosen, batch_size):
        mask = batch.pop("mask")
        each = predictor.log_probabilities(batch, num_crops=1)
        examples.append(batch["index"][mask].astype(np.int64))
        labels.append(batch["label"][mask].astype(np.int64))
        parts.append({k: answers_of(each[k][mask], labels[-1]) for k in in_order(each)})
    if not any(map(len, examples)):
        raise UserError("no picture of the split can be read: name another with --data_dir")
    return SplitAnswers(
        np.concatenate(examples),
        np.concatenate(labels),
        {name: _join([part[name] for part in parts]) for name in parts[0]},
    )


def in_order(classifiers: Iterable[str]) -> list[str]:
    """`main`, which matters most, and then the heads."""
    return sorted(classifiers, key=lambda name: (name != "main", name))


def answers_of(log_probabilities: np.ndarray, labels: np.ndarray) -> Answers:
    """Reduces log-probabilities `[N, K]` to what a report needs of them."""
    values = log_probabilities.astype(np.float64)
    own = np.take_along_axis(values, labels[:, np.newaxis], axis=1)
    return Answers(
        predicted=values.argmax(axis=1),
        confidence=np.exp(values.max(axis=1)),
        label_log_probability=own[:, 0],
        label_rank=np.sum(~(values < own), axis=1) - 1,
    )


def _join(parts: list[Answers]) -> Answers:
    fields = [field.name for field in dataclasses.fields(Answers)]
    return Answers(*(np.concatenate([getattr(p, name) for p in parts]) for name in fields))


class PerClass(NamedTuple):
    """Of each class, `[K]`; NaN where nothing can be said."""

    precision: np.ndarray  # Share of what was called so that is so.
    recall: np.ndarray  # Share of what is so that was called so.
    f1: np.ndarray
    support: np.ndarray  # Examples of the class.


def count_confusions(
    labels: np.ndarray, predicted: np.ndarray, num_classes: int
) -> np.ndarray:
    """Examples of each class (rows) that were taken for each (columns), int `[K, K]`."""
    return confusion_matrix(labels, predicted, labels=np.arange(num_classes))


def score_classes(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> PerClass:
    """Precision, recall and F1 of each class."""
    scores = precision_recall_fscore_support(
        labels,
        predicted,
        labels=np.arange(num_classes),
        zero_division=np.nan,  # pyrefly: ignore[bad-argument-type] - typed as a str.
    )
    return PerClass(*map(np.asarray, scores))


def most_confused(confusions: np.ndarray, top: int) -> list[tuple[int, int, int]]:
    """Label, prediction and count of the commonest mistakes, commonest first."""
    wrong = confusions * ~np.eye(len(confusions), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:top]
    rows, columns = np.unravel_index(order, wrong.shape)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(row, col, int(wrong[row, col])) for row, col in pairs if wrong[row, col]]


def confident_mistakes(answers: Answers, labels: np.ndarray, top: int) -> np.ndarray:
    """Rows of the mistakes that the classifier was surest of, int `[<= top]`."""
    order = np.argsort(-answers.confidence, kind="stable")
    return order[~answers.right(labels)[order]][:top]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How often a classifier is right when it says so with some confidence, `[bins]`."""

    count: np.ndarray  # Examples in each bin of confidence, int64.
    confidence: np.ndarray  # Their mean; NaN in an empty bin.
    accuracy: np.ndarray  # The share of them that is right; NaN in an empty bin.

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of the two, over examples."""
        distance = np.abs(np.nan_to_num(self.accuracy - self.confidence))
        return float(np.sum(self.count * distance) / np.sum(self.count))


def calibrate(
    confidence: np.ndarray, right: np.ndarray, bins: int = CALIBRATION_BINS
) -> Calibration:
    """Sorts examples into equally wide bins of confidence, each open below.

    Args:
      confidence: Of the likeliest class, float `[N]`, above 0 up to 1.
      right: Whether it is the label, bool `[N]`.
      bins: Their number.
    """
    # Rounding may leave a sum of probabilities just above 1.
    rows = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(rows, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(rows, confidence, bins) / count
        accuracy = np.bincount(rows, right, bins) / count
    return Calibration(count, mean_confidence, accuracy)
