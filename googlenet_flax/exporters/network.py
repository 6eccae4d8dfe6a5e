"""A trained network as it is exported: from RGB pixels to logits, in float32."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from googlenet_flax.model.googlenet import GoogLeNet
from googlenet_flax.preprocessing.preprocess import Preprocess
from googlenet_flax.training.description import ModelDescription
from googlenet_flax.version import __version__

IMAGES = "images"  # Name of the input.
# Fields of `Preprocess` that a graph applies itself. What the others say (reading a
# picture, cutting out its square and resizing that) is left to whoever calls it.
DONE_INSIDE = ("channel_order", "input_scale", "input_mean", "input_std")


@dataclasses.dataclass(frozen=True, eq=False)  # Arrays have no single answer to `==`.
class Network:
    """From square RGB images, 0 to 255, at the size of the training to logits."""

    model: GoogLeNet  # In float32; without heads, if theirs are not asked for.
    variables: Mapping[str, Any]  # numpy; heads included, whether asked for or not.
    preprocess: Preprocess

    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Logits float32 `[B, num_classes]` of images float32 `[B, S, S, 3]`.

        Named as in `GoogLeNetOutput`: `logits` and, with heads, `aux_4a` and `aux_4d`.
        """
        inputs = self.preprocess.normalize(images)
        output: Any = self.model.apply(self.variables, inputs, train=False)
        return {name: value for name, value in vars(output).items() if value is not None}

    def leaves(self) -> dict[str, np.ndarray]:
        """Parameters and statistics by their path in the paper's tree, sorted.

        `inception_3a/1x1/conv/kernel` and `inception_3a/1x1/bn/mean`, without the name of
        the collection.
        """
        leaves = {}
        for tree in self.variables.values():
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                leaves[name] = np.asarray(leaf, np.float32)
        return dict(sorted(leaves.items()))


def describe(
    description: ModelDescription, checkpoint_step: int, *, done_inside: bool
) -> dict[str, Any]:
    """What travels with the weights, as JSON types.

    `ModelDescription.from_json` reads its own fields out of it, `class_names` and
    `preprocess` among them. `done_inside` says which fields of `preprocess` the file's own
    graph applies.
    """
    fields = {
        "generator": f"googlenet_flax {__version__}",
        "checkpoint_step": checkpoint_step,
        **description.to_json(),
        "done_inside": list(DONE_INSIDE) if done_inside else [],
    }
    if done_inside:
        size = description.preprocess.image_size
        fields["input"] = f"{IMAGES}: float32 [batch, {size}, {size}, 3], RGB, 0 to 255"
    return fields


def as_text(metadata: Mapping[str, Any]) -> dict[str, str]:
    """For formats that hold text by name: what is no text becomes JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in metadata.items()
    }
