"""Small networks and their steps, which compile in seconds."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from googlenet_flax.config import FIELDS
from googlenet_flax.model.googlenet import VARIANTS, GoogLeNet
from googlenet_flax.model.layers import InceptionWidths
from googlenet_flax.preprocessing.augment import Augment
from googlenet_flax.preprocessing.preprocess import Preprocess
from googlenet_flax.training.description import ModelDescription
from googlenet_flax.training.losses import Objective
from googlenet_flax.training.step import Inputs, train_step

# Returns the arrays of a tree by paths such as `params/inception_4a/1x1/conv/kernel`.
flat = partial(traverse_util.flatten_dict, sep="/")
# The blocks that the heads and the last pool need.
SMALL_INCEPTIONS = {
    "inception_4a": InceptionWidths(16, 12, 16, 8, 16, 16),
    "inception_4d": InceptionWidths(16, 12, 16, 8, 16, 16),
    "inception_5a": InceptionWidths(16, 12, 16, 8, 16, 16),
}


def small_googlenet(variant: str, **fields) -> GoogLeNet:
    """Creates a GoogLeNet of three narrow blocks, which compiles in seconds."""
    fields = {"num_classes": 10, "width_multiplier": 0.25, **fields}
    return GoogLeNet(variant=VARIANTS[variant], inceptions=SMALL_INCEPTIONS, **fields)


def create_small(description: ModelDescription, devices=(), **fields) -> GoogLeNet:
    """Creates a network of three narrow blocks for a description."""
    return small_googlenet(
        description.variant,
        num_classes=len(description.class_names),
        dtype=description.dtype,
        width_multiplier=description.width_multiplier,
        input_channels=description.preprocess.input_channels,
        **fields,
    )


def defaults_of(kind) -> dict:
    """Returns the config's defaults for the fields of a class, with all options off."""
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: FIELDS[name].default for name in names}


def preprocess(**fields) -> Preprocess:
    """Creates a `Preprocess` that only crops the central square; pixels stay 0 to 255."""
    own = {"image_size": 80, "input_scale": 1.0}
    return Preprocess(**{**defaults_of(Preprocess), **own, **fields})


def augment(**fields) -> Augment:
    """Creates an `Augment` that changes only what `fields` name."""
    return Augment(**{**defaults_of(Augment), **fields})


def bind_step(*, preprocess: Preprocess, augment: Augment, epoch_steps: int = 1, **fields):
    """Creates a step of `(state, batch, seed)`; `fields` may be those of `Objective`."""
    objective = {
        field.name: fields.pop(field.name)
        for field in dataclasses.fields(Objective)
        if field.name in fields
    }
    return partial(
        train_step,
        inputs=Inputs(preprocess, augment, epoch_steps),
        objective=Objective(**objective),
        **fields,
    )


def shapes_of(model: GoogLeNet, *images: int):
    """Returns the shapes of the outputs for images of a shape, and of all variables."""
    init = partial(model.init_with_output, train=False)
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros(images))


@cache
def variable_shapes(model: GoogLeNet, size: int):
    """Returns the shapes of all variables, whose trace takes some tenths of a second."""
    return shapes_of(model, 1, size, size, model.input_channels)[1]


def assert_leaves(actual, expected) -> None:
    """Checks that two trees, nested or flat, have the same leaves, bit for bit."""
    actual, expected = flat(actual), flat(expected)
    assert actual.keys() == expected.keys()
    for path, leaf in expected.items():
        assert actual[path].dtype == leaf.dtype, path
        np.testing.assert_array_equal(actual[path], leaf, path)


def numpy_variables(model: GoogLeNet, size: int = 80):
    """Draws variables in the ranges of fresh ones with NumPy, which compiles nothing."""
    rng, shapes = np.random.default_rng(0), variable_shapes(model, size)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return rng.normal(scale=deviation, size=leaf.shape).astype(np.float32)
        return np.full(leaf.shape, {"bias": 0.1, "mean": 0.0}.get(name, 1.0), np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
