import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from helpers.networks import numpy_variables, shapes_of, small_googlenet

from googlenet_flax import create_model
from googlenet_flax.model import ops
from googlenet_flax.model.convolution import FASTEST, STOCK
from googlenet_flax.model.googlenet import VARIANTS
from googlenet_flax.model.layers import Dropout


@functools.cache
def shapes(variant, size=224, **kwargs):
    """Returns the shapes of the variables of a network, without computing them."""
    return shapes_of(create_model(variant, **kwargs), 1, size, size, 3)[1]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("variant", "num_classes", "aux_heads", "expected"),
    [
        # From model.summary() of the Keras tutorial.
        ("seed", 10, True, 10_334_030),
        ("bn", 10, True, 10_341_566),  # As README prints it.
        # From deploy.prototxt of Caffe's bvlc_googlenet; test_table1 has it with heads.
        ("paper", 1000, False, 6_998_552),
        # From torchvision.models.googlenet(aux_logits=True); GoogLeNet_Weights' num_params.
        ("torchvision", 1000, True, 13_004_888),
        ("torchvision", 1000, False, 6_624_904),
    ],
)
def test_parameters_of_the_originals(variant, num_classes, aux_heads, expected):
    tree = shapes(variant, num_classes=num_classes, aux_heads=aux_heads)
    assert count(tree["params"]) == expected


KERNELS = ("conv2/conv/kernel", "aux_4a/fc/kernel")


@functools.cache
def start_values(variant):
    """Returns initial biases and `KERNELS` by path; all kernels would take long to draw."""
    model = small_googlenet(variant)

    def init():
        variables = model.init(jax.random.key(0), jnp.zeros((1, 80, 80, 3)), train=False)
        leaves = traverse_util.flatten_dict(variables["params"], sep="/")
        chosen = {path for path in leaves if path in KERNELS or path.endswith("/bias")}
        return {path: leaves[path] for path in chosen}

    return jax.jit(init)()


@pytest.mark.parametrize(
    ("variant", "path", "value"),
    [
        # The tutorial has bias_initializer=Constant(0.2) only in conv1 and the blocks.
        ("seed", "conv1/conv", 0.2),
        ("seed", "inception_4a/5x5/conv", 0.2),
        ("seed", "conv2_reduce/conv", 0.0),
        ("seed", "conv2/conv", 0.0),
        ("seed", "aux_4a/proj/conv", 0.0),
        ("seed", "aux_4a/fc", 0.0),
        # The bias_filler of bvlc_googlenet is 0.2 except in the classifiers.
        ("paper", "conv1/conv", 0.2),
        ("paper", "conv2/conv", 0.2),
        ("paper", "aux_4d/proj/conv", 0.2),
        ("paper", "aux_4d/fc", 0.2),
        ("paper", "aux_4d/classifier", 0.0),
        ("paper", "classifier", 0.0),
    ],
)
def test_start_values_of_biases(variant, path, value):
    np.testing.assert_allclose(start_values(variant)[f"{path}/bias"], value)


@pytest.mark.parametrize(
    ("variant", "variance"),
    [
        ("seed", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
        ("paper", lambda fan_in, _: 1 / fan_in),
        ("bn", lambda fan_in, _: 2 / fan_in),
        ("torchvision", lambda *_: 0.01**2),
    ],
)
def test_start_values_of_kernels(variant, variance):
    for path in KERNELS:
        kernel = start_values(variant)[path]
        *window, inputs, outputs = kernel.shape
        area = math.prod(window)
        expected = variance(area * inputs, area * outputs)
        assert jnp.var(kernel) == pytest.approx(expected, rel=0.06)  # Over 6,000 values.


@pytest.fixture(scope="module")
def bn_logits():
    """Returns a compiled function of variables to logits, and variables."""
    model = small_googlenet("bn")
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    apply = jax.jit(lambda variables: model.apply(variables, images, train=False))
    return apply, numpy_variables(model)


@pytest.mark.parametrize(
    ("path", "heads"),
    [
        (("aux_4a", "classifier", "bias"), {"aux_4a"}),
        (("aux_4d", "classifier", "bias"), {"aux_4d"}),
        (("classifier", "bias"), {"logits"}),
        (("inception_4a", "1x1", "bn", "bias"), {"logits", "aux_4a", "aux_4d"}),
        (("inception_4d", "1x1", "bn", "bias"), {"logits", "aux_4d"}),
        (("inception_5a", "1x1", "bn", "bias"), {"logits"}),
    ],
)
def test_heads_answer_to_their_own_names_and_taps(bn_logits, path, heads):
    """Checks `bn`, which has no original; test_parity checks the other variants."""
    apply, variables = bn_logits
    flat = traverse_util.flatten_dict(variables)
    flat["params", *path] = flat["params", *path] + 1.0
    before, after = apply(variables), apply(traverse_util.unflatten_dict(flat))
    names = ("logits", "aux_4a", "aux_4d")
    unlike = (n for n in names if not np.allclose(getattr(before, n), getattr(after, n)))
    assert set(unlike) == heads


@pytest.mark.parametrize(
    ("variant", "dtype", "x64"),
    [("bn", "bfloat16", False), ("seed", "float32", True), ("bn", "float32", True)],
)
def test_parameters_and_logits_are_float32(variant, dtype, x64):
    with jax.enable_x64(x64):  # JAX then defaults to float64.
        outputs = shapes_of(small_googlenet(variant, dtype=jnp.dtype(dtype)), 1, 80, 80, 3)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(outputs)} == {"float32"}


@pytest.mark.parametrize(
    ("variant", "rate"),
    [("seed", 0.4), ("paper", 0.4), ("bn", 0.4), ("torchvision", 0.2)],
)
def test_dropout_rates_are_those_of_the_originals(variant, rate):
    rates = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, Dropout):
            rates.append(context.module.rate)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes_of(small_googlenet(variant), 1, 80, 80, 3)
    assert rates == [0.7, 0.7, rate]


def test_dropout_keeps_the_mean_and_each_example_its_mask():
    x, rngs = jnp.ones((64, 1024)), {"dropout": jax.random.key(0)}
    y, turned = (
        Dropout(0.7).apply({}, x, ids, train=True, rngs=rngs)
        for ids in (jnp.arange(64), jnp.arange(64)[::-1])
    )
    np.testing.assert_array_equal(turned, y[::-1])
    assert np.all(np.any(y[1:] != y[:-1], axis=1))
    assert np.mean(y == 0) == pytest.approx(0.7, abs=0.01)
    np.testing.assert_allclose(y[y != 0], 1 / 0.3, rtol=1e-6)


def test_running_statistics_follow_the_batch_with_flax_momentum():
    model = small_googlenet("torchvision")
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    variables = numpy_variables(model)
    fields = {"rngs": {"dropout": jax.random.key(0)}, "mutable": ["batch_stats"]}
    apply = functools.partial(model.apply, train=True, **fields)
    conv1 = jax.jit(lambda *args: apply(*args)[1]["batch_stats"]["conv1"])
    statistics = conv1(variables, images)["bn"]
    kernel = variables["params"]["conv1"]["conv"]["kernel"]
    activations = jax.lax.conv_general_dilated(
        images, kernel, (2, 2), ((3, 3), (3, 3)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    # With torch's momentum of 0.1, new = 0.9 * old + 0.1 * batch.
    mean, var = jnp.mean(activations, (0, 1, 2)), jnp.var(activations, (0, 1, 2))
    np.testing.assert_allclose(statistics["mean"], 0.1 * mean, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * var, rtol=1e-4)


@pytest.mark.parametrize(
    ("variant", "shape", "message"),
    [
        ("seed", (1, 96, 79, 3), "at least 80x80"),
        ("bn", (1, 31, 96, 3), "at least 32x32"),
        ("seed", (1, 96, 96, 1), "must be"),
        ("seed", (96, 96, 3), "must be"),
    ],
)
def test_refuses_images_it_cannot_take(variant, shape, message):
    model = create_model(variant, num_classes=10)
    with pytest.raises(ValueError, match=message):
        shapes_of(model, *shape)


@pytest.mark.parametrize("variant", ["seed", "paper"])
def test_without_heads_it_takes_images_from_32_pixels_on(variant):
    model = small_googlenet(variant, aux_heads=False)
    output, _ = shapes_of(model, 2, 32, 32, 3)
    assert output.logits.shape == (2, 10)
    with pytest.raises(ValueError, match="at least 32x32"):
        shapes_of(model, 2, 32, 31, 3)


def test_takes_an_empty_batch():
    model = small_googlenet("bn", arithmetic=FASTEST["cpu"])
    images = jax.ShapeDtypeStruct((0, 32, 32, 3), jnp.float32)
    output, _ = jax.eval_shape(
        lambda images: model.init_with_output(jax.random.key(0), images, train=False),
        images,
    )
    assert {x.shape for x in jax.tree.leaves(output)} == {(0, 10)}


def test_heads_that_pool_to_a_fixed_size_take_small_images():
    variant = dataclasses.replace(
        VARIANTS["seed"], aux_windows=lambda size: ops.adaptive_windows(size, 2)
    )
    assert variant.is_size_free and variant.min_image_size == 32


def test_refuses_an_unknown_variant():
    with pytest.raises(ValueError, match="'sead'; choose one of seed, paper, bn"):
        create_model("sead", num_classes=10)


@pytest.mark.parametrize("variant", ["bn", "torchvision"])
def test_forward_mode_works_with_the_operations_of_xla(variant):
    model = small_googlenet(variant, arithmetic=STOCK)
    x, variables = jnp.zeros((1, 80, 80, 3)), numpy_variables(model)
    apply = functools.partial(model.apply, variables, train=False)
    jax.jit(lambda x: jax.jvp(apply, (x,), (x,))).lower(x)


def test_equal_models_are_the_same_static_argument_of_jit():
    models = [create_model("bn", num_classes=3) for _ in range(2)]
    assert hash(models[0]) == hash(models[1]) and models[0] == models[1]
    assert hash(models[0].clone(inceptions={"inception_3a": (1, 1, 1, 1, 1, 1)}))
    turned = dict(reversed([*models[0].inceptions.items()]))
    assert models[0].clone(inceptions=turned) != models[0]
