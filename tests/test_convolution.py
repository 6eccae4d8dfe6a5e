import dataclasses
import types
from functools import partial

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import pytest
from helpers.convolutions import (
    draw_convolution,
    exact_convolution,
    largest_differences,
    numpy_convolution,
    output_and_gradients,
)
from helpers.jaxprs import equations
from helpers.processes import finish, start_python
from helpers.untrained_runs import describe
from hypothesis import example, given, settings
from hypothesis import strategies as st

from googlenet_flax import create_model
from googlenet_flax.model import ops
from googlenet_flax.model.convolution import FASTEST, STOCK, Arithmetic, convolve

ARITHMETICS = {
    "stock": STOCK,
    "matmul_1x1": dataclasses.replace(STOCK, matmul_1x1=True),
    "winograd": dataclasses.replace(STOCK, winograd=True),
    "taps": dataclasses.replace(STOCK, matmul_weight_gradient=True),
    "onednn": dataclasses.replace(STOCK, onednn_gradients=True),
    "all": Arithmetic(**{field.name: True for field in dataclasses.fields(Arithmetic)}),
}
SYMMETRIC = ((3, 3), (3, 3))

# Kernel, stride and padding of every kind of convolution in the network.
CONVOLUTIONS = {
    "1x1": (1, 1, "SAME"),
    "3x3": (3, 1, "SAME"),
    "5x5": (5, 1, "SAME"),
    "conv1": (7, 2, "SAME"),
    "symmetric conv1": (7, 2, SYMMETRIC),
}


def convolver(arithmetic, stride, padding):
    """Returns our convolution, computed in one of the `ARITHMETICS`."""
    arithmetic = ARITHMETICS[arithmetic]
    return partial(convolve, stride=stride, padding=padding, arithmetic=arithmetic)


def assert_computes(x_shape, kernel_shape, stride, padding, arithmetic):
    """Compares output and gradients in float64 and float32 with NumPy's in float64."""
    ours = convolver(arithmetic, stride, padding)
    arrays, exact = exact_convolution(x_shape, kernel_shape, stride, padding)
    with jax.enable_x64(True):
        wide = output_and_gradients(ours, *arrays)
    narrow = output_and_gradients(ours, *(array.astype(np.float32) for array in arrays))
    for actual, dtype, bound in ((wide, "float64", 1e-11), (narrow, "float32", 1e-5)):
        assert [array.shape for array in actual] == [array.shape for array in exact]
        assert {array.dtype for array in actual} == {np.dtype(dtype)}
        differences = largest_differences(actual, exact)
        assert max(differences) < bound, differences


def convolution_shapes(function, *args):
    """Yields the sorted output shape of each of XLA's convolutions."""
    for equation in equations(jax.make_jaxpr(function)(*args).jaxpr):
        if equation.primitive.name == "conv_general_dilated":
            yield sorted(equation.outvars[0].aval.shape)


@pytest.mark.parametrize(
    ("name", "arithmetic"),
    [
        *((name, "taps") for name in CONVOLUTIONS if "conv1" in name),
        ("1x1", "matmul_1x1"),
        *((name, "onednn") for name in ("1x1", "3x3", "5x5")),
    ],
)
def test_every_branch_is_the_convolution(name, arithmetic):
    size, stride, padding = CONVOLUTIONS[name]
    channels = 3 if size == 7 else 12
    shapes = (2, 14, 11, channels), (size, size, channels, 8)
    assert_computes(*shapes, stride, padding, arithmetic)


@pytest.mark.parametrize(("size", "height", "width"), [(3, 2, 2), (5, 3, 6)])
def test_maps_that_are_smaller_than_the_kernel(size, height, width):
    shapes = (2, height, width, 3), (size, size, 3, 4)
    assert_computes(*shapes, 1, "SAME", "onednn")


@pytest.mark.parametrize(
    ("name", "arithmetic", "outputs", "kernel_gradients"),
    [
        *((name, "stock", 1, 1) for name in CONVOLUTIONS),
        *((name, "taps", 1, 0) for name in CONVOLUTIONS),
        *((name, "onednn", 1, int(name not in ("1x1", "3x3"))) for name in CONVOLUTIONS),
        *((name, "all", int("conv1" in name), 0) for name in CONVOLUTIONS),
        ("1x1", "matmul_1x1", 0, 0),
        *((name, "winograd", 0, 0) for name in ("3x3", "5x5")),
    ],
)
def test_every_branch_is_taken(name, arithmetic, outputs, kernel_gradients):
    """Counts XLA's convolutions in the output and in the gradient of the kernel."""
    size, stride, padding = CONVOLUTIONS[name]
    x, kernel = jnp.zeros((2, 14, 11, 12)), jnp.zeros((size, size, 12, 9))
    ours = convolver(arithmetic, stride, padding)

    def kernel_gradient(kernel):
        y, vjp = jax.vjp(partial(ours, x), kernel)
        return vjp(y)

    assert len(list(convolution_shapes(ours, x, kernel))) == outputs
    shapes = list(convolution_shapes(kernel_gradient, kernel))
    assert shapes.count(sorted(kernel.shape)) == kernel_gradients


pads = st.tuples(st.integers(0, 4), st.integers(0, 4))


@settings(max_examples=5, deadline=None)
@given(
    size=st.integers(1, 7),
    stride=st.integers(1, 4),
    padding=st.one_of(st.just("SAME"), st.tuples(pads, pads)),
    height=st.integers(7, 12),
    width=st.integers(7, 12),
)
# conv1 at an odd height and an even width; the tests above use an even and an odd one.
@example(size=7, stride=2, padding="SAME", height=11, width=12)
@example(size=7, stride=2, padding=SYMMETRIC, height=11, width=12)
def test_weight_gradient_as_a_product_of_any_convolution(
    size, stride, padding, height, width
):
    ours = convolver("taps", stride, padding)
    shapes = (2, height, width, 3), (size, size, 3, 2)
    arrays, exact = exact_convolution(*shapes, stride, padding)
    with jax.enable_x64(True):
        actual = output_and_gradients(ours, *arrays)
    assert max(largest_differences(actual, exact)) < 1e-11


@pytest.mark.parametrize(
    ("name", "arithmetic"),
    [("conv1", "taps"), ("1x1", "matmul_1x1"), ("3x3", "winograd"), ("5x5", "winograd")],
)
def test_keeps_bfloat16_and_is_as_exact_in_it(name, arithmetic):
    size, stride, padding = CONVOLUTIONS[name]
    arrays = draw_convolution((2, 9, 10, 6), (size, size, 6, 4), stride, padding)
    arrays = [array.astype(jnp.bfloat16) for array in arrays]
    exact = numpy_convolution(*(array.astype(float) for array in arrays), stride, padding)
    ours = convolver(arithmetic, stride, padding)
    actual = output_and_gradients(ours, *arrays)
    assert {array.dtype for array in actual} == {jnp.dtype("bfloat16")}
    # The bound is half a unit in the last of 8 places, for each example.
    differences = largest_differences([array.astype(float) for array in actual], exact)
    assert max(differences) < 2**-7, differences


def test_the_devices_that_run_a_network_choose_its_arithmetic():
    build = partial(create_model, "seed", num_classes=10)
    for platform in ("cpu", "gpu", "tpu", "another"):
        expected = FASTEST.get(platform, STOCK)
        assert build(platform=platform).arithmetic == expected
        assert build(platform=platform, arithmetic=STOCK).arithmetic == STOCK
        devices: list = [types.SimpleNamespace(platform=platform)]
        assert describe(class_names=("a", "b")).create_model(devices).arithmetic == expected
    assert build().arithmetic == FASTEST["cpu"]  # The default device is a CPU.


def test_onednn_computes_a_convolution_and_its_gradients_where_jaxlib_has_it():
    program = """
import jax
import jax.numpy as jnp
from googlenet_flax.model.convolution import FASTEST, convolve, fastest
from googlenet_flax.runtime.onednn import use_onednn_for

use_onednn_for("bfloat16")
arithmetic = fastest("cpu", jnp.dtype("bfloat16"))

def loss(x, kernel):
    y = convolve(x, kernel, stride=1, padding="SAME", arithmetic=arithmetic)
    return jnp.sum(jnp.square(y.astype(jnp.float32)))

x = jnp.zeros((2, 16, 16, 32), jnp.bfloat16)
kernel = jnp.zeros((3, 3, 32, 64), jnp.bfloat16)
compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile()
calls = compiled.as_text().count('custom_call_target="__onednn$')
is_fast = arithmetic == FASTEST["cpu_onednn_bfloat16"]
print(calls, is_fast, jax.config.jax_enable_compilation_cache)
"""
    code, out, err = finish(start_python("-c", program, env={"XLA_FLAGS": ""}))
    assert code == 0, err
    # An older jaxlib has no oneDNN, which also needs a processor with bfloat16.
    has_onednn = jaxlib.version.__version_info__ >= (0, 12)
    assert out.split()[:2] in [["3", "True"], ["0", "False"]]
    assert out.split()[2] == str(not has_onednn)


@pytest.mark.parametrize("name", ["taps", "onednn"])
def test_gradients_of_parameters_are_those_of_all_shards(name):
    """Compares a convolution with a bias inside `jax.shard_map` with one device."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 6, 6, 3)), jnp.float32)
    params = jnp.asarray(rng.normal(size=(3, 3, 3, 2)), jnp.float32), jnp.ones(2)

    def gradients(params, x):
        def loss(params):
            arithmetic = ARITHMETICS[name]
            y = convolve(x, params[0], stride=1, padding="SAME", arithmetic=arithmetic)
            return jnp.sum(jnp.square(ops.add_bias(y, params[1])))

        return jax.grad(loss)(params)

    mesh = jax.sharding.Mesh(jax.devices()[:2], ("batch",))
    specs = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("batch")
    sharded = jax.shard_map(gradients, mesh=mesh, in_specs=specs, out_specs=specs[0])
    each = (jax.jit(function)(params, x) for function in (sharded, gradients))
    for ours, expected in zip(*each, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4)
