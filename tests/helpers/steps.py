"""Training steps on random batches, and small states."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers.networks import augment, bind_step, numpy_variables, preprocess

from googlenet_flax.training.mixup import with_partners
from googlenet_flax.training.optimizer import create_optimizer
from googlenet_flax.training.sharding import (
    AXIS_NAME,
    parallel_train_step,
    replicate,
    split_over_devices,
)
from googlenet_flax.training.state import TrainState

PREPROCESS = preprocess(
    input_scale=1 / 255, input_mean=(0.4, 0.5, 0.6), input_std=(0.2, 0.3, 0.2)
)
AUGMENT = augment(
    crop_padding_pixels=4, crop_min_area=0.08, flip="random", color_jitter=0.5
)


def random_batch(size):
    """Returns random images of many extents, with labels and indices."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, size).astype(np.int32),
        "index": np.arange(size, dtype=np.int32) + 17,
        # Pictures of many sizes, as a folder has them.
        "extent": rng.integers(16, 33, (size, 2)).astype(np.int32),
    }


def start_state(model, tx, **fields):
    """Returns the state of step 0 with variables drawn by NumPy."""
    dtype = jnp.promote_types(model.dtype, jnp.float32)
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), numpy_variables(model))
    return TrainState.of(variables, tx, **fields)


def random_step(model, tx, **fields):
    """Creates a step with random views of the examples; `bind_step` has the `fields`."""
    views = {"preprocess": PREPROCESS, "augment": AUGMENT}
    return bind_step(model=model, tx=tx, **{**views, **fields})


def run_steps(
    model, batch, *, num_devices=1, num_steps=1, tx=None, state=None, **step_fields
):
    """Trains on one batch; returns the state and the metrics of the last step."""
    devices = jax.devices()[:num_devices]
    tx = tx or create_optimizer(lambda step: 0.05, momentum=0.9, weight_decay=1e-4)
    model_of_all = model.clone(axis_name=AXIS_NAME)
    step = random_step(model_of_all, tx, axis_name=AXIS_NAME, **step_fields)
    parallel_step = parallel_train_step(step, devices)
    if state is None:
        state = start_state(model, tx, averages="averaging" in step_fields)
    state = replicate(state, devices)
    batch = with_partners(batch) if "mixup_alpha" in step_fields else batch
    for _ in range(num_steps):
        shards = split_over_devices(batch, num_devices)
        state, metrics = parallel_step(state, shards, 3)
    metrics = {name: values.addressable_data(0)[0] for name, values in metrics.items()}
    return jax.device_get((state, metrics))


def assert_same_tree(actual, expected, *, rtol):
    """Compares each leaf on the scale of its largest element."""
    paths = jax.tree_util.tree_leaves_with_path(expected)
    for (path, one), many in zip(paths, jax.tree.leaves(actual), strict=True):
        error = np.abs(one - many).max()
        name = jax.tree_util.keystr(path)
        assert error <= rtol * np.abs(one).max(), f"{name} differs by {error:.2e}"


def tiny_state(step, value=0.0):
    """Returns a state of one kernel, replicated over two devices."""
    return replicate(
        TrainState(
            step=jnp.asarray(step, jnp.int32),
            params={"kernel": jnp.full((2, 3), value)},
            batch_stats={},
            opt_state=({"trace": jnp.zeros(3)},),
        ),
        jax.devices()[:2],
    )
