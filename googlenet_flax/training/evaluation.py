"""Exact metrics over a split, in which every readable example counts once."""

import collections
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from googlenet_flax.data import Split
from googlenet_flax.data.image_set import Batch
from googlenet_flax.model.googlenet import HEADS
from googlenet_flax.runtime import distributed
from googlenet_flax.training.description import ModelDescription
from googlenet_flax.training.losses import example_metrics
from googlenet_flax.training.sharding import fit_batch_size, split_over_devices
from googlenet_flax.training.state import Metrics, Variables

Sums = dict[str, np.ndarray]  # The metrics of a batch, in one or several parts each.
Watch = Callable[[Iterator[Batch]], Iterator[Batch]]
EvalStep = Callable[[Variables, Batch], Sums]


def create_eval_step(
    description: ModelDescription, *, aux_weight: float, devices: list[jax.Device]
) -> EvalStep:
    """Creates a function that sums the `example_metrics` of a batch on several devices.

    Args:
      description: The network and its preprocessing.
      aux_weight: Weight of each auxiliary loss.
      devices: Devices of this process, which split each batch equally.

    Returns:
      A function of replicated variables, `{"params", "batch_stats"}`, and a batch on the
      host with `mask`, bool `[B]`. It returns, on the host, the sums over the examples
      whose mask is true, each `[D]`.
    """
    model, preprocess = description.create_model(devices), description.preprocess

    def step(variables: Variables, batch: Mapping[str, jax.Array]) -> Metrics:
        images = preprocess(batch["image"], batch.get("extent"))
        output: Any = model.apply(variables, images, train=False)
        per_example = example_metrics(output, batch["label"], aux_weight=aux_weight)
        return {n: jnp.sum(v, where=batch["mask"]) for n, v in per_example.items()}

    parallel_step = jax.pmap(step, in_axes=(None, 0), devices=devices)

    def sum_batch(variables: Variables, batch: Batch) -> Sums:
        shards = split_over_devices(batch, len(devices))
        return jax.device_get(parallel_step(variables, shards))

    return sum_batch


def evaluate_split(
    sum_batch: Callable[[Batch], Sums],
    split: Split,
    *,
    batch_size: int,
    num_devices: int,
    watch: Watch = iter,
) -> dict[str, float]:
    """Computes the mean of each of the `example_metrics` over a split.

    Args:
      sum_batch: Function that sums the metrics of a batch where its `mask` is true.
      split: The examples.
      batch_size: Examples per step in all processes together, which `fit_batch_size`
        adapts. Each process reads and evaluates its share.
      num_devices: Number of devices in this process.
      watch: Wrapper around the iterator of batches, which may raise an error to end the
        evaluation.

    Returns:
      The means by name, over all processes.
    """
    all_devices = num_devices * distributed.num_processes()
    batch_size = fit_batch_size(batch_size, len(split), all_devices)
    rows = distributed.process_rows(batch_size)
    sums: collections.Counter[str] = collections.Counter()
    for batch in watch(padded_batches(split, np.arange(len(split)), batch_size, rows)):
        parts = {**sum_batch(batch), "examples": batch["mask"]}
        sums.update({n: np.sum(v, dtype=np.float64).item() for n, v in parts.items()})
    shares = distributed.exchange(sums)
    totals = {name: sum(share[name] for share in shares) for name in sums}
    count = totals.pop("examples")
    return {name: total / count for name, total in totals.items()}


def padded_batches(
    split: Split,
    examples: np.ndarray,
    batch_size: int,
    rows: slice = slice(None),
    task: str = "evaluating",
) -> Iterator[Batch]:
    """Yields batches of equal size, with a `mask` of the examples to count, bool `[B]`.

    The mask is false for padding and for pictures that cannot be read. `examples`, int
    `[N]`, are numbers in the split, at least one. Only the given `rows` of each batch
    are read and yielded. `task` is shown beside the progress bar.
    """
    starts = range(0, len(examples), batch_size)
    positions = [np.arange(start, start + batch_size)[rows] for start in starts]
    masks = [at < len(examples) for at in positions]
    indices = [examples[np.where(at < len(examples), at, 0)] for at in positions]
    batches = zip(split.batches(indices), masks, strict=True)
    hidden = None if distributed.is_first() else True  # None shows it on a terminal only.
    bar = tqdm.tqdm(batches, task, len(starts), leave=False, disable=hidden)
    for batch, mask in bar:
        readable = batch.pop("readable", True)
        yield {**batch, "mask": mask & readable}


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Formats loss and accuracies in one line, followed by those of averaged weights."""
    prefix = "averaged_"
    averaged = {
        name.removeprefix(prefix): value
        for name, value in metrics.items()
        if name.startswith(prefix)
    }
    more = f"; averaged weights: {format_metrics(averaged)}" if averaged else ""
    heads = ", ".join(
        f"{head} {metrics[f'{head}_accuracy']:.2%}"
        for head in HEADS
        if f"{head}_accuracy" in metrics
    )
    return (
        f"loss {metrics['loss']:.4f}, accuracy {metrics['accuracy']:.2%}, "
        f"top-5 {metrics['top5']:.2%} ({heads}){more}"
    )
