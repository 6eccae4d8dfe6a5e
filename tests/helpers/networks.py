"""Small networks and their steps, which compile in seconds."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_flax.model.googlenet import VARIANTS, GoogLeNet
from googlenet_flax.model.layers import InceptionWidths
from googlenet_flax.preprocessing.augment import Augment
from googlenet_flax.preprocessing.preprocess import Preprocess
from googlenet_flax.training.description import ModelDescription
from googlenet_flax.training.losses import Objective
from googlenet_flax.training.step import Inputs, train_step

# Only the blocks that the heads and the last pool hang on.
SMALL_INCEPTIONS = {
    "inception_4a": InceptionWidths(16, 12, 16, 8, 16, 16),
    "inception_4d": InceptionWidths(16, 12, 16, 8, 16, 16),
    "inception_5a": InceptionWidths(16, 12, 16, 8, 16, 16),
}


def small_googlenet(variant: str, **fields) -> GoogLeNet:
    """A GoogLeNet of three narrow blocks that compiles in seconds."""
    fields = {"num_classes": 10, "width_multiplier": 0.25, **fields}
    return GoogLeNet(variant=VARIANTS[variant], inceptions=SMALL_INCEPTIONS, **fields)


def create_small(description: ModelDescription, devices=(), **fields) -> GoogLeNet:
    """Creates three narrow blocks with the variant and the classes of the description."""
    return small_googlenet(
        description.variant,
        num_classes=len(description.class_names),
        dtype=description.dtype,
        width_multiplier=description.width_multiplier,
        input_channels=description.preprocess.input_channels,
        **fields,
    )


def preprocess(**fields) -> Preprocess:
    """One that only cuts out the largest central square; pixels stay 0 to 255."""
    off = {
        "storage_size": 256,
        "image_size": 80,
        "crop_fraction": 1.0,
        "input_scale": 1.0,
        "input_mean": (0.0, 0.0, 0.0),
        "input_std": (1.0, 1.0, 1.0),
        "channel_order": "RGB",
    }
    return Preprocess(**{**off, **fields})


def augment(**fields) -> Augment:
    """One that changes nothing but what is named."""
    off = {
        "crop_padding_pixels": 0,
        "crop_min_area": 1.0,
        "crop_max_aspect": 4 / 3,
        "flip": "none",
        "color_jitter": 0.0,
        "interpolations": ("bilinear",),
        "cutout_fraction": 0.0,
    }
    return Augment(**{**off, **fields})


def bind_step(*, preprocess: Preprocess, augment: Augment, epoch_steps: int = 1, **fields):
    """A step of `(state, batch, seed)`; fields of the objective are named alone."""
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
    """Shapes of the output for images of that shape, and of all variables."""
    init = partial(model.init_with_output, train=False)
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros(images))


def numpy_variables(model: GoogLeNet, size: int = 80):
    """Variables in the ranges of a real start, without compiling sixty generators."""
    _, shapes = shapes_of(model, 1, size, size, model.input_channels)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return rng.normal(scale=deviation, size=leaf.shape).astype(np.float32)
        return np.full(leaf.shape, {"bias": 0.1, "mean": 0.0}.get(name, 1.0), np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
