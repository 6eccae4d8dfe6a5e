"""Options of the step: smoothing, mixup, averaging and accumulation."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from helpers.crops import assert_evenly_spread
from helpers.images import random_images
from helpers.networks import augment, bind_step, preprocess, small_googlenet
from helpers.steps import assert_same_tree, random_batch, run_steps

from googlenet_flax.model.googlenet import GoogLeNetOutput
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.training.losses import Objective
from googlenet_flax.training.mixup import mixup_lambdas, with_partners
from googlenet_flax.training.optimizer import Averaging, create_optimizer
from googlenet_flax.training.sharding import (
    AXIS_NAME,
    check_batch_divides,
    parallel_train_step,
    replicate,
    split_over_devices,
)
from googlenet_flax.training.state import TrainState

SIDE = 10
PREPROCESS = preprocess(image_size=SIDE, input_scale=1 / 255)
TX = create_optimizer(lambda step: 0.5, momentum=0.9, weight_decay=0.0)
VIEWS = {"augment": augment(flip="alternating", cutout_fraction=0.3)}
MIXED = {**VIEWS, "mixup_alpha": 1.0, "label_smoothing": 0.1}


@dataclasses.dataclass(frozen=True)
class Linear:
    """A network whose logits are a matrix times the first row of an image.

    It keeps a running mean of these rows and, if `keeps_images`, the images.
    """

    keeps_images: bool = False

    def apply(self, variables, images, *, train, example_ids, rngs, mutable):
        assert train and mutable == ["batch_stats"] and "dropout" in rngs
        assert example_ids.shape == images.shape[:1]
        row = images[:, 0, :, 0]
        logits = row @ variables["params"]["kernel"]
        mean = 0.9 * variables["batch_stats"]["mean"] + 0.1 * jnp.mean(row, axis=0)
        stats = {"mean": mean, **({"images": images} if self.keeps_images else {})}
        return GoogLeNetOutput(logits, -logits, logits / 2), {"batch_stats": stats}


def linear_state(**fields):
    kernel = np.random.default_rng(1).normal(size=(SIDE, 10)).astype(np.float32)
    mean = jnp.full(SIDE, 0.2)
    variables = {"params": {"kernel": jnp.asarray(kernel)}, "batch_stats": {"mean": mean}}
    return dataclasses.replace(TrainState.of(variables, TX), **fields)


def square_batch(size, first_index=17):
    return {
        "image": random_images(size, SIDE, SIDE, 3),
        "label": np.random.default_rng(2).integers(0, 10, size).astype(np.int32),
        "index": np.arange(size, dtype=np.int32) + first_index,
    }


def step_with(**fields):
    off = {"model": Linear(), "tx": TX, "preprocess": PREPROCESS, "augment": augment()}
    return bind_step(**{**off, **fields})


@cache
def compiled_step(**fields):
    return jax.jit(step_with(**fields))


def run_with_view(batch, *, step=0, seed=3, **fields):
    """Runs a step; returns its metrics, and the images that the network saw."""
    state = linear_state(step=jnp.asarray(step, jnp.int32))
    step = compiled_step(model=Linear(keeps_images=True), **fields)
    state, metrics = step(state, batch, seed)
    return metrics, np.asarray(state.batch_stats["images"])


def view_of(batch, **fields):
    return run_with_view(batch, **fields)[1]


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def losses_against(images, targets):
    """Computes the mean loss of each classifier of `linear_state`, and the total."""
    logits = np.float64(images)[:, 0, :, 0] @ np.float64(linear_state().params["kernel"])
    heads = {"main": logits, "aux_4a": -logits, "aux_4d": logits / 2}
    losses = {
        f"{name}_loss": -np.mean(np.sum(targets * log_softmax(values), axis=1))
        for name, values in heads.items()
    }
    aux = losses["aux_4a_loss"] + losses["aux_4d_loss"]
    return {**losses, "loss": losses["main_loss"] + 0.3 * aux}


def assert_losses(metrics, expected):
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("fields", [{}, {"label_smoothing": 0.5}], ids=str)
def test_label_smoothing_is_that_of_its_paper(fields):
    # arXiv 1512.00567, section 7: q'(k) = (1 - eps) * delta(k, y) + eps / K.
    batch, smoothing = square_batch(8), fields.get("label_smoothing", 0.0)
    targets = (1 - smoothing) * np.eye(10)[batch["label"]] + smoothing / 10
    _, metrics = compiled_step(**fields)(linear_state(), batch, 3)
    assert_losses(metrics, losses_against(batch["image"] / 255, targets))


def shares_of(mixed, views):
    """Computes the share of each view in its mixture with the one before it."""
    others = np.roll(views, 1, axis=0)
    axes = (1, 2, 3)
    shares = np.sum((mixed - others) * (views - others), axes)
    shares /= np.sum((views - others) ** 2, axes)
    expected = others + shares[:, None, None, None] * (views - others)
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-5)
    return shares


def test_views_are_a_function_of_seed_and_step():
    batch = square_batch(8)
    view = view_of(batch, **VIEWS)
    np.testing.assert_array_equal(view_of(batch, **VIEWS), view)
    # In the next epoch, alternating flips would tell the views apart.
    for other in ({"step": 2}, {"seed": 4}):
        assert np.any(view_of(batch, **other, **VIEWS) != view)


def test_mixed_targets_need_no_smoothing():
    batch, shares = with_partners(square_batch(8)), np.linspace(0.5, 1, 8)
    targets = Objective(mixup_alpha=1.0).soft_targets(batch, 10, shares)
    own = np.eye(10)[batch["label"]]
    expected = shares[:, None] * own + (1 - shares[:, None]) * np.roll(own, 1, axis=0)
    np.testing.assert_allclose(targets, expected, rtol=1e-6)


def test_mixup_is_of_each_example_and_the_one_before_it():
    batch, smoothing = square_batch(8), MIXED["label_smoothing"]
    views = view_of(batch, **VIEWS)  # The partner is augmented as if it were alone.
    metrics, mixed = run_with_view(with_partners(batch), **MIXED)
    shares = shares_of(mixed, views)
    _, later = run_with_view(with_partners(batch), step=1, **MIXED)
    assert np.abs(later - mixed).max(axis=(1, 2, 3)).min() > 1e-5
    assert 0.5 <= shares.min() < 0.9 < shares.max() <= 1
    # arXiv 1710.09412 mixes images and labels alike.
    labels = np.eye(10)[batch["label"]]
    targets = shares[:, None] * labels
    targets += (1 - shares[:, None]) * np.roll(labels, 1, axis=0)
    targets = (1 - smoothing) * targets + smoothing / 10
    assert_losses(metrics, losses_against(mixed, targets))
    # Accuracy counts hits of the example with the larger share.
    logits = mixed[:, 0, :, 0] @ linear_state().params["kernel"]
    hits = np.argmax(logits, axis=1) == batch["label"]
    assert float(metrics["accuracy"]) == pytest.approx(hits.mean())


def test_lambdas_are_of_the_beta_distribution_folded():
    draw, indices = jax.jit(mixup_lambdas), np.arange(3000)
    for alpha in (0.2, 1.0):
        lambdas = np.asarray(draw(jax.random.key(3), indices, alpha))
        # A lambda is max(x, 1 - x), so that P(lambda < s) = 2 F(s) - 1.
        levels = 2 * scipy.stats.beta(alpha, alpha).cdf(np.minimum(lambdas, 1)) - 1
        assert_evenly_spread(levels, 0, 1)
        # The shares are a function of key and index.
        order = np.random.default_rng(1).permutation(3000)
        again = draw(jax.random.key(3), indices[order], alpha)
        np.testing.assert_array_equal(again, lambdas[order])
        assert np.mean(draw(jax.random.key(4), indices, alpha) == lambdas) < 0.5


def test_devices_and_parts_give_the_update_of_the_whole():
    """The partner of mixup may be on another device and in another part."""
    batch, devices = with_partners(square_batch(8)), jax.devices()
    fields = {"axis_name": AXIS_NAME, "accumulation_steps": 2, **MIXED}
    step = parallel_train_step(step_with(**fields), devices)
    state = replicate(linear_state(), devices)
    state, metrics = step(state, split_over_devices(batch, len(devices)), 3)
    metrics = {name: values.addressable_data(0)[0] for name, values in metrics.items()}
    whole_step = compiled_step(model=Linear(keeps_images=True), **MIXED)
    whole, expected = whole_step(linear_state(), batch, 3)
    ours = state.params, state.opt_state, metrics
    theirs = whole.params, whole.opt_state, expected
    assert_same_tree(*jax.device_get((ours, theirs)), rtol=1e-5)


def test_alternating_flips_last_an_epoch():
    batch = square_batch(16)
    plain = batch["image"] / np.float32(255)
    fields = {"augment": augment(flip="alternating"), "epoch_steps": 3}
    flips = []
    for step in (0, 1, 2, 3, 5, 6):
        view = view_of(batch, step=step, **fields)
        flipped = np.abs(view - plain).max(axis=(1, 2, 3)) > 1e-6
        expected = np.where(flipped[:, None, None, None], plain[:, :, ::-1], plain)
        np.testing.assert_allclose(view, expected, rtol=0, atol=1e-6)
        flips.append(flipped.tolist())
    first, second = flips[0], [not flip for flip in flips[0]]
    assert flips == [first] * 3 + [second] * 2 + [first]
    assert 0 < sum(first) < 16


def test_weight_of_the_heads_may_fall():
    batch, falling = square_batch(8), optax.linear_schedule(0.3, 0.0, 10)
    falling_step, constant_step = (compiled_step(aux_weight=w) for w in (falling, 0.15))
    for step, weight in ((0, 0.3), (5, 0.15), (10, 0.0)):
        state = linear_state(step=jnp.asarray(step, jnp.int32))
        after, metrics = falling_step(state, batch, 3)
        heads = metrics["aux_4a_loss"] + metrics["aux_4d_loss"]
        expected = metrics["main_loss"] + weight * heads
        assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-6)
        if weight == 0.15:  # This differs from both ends.
            same, _ = constant_step(state, batch, 3)
            assert_same_tree(after.params, same.params, rtol=1e-6)


@pytest.mark.parametrize(("kind", "start"), [("ema", 0), ("ema", 2), ("polyak", 2)])
def test_averages_against_numpy(kind, start):
    averaging = Averaging(kind=kind, decay=0.6, start_step=start)
    state = linear_state()
    state = dataclasses.replace(state, averages=state.variables)
    step, plain = compiled_step(averaging=averaging), compiled_step()
    raw, history, expected = linear_state(), [], None
    for number in range(6):
        batch = square_batch(8, first_index=8 * number)
        batch["image"] = np.roll(batch["image"], number, axis=1)
        state, _ = step(state, batch, 3)
        raw, _ = plain(raw, batch, 3)
        history.append(jax.device_get(raw.variables))
        if number <= start:
            expected = history[-1]
        elif kind == "polyak":
            expected = jax.tree.map(lambda *all: np.mean(all, axis=0), *history[start:])
        else:
            # The mean is plain until the latest weights would count less than 1 - 0.6.
            weight = max(1 / (number - start + 1), 1 - 0.6)
            pull = partial(np.average, axis=0, weights=[1 - weight, weight])
            pairs = jax.tree.map(lambda *pair: np.stack(pair), expected, history[-1])
            expected = jax.tree.map(pull, pairs)
        assert state.averages.keys() == {"params", "batch_stats"}
        assert_same_tree(state.averages, expected, rtol=1e-5)
    # Averaging does not change training.
    assert_same_tree(state.variables, raw.variables, rtol=1e-6)
    difference = np.abs(state.averages["params"]["kernel"] - raw.params["kernel"])
    assert difference.max() > 1e-3


@pytest.mark.parametrize("fields", [{}, {"accumulation_steps": 4}], ids=str)
def test_statistics_are_updated_part_after_part(fields):
    batch, parts = square_batch(8), fields.get("accumulation_steps", 1)
    state, _ = compiled_step(**fields)(linear_state(), batch, 3)
    mean = np.full(SIDE, 0.2)
    for part in range(parts):
        values = batch["image"][part::parts, 0, :, 0] / 255
        mean = 0.9 * mean + 0.1 * values.mean(axis=0)
    np.testing.assert_allclose(state.batch_stats["mean"], mean, rtol=1e-5)


@pytest.mark.slow
def test_parts_give_the_network_the_update_of_the_whole():
    """Compares in float64, with dropout and augmentation, on two devices with one."""
    with jax.enable_x64(True):
        model, batch = small_googlenet("seed", dtype=jnp.dtype("float64")), random_batch(8)
        whole = run_steps(model, batch)
        in_parts = run_steps(model, batch, num_devices=2, accumulation_steps=2)
        assert_same_tree(in_parts, whole, rtol=1e-9)


@pytest.mark.parametrize(
    ("batch_size", "num_devices", "parts", "hint"),
    [
        (10, 1, 4, "batch_size=8 or 12$"),
        (12, 4, 2, "batch_size=8 or 16$"),
        (3, 1, 4, "batch_size=4$"),
        (24, 2, 8, "batch_size=16 or 32$"),
    ],
)
def test_refuses_a_batch_that_the_parts_cannot_share(batch_size, num_devices, parts, hint):
    with pytest.raises(UserError, match=f"in {parts} steps: .*{hint}"):
        check_batch_divides(batch_size, num_devices, parts)
    check_batch_divides(2 * num_devices * parts, num_devices, parts)
