"""A few steps of a small network, in one of several processes or alone.

python tests/distributed_steps.py ADDRESS COUNT NUMBER DIRECTORY
"""

import pathlib
import sys
from functools import partial

import conftest  # noqa: F401  # Sets the environment before JAX reads it.
import jax
import jax.numpy as jnp
import numpy as np
from helpers.networks import (
    augment,
    bind_step,
    numpy_variables,
    preprocess,
    small_googlenet,
)

from googlenet_flax.data.image_set import ImageSet
from googlenet_flax.data.sampler import ProcessShard, TrainingOrder
from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runtime import distributed
from googlenet_flax.training.description import ModelDescription
from googlenet_flax.training.evaluation import evaluate_split
from googlenet_flax.training.optimizer import create_optimizer
from googlenet_flax.training.sharding import (
    AXIS_NAME,
    parallel_eval_step,
    parallel_train_step,
    replicate,
    split_over_devices,
)
from googlenet_flax.training.state import TrainState
from googlenet_flax.training.step import eval_step

BATCH_SIZE = 16
NUM_STEPS = 5
NUM_EXAMPLES = 52  # Fills no whole number of batches.
DESCRIPTION = ModelDescription(
    variant="seed",
    width_multiplier=1.0,
    dtype="float32",
    class_names=tuple("abcdefghij"),
    preprocess=preprocess(storage_size=32, input_scale=1 / 255),
)


def train_and_save(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """What came out: the losses, the evaluation, and the weights read back."""
    devices = jax.local_devices()
    model = small_googlenet("seed")
    tx = create_optimizer(lambda step: 0.01, momentum=0.9, weight_decay=1e-4)
    step = parallel_train_step(
        bind_step(
            model=model.clone(axis_name=AXIS_NAME),
            tx=tx,
            preprocess=DESCRIPTION.preprocess,
            augment=augment(flip="random"),
            seed=3,
            aux_weight=0.3,
            axis_name=AXIS_NAME,
        ),
        distributed.all_devices(devices),
    )
    variables = jax.tree.map(jnp.asarray, numpy_variables(model))
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats={},
        opt_state=tx.init(variables["params"]),
    )
    state, losses = replicate(state, devices), []
    examples = _examples()
    order = TrainingOrder(0, 0, NUM_STEPS, len(examples), BATCH_SIZE)
    shard = ProcessShard(order, distributed.process_rows(BATCH_SIZE))
    for batch in examples.batches(shard):
        state, metrics = step(state, split_over_devices(batch, len(devices)))
        losses.append(metrics["loss"].addressable_data(0).item())
    metrics = _evaluate(model, state, devices, examples)
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(state, description=DESCRIPTION, metrics=metrics)
        checkpoints.wait()
        saved = checkpoints.restore(NUM_STEPS, jax.eval_shape(lambda: state), devices)
    leaves = jax.tree.leaves(jax.device_get(saved))
    return {
        "losses": np.array(losses),
        "evaluation": np.array([metrics["loss"], metrics["accuracy"]]),
        **{f"leaf {number}": leaf for number, leaf in enumerate(leaves)},
    }


def _examples() -> ImageSet:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_EXAMPLES, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, NUM_EXAMPLES).astype(np.int32)
    return ImageSet(images, labels, DESCRIPTION.class_names)


def _evaluate(model, state, devices, examples) -> dict[str, float]:
    look = DESCRIPTION.preprocess
    step = partial(eval_step, model=model, preprocess=look, aux_weight=0.3)
    return evaluate_split(
        parallel_eval_step(step, devices),
        state.variables,
        examples,
        batch_size=BATCH_SIZE,
        num_devices=len(devices),
    )


if __name__ == "__main__":
    address, count, number, directory = sys.argv[1:]
    with distributed.joined(address, int(count), int(number)):
        results = train_and_save(pathlib.Path(directory))
        np.savez(f"{directory}-{number}.npz", **results)
