"""Comparison of our variants with `originals/`, on the same weights and images."""

import functools
import importlib
import json
import os

import jax
import numpy as np
import pytest
from flax import traverse_util
from helpers.paths import REPOSITORY
from originals.weights import NUM_CLASSES, draw_images, draw_weights, to_flax

from googlenet_flax.model.googlenet import VARIANTS, GoogLeNet

os.environ.setdefault("KERAS_BACKEND", "jax")  # Read when Keras is first imported.

TOLERANCE = 1e-5  # Relative to the largest logit; float32 on both sides has 1e-6.
slow = pytest.mark.slow
HEADS = ("logits", "aux_4a", "aux_4d")
QUICK = {("seed", 96), ("seed", 100), ("paper", 96), ("paper", 100), ("torchvision", 32)}
STORED = json.loads((REPOSITORY / "tests/originals/outputs.json").read_text())["outputs"]
# The module of each original and the packages that it needs.
ORIGINALS = {
    "seed": ("originals.keras_googlenet", ["keras"]),
    "paper": ("originals.caffe_googlenet", ["onnx", "onnxruntime"]),
    "torchvision": ("originals.torchvision_googlenet", ["torch"]),
}


@functools.cache
def our_outputs(variant, image_size):
    """Computes the logits of a variant."""
    model = GoogLeNet(num_classes=NUM_CLASSES, variant=VARIANTS[variant])
    weights = to_flax(variant, image_size, draw_weights(variant, image_size))
    variables = traverse_util.unflatten_dict(weights, sep="/")
    apply = jax.jit(functools.partial(model.apply, train=False))
    outputs = apply(variables, draw_images(variant, image_size))
    return [np.asarray(getattr(outputs, head)) for head in HEADS]


def stored_outputs(variant, image_size):
    return [np.array(STORED[variant][str(image_size)][head]) for head in HEADS]


def relative_differences(ours, theirs):
    """Returns each classifier's largest difference relative to its largest logit."""
    return {
        head: np.abs(x - y).max() / np.abs(y).max()
        for head, x, y in zip(HEADS, ours, theirs, strict=True)
    }


@pytest.mark.parametrize(
    ("variant", "image_size"),
    [
        pytest.param(
            variant, int(size), marks=() if (variant, int(size)) in QUICK else slow
        )
        for variant in STORED
        for size in STORED[variant]
    ],
)
def test_computes_what_the_original_computed(variant, image_size):
    ours, theirs = our_outputs(variant, image_size), stored_outputs(variant, image_size)
    differences = relative_differences(ours, theirs)
    assert max(differences.values()) < TOLERANCE, differences


@pytest.mark.parametrize("variant", ORIGINALS)
def test_computes_what_the_original_computes_now(variant):
    module, packages = ORIGINALS[variant]
    for package in packages:
        pytest.importorskip(package)
    original = importlib.import_module(module)
    theirs = original.run(draw_weights(variant, 96), draw_images(variant, 96))
    differences = relative_differences(our_outputs(variant, 96), theirs)
    assert max(differences.values()) < TOLERANCE, differences
