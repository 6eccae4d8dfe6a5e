"""Predictions of a network for every example of a split, and their quality."""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

from googlenet_flax.data import Split
from googlenet_flax.model.googlenet import HEADS
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.training.evaluation import padded_batches
from googlenet_flax.training.sharding import fit_batch_size

CLASSIFIERS = ("main", *HEADS)
CALIBRATION_BINS = 15  # Guo et al. 2017, "On Calibration of Modern Neural Networks".


class Answers(NamedTuple):
    """Predictions of one classifier; each field is `[N]`."""

    predicted: np.ndarray  # The likeliest class, int64.
    correct: np.ndarray  # Whether it is the label, bool.
    confidence: np.ndarray  # Probability of the likeliest class, float64.
    label_log_probability: np.ndarray  # Logarithm of the label's probability, float64.
    label_rank: np.ndarray  # Number of other classes as likely as the label or more, int64.


def collect_answers(
    predictor: Predictor, split: Split, *, batch_size: int, max_examples: int
) -> tuple[np.ndarray, np.ndarray, dict[str, Answers]]:
    """Runs the network over a split.

    If `max_examples` is not 0, only that many are used, spread evenly over the split.

    Returns:
      Numbers in the split and labels of the examples that could be read, each int64 `[N]`,
      and the answers of every classifier.

    Raises:
      UserError: No example can be read.
    """
    count = min(max_examples or len(split), len(split))
    chosen = np.arange(count) * len(split) // count
    batch_size = fit_batch_size(batch_size, count, len(predictor.devices))
    examples, labels, parts = [], [], []
    for batch in padded_batches(split, chosen, batch_size):
        mask = batch.pop("mask")
        each = predictor.log_probabilities(batch, num_crops=1)
        examples.append(batch["index"][mask].astype(np.int64))
        labels.append(batch["label"][mask].astype(np.int64))
        parts.append({name: _reduce(each[name][mask], labels[-1]) for name in each})
    if not any(map(len, examples)):
        raise UserError(
            "no picture of the split can be read: name another folder with --data_dir"
        )
    classifiers = {
        name: Answers(*map(np.concatenate, zip(*(p[name] for p in parts), strict=True)))
        for name in CLASSIFIERS
        if name in parts[0]
    }
    return np.concatenate(examples), np.concatenate(labels), classifiers


def _reduce(log_probabilities: np.ndarray, labels: np.ndarray) -> Answers:
    """Reduces log-probabilities `[N, K]` to the values that a report needs."""
    values = log_probabilities.astype(np.float64)
    own = np.take_along_axis(values, labels[:, np.newaxis], axis=1)
    predicted = values.argmax(axis=1)
    return Answers(
        predicted,
        correct=predicted == labels,
        confidence=np.exp(values.max(axis=1)),
        label_log_probability=own[:, 0],
        label_rank=np.sum(~(values < own), axis=1) - 1,
    )


class PerClass(NamedTuple):
    """Scores of each class, `[K]`; NaN where a score is not defined."""

    precision: np.ndarray  # Share of the predictions of the class that are correct.
    recall: np.ndarray  # Share of the examples of the class that are predicted correctly.
    f1: np.ndarray
    support: np.ndarray  # Number of examples of the class.


def score_classes(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> PerClass:
    """Computes precision, recall and F1 of each class."""
    scores = precision_recall_fscore_support(
        labels,
        predicted,
        labels=np.arange(num_classes),
        zero_division=np.nan,  # pyrefly: ignore[bad-argument-type] - scikit-learn says str.
    )
    return PerClass(*map(np.asarray, scores))


def most_confused(confusions: np.ndarray, top: int) -> list[tuple[int, int, int]]:
    """Returns `(label, prediction, count)` of the mistakes, the most frequent first."""
    cells = np.argwhere(confusions).tolist()
    wrong = [(row, col, int(confusions[row, col])) for row, col in cells if row != col]
    return sorted(wrong, key=lambda cell: cell[2], reverse=True)[:top]


def confident_mistakes(answers: Answers, top: int) -> np.ndarray:
    """Returns the rows of the mistakes with the highest confidence, int `[<= top]`."""
    order = np.argsort(-answers.confidence, kind="stable")
    return order[~answers.correct[order]][:top]


class Calibration(NamedTuple):
    """Accuracy of a classifier by its confidence; each field is `[bins]`."""

    sizes: np.ndarray  # Number of examples in each bin of confidence, int64.
    confidence: np.ndarray  # Mean confidence in each bin; NaN in an empty bin.
    accuracy: np.ndarray  # Share of correct predictions; NaN in an empty bin.

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al. 2017, section 2).

        It is the mean of |accuracy - confidence| over bins, weighted by their sizes.
        """
        distances = np.abs(np.nan_to_num(self.accuracy - self.confidence))
        return float(np.average(distances, weights=self.sizes))


def reliability_bins(answers: Answers, bins: int = CALIBRATION_BINS) -> Calibration:
    """Computes accuracy and mean confidence in equally wide bins of confidence.

    A bin holds its upper edge but not its lower one (Guo et al. 2017, section 2).
    """
    rows = np.digitize(answers.confidence, np.arange(1, bins) / bins, right=True)
    sizes = np.bincount(rows, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(rows, answers.confidence, bins) / sizes
        accuracy = np.bincount(rows, answers.correct, bins) / sizes
    return Calibration(sizes, confidence, accuracy)
