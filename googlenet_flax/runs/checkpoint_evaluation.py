"""Evaluation of saved networks: one, or the mean of several, over one or many crops."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_flax.config import Config
from googlenet_flax.data import Split
from googlenet_flax.data.image_set import Batch
from googlenet_flax.model.googlenet import GoogLeNetOutput
from googlenet_flax.runs.predictor import Predictor, devices_for
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.environment import on_the_cpu
from googlenet_flax.runtime.errors import UnexpectedResultError, UserError
from googlenet_flax.runtime.streams import tell
from googlenet_flax.training.description import ModelDescription
from googlenet_flax.training.evaluation import Sums, create_eval_step, evaluate_split
from googlenet_flax.training.experiment import load_config_split
from googlenet_flax.training.losses import example_metrics

# Accepts differences equal to the tolerance: in floating point, 0.701 - 0.698 > 0.003.
ROUNDING = 1e-9
IMPORT_DEFAULTS = Config(batch_size=32, on_bad_image="skip")  # Imports have no config.


def evaluation_config(
    run: Config | None, *, dataset: str | None = None, **fields: Any
) -> Config:
    """Returns the config with which a run is evaluated, on its own or on other data.

    Args:
      run: Config of the run; None for imported weights. By default, a batch holds as many
        examples as one accumulation step of the run.
      dataset: Name of another data set. It is read from the default folder of TFDS, and its
        split `test` is evaluated, unless `fields` say otherwise.
      **fields: Fields of the config to replace; None or "" keeps the value of the run.

    Raises:
      UserError: No data set is named, or a field is out of its range.
    """
    if not dataset and run is None:
        raise UserError(
            "imported weights name no data set: choose one with --dataset (and --data_dir)"
        )
    config = run or IMPORT_DEFAULTS
    part_size = config.batch_size // config.accumulation_steps
    config = dataclasses.replace(config, batch_size=part_size, accumulation_steps=1)
    given: dict[str, Any] = {
        name: value for name, value in fields.items() if value not in (None, "")
    }
    if dataset and dataset != config.dataset:
        given = {"dataset": dataset, "data_dir": "", "eval_split": "test", **given}
    return dataclasses.replace(config, **given)


def load_eval_split(
    config: Config, description: ModelDescription, *, may_prepare: bool = True
) -> Split:
    """Loads the `eval_split` of a config for a network that may be of another run.

    Raises:
      UserError: The data do not exist or cannot be read, the number of their classes is
        not that of the network, or a folder has a class that the network lacks.
    """
    split = load_config_split(
        config, config.eval_split, may_prepare=may_prepare, network=description
    )
    known = len(description.class_names)
    if len(split.class_names) != known:
        raise UserError(
            f"{config.dataset} has {len(split.class_names)} classes and the network "
            f"{known}: choose the data set it was trained on"
        )
    pairs = zip(split.class_names, description.class_names, strict=True)
    others = [(n, *pair) for n, pair in enumerate(pairs) if pair[0] != pair[1]]
    if others:
        number, theirs, ours = others[0]
        tell(
            f"classes are compared by number, and {len(others)} of {known} have other "
            f"names: class {number} is {theirs!r} in {config.dataset} and {ours!r} in the "
            "network"
        )
    return split


def evaluate_checkpoints(
    workdirs: Sequence[Workdir],
    *,
    checkpoint: str,
    num_crops: int = 1,
    raw: bool = False,
    **data: Any,
) -> dict[str, Any]:
    """Evaluates a run, or the mean of several, with the preprocessing saved in each.

    Args:
      workdirs: Workdirs of the runs; the first one sets what `data` leaves out.
      checkpoint: `"best"`, `"latest"` or a step.
      num_crops: Number of crops of each picture, as for `evaluation_crops`.
      raw: Whether to take the latest weights also where the run averaged them.
      **data: The data to evaluate on, as for `evaluation_config`.

    Returns:
      The metrics, `step` of the first checkpoint, and the `dataset`, the `eval_split`
      and the number of `examples` that were evaluated.

    Raises:
      UserError: A run, checkpoint or data set does not exist, or the networks differ in
        their classes or in how pictures are decoded for them.
    """
    devices = devices_for(*workdirs)
    predictors = [
        Predictor.load(workdir, checkpoint, devices, raw=raw) for workdir in workdirs
    ]
    first, run = predictors[0], workdirs[0].load_config()
    for other in predictors:
        if other.description.class_names != first.description.class_names:
            raise UserError(
                f"{first.workdir.path} and {other.workdir.path} have different classes: an "
                "ensemble needs the same ones in the same order"
            )
    config = evaluation_config(run, **data)
    split = load_eval_split(config, first.description)
    _check_same_pictures(split, predictors)
    aux_weight = config.aux_weight if run else 0.0
    if len(predictors) == num_crops == 1:
        step = create_eval_step(first.description, aux_weight=aux_weight, devices=devices)
        sum_batch = partial(step, first.variables)
    else:
        sum_batch = partial(averaged_metrics, predictors, num_crops, aux_weight)
    metrics = evaluate_split(
        sum_batch, split, batch_size=config.batch_size, num_devices=len(devices)
    )
    for path, reason in split.unreadable.items():
        tell(f"skipped {path}: {reason}")
    for predictor in predictors:
        for note in predictor.description.notes:
            tell(f"{predictor.workdir.path}: {note}")
    return {
        "step": first.checkpoint_step,
        "dataset": config.dataset,
        "eval_split": config.eval_split,
        "examples": len(split) - len(split.unreadable),
        **metrics,
    }


def _check_same_pictures(split: Split, predictors: Sequence[Predictor]) -> None:
    """Raises a `UserError` if networks take pictures that are decoded in different ways."""
    from googlenet_flax.data.picture_set import PictureSet  # noqa: PLC0415 - slow

    if not isinstance(split, PictureSet):
        return
    first = predictors[0]
    for name in ("storage_size", "input_channels"):
        for other in predictors:
            ours, theirs = (getattr(x.description.preprocess, name) for x in (first, other))
            if ours != theirs:
                raise UserError(
                    f"{name} is {ours} in {first.workdir.path} and {theirs} in "
                    f"{other.workdir.path}: evaluate each alone"
                )


def check_accuracy(accuracy: float, expected: float, tolerance: float) -> None:
    """Compares an accuracy with a known one; all are fractions.

    Raises:
      UnexpectedResultError: They differ by more than the tolerance.
    """
    if abs(accuracy - expected) > tolerance + ROUNDING:
        raise UnexpectedResultError(
            f"the accuracy is {accuracy:.6g}, but --expect={expected:g} and "
            f"--tolerance={tolerance:g} allow {expected - tolerance:.6g} to "
            f"{expected + tolerance:.6g}"
        )


def averaged_metrics(
    predictors: Sequence[Predictor], num_crops: int, aux_weight: float, batch: Batch
) -> Sums:
    """Computes the metrics of the softmax averaged over networks and crops (section 7).

    Returns:
      The metrics of the n readable examples, each float32 `[n]`, for `evaluate_split`.
    """
    each = [predictor.log_probabilities(batch, num_crops) for predictor in predictors]
    with on_the_cpu():  # Some forty small programs.
        # Logarithms of sums of probabilities are logits whose softmax is the mean.
        logits = jax.tree.map(lambda *x: jax.nn.logsumexp(jnp.stack(x), axis=0), *each)
        output = GoogLeNetOutput(logits.pop("main"), **logits)
        labels, mask = jnp.asarray(batch["label"]), batch["mask"]
        metrics = example_metrics(output, labels, aux_weight=aux_weight)
        return {name: np.asarray(values)[mask] for name, values in metrics.items()}
