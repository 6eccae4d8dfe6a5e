"""The training and evaluation steps: pure functions, and what shards them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from googlenet_flax.model.googlenet import GoogLeNet, GoogLeNetOutput
from googlenet_flax.preprocessing.augment import Augment, alternating_flips
from googlenet_flax.preprocessing.preprocess import Preprocess
from googlenet_flax.runtime.errors import UserError

AXIS_NAME = "batch"
TOP_K = 5

Batch = Mapping[str, Any]  # `data.image_set.Batch`, on the host or on a device.
Metrics = dict[str, jax.Array]
Params = Any


@flax.struct.dataclass
class TrainState:
    """All that changes from step to step."""

    step: jax.Array  # int32 [], updates done
    params: Params
    batch_stats: Params  # Empty without batch norm.
    opt_state: optax.OptState
    # Means over the steps, {"params", "batch_stats"}; empty without averaging.
    averages: Params = dataclasses.field(default_factory=dict)

    @property
    def variables(self) -> Params:
        """Parameters and statistics as `model.apply` takes them."""
        if not self.batch_stats:
            return {"params": self.params}
        return {"params": self.params, "batch_stats": self.batch_stats}


@dataclasses.dataclass(frozen=True)
class Averaging:
    """How the weights of many steps become one set of weights."""

    kind: (
        str  # "ema", where recent steps weigh more, or "polyak", where all weigh the same.
    )
    decay: float  # Of the exponential moving average per step.
    start_step: int  # Before it, the average is the latest weights.

    def update(self, averages: Params, latest: Params, step: jax.Array) -> Params:
        """The averages after the update that follows `step` updates.

        A young exponential average is a plain one, so that it forgets its first weights.
        """
        count = jnp.maximum(step - self.start_step, 0).astype(jnp.float32)
        rate = 1 / (count + 1)
        if self.kind == "ema":
            rate = jnp.maximum(rate, 1 - self.decay)
        return jax.tree.map(lambda mean, new: mean + rate * (new - mean), averages, latest)


def create_optimizer(
    schedule: optax.Schedule,
    *,
    momentum: float,
    weight_decay: float,
    head_only: bool = False,
) -> optax.GradientTransformation:
    """SGD with momentum, not Nesterov; weight decay on kernels, as L2 in the gradient.

    `head_only` trains the last layer of each classifier and leaves the rest as it is.
    """

    def kernels(params: Params) -> Params:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    def heads(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(lambda path, _: is_head(path), params)

    decay = optax.add_decayed_weights(weight_decay, mask=kernels)
    sgd = optax.sgd(schedule, momentum=momentum)
    tx = optax.chain(decay, sgd) if weight_decay else sgd
    if not head_only:
        return tx
    return optax.partition({True: tx, False: optax.set_to_zero()}, heads)


def is_head(path: tuple[Any, ...]) -> bool:
    """Whether a path of the parameter tree leads to the last layer of a classifier."""
    return any(key.key == "classifier" for key in path)


def create_state(
    model: GoogLeNet,
    tx: optax.GradientTransformation,
    rng: jax.Array,
    *,
    image_size: int,
    averaging: Averaging | None = None,
) -> TrainState:
    """A fresh state; compile it with `jax.jit` to start in seconds."""
    images = jnp.zeros((1, image_size, image_size, 3))
    variables = model.init(rng, images, train=False)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(variables["params"]),
        averages=dict(variables) if averaging else {},
    )


def outputs_by_name(output: GoogLeNetOutput) -> dict[str, jax.Array]:
    """The logits of every classifier that was built: `main`, `aux_4a`, `aux_4d`."""
    named = {"main": output.logits, "aux_4a": output.aux_4a, "aux_4d": output.aux_4d}
    return {name: logits for name, logits in named.items() if logits is not None}


def example_metrics(
    output: GoogLeNetOutput,
    labels: jax.Array,
    *,
    aux_weight: float | jax.Array,
    targets: jax.Array | None = None,
) -> Metrics:
    """Losses and hits per example, each float32 `[B]`.

    `loss` is what training minimises (section 5): main + `aux_weight` x each head.
    Accuracies are 1 where the label has the largest logit, `top5` where it is among the
    five largest (ties count against it).

    Args:
      output: Logits `[B, num_classes]`.
      labels: int `[B]`.
      aux_weight: Of each auxiliary loss.
      targets: Probabilities `[B, num_classes]` that the losses are measured against;
        default: 1 for the label.
    """
    metrics = {}
    for name, logits in outputs_by_name(output).items():
        if targets is None:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        else:
            losses = optax.softmax_cross_entropy(logits, targets)
        metrics[f"{name}_loss"] = losses
        rank = _rank_of_label(logits, labels)
        accuracy = "accuracy" if name == "main" else f"{name}_accuracy"
        metrics[accuracy] = (rank < 1).astype(jnp.float32)
        if name == "main":
            metrics["top5"] = (rank < TOP_K).astype(jnp.float32)
    aux_losses = [
        metrics[f"{head}_loss"]
        for head in ("aux_4a", "aux_4d")
        if f"{head}_loss" in metrics
    ]
    metrics["loss"] = metrics["main_loss"] + aux_weight * sum(aux_losses)
    return metrics


def _rank_of_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How many other classes score at least as high as the label; int `[B]`."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    return jnp.sum(~(logits < own), axis=-1) - 1


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: GoogLeNet,
    tx: optax.GradientTransformation,
    preprocess: Preprocess,
    augment: Augment,
    seed: int,
    aux_weight: float | Callable[[jax.Array], jax.Array],
    axis_name: str | None = None,
    epoch_steps: int = 1,
    label_smoothing: float = 0.0,
    mixup_alpha: float = 0.0,
    averaging: Averaging | None = None,
    accumulation_steps: int = 1,
) -> tuple[TrainState, Metrics]:
    """One update.

    Args:
      state: Before the update.
      batch: As `data.image_set.Split` makes it; for mixup from `with_partners`.
      model: Its own `axis_name` equals this function's.
      tx: Made by `create_optimizer`.
      preprocess: Size and scaling of the network's input.
      augment: Random changes; each example's are a function of (seed, step, index), like
        its dropout masks.
      seed: Of augmentation and dropout.
      aux_weight: Of each auxiliary loss, 0.3 in section 5; or a function of the step.
      axis_name: Mapped axis to average over, or None on one device.
      epoch_steps: Steps per epoch, for alternating flips.
      label_smoothing: Of the target, that all classes share (arXiv 1512.00567, section 7).
      mixup_alpha: Of the Beta distribution that mixes examples (arXiv 1710.09412); 0 off.
      averaging: Of weights and statistics, if any.
      accumulation_steps: Parts of the batch that pass through the network in turn, each
        with batch statistics of its own.

    Returns:
      The state after the update, and global means, `[]`, of the `example_metrics`.
    """
    root_rng = jax.random.key(seed, impl="threefry2x32")
    step_rng = jax.random.fold_in(root_rng, state.step)
    augment_rng, dropout_rng = jax.random.split(step_rng)
    weight = aux_weight(state.step) if callable(aux_weight) else aux_weight

    look = partial(
        _augmented,
        rngs=(root_rng, augment_rng),
        epoch=state.step // epoch_steps,
        augment=augment,
        preprocess=preprocess,
    )

    def loss_fn(
        params: Params, batch_stats: Params, batch: Batch
    ) -> tuple[jax.Array, tuple[Metrics, Params]]:
        images, shares = look(batch), None
        if mixup_alpha:
            shares = _mixup_shares(augment_rng, batch["index"], mixup_alpha)
            other = look(partners_of(batch))
            images = other + shares[:, None, None, None] * (images - other)
        output, updates = model.apply(
            dataclasses.replace(state, params=params, batch_stats=batch_stats).variables,
            images,
            train=True,
            example_ids=batch["index"],
            rngs={"dropout": dropout_rng},
            mutable=["batch_stats"],
        )
        per_example = example_metrics(
            output,
            batch["label"],
            aux_weight=weight,
            targets=_soft_targets(batch, output.logits.shape[-1], label_smoothing, shares),
        )
        metrics = {name: jnp.mean(values) for name, values in per_example.items()}
        return metrics["loss"], (metrics, updates.get("batch_stats", {}))

    grads, metrics, batch_stats = _accumulate(
        jax.grad(loss_fn, has_aux=True), state, batch, accumulation_steps
    )
    if axis_name is not None:
        grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    new_state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
        averages=state.averages,
    )
    if averaging is not None:
        averages = averaging.update(state.averages, new_state.variables, state.step)
        new_state = dataclasses.replace(new_state, averages=averages)
    return new_state, metrics


def _augmented(
    batch: Batch,
    *,
    rngs: tuple[jax.Array, jax.Array],
    epoch: jax.Array,
    augment: Augment,
    preprocess: Preprocess,
) -> jax.Array:
    """What the network sees of a batch; `rngs` are those of the run and of the step."""
    run_rng, step_rng = rngs
    flips = None
    if augment.flip == "alternating":
        flips = alternating_flips(run_rng, batch["index"], epoch)
    return augment(
        batch["image"],
        jax.vmap(partial(jax.random.fold_in, step_rng))(batch["index"]),
        preprocess=preprocess,
        extents=batch.get("extent"),
        flips=flips,
    )


def _accumulate(
    gradient: Callable, state: TrainState, batch: Batch, num_parts: int
) -> tuple[Params, Metrics, Params]:
    """Mean gradients and metrics over the parts of a batch, and the last statistics."""
    if num_parts == 1:
        grads, (metrics, batch_stats) = gradient(state.params, state.batch_stats, batch)
        return grads, metrics, batch_stats

    def add(carry, part):
        batch_stats, total = carry
        grads, (metrics, batch_stats) = gradient(state.params, batch_stats, part)
        return (batch_stats, jax.tree.map(jnp.add, total, (grads, metrics))), None

    parts = jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), dict(batch))
    part_like = jax.tree.map(lambda x: x[0], parts)
    grads_like, (metrics_like, _) = jax.eval_shape(
        gradient, state.params, state.batch_stats, part_like
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads_like, metrics_like))
    # NOTE: convolutions in a loop fall off XLA:CPU's fast path, and are 30 times slower.
    unroll = num_parts if jax.default_backend() == "cpu" else 1
    (batch_stats, total), _ = jax.lax.scan(
        add, (state.batch_stats, zeros), parts, unroll=unroll
    )
    grads, metrics = jax.tree.map(lambda x: x / num_parts, total)
    return grads, metrics, batch_stats


def with_partners(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A global batch on the host in which each example is joined by the one before it."""
    partners = {f"partner_{name}": np.roll(x, 1, axis=0) for name, x in batch.items()}
    return {**batch, **partners}


def partners_of(batch: Batch) -> Batch:
    """The batch of what `with_partners` joined to each example."""
    prefix = "partner_"
    return {
        name.removeprefix(prefix): values
        for name, values in batch.items()
        if name.startswith(prefix)
    }


def _mixup_shares(rng: jax.Array, indices: jax.Array, alpha: float) -> jax.Array:
    """The share of each example in its mixture with its partner, from 0.5 to 1, `[B]`."""

    def draw(index: jax.Array) -> jax.Array:
        own_rng = jax.random.fold_in(jax.random.fold_in(rng, index), 6)
        share = jax.random.beta(own_rng, alpha, alpha)
        return jnp.maximum(share, 1 - share)

    return jax.vmap(draw)(indices)


def _soft_targets(
    batch: Batch, num_classes: int, label_smoothing: float, shares: jax.Array | None
) -> jax.Array | None:
    """Probabilities `[B, num_classes]` to learn, or None where the label has all."""
    if not label_smoothing and shares is None:
        return None
    targets = jax.nn.one_hot(batch["label"], num_classes)
    if shares is not None:
        others = jax.nn.one_hot(batch["partner_label"], num_classes)
        targets = others + shares[:, None] * (targets - others)
    return optax.smooth_labels(targets, label_smoothing)


def eval_step(
    variables: Params,
    batch: Batch,
    *,
    model: GoogLeNet,
    preprocess: Preprocess,
    aux_weight: float,
) -> tuple[Metrics, jax.Array]:
    """Sums the `example_metrics` over the examples whose `mask` is true.

    Args:
      variables: As `model.apply` takes them.
      batch: As `train_step` takes it, with `mask`, bool `[B]`.
      model: The network.
      preprocess: Size and scaling of the network's input.
      aux_weight: Weight of each auxiliary loss.

    Returns:
      The sums, each float32 `[]`, and the number of examples in them, int32 `[]`.
    """
    images = preprocess(batch["image"], batch.get("extent"))
    output: Any = model.apply(variables, images, train=False)
    per_example = example_metrics(output, batch["label"], aux_weight=aux_weight)
    mask = batch["mask"]
    sums = jax.tree.map(lambda values: jnp.sum(jnp.where(mask, values, 0)), per_example)
    return sums, jnp.sum(mask)


def parallel_train_step(
    step: Callable[..., tuple[TrainState, Metrics]], devices: Sequence[jax.Device]
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Shards a train step over devices.

    The state goes in and comes out replicated, unstacked and donated; the batch is
    `[D, B/D, ...]` (see `split_over_devices`) and the metrics are `[D]`, all equal.
    """
    return jax.pmap(
        step,
        axis_name=AXIS_NAME,
        in_axes=(None, 0),
        out_axes=(None, 0),
        donate_argnums=(0,),
        devices=devices,
    )


def parallel_eval_step(
    step: Callable[[Params, Batch], tuple[Metrics, jax.Array]],
    devices: Sequence[jax.Device],
) -> Callable[[Params, Batch], tuple[Metrics, jax.Array]]:
    """Shards an evaluation step; sums and counts come back `[D]`, one per device."""
    return jax.pmap(step, in_axes=(None, 0), out_axes=0, devices=devices)


def split_over_devices(batch: Mapping[str, Any], num_devices: int) -> dict[str, Any]:
    """Reshapes every `[B, ...]` to `[D, B/D, ...]`."""
    return {
        name: values.reshape(num_devices, -1, *values.shape[1:])
        for name, values in batch.items()
    }


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Places a tree on all devices as the steps expect it, so that they compile once."""
    return jax.device_put(tree, replicated_sharding(devices))


def replicated_like(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Shapes and types of a tree, placed like those that `replicate` returns."""
    sharding = replicated_sharding(devices)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def replicated_sharding(devices: Sequence[jax.Device]) -> NamedSharding:
    """The sharding of the state: a whole copy on every device."""
    return NamedSharding(Mesh(devices, (AXIS_NAME,)), PartitionSpec())


def check_batch_divides(
    batch_size: int, num_devices: int, accumulation_steps: int = 1
) -> None:
    """Refuses a global batch that cannot be shared equally.

    Raises:
      UserError: With the nearest sizes that work.
    """
    parts = num_devices * accumulation_steps
    if batch_size % parts:
        below = batch_size // parts * parts
        sizes = [size for size in (below, below + parts) if size]
        steps = "" if accumulation_steps == 1 else f" in {accumulation_steps} steps"
        raise UserError(
            f"batch_size is {batch_size}, which {num_devices} devices cannot share "
            f"equally{steps}: set --config.batch_size={' or '.join(map(str, sizes))}"
        )
