import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.images import random_images
from helpers.networks import numpy_variables, small_googlenet

from googlenet_flax import create_model
from googlenet_flax.analysis.endpoints import (
    activation_and_gradient,
    activations,
)


@pytest.fixture(
    scope="module", params=["paper", pytest.param("bn", marks=pytest.mark.slow)]
)
def network(request):
    model = small_googlenet(request.param)
    images = jnp.asarray(random_images(2, 80, 80, 3), jnp.float32) / 255
    return model, numpy_variables(model), images


def test_names_are_the_papers_and_shapes_those_of_table_1():
    # Side and depth of the rows of Table 1 at 224 px, in front of each pool.
    sides = {"conv1": (112, 64), "conv2_reduce": (56, 64), "conv2": (56, 192)}
    sides |= {"inception_3a": (28, 256), "inception_3b": (28, 480)}
    depths = {"4a": 512, "4b": 512, "4c": 512, "4d": 528, "4e": 832}
    sides |= {f"inception_{name}": (14, depth) for name, depth in depths.items()}
    sides |= {"inception_5a": (7, 832), "inception_5b": (7, 1024)}
    model = create_model("paper", num_classes=1000)
    images = jnp.zeros((1, 224, 224, 3))

    def initial_activations(rng):
        return activations(model, model.init(rng, images, train=False), images)

    outputs = jax.eval_shape(initial_activations, jax.random.key(0))
    shapes = {name: output.shape for name, output in outputs.items()}
    expected = {n: (1, side, side, depth) for n, (side, depth) in sides.items()}
    heads = dict.fromkeys(("aux_4a", "aux_4d", "classifier"), (1, 1000))
    assert shapes == expected | heads


def test_logits_are_those_of_the_network(network):
    """The last block explains them: behind it are a mean and one layer."""
    model, variables, images = network
    output = model.apply(variables, images, train=False)
    names = ["aux_4a", "aux_4d", "inception_5a", "classifier"]
    found = activations(model, variables, images, names)
    np.testing.assert_array_equal(found["classifier"], output.logits)
    np.testing.assert_array_equal(found["aux_4a"], output.aux_4a)
    np.testing.assert_array_equal(found["aux_4d"], output.aux_4d)
    layer = variables["params"]["classifier"]
    pooled = np.asarray(found["inception_5a"], np.float64).mean(axis=(1, 2))
    expected = pooled @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(found["classifier"], expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_goes_on_to_the_images(network):
    model, variables, images = network

    def score(output):
        return output.logits[:, 1]

    def maps_of(images):
        return activations(model, variables, images, ["inception_4a"])["inception_4a"]

    def score_of(images):
        return score(model.apply(variables, images, train=False)).sum()

    _, gradient = activation_and_gradient(model, variables, images, "inception_4a", score)
    _, to_images = jax.vjp(maps_of, images)
    actual, expected = to_images(gradient)[0], jax.grad(score_of)(images)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)


def test_what_lies_behind_a_head_has_no_say_in_it(network):
    model, variables, images = network

    for name, has_a_say in [("inception_4d", True), ("inception_5a", False)]:
        _, gradient = activation_and_gradient(
            model, variables, images, name, lambda output: output.aux_4d[:, 1]
        )
        assert bool(np.any(gradient)) == has_a_say


def test_unknown_names_and_parts_that_are_not_there(network):
    model, variables, images = network
    for name in ("inception_6a", "inception_3a"):
        with pytest.raises(ValueError, match=f"has no {name}; .* conv1, "):
            activations(model, variables, images, [name])
    with pytest.raises(ValueError, match="'classifier' has no map"):
        activation_and_gradient(model, variables, images, "classifier", lambda out: 0)
    headless = model.clone(aux_heads=False)
    with pytest.raises(ValueError, match="has no aux_4a"):
        activations(headless, variables, images, ["aux_4a"])
