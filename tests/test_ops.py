import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from googlenet_flax.model import ops


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_relu_and_its_gradient_are_jaxs(dtype):
    values = [-jnp.inf, -1.0, -1e-30, -0.0, 0.0, 1e-30, 1.0, jnp.inf, jnp.nan]
    x, grad = jnp.array(values, dtype), jnp.arange(1, 10, dtype=dtype)
    ours, our_vjp = jax.vjp(ops.relu, x)
    stock, stock_vjp = jax.vjp(jax.nn.relu, x)
    for result in (ours, ops.relu(x)):
        assert result.dtype == x.dtype
        np.testing.assert_array_equal(np.float32(result), np.float32(stock))
    assert jnp.isnan(ours[-1])
    np.testing.assert_array_equal(our_vjp(grad)[0], stock_vjp(grad)[0], strict=True)
    np.testing.assert_array_equal(our_vjp(grad)[0], [0, 0, 0, 0, 0, 6, 7, 8, 0])


def test_bias_gradients_of_bfloat16_are_summed_in_float32():
    rng = np.random.default_rng(0)
    x = jnp.zeros((16, 56, 56, 8), jnp.bfloat16)
    grad = jnp.asarray(rng.normal(1, 1, x.shape), jnp.bfloat16)
    y, vjp = jax.vjp(ops.add_bias, x, jnp.ones(8))
    grad_x, grad_bias = vjp(grad)
    exact = np.sum(np.asarray(grad, np.float64), axis=(0, 1, 2))
    np.testing.assert_array_equal(y, np.ones(x.shape))
    np.testing.assert_array_equal(grad_x, grad)
    assert grad_bias.dtype == jnp.float32
    np.testing.assert_allclose(grad_bias, exact, rtol=1e-6)


def test_refuses_another_padding_of_pools():
    with pytest.raises(ValueError, match="'SAME' or 'CEIL', got 'VALID'"):
        ops.pool_padding(8, 3, 2, "VALID")


POOLS = [  # Those of the network come first.
    *((3, 2, "SAME"), (3, 2, "CEIL"), (2, 2, "CEIL"), (3, 1, "SAME")),
    *((2, 3, "SAME"), (3, 3, "CEIL")),
]


@pytest.mark.parametrize(
    ("window", "stride", "padding", "dtype"),
    [*((*pool, "float32") for pool in POOLS), *((*pool, "bfloat16") for pool in POOLS[:2])],
)
@settings(max_examples=2, deadline=None)
@given(height=st.integers(3, 13), width=st.integers(3, 13), seed=st.integers(0, 1000))
def test_max_pool_equals_xla_ties_included(
    window, stride, padding, dtype, height, width, seed
):
    rng = np.random.default_rng(seed)
    # With small integers nearly every window holds a tie.
    x = jnp.asarray(rng.integers(-2, 2, (2, height, width, 3)), dtype)
    pads = [ops.pool_padding(size, window, stride, padding) for size in (height, width)]
    sides = {"window_shape": (window,) * 2, "strides": (stride,) * 2}
    stock = functools.partial(nn.max_pool, padding=pads, **sides)
    ours = functools.partial(ops.max_pool, window=window, stride=stride, padding=padding)
    # Sums of integer cotangents are exact, so the order of addition does not matter.
    grad = jnp.asarray(rng.integers(-9, 9, jax.eval_shape(ours, x).shape), dtype)

    @jax.jit
    def run(x, grad):
        def compute(max_pool):
            y, vjp = jax.vjp(max_pool, x)
            return y, max_pool(x), vjp(grad)

        gathers = [functools.partial(ours, gather=gather) for gather in (True, False)]
        return [compute(max_pool) for max_pool in (stock, *gathers)]

    expected, *results = run(x, grad)
    for actual in results:
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
        assert {leaf.dtype for leaf in jax.tree.leaves(actual)} == {jnp.dtype(dtype)}


def test_max_pool_orders_all_of_bfloat16():
    bits = jnp.arange(2**16, dtype=jnp.uint16)
    values = jax.lax.bitcast_convert_type(bits, jnp.bfloat16)
    values = jnp.where(values == 0, 0, values)  # The maximum of 0 and -0 can be either.
    for seed in range(3):
        pairs = np.random.default_rng(seed).permutation(2**17).reshape(-1, 2) % 2**16
        windows = values[pairs].reshape(-1, 1, 2, 1).repeat(2, axis=1)
        ours = ops.max_pool(windows, window=2, stride=2, padding="CEIL")
        expected = np.asarray(values, np.float32)[pairs].max(axis=1)  # NaN propagates.
        np.testing.assert_array_equal(np.float32(ours).ravel(), expected)


@pytest.mark.parametrize("gather", [True, False])
def test_max_pool_lets_nan_through(gather):
    x = jnp.ones((1, 5, 5, 1)).at[0, 1, 1, 0].set(jnp.nan)

    def max_pool(x):
        return ops.max_pool(x, window=3, stride=1, padding="SAME", gather=gather)

    in_training, _ = jax.vjp(max_pool, x)
    for out in (in_training, max_pool(x)):
        # Exactly the windows that contain the element pass its gradient.
        is_nan = np.isnan(out[0, :, :, 0])
        assert is_nan[:3, :3].all() and is_nan.sum() == 9


def test_windows_of_the_auxiliary_pools():
    # In section 5 of the paper, 5x5/3 on 14x14 gives 4x4.
    windows = ops.sliding_windows(14, window=5, stride=3, round_up=False)
    assert windows == [(0, 5), (3, 8), (6, 11), (9, 14)]
    # Caffe rounds up and clips (pooling_layer.cpp).
    clipped = ops.sliding_windows(12, window=5, stride=3, round_up=True)
    assert clipped == [(0, 5), (3, 8), (6, 11), (9, 12)]
    # torch.nn.AdaptiveAvgPool2d(4) on 14: floor(i * 14 / 4), ceil((i + 1) * 14 / 4).
    assert ops.adaptive_windows(14, 4) == [(0, 4), (3, 7), (7, 11), (10, 14)]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_average_windows_is_the_mean(monkeypatch, platform):
    if platform == "tpu":  # These are the matrix products, computed on the CPU.
        monkeypatch.setattr(ops, "_window_means", ops._window_products)
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)
    rows, columns = [(0, 5), (2, 7)], [(0, 3), (1, 6), (5, 6)]
    expected = np.stack(
        [
            np.stack([x[:, a:b, c:d].mean(axis=(1, 2)) for c, d in columns], axis=1)
            for a, b in rows
        ],
        axis=1,
    )
    np.testing.assert_allclose(
        ops.average_windows(x, rows, columns), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_local_response_norm_and_its_gradient_equal_the_plain_formula(
    monkeypatch, platform
):
    if platform == "tpu":  # This is the sum of neighbors, computed on the CPU.
        monkeypatch.setattr(ops, "_shifted_sum", ops._neighbor_product)

    # Caffe, lrn_layer.cpp: scale = k + alpha / size * sum of squares over the window,
    # out = in * scale ** -beta.
    def plain(x, *, size=5, alpha=1e-4, beta=0.75, k=1.0):
        channels = np.arange(x.shape[-1])
        near = np.abs(channels[:, None] - channels) <= size // 2
        return x / (k + alpha / size * (x**2 @ near.astype(float))) ** beta

    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(scale=100, size=(2, 3, 2, 9)))
        grad = jnp.asarray(rng.normal(size=x.shape))

        def run(norm):
            y, vjp = jax.vjp(norm, x)
            return y, *vjp(grad)

        ours, ours_grad = jax.jit(run, static_argnums=0)(ops.local_response_norm)
        expected, plain_grad = jax.jit(run, static_argnums=0)(plain)
        np.testing.assert_allclose(ours, expected, rtol=1e-13)
        assert jnp.abs(plain_grad - grad).max() > 0.1  # The neighbors show the difference.
        np.testing.assert_allclose(ours_grad, plain_grad, rtol=1e-11, atol=1e-13)
