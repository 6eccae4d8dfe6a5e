"""Evaluation over a whole split, every example once; also a command.

python -m googlenet_flax.evaluate --workdir=DIR [--checkpoint=best|latest|STEP]
"""

import argparse
import collections
import json
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import logging

from googlenet_flax.checkpoint import Checkpoints
from googlenet_flax.data import ImageSet, load_split
from googlenet_flax.data.image_set import Batch
from googlenet_flax.description import ModelDescription
from googlenet_flax.errors import exit_on_run_error
from googlenet_flax.train_step import (
    Metrics,
    eval_step,
    parallel_eval_step,
    split_over_devices,
)
from googlenet_flax.workdir import Workdir

EvalStep = Callable[[dict, Batch], Metrics]


def create_eval_step(
    description: ModelDescription, *, aux_weight: float, devices: list[jax.Device]
) -> EvalStep:
    """The evaluation step of a described network, sharded over `devices`."""
    step = partial(
        eval_step,
        model=description.create_model(),
        preprocess=description.preprocess,
        aux_weight=aux_weight,
    )
    return parallel_eval_step(step, devices)


def evaluate_split(
    parallel_step: EvalStep,
    variables: dict,
    image_set: ImageSet,
    *,
    batch_size: int,
    num_devices: int,
) -> dict[str, float]:
    """Means over the split of everything `example_metrics` names.

    Args:
      parallel_step: Made by `create_eval_step`.
      variables: `{"params", "batch_stats"}`, replicated.
      image_set: The split.
      batch_size: At most this many examples at a time, rounded up to the devices.
      num_devices: Of the step.
    """
    batch_size = -(-batch_size // num_devices) * num_devices
    sums: collections.defaultdict[str, float] = collections.defaultdict(float)
    starts = range(0, len(image_set), batch_size)
    for start in tqdm.tqdm(starts, desc="evaluating", leave=False, disable=None):
        batch = _padded_batch(image_set, start, batch_size)
        device_sums = parallel_step(variables, split_over_devices(batch, num_devices))
        for name, values in jax.device_get(device_sums).items():
            sums[name] += float(np.sum(values, dtype=np.float64))
    count = sums.pop("count")
    if count != len(image_set):
        raise AssertionError(f"evaluated {count} examples of {len(image_set)}")
    return {name: value / count for name, value in sums.items()}


def _padded_batch(image_set: ImageSet, start: int, batch_size: int) -> Batch:
    """The batch at `start`, filled up with example 0; `mask` is true where it is real."""
    positions = np.arange(start, start + batch_size)
    mask = positions < len(image_set)
    return {**image_set.batch(np.where(mask, positions, 0)), "mask": mask}


def format_metrics(metrics: dict[str, float]) -> str:
    """One line for a person: loss, accuracies of the main classifier and of the heads."""
    heads = ", ".join(
        f"{head} {metrics[f'{head}_accuracy']:.2%}"
        for head in ("aux_4a", "aux_4d")
        if f"{head}_accuracy" in metrics
    )
    return (
        f"loss {metrics['loss']:.4f}, accuracy {metrics['accuracy']:.2%}, "
        f"top-5 {metrics['top5']:.2%} ({heads})"
    )


def evaluate_checkpoint(
    workdir: Workdir, *, checkpoint: str, data_dir: str, split: str
) -> dict[str, float]:
    """Evaluates a checkpoint of a run with the preprocessing saved in it.

    Args:
      workdir: Of the run.
      checkpoint: `"best"`, `"latest"` or a step.
      data_dir: Where the data lie; "" is where the run found them.
      split: In TFDS notation; "" is the run's `eval_split`.

    Returns:
      The metrics, and `step`.

    Raises:
      UserError: No such run, checkpoint or data.
    """
    config = workdir.read_config()
    devices = jax.local_devices()
    image_set = load_split(
        config["dataset"],
        split or config["eval_split"],
        data_dir=data_dir or config["data_dir"],
    )
    with Checkpoints(workdir.checkpoints) as checkpoints:
        step = checkpoints.resolve(checkpoint)
        description = checkpoints.describe(step)
        size = description.preprocess.image_size
        variables_like = jax.eval_shape(
            partial(description.create_model().init, train=False),
            jax.random.key(0),
            jnp.zeros((1, size, size, 3)),
        )
        variables = checkpoints.restore_variables(step, variables_like, devices)
    metrics = evaluate_split(
        create_eval_step(description, aux_weight=config["aux_weight"], devices=devices),
        variables,
        image_set,
        batch_size=config["batch_size"],
        num_devices=len(devices),
    )
    return {"step": step, **metrics}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m googlenet_flax.evaluate", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--workdir", required=True, help="directory of the run")
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step")
    parser.add_argument("--data_dir", default="", help="TFDS folder; default: the run's")
    parser.add_argument("--split", default="", help="TFDS split; default: eval_split")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    logging.set_verbosity(logging.ERROR)  # The rest is libraries talking.
    with exit_on_run_error():
        metrics = evaluate_checkpoint(
            Workdir(args.workdir),
            checkpoint=args.checkpoint,
            data_dir=args.data_dir,
            split=args.split,
        )
        if args.json:
            print(json.dumps(metrics))
        else:
            print(f"checkpoint {metrics['step']}: {format_metrics(metrics)}")


if __name__ == "__main__":
    main()
