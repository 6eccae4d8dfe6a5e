import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from helpers.networks import numpy_variables, small_googlenet

from googlenet_flax import create_model
from googlenet_flax.model.googlenet import INCEPTIONS, VARIANTS


def shapes(variant, size=224, **kwargs):
    """Collections of an initialised network, as shapes: no arithmetic is done."""
    model = create_model(variant, **kwargs)
    images = jnp.zeros((1, size, size, 3))
    return jax.eval_shape(
        lambda rng: model.init(rng, images, train=False), jax.random.key(0)
    )


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("variant", "num_classes", "aux_heads", "expected"),
    [
        # The Keras tutorial's model.summary().
        ("seed", 10, True, 10_334_030),
        # Caffe's bvlc_googlenet: train_val.prototxt with both heads, deploy.prototxt.
        ("paper", 1000, True, 13_378_280),
        ("paper", 1000, False, 6_998_552),
        # torchvision.models.googlenet(aux_logits=True); GoogLeNet_Weights' num_params.
        ("torchvision", 1000, True, 13_004_888),
        ("torchvision", 1000, False, 6_624_904),
    ],
)
def test_parameters_of_the_originals(variant, num_classes, aux_heads, expected):
    tree = shapes(variant, num_classes=num_classes, aux_heads=aux_heads)
    assert count(tree["params"]) == expected


def test_statistics_of_torchvision():
    # Running means and variances in torchvision's state_dict, without its counters.
    assert count(shapes("torchvision", num_classes=1000)["batch_stats"]) == 15_072


# Rows of the Keras tutorial's model.summary().
KERAS_SUMMARY = {
    "conv1": 9_472,
    "conv2_reduce": 4_160,
    "conv2": 110_784,
    "inception_3a/1x1": 12_352,
    "inception_3a/3x3_reduce": 18_528,
    "inception_3a/3x3": 110_720,
    "inception_3a/5x5_reduce": 3_088,
    "inception_3a/5x5": 12_832,
    "inception_3a/pool_proj": 6_176,
    "aux_4a/proj": 65_664,
    "aux_4d/proj": 67_712,
    "aux_4a/fc": 2_098_176,
    "aux_4d/fc": 2_098_176,
    "aux_4a/classifier": 10_250,
    "aux_4d/classifier": 10_250,
    "classifier": 10_250,
}


@pytest.mark.parametrize("path", KERAS_SUMMARY)
def test_rows_of_the_keras_summary(path):
    tree = shapes("seed", num_classes=10)["params"]
    for name in path.split("/"):
        tree = tree[name]
    assert count(tree) == KERAS_SUMMARY[path]


def test_names_of_the_parameter_tree():
    tree = shapes("bn", num_classes=10)
    paths = {"/".join(path[:-1]) for path in traverse_util.flatten_dict(tree["params"])}
    blocks = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")
    convs = ["conv1", "conv2_reduce", "conv2", "aux_4a/proj", "aux_4d/proj"]
    convs += [f"{inception}/{block}" for inception in INCEPTIONS for block in blocks]
    dense = [
        "classifier",
        *(f"aux_4{x}/{y}" for x in "ad" for y in ("fc", "classifier")),
    ]
    expected = {f"{conv}/{part}" for conv in convs for part in ("conv", "bn")} | set(dense)
    assert paths == expected
    block = tree["params"]["inception_3a"]["5x5"]
    assert block["conv"].keys() == {"kernel"}
    assert block["bn"].keys() == {"scale", "bias"}
    assert tree["batch_stats"]["inception_3a"]["5x5"]["bn"].keys() == {"mean", "var"}
    assert block["conv"]["kernel"].shape == (5, 5, 16, 32)


@pytest.mark.parametrize("variant", ["bn", "torchvision"])
def test_tree_does_not_depend_on_the_image_size(variant):
    small, large = (shapes(variant, size, num_classes=10) for size in (32, 224))
    assert small == large


@functools.cache
def start_biases(variant):
    """Path to bias; the kernels are left out, so that no generator is compiled."""
    model = small_googlenet(variant)

    def init():
        variables = model.init(jax.random.key(0), jnp.zeros((1, 80, 80, 3)), train=False)
        leaves = traverse_util.flatten_dict(variables["params"], sep="/")
        return {path: leaf for path, leaf in leaves.items() if path.endswith("/bias")}

    return jax.jit(init)()


@pytest.mark.parametrize(
    ("variant", "path", "value"),
    [
        # The tutorial gives bias_initializer=Constant(0.2) to conv1 and the blocks only.
        ("seed", "conv1/conv", 0.2),
        ("seed", "inception_4a/5x5/conv", 0.2),
        ("seed", "conv2_reduce/conv", 0.0),
        ("seed", "conv2/conv", 0.0),
        ("seed", "aux_4a/proj/conv", 0.0),
        ("seed", "aux_4a/fc", 0.0),
        # bvlc_googlenet's bias_filler: 0.2 everywhere but in the classifiers.
        ("paper", "conv1/conv", 0.2),
        ("paper", "conv2/conv", 0.2),
        ("paper", "aux_4d/proj/conv", 0.2),
        ("paper", "aux_4d/fc", 0.2),
        ("paper", "aux_4d/classifier", 0.0),
        ("paper", "classifier", 0.0),
    ],
)
def test_start_values_of_biases(variant, path, value):
    np.testing.assert_allclose(start_biases(variant)[f"{path}/bias"], value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_heads_answer_to_their_own_names_and_taps(variant):
    model = small_googlenet(variant)
    images = jax.random.uniform(jax.random.key(1), (2, 80, 80, 3))
    variables = numpy_variables(model)
    apply = jax.jit(
        lambda params: model.apply({**variables, "params": params}, images, train=False)
    )

    def changed(path):
        params = jax.tree.map(lambda leaf: leaf, variables["params"])
        block = params
        for name in path[:-1]:
            block = block[name]
        block[path[-1]] = block[path[-1]] + 1.0
        before, after = apply(variables["params"]), apply(params)
        return {
            name
            for name in ("logits", "aux_4a", "aux_4d")
            if not np.allclose(getattr(before, name), getattr(after, name))
        }

    last = "bn" if VARIANTS[variant].batch_norm else "conv"
    assert changed(("aux_4a", "classifier", "bias")) == {"aux_4a"}
    assert changed(("aux_4d", "classifier", "bias")) == {"aux_4d"}
    assert changed(("classifier", "bias")) == {"logits"}
    assert changed(("inception_4a", "1x1", last, "bias")) == {
        "logits",
        "aux_4a",
        "aux_4d",
    }
    assert changed(("inception_4d", "1x1", last, "bias")) == {"logits", "aux_4d"}
    assert changed(("inception_5a", "1x1", last, "bias")) == {"logits"}


def test_without_heads_none_is_built():
    model = small_googlenet("seed", aux_heads=False)
    images = jnp.zeros((1, 80, 80, 3))
    out, variables = jax.eval_shape(
        lambda rng: model.init_with_output(rng, images, train=False), jax.random.key(0)
    )
    assert out.aux_4a is None and out.aux_4d is None
    assert not any(name.startswith("aux") for name in variables["params"])


def test_bfloat16_keeps_parameters_and_logits_in_float32():
    model = small_googlenet("bn", dtype=jnp.dtype("bfloat16"))
    out, variables = jax.eval_shape(
        lambda rng: model.init_with_output(rng, jnp.zeros((1, 80, 80, 3)), train=False),
        jax.random.key(0),
    )
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((out, variables))}
    assert dtypes == {jnp.dtype("float32")}


def test_dropout_mask_belongs_to_the_example():
    model = small_googlenet("seed")
    images = jnp.tile(jax.random.uniform(jax.random.key(1), (1, 80, 80, 3)), (4, 1, 1, 1))
    variables = numpy_variables(model)

    @jax.jit
    def logits(ids):
        rngs = {"dropout": jax.random.key(7)}
        return model.apply(variables, images, train=True, example_ids=ids, rngs=rngs).aux_4a

    straight = logits(jnp.array([5, 6, 7, 5]))
    shuffled = logits(jnp.array([7, 5, 5, 6]))
    np.testing.assert_array_equal(straight[0], straight[3])
    np.testing.assert_array_equal(straight[jnp.array([2, 0, 0, 1])], shuffled)
    assert not np.allclose(straight[0], straight[1])


def test_running_statistics_follow_the_batch_with_flax_momentum():
    model = small_googlenet("torchvision")
    images = jax.random.uniform(jax.random.key(1), (2, 80, 80, 3))
    variables = numpy_variables(model)
    _, updates = jax.jit(
        lambda: model.apply(
            variables,
            images,
            train=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )
    )()
    kernel = variables["params"]["conv1"]["conv"]["kernel"]
    activations = jax.lax.conv_general_dilated(
        images,
        kernel,
        (2, 2),
        ((3, 3), (3, 3)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    # torch's momentum 0.1: new = 0.9 * old + 0.1 * batch.
    statistics = updates["batch_stats"]["conv1"]["bn"]
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
        jax.eval_shape(
            lambda rng: model.init(rng, jnp.zeros(shape), train=False),
            jax.random.key(0),
        )


def test_refuses_an_unknown_variant():
    with pytest.raises(
        ValueError, match="'sead'; choose one of seed, paper, bn, torchvision"
    ):
        create_model("sead", num_classes=10)
