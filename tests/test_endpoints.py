import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.images import random_images
from helpers.networks import numpy_variables, small_googlenet

from googlenet_flax import create_model
from googlenet_flax.analysis.cost import layer_shapes
from googlenet_flax.analysis.endpoints import (
    ENDPOINTS,
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


def test_shapes_are_those_that_the_cost_counts():
    model = create_model("paper", num_classes=1000)
    variables, shapes = layer_shapes(model, 224)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    function = functools.partial(activations, model)
    outputs = jax.eval_shape(function, {"params": variables}, images)
    assert {name: output.shape for name, output in outputs.items()} == {
        name: (1, *shapes[name]) for name in ENDPOINTS
    }


def test_logits_are_those_of_the_network(network):
    """Computes the logits from the last block, which a mean and one layer follow."""
    model, variables, images = network
    names = ["aux_4a", "aux_4d", "inception_5a", "pool", "classifier"]

    @jax.jit
    def run(images):
        output = model.apply(variables, images, train=False)
        return output, activations(model, variables, images, names)

    output, found = run(images)
    np.testing.assert_array_equal(found["classifier"], output.logits)
    np.testing.assert_array_equal(found["aux_4a"], output.aux_4a)
    np.testing.assert_array_equal(found["aux_4d"], output.aux_4d)
    layer = variables["params"]["classifier"]
    pooled = np.asarray(found["inception_5a"], np.float64).mean(axis=(1, 2))
    np.testing.assert_allclose(found["pool"], pooled, rtol=1e-5)
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

    @jax.jit
    def gradients(images):
        _, gradient = activation_and_gradient(
            model, variables, images, "inception_4a", score
        )
        _, to_images = jax.vjp(maps_of, images)
        return to_images(gradient)[0], jax.grad(score_of)(images)

    actual, expected = gradients(images)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)


def test_unknown_names_and_parts_that_are_not_there(network):
    model, *arrays = network

    def refused(function, model, *args, match):
        with pytest.raises(ValueError, match=match):
            jax.eval_shape(lambda arrays: function(model, *arrays, *args), arrays)

    for name in ("inception_6a", "inception_3a"):
        refused(activations, model, [name], match=f"has no {name}; .* conv1, ")
    of_classifier = "classifier", lambda out: 0
    refused(activation_and_gradient, model, *of_classifier, match="'classifier' has no map")
    headless = model.clone(aux_heads=False)
    refused(activations, headless, ["aux_4a"], match="has no aux_4a")
