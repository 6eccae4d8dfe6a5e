"""Evaluation of a saved network, or the mean of several, over one or more crops."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_flax.data import PictureOptions, Split, load_split
from googlenet_flax.data.image_set import Batch
from googlenet_flax.model.googlenet import GoogLeNetOutput
from googlenet_flax.runs.predictor import Predictor, mean_log_probabilities
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.training.description import ModelDescription
from googlenet_flax.training.evaluation import (
    Sums,
    create_eval_step,
    evaluate_split,
    mean_over_split,
)
from googlenet_flax.training.losses import example_metrics

DEFAULT_BATCH_SIZE = 32  # Used for imported weights, whose config has no batch size.


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """Data to evaluate on; the config of the run gives the fields that are not set."""

    dataset: str = ""
    data_dir: str = ""
    split: str = ""
    eval_fraction: float | None = None
    batch_size: int = 0

    def load(
        self,
        config: Mapping[str, Any],
        description: ModelDescription,
        *,
        may_prepare: bool = True,
    ) -> Split:
        """Loads the split to evaluate on.

        Args:
          config: The config of the run.
          description: Description of its network.
          may_prepare: If false, missing data are an error (see `data.load_split`).

        Raises:
          UserError: The data are missing, or their number of classes differs from the
            network's.
        """
        dataset = self.dataset or config.get("dataset")
        if not dataset:
            raise UserError(
                "imported weights name no data set: choose one with --dataset (and "
                "--data_dir)"
            )
        same = dataset == config.get("dataset")
        split = load_split(
            dataset,
            self.split or (config["eval_split"] if same else "test"),
            data_dir=self.data_dir or (config.get("data_dir", "") if same else ""),
            may_prepare=may_prepare,
            pictures=PictureOptions(
                storage_size=description.preprocess.storage_size,
                eval_fraction=(
                    config.get("eval_fraction", 0.0)
                    if self.eval_fraction is None
                    else self.eval_fraction
                ),
                on_bad_image=config.get("on_bad_image", "skip"),
                decode_workers=config.get("decode_workers", 0),
                class_names=description.class_names,
            ),
        )
        known = len(description.class_names)
        if len(split.class_names) != known:
            raise UserError(
                f"{dataset} has {len(split.class_names)} classes and the network {known}: "
                "choose the data set it was trained on"
            )
        return split


def evaluate_checkpoints(
    workdirs: Sequence[Workdir],
    *,
    checkpoint: str,
    data: EvaluationData,
    num_crops: int = 1,
    raw: bool = False,
) -> dict[str, float]:
    """Evaluates a run, or the mean of several, each with its own preprocessing.

    Args:
      workdirs: Directories of the runs. The first one gives the data and the batch size
        that `data` does not set.
      checkpoint: `"best"`, `"latest"` or a step.
      data: The data to evaluate on.
      num_crops: Number of crops of each picture (see `evaluation_crops`).
      raw: Use the latest weights even if the run averaged them.

    Returns:
      The metrics, and `step` of the first checkpoint.

    Raises:
      UserError: A run, checkpoint or data are missing, or the classes differ.
    """
    devices = jax.local_devices()
    predictors = [
        Predictor.load(workdir, checkpoint, devices, raw=raw) for workdir in workdirs
    ]
    _check_same_classes(workdirs, predictors)
    first, config = predictors[0], workdirs[0].read_config()
    split = data.load(config, first.description)
    aux_weight = config.get("aux_weight", 0.0)  # Imported weights were not trained here.
    batch_size = data.batch_size or config.get("batch_size", DEFAULT_BATCH_SIZE)
    if len(predictors) == num_crops == 1:
        metrics = evaluate_split(
            create_eval_step(first.description, aux_weight=aux_weight, devices=devices),
            first.variables,
            split,
            batch_size=batch_size,
            num_devices=len(devices),
        )
    else:
        metrics = evaluate_averaged(
            predictors,
            num_crops,
            split,
            aux_weight=aux_weight,
            batch_size=batch_size,
        )
    for path, reason in split.unreadable.items():
        print(f"googlenet_flax: skipped {path}: {reason}", file=sys.stderr)
    return {"step": first.checkpoint_step, **metrics}


def _check_same_classes(
    workdirs: Sequence[Workdir], predictors: Sequence[Predictor]
) -> None:
    """Checks that all networks of an ensemble have the same classes in the same order."""
    for workdir, predictor in zip(workdirs, predictors, strict=True):
        if predictor.description.class_names != predictors[0].description.class_names:
            raise UserError(
                f"{workdirs[0].path} and {workdir.path} have different classes: an "
                "ensemble needs the same ones in the same order"
            )


def evaluate_averaged(
    predictors: Sequence[Predictor],
    num_crops: int,
    split: Split,
    *,
    aux_weight: float,
    batch_size: int,
) -> dict[str, float]:
    """Computes the metrics of softmax averaged over networks and crops (section 7)."""

    def sum_batch(batch: Batch) -> Sums:
        # Log probabilities are logits whose softmax is the probabilities.
        logits = jax.tree.map(
            jnp.asarray, mean_log_probabilities(predictors, batch, num_crops)
        )
        output = GoogLeNetOutput(logits["main"], logits.get("aux_4a"), logits.get("aux_4d"))
        labels = jnp.asarray(batch["label"])
        metrics = example_metrics(output, labels, aux_weight=aux_weight)
        mask = batch["mask"]
        return {name: np.asarray(v)[mask] for name, v in metrics.items()}, mask

    num_devices = len(predictors[0].devices)
    return mean_over_split(sum_batch, split, batch_size=batch_size, num_devices=num_devices)
