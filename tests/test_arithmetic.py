"""Equality of the results of all choices of `convolution.Arithmetic`."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.jaxprs import equations
from helpers.networks import (
    numpy_variables,
    shapes_of,
    small_googlenet,
    variable_shapes,
)

from googlenet_flax import create_model
from googlenet_flax.model import ops
from googlenet_flax.model.convolution import FASTEST, STOCK, Arithmetic
from googlenet_flax.model.googlenet import VARIANTS
from googlenet_flax.model.layers import ConvBlock, Inception, InceptionWidths

ARITHMETICS = {name: FASTEST[name] for name in FASTEST if name != "tpu"}

# Bound of the difference of any logit, statistic or gradient, relative to the largest
# element of its leaf.
TOLERANCE = 1e-12

each_variant = pytest.mark.parametrize("variant", VARIANTS)


def errors(actual, expected):
    """Returns the largest difference of each leaf, relative to its largest element."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    paths = jax.tree_util.tree_leaves_with_path(expected)
    found = {}
    for (path, wanted), got in zip(paths, jax.tree.leaves(actual), strict=True):
        scale = np.abs(wanted).max()
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if scale == 0:  # All ReLUs of this narrow branch are off for these images.
            assert not np.any(got), name
            continue
        found[name] = np.abs(got - wanted).max() / scale
    assert len(found) > 0.9 * len(paths)
    return found


def step(model, variables, images):
    """Computes logits, new statistics and gradients of all parameters in training."""
    labels = np.arange(len(images))

    def loss(params):
        output, updates = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        logits = [output.logits, output.aux_4a, output.aux_4d]
        losses = [-jnp.mean(jax.nn.log_softmax(x)[labels, labels]) for x in logits]
        # As in train_step: main + 0.3 * aux_4a + 0.3 * aux_4d.
        return losses[0] + 0.3 * (losses[1] + losses[2]), (logits, updates)

    (_, aux), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    return jax.device_get((*aux, grads))


def steps(variant, size, dtype, **changed):
    """Computes a step with XLA's own operations and with each platform's arithmetic.

    `changed` are options that replace those of the arithmetics.
    """
    build = partial(create_model, variant, num_classes=10, width_multiplier=0.25)
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (3, size, size, 3)).astype(np.float32)
    with jax.enable_x64(True):  # Both dtypes then draw the same dropout masks.
        stock = build(arithmetic=STOCK, dtype=jnp.dtype(dtype))
        variables = jax.tree.map(
            lambda leaf: leaf.astype(np.float32).astype(dtype), numpy_variables(stock, size)
        )
        return [
            step(
                stock.clone(arithmetic=dataclasses.replace(arithmetic, **changed)),
                variables,
                images.astype(dtype),
            )
            for arithmetic in (STOCK, *ARITHMETICS.values())
        ]


def smooth_pool(x, *, window, stride, padding, gather=True):
    """Averages over the windows of a max pool."""
    del gather
    pads = [ops.pool_padding(size, window, stride, padding) for size in x.shape[1:3]]
    return nn.avg_pool(x, (window, window), (stride, stride), pads)


@pytest.mark.slow
@pytest.mark.parametrize("size", [80, 96])
@each_variant
def test_network_computes_the_same(variant, size, monkeypatch):
    exact, *others = steps(variant, size, "float64")
    for other in others:
        assert max(errors(other, exact).values()) <= TOLERANCE
    # In float32, rounding puts some of half a million values on the other side of zero,
    # where the gradient of ReLU jumps, and makes other cells the maxima of some windows.
    # Smooth functions show the rounding alone. Batch norm of three images amplifies it in
    # every arithmetic, that of XLA's own operations included.
    monkeypatch.setattr(ops, "relu", jax.nn.softplus)
    monkeypatch.setattr(nn, "relu", jax.nn.softplus)
    monkeypatch.setattr(ops, "max_pool", smooth_pool)
    exact, *_ = steps(variant, size, "float64")
    # `pool_first` moves pools before the activation, which only a maximum allows.
    float32 = steps(variant, size, "float32", pool_first=False)
    stock, *others = (errors(each, exact) for each in float32)
    for other in others:
        for name, error in other.items():
            assert error <= max(3e-5, 3 * stock[name]), (name, error, stock[name])


def inception_step(arithmetic, norm, max_pool, *, pool_first):
    """Computes output, new statistics and gradients of a block and a pool, float64."""
    block = Inception(
        InceptionWidths(5, 3, 7, 2, 4, 6),
        conv=partial(ConvBlock, norm=norm, dtype=jnp.float64, arithmetic=arithmetic),
        max_pool=max_pool,
    )
    pool = partial(max_pool, window=3, stride=2, padding="SAME")
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 7, 6, 5)))
    shapes = jax.eval_shape(block.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)
    y_grad = rng.normal(size=(2, 4, 3, 22))

    @jax.jit
    def run(params, x):
        def apply(params, x):
            trained = {**variables, "params": params}
            inside = block.clone(pool=pool) if pool_first else block
            y, updates = inside.apply(trained, x, mutable=["batch_stats"])
            return y if pool_first else pool(y), updates

        y, vjp, updates = jax.vjp(apply, params, x, has_aux=True)
        return y, updates, vjp(y_grad)

    return jax.device_get(run(variables["params"], x))


@pytest.mark.parametrize(
    ("norm", "platforms"),
    [
        (None, ("cpu", "cpu_onednn_bfloat16")),
        # The norm does not depend on how a convolution is computed.
        (partial(nn.BatchNorm, use_running_average=False, epsilon=1e-3), ("gpu",)),
    ],
    ids=["bias", "norm"],
)
def test_block_computes_the_same(norm, platforms):
    with jax.enable_x64(True):
        stock_pool = partial(ops.max_pool, gather=False)
        expected = inception_step(STOCK, norm, stock_pool, pool_first=False)
        for arithmetic in map(FASTEST.get, platforms):
            actual = inception_step(arithmetic, norm, ops.max_pool, pool_first=True)
            assert max(errors(actual, expected).values()) <= TOLERANCE


def test_pools_inside_the_blocks_in_front_of_them():
    """Computes a network in which LRN, and a head, read the map before a pool."""
    names = ("3b", "4a", "4d", "5a")
    widths = InceptionWidths(16, 12, 16, 8, 16, 16)
    inceptions = {f"inception_{name}": widths for name in names}
    with jax.enable_x64(True):
        model = small_googlenet("paper", dtype=jnp.dtype("float64"))
        model = model.clone(inceptions=inceptions)
        variables = numpy_variables(model)
        images = np.random.default_rng(0).normal(size=(2, 80, 80, 3))
        networks = (
            model.clone(arithmetic=Arithmetic(pool_first=pool_first))
            for pool_first in (False, True)
        )
        outputs = [
            jax.jit(partial(network.apply, train=False))(variables, images)
            for network in networks
        ]
        assert max(errors(outputs[1], outputs[0]).values()) <= TOLERANCE


@pytest.mark.parametrize(
    ("arithmetic", "expected"),
    [
        # Three in the stem, six in each of three blocks, and one in each head.
        (STOCK, 3 + 3 * 6 + 2),
        (FASTEST["gpu"], 3 + 3 * 4 + 2),  # The three 1x1s on a block's input are merged.
        (FASTEST["cpu"], 1),  # Only conv1 is left.
    ],
    ids=["stock", "gpu", "cpu"],
)
def test_number_of_convolutions(arithmetic, expected):
    model = small_googlenet("seed", arithmetic=arithmetic)
    images = jnp.zeros((1, 80, 80, 3))
    _, shapes = shapes_of(model, *images.shape)
    # A checkpoint fits every platform, because all networks have the same variables.
    assert shapes == variable_shapes(small_googlenet("seed"), 80)
    jaxpr = jax.make_jaxpr(partial(model.apply, train=False))(shapes, images).jaxpr
    names = [equation.primitive.name for equation in equations(jaxpr)]
    assert names.count("conv_general_dilated") == expected
