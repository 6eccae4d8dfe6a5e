"""Data parallelism: devices hold copies of the state and share the batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from googlenet_flax.runtime.errors import UserError
from googlenet_flax.training.state import Metrics, TrainState

AXIS_NAME = "batch"


def parallel_train_step(
    step: Callable[..., tuple[TrainState, Metrics]], devices: Sequence[jax.Device]
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Maps a train step over the devices of all processes with `jax.pmap`.

    The result is a function of the same arguments. The state is replicated, has no device
    axis and is donated. The arrays of the batch are `[D, B/D, ...]` (see
    `split_over_devices`). Each metric is `[D]`, with the same value for every device. The
    seed is an argument, so that runs with other seeds reuse the compiled program.
    """
    return jax.pmap(
        step,
        axis_name=AXIS_NAME,
        in_axes=(None, 0, None),
        out_axes=(None, 0),
        donate_argnums=(0,),
        devices=devices,
    )


def split_over_devices(batch: Mapping[str, Any], num_devices: int) -> dict[str, Any]:
    """Reshapes every `[B, ...]` to `[D, B/D, ...]`."""
    return jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), dict(batch))


def fit_batch_size(batch_size: int, num_examples: int, num_devices: int) -> int:
    """Lowers a batch size to the number of examples, then rounds it up for the devices.

    The result is a multiple of the number of devices, so it can exceed `num_examples`.
    """
    return -(-min(batch_size, num_examples) // num_devices) * num_devices


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copies a tree to all devices with the sharding that the steps return.

    Without this, a step would be compiled again at its second call.
    """
    return jax.device_put(tree, replicated_sharding(devices))


def replicated_like(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Returns shapes and types of a tree, with the sharding of `replicate`."""
    sharding = replicated_sharding(devices)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def split_sharding(devices: Sequence[jax.Device]) -> NamedSharding:
    """Returns the sharding of `[D, B/D, ...]` whose first axis is that of the devices."""
    return NamedSharding(Mesh(devices, (AXIS_NAME,)), PartitionSpec(AXIS_NAME))


def replicated_sharding(devices: Sequence[jax.Device]) -> NamedSharding:
    """Returns the sharding that puts a whole copy on every device."""
    return NamedSharding(Mesh(devices, (AXIS_NAME,)), PartitionSpec())


def check_batch_divides(batch_size: int, num_devices: int, accumulation_steps: int) -> None:
    """Checks that devices and accumulation steps can share a global batch equally.

    Raises:
      UserError: They cannot; the message names the nearest sizes that work.
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
