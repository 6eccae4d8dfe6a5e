"""Evaluation of saved networks: one, or the mean of several, over one or many crops."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_flax.config import Config
from googlenet_flax.data import PictureOptions, Split, load_split
from googlenet_flax.data.image_set import Batch
from googlenet_flax.model.googlenet import GoogLeNetOutput
from googlenet_flax.runs.predictor import Predictor, mean_log_probabilities
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.runtime.streams import tell
from googlenet_flax.training.description import ModelDescription
from googlenet_flax.training.evaluation import (
    Sums,
    create_eval_step,
    evaluate_split,
    mean_over_split,
)
from googlenet_flax.training.losses import example_metrics

IMPORT_DEFAULTS = Config(batch_size=32, on_bad_image="skip")  # Imports have no config.


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """Data to evaluate on; `complete` sets the fields that are not set."""

    dataset: str = ""
    data_dir: str = ""
    split: str = ""
    eval_fraction: float | None = None
    batch_size: int = 0
    on_bad_image: str = "skip"
    decode_workers: int = 0

    def complete(self, config: Config | None) -> "EvaluationData":
        """Sets the fields that are not set from the config of a run.

        Args:
          config: Config of the run; None for imported weights.

        Raises:
          UserError: Neither the fields nor the config name a data set.
        """
        if not self.dataset and config is None:
            raise UserError(
                "imported weights name no data set: choose one with --dataset (and "
                "--data_dir)"
            )
        run = config or IMPORT_DEFAULTS
        dataset = self.dataset or run.dataset
        same = dataset == run.dataset
        return EvaluationData(
            dataset=dataset,
            data_dir=self.data_dir or (run.data_dir if same else ""),
            split=self.split or (run.eval_split if same else "test"),
            eval_fraction=(
                run.eval_fraction if self.eval_fraction is None else self.eval_fraction
            ),
            batch_size=self.batch_size or run.batch_size,
            on_bad_image=run.on_bad_image,
            decode_workers=run.decode_workers,
        )

    def load(self, description: ModelDescription, *, may_prepare: bool = True) -> Split:
        """Loads the split; all fields must be set.

        Args:
          description: Description of the network.
          may_prepare: Prepare a data set that is not prepared, as `data.load_split` does.

        Raises:
          UserError: The data do not exist, or their classes are not those of the network.
        """
        split = load_split(
            self.dataset,
            self.split,
            data_dir=self.data_dir,
            may_prepare=may_prepare,
            pictures=PictureOptions(
                storage_size=description.preprocess.storage_size,
                eval_fraction=self.eval_fraction or 0.0,
                on_bad_image=self.on_bad_image,
                decode_workers=self.decode_workers,
                class_names=description.class_names,
            ),
        )
        known = len(description.class_names)
        if len(split.class_names) != known:
            raise UserError(
                f"{self.dataset} has {len(split.class_names)} classes and the network "
                f"{known}: choose the data set it was trained on"
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
    """Evaluates a run, or the mean of several, with the preprocessing saved in each.

    Args:
      workdirs: Workdirs of the runs; the first one sets what `data` leaves unset.
      checkpoint: `"best"`, `"latest"` or a step.
      data: The data to evaluate on.
      num_crops: Number of crops of each picture, as for `evaluation_crops`.
      raw: Whether to take the latest weights also where the run averaged them.

    Returns:
      The metrics, and `step` of the first checkpoint.

    Raises:
      UserError: A run, checkpoint or data set does not exist, or classes differ.
    """
    devices = jax.local_devices()
    predictors = [
        Predictor.load(workdir, checkpoint, devices, raw=raw) for workdir in workdirs
    ]
    first, config = predictors[0], workdirs[0].load_config()
    for workdir, predictor in zip(workdirs, predictors, strict=True):
        if predictor.description.class_names != first.description.class_names:
            raise UserError(
                f"{workdirs[0].path} and {workdir.path} have different classes: an "
                "ensemble needs the same ones in the same order"
            )
    data = data.complete(config)
    split = data.load(first.description)
    aux_weight = config.aux_weight if config else 0.0
    if len(predictors) == num_crops == 1:
        metrics = evaluate_split(
            create_eval_step(first.description, aux_weight=aux_weight, devices=devices),
            first.variables,
            split,
            batch_size=data.batch_size,
            num_devices=len(devices),
        )
    else:
        metrics = evaluate_averaged(
            predictors, num_crops, split, aux_weight=aux_weight, batch_size=data.batch_size
        )
    for path, reason in split.unreadable.items():
        tell(f"skipped {path}: {reason}")
    return {"step": first.checkpoint_step, **metrics}


def evaluate_averaged(
    predictors: Sequence[Predictor],
    num_crops: int,
    split: Split,
    *,
    aux_weight: float,
    batch_size: int,
) -> dict[str, float]:
    """Computes the same means for softmax averaged over networks and crops (section 7)."""

    def sum_batch(batch: Batch) -> Sums:
        # Logarithms of probabilities are logits with that very softmax.
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
