"""The training and evaluation steps: pure functions, and what shards them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from googlenet_flax.data.augment import Augment
from googlenet_flax.data.preprocess import Preprocess
from googlenet_flax.errors import UserError
from googlenet_flax.model import GoogLeNet, GoogLeNetOutput

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

    @property
    def variables(self) -> Params:
        """Parameters and statistics as `model.apply` takes them."""
        if not self.batch_stats:
            return {"params": self.params}
        return {"params": self.params, "batch_stats": self.batch_stats}


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
) -> TrainState:
    """A fresh state; compile it with `jax.jit` to start in seconds."""
    images = jnp.zeros((1, image_size, image_size, 3))
    variables = model.init(rng, images, train=False)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(variables["params"]),
    )


def outputs_by_name(output: GoogLeNetOutput) -> dict[str, jax.Array]:
    """The logits of every classifier that was built: `main`, `aux_4a`, `aux_4d`."""
    named = {"main": output.logits, "aux_4a": output.aux_4a, "aux_4d": output.aux_4d}
    return {name: logits for name, logits in named.items() if logits is not None}


def example_metrics(
    output: GoogLeNetOutput, labels: jax.Array, *, aux_weight: float
) -> Metrics:
    """Losses and hits per example, each float32 `[B]`.

    `loss` is what training minimises (section 5): main + `aux_weight` x each head.
    Accuracies are 1 where the label has the largest logit, `top5` where it is among the
    five largest (ties count against it).
    """
    metrics = {}
    for name, logits in outputs_by_name(output).items():
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
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
    aux_weight: float,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One update.

    Args:
      state: Before the update.
      batch: As `data.image_set.Split` makes it.
      model: Its own `axis_name` equals this function's.
      tx: Made by `create_optimizer`.
      preprocess: Size and scaling of the network's input.
      augment: Random changes; each example's are a function of (seed, step, index), like
        its dropout masks.
      seed: Of augmentation and dropout.
      aux_weight: Of each auxiliary loss; 0.3 in section 5.
      axis_name: Mapped axis to average over, or None on one device.

    Returns:
      The state after the update, and global means, `[]`, of the `example_metrics`.
    """
    root_rng = jax.random.key(seed, impl="threefry2x32")
    step_rng = jax.random.fold_in(root_rng, state.step)
    augment_rng, dropout_rng = jax.random.split(step_rng)
    example_rngs = jax.vmap(partial(jax.random.fold_in, augment_rng))(batch["index"])
    images = augment(
        batch["image"], example_rngs, preprocess=preprocess, extents=batch.get("extent")
    )

    def loss_fn(params: Params) -> tuple[jax.Array, tuple[Metrics, Params]]:
        output, updates = model.apply(
            dataclasses.replace(state, params=params).variables,
            images,
            train=True,
            example_ids=batch["index"],
            rngs={"dropout": dropout_rng},
            mutable=["batch_stats"],
        )
        per_example = example_metrics(output, batch["label"], aux_weight=aux_weight)
        metrics = {name: jnp.mean(values) for name, values in per_example.items()}
        return metrics["loss"], (metrics, updates.get("batch_stats", {}))

    grads, (metrics, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
    if axis_name is not None:
        grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    new_state = TrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return new_state, metrics


def eval_step(
    variables: Params,
    batch: Batch,
    *,
    model: GoogLeNet,
    preprocess: Preprocess,
    aux_weight: float,
) -> Metrics:
    """Sums over the examples whose `mask` is true, and their `count`; each `[]`.

    `variables` is what `model.apply` takes; the batch is that of `train_step` with `mask`.
    """
    images = preprocess(batch["image"], batch.get("extent"))
    output: Any = model.apply(variables, images, train=False)
    per_example = example_metrics(output, batch["label"], aux_weight=aux_weight)
    per_example["count"] = jnp.ones_like(per_example["loss"])
    return {
        name: jnp.sum(jnp.where(batch["mask"], values, 0))
        for name, values in per_example.items()
    }


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
    step: Callable[[Params, Batch], Metrics], devices: Sequence[jax.Device]
) -> Callable[[Params, Batch], Metrics]:
    """Shards an evaluation step; the sums come back `[D]`, one per device."""
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


def check_batch_divides(batch_size: int, num_devices: int) -> None:
    """Refuses a global batch that the devices cannot share equally.

    Raises:
      UserError: With the nearest sizes that work.
    """
    if batch_size % num_devices:
        below = batch_size // num_devices * num_devices
        sizes = [size for size in (below, below + num_devices) if size]
        raise UserError(
            f"batch_size is {batch_size}, which {num_devices} devices cannot share "
            f"equally: set --config.batch_size={' or '.join(map(str, sizes))}"
        )
