"""The training step as a pure function, independent of the devices."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from googlenet_flax.config import MAX_NUMBER
from googlenet_flax.model.googlenet import GoogLeNet
from googlenet_flax.preprocessing.augment import Augment, alternating_flips
from googlenet_flax.preprocessing.preprocess import Preprocess
from googlenet_flax.training.losses import Objective, example_metrics
from googlenet_flax.training.mixup import mix, mixup_lambdas
from googlenet_flax.training.optimizer import Averaging
from googlenet_flax.training.state import (
    Batch,
    BatchStats,
    Metrics,
    Params,
    TrainState,
    variables_of,
)


@dataclasses.dataclass(frozen=True)
class StepRngs:
    """Random keys of one step, derived from the seed and, except for `run`, the step."""

    run: jax.Array  # Key that is the same in every step.
    augment: jax.Array
    dropout: jax.Array
    mixup: jax.Array

    @classmethod
    def of(cls, seed: int | jax.Array, step: jax.Array) -> "StepRngs":
        """Derives the keys of the update that follows `step` updates."""
        root = jax.random.key(seed, impl="threefry2x32")
        run = jax.random.fold_in(root, MAX_NUMBER)  # `step` is always less than this.
        return cls(run, *jax.random.split(jax.random.fold_in(root, step), 3))


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The mapping from stored pixels to the network's input in training."""

    preprocess: Preprocess  # Size and scaling of the network's input.
    augment: Augment  # Random changes, which depend on the step's keys and the index.
    epoch_steps: int  # Steps per epoch, for alternating flips.

    def __call__(self, batch: Batch, rngs: StepRngs, step: jax.Array) -> jax.Array:
        """Returns augmented and preprocessed images, float32 `[B, S, S, C]`."""
        flips = None
        if self.augment.flip == "alternating":
            epoch = step // self.epoch_steps
            flips = alternating_flips(rngs.run, batch["index"], epoch)
        return self.augment(
            batch["image"],
            jax.vmap(partial(jax.random.fold_in, rngs.augment))(batch["index"]),
            preprocess=self.preprocess,
            extents=batch.get("extent"),
            flips=flips,
        )


def train_step(
    state: TrainState,
    batch: Batch,
    seed: int | jax.Array,
    *,
    model: GoogLeNet,
    tx: optax.GradientTransformation,
    inputs: Callable[[Batch, StepRngs, jax.Array], jax.Array],
    objective: Objective,
    averaging: Averaging | None = None,
    accumulation_steps: int = 1,
    unroll_accumulation: bool = False,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Updates the parameters once, from the gradient of one batch.

    Args:
      state: The state before the update.
      batch: A batch of a `data.image_set.Split` (`image` uint8 `[B, h, w, c]`, `label` and
        `index` int32 `[B]`, optionally `extent`); with mixup, the result of
        `with_partners`.
      seed: Seed of augmentation, mixup and dropout, int32 `[]`. The random values of an
        example are a function of seed, step and index of the example.
      model: The network; its `axis_name` must equal the argument `axis_name`.
      tx: The optimizer, from `create_optimizer`.
      inputs: Function from a batch to the network's input, such as `Inputs`.
      objective: The loss.
      averaging: The average of weights and statistics to update; None for none.
      accumulation_steps: Number of parts of the batch that pass through the network in
        turn, each with batch statistics of its own.
      unroll_accumulation: Whether to unroll the loop over the parts. In a loop, XLA:CPU's
        convolutions are 30 times slower.
      axis_name: Mapped axis to average over; None on one device.

    Returns:
      The state after the update, and global means, `[]`, of the `example_metrics`.
    """
    rngs = StepRngs.of(seed, state.step)
    loss = partial(
        _loss, model=model, inputs=inputs, objective=objective, rngs=rngs, step=state.step
    )
    grads, metrics, batch_stats = _accumulate(
        jax.grad(loss, has_aux=True),
        state,
        batch,
        accumulation_steps,
        unroll=unroll_accumulation,
    )
    if axis_name is not None:
        grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    averages = state.averages
    if averaging is not None:
        latest = variables_of(params, batch_stats)
        averages = averaging.update(averages, latest, state.step)
    return TrainState(state.step + 1, params, batch_stats, opt_state, averages), metrics


def _loss(
    params: Params,
    batch_stats: BatchStats,
    batch: Batch,
    *,
    model: GoogLeNet,
    inputs: Callable[[Batch, StepRngs, jax.Array], jax.Array],
    objective: Objective,
    rngs: StepRngs,
    step: jax.Array,
) -> tuple[jax.Array, tuple[Metrics, BatchStats]]:
    """Computes the loss of a batch, `[]`, its mean metrics and the new batch statistics."""
    images, lambdas = inputs(batch, rngs, step), None
    if objective.mixup_alpha:
        lambdas = mixup_lambdas(rngs.mixup, batch["index"], objective.mixup_alpha)
        images = mix(images, inputs(batch["partner"], rngs, step), lambdas)
    output, updates = model.apply(
        variables_of(params, batch_stats),
        images,
        train=True,
        example_ids=batch["index"],
        rngs={"dropout": rngs.dropout},
        mutable=["batch_stats"],
    )
    per_example = example_metrics(
        output,
        batch["label"],
        aux_weight=objective.aux_weight_at(step),
        targets=objective.soft_targets(batch, output.logits.shape[-1], lambdas),
    )
    metrics = {name: jnp.mean(values) for name, values in per_example.items()}
    return metrics["loss"], (metrics, updates.get("batch_stats", {}))


def _accumulate(
    gradient: Callable, state: TrainState, batch: Batch, num_parts: int, *, unroll: bool
) -> tuple[Params, Metrics, BatchStats]:
    """Averages gradients and metrics over the parts of a batch.

    Returns:
      Averaged gradients, averaged metrics, and the batch statistics after the last part.
    """
    if num_parts == 1:
        grads, (metrics, batch_stats) = gradient(state.params, state.batch_stats, batch)
        return grads, metrics, batch_stats

    def add(carry, part):
        batch_stats, total = carry
        grads, (metrics, batch_stats) = gradient(state.params, batch_stats, part)
        return (batch_stats, jax.tree.map(jnp.add, total, grads)), metrics

    # Part k holds every n-th row from row k on, and so the same examples on any number of
    # devices.
    parts = jax.tree.map(
        lambda x: x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1), dict(batch)
    )
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    (batch_stats, total), metrics = jax.lax.scan(
        add, (state.batch_stats, zeros), parts, unroll=num_parts if unroll else 1
    )
    grads = jax.tree.map(lambda x: x / num_parts, total)
    return grads, jax.tree.map(jnp.mean, metrics), batch_stats
