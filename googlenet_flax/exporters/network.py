"""The network that is exported: a function from pixels to logits in float32."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from googlenet_flax.model.googlenet import GoogLeNet
from googlenet_flax.preprocessing.preprocess import Preprocess
from googlenet_flax.training.description import ModelDescription
from googlenet_flax.version import __version__

IMAGES = "images"  # Name of the input.
# Fields of `Preprocess` that an exported graph applies itself. The caller must read a
# picture, cut out its square and resize it, as the other fields say.
DONE_INSIDE = ("channel_order", "input_scale", "input_mean", "input_std")


@dataclasses.dataclass(frozen=True, eq=False)  # `==` of arrays is an array, not a bool.
class Network:
    """A network as a function from images, 0 to 255, to logits.

    The images are square and already have the size of the network's input.
    """

    model: GoogLeNet  # Computes in float32; has heads only if their logits are exported.
    variables: Mapping[str, Any]  # NumPy arrays, always with those of the heads.
    preprocess: Preprocess

    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """Maps images float32 `[B, S, S, C]` to the logits of `GoogLeNetOutput` by name."""
        inputs = self.preprocess.normalize(images)
        output: Any = self.model.apply(self.variables, inputs, train=False)
        return {name: value for name, value in vars(output).items() if value is not None}

    def leaves(self) -> dict[str, np.ndarray]:
        """Returns parameters and statistics by path, sorted.

        Paths leave out the collection, `params` or `batch_stats`:
        `inception_3a/1x1/conv/kernel`, `inception_3a/1x1/bn/mean`.
        """
        leaves: dict[str, Any] = {}
        for tree in self.variables.values():
            leaves |= traverse_util.flatten_dict(tree, sep="/")
        return {name: np.asarray(leaves[name], np.float32) for name in sorted(leaves)}


def describe(
    description: ModelDescription, checkpoint_step: int, *, done_inside: bool
) -> dict[str, Any]:
    """Creates the metadata of an exported file, as JSON types.

    `ModelDescription.from_json` can read a description from these metadata. `done_inside`
    tells if the graph in the file applies the fields `DONE_INSIDE` of `preprocess`.
    """
    fields = {
        "generator": f"googlenet_flax {__version__}",
        "checkpoint_step": checkpoint_step,
        **dataclasses.asdict(description),
        "done_inside": list(DONE_INSIDE) if done_inside else [],
    }
    if done_inside:
        inputs = description.preprocess
        size, channels = inputs.image_size, inputs.input_channels
        order = "RGB, " if channels == 3 else ""
        shape = f"[batch, {size}, {size}, {channels}]"
        fields["input"] = f"{IMAGES}: float32 {shape}, {order}0 to 255"
    return fields


def as_text(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Turns values that are not text into JSON, for formats whose metadata are text."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in metadata.items()
    }
