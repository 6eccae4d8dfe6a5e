import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.networks import augment, flat, small_googlenet
from helpers.steps import (
    AUGMENT,
    PREPROCESS,
    assert_same_tree,
    random_batch,
    random_step,
    run_steps,
    start_state,
)
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from googlenet_flax.model.googlenet import VARIANTS, GoogLeNetOutput, create_model
from googlenet_flax.training.losses import example_metrics
from googlenet_flax.training.optimizer import Averaging, create_optimizer
from googlenet_flax.training.sharding import AXIS_NAME, replicate

# All options of a step.
OPTIONS = {
    "augment": dataclasses.replace(
        AUGMENT,
        flip="alternating",
        interpolations=("bilinear", "cubic", "area", "nearest"),
        cutout_fraction=0.3,
    ),
    "label_smoothing": 0.1,
    "mixup_alpha": 0.5,
    "averaging": Averaging(kind="ema", decay=0.9, start_step=0),
    "accumulation_steps": 2,
}


@pytest.mark.parametrize(
    ("variant", "counts", "options"),
    [
        pytest.param("seed", (2, 4), {}, marks=pytest.mark.slow),
        pytest.param("paper", (2, 4), {}, marks=pytest.mark.slow),
        pytest.param("bn", (4,), {}, marks=pytest.mark.ci),
        pytest.param("bn", (2, 4), OPTIONS, marks=pytest.mark.slow),
        pytest.param("torchvision", (2, 4), {}, marks=pytest.mark.slow),
    ],
    ids=["seed", "paper", "bn", "bn and all options", "torchvision"],
)
def test_results_do_not_depend_on_the_number_of_devices(variant, counts, options):
    """Compares gradients, statistics and updates, with dropout and augmentation.

    The comparison is in float64: in float32 rounding decides some ReLUs, and the runs
    diverge within a few steps.
    """
    with jax.enable_x64(True):
        model = small_googlenet(variant, dtype=jnp.dtype("float64"))
        if variant in ("bn", "torchvision"):
            small = dataclasses.replace(PREPROCESS, image_size=32)
            options = {"preprocess": small, **options}
        check_device_counts(model, counts, num_steps=6, **options)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_loss_does_not_depend_on_the_number_of_devices(variant):
    """Compares the loss of the whole network in float32, with its fastest arithmetic."""
    model, batch = create_model(variant, num_classes=10), random_batch(16)
    losses = [run_steps(model, batch, num_devices=count)[1]["loss"] for count in (1, 2, 4)]
    np.testing.assert_allclose(losses[1:], losses[0], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_whole_network_does_not_depend_on_the_number_of_devices(variant):
    """Compares with the fastest arithmetic; the small networks have that of XLA."""
    with jax.enable_x64(True):
        check_device_counts(create_model(variant, num_classes=10, dtype="float64"))


def check_device_counts(model, counts=(2, 4), **options):
    batch = random_batch(8)
    one = run_steps(model, batch, **options)
    for count in counts:
        many = run_steps(model, batch, num_devices=count, **options)
        assert_same_tree(many, one, rtol=1e-9)


def jitted_train_step(step, devices):
    """Creates a train step with `jit` instead of `pmap`, as in docs/scaling.md."""
    mesh = Mesh(devices, (AXIS_NAME,))
    replicated, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS_NAME))
    return jax.jit(
        step,
        in_shardings=(replicated, rows, replicated),
        out_shardings=(replicated, replicated),
        donate_argnums=0,
    )


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["seed", "bn"])
def test_a_jitted_step_computes_what_the_pmapped_one_does(variant):
    """Compares a step over shards with one over the whole batch, without an axis."""
    with jax.enable_x64(True):
        model = small_googlenet(variant, dtype=jnp.dtype("float64"))
        tx = create_optimizer(lambda step: 0.05, momentum=0.9, weight_decay=1e-4)
        batch, devices = random_batch(8), jax.devices()
        expected = run_steps(model, batch, num_devices=len(devices), tx=tx)
        step = jitted_train_step(random_step(model, tx), devices)
        actual = step(replicate(start_state(model, tx), devices), batch, 3)
        assert_same_tree(jax.device_get(actual), expected, rtol=1e-9)


@pytest.fixture(scope="module")
def head_step():
    """Returns a compiled step that trains the last layers alone, and its first state.

    Dropout is the only randomness of the step.
    """
    model = small_googlenet("bn", freeze_norm=True)
    fields = {"momentum": 0.9, "weight_decay": 0.1}
    tx = create_optimizer(lambda step: 0.05, last_layers_only=True, **fields)
    step = random_step(model, tx, augment=augment())
    return jax.jit(step), start_state(model, tx)


def test_dropout_is_a_function_of_seed_and_step(head_step):
    step, state = head_step

    def loss(number, seed):
        numbered = dataclasses.replace(state, step=jnp.int32(number))
        return float(step(numbered, random_batch(4), seed)[1]["loss"])

    assert loss(0, 0) == loss(0, 0)
    assert len({loss(0, 0), loss(1, 0), loss(0, 1)}) == 3


@pytest.mark.parametrize("head_only", [False, True])
def test_update_is_sgd_with_momentum_and_decay_of_kernels(head_only):
    fields = {"weight_decay": 0.5, "last_layers_only": head_only}
    tx = create_optimizer(lambda step: 0.1, momentum=0.9, **fields)
    params = {"classifier": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)}}
    grads = jax.tree.map(jnp.ones_like, params)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    params = params["classifier"]
    # By hand, v1 = 1 and v2 = 0.9 + 1. With decay g = 1 + 0.5 * w, and w is 2, then 1.8.
    np.testing.assert_allclose(params["bias"], 2 - 0.1 - 0.19, rtol=1e-6)
    second = 0.9 * 2 + (1 + 0.5 * 1.8)
    np.testing.assert_allclose(params["kernel"], 1.8 - 0.1 * second, rtol=1e-6)


HEADS = ("classifier", "aux_4a/classifier", "aux_4d/classifier")


def test_head_only_trains_the_last_layers_alone(head_step):
    step, before = head_step
    # No batch has these running statistics, so an update would show.
    assert before.batch_stats
    after, _ = step(before, random_batch(4), 0)
    trained = {f"{head}/{leaf}" for head in HEADS for leaf in ("kernel", "bias")}
    was, now = flat(before.params), flat(after.params)
    changed = {name for name in was if not np.array_equal(was[name], now[name])}
    assert changed == trained
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, before.batch_stats)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    # Frozen leaves have no momentum, which would take memory.
    shapes = sorted(was[name].shape for name in trained)
    buffers = [leaf for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim]
    assert sorted(buffer.shape for buffer in buffers) == shapes
    assert all(np.any(buffer) for buffer in buffers)


def test_nan_logits_are_never_a_hit():
    output = GoogLeNetOutput(jnp.full((1, 10), jnp.nan))
    metrics = example_metrics(output, jnp.array([0]), aux_weight=0.3)
    assert metrics["accuracy"][0] == 0 and metrics["top5"][0] == 0
