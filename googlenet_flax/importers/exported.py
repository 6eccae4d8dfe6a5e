"""Reader of the safetensors files that `googlenet_flax.export` writes."""

import json
import pathlib

from flax import traverse_util

from googlenet_flax.importers.leaves import WeightFile, reading
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.training.description import ModelDescription

# Fields of a description that are JSON in the file; the others are text.
JSON_FIELDS = {"width_multiplier", "class_names", "preprocess", "untrained_heads"}


def read(path: pathlib.Path) -> tuple[WeightFile, ModelDescription]:
    """Reads the weights and statistics of a network, and its description.

    Raises:
      UserError: The file was not written by `export`, or the package safetensors is
        missing.
    """
    with reading(path, "a safetensors file", "safetensors"):
        import safetensors

        with safetensors.safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata() or {}
        if "variant" not in metadata:
            raise UserError(
                f"{path} does not describe its network: write it with googlenet_flax.export"
                ", or import a file of torchvision with --from=torchvision"
            )
        fields = {
            name: json.loads(metadata[name]) for name in JSON_FIELDS & metadata.keys()
        }
        description = ModelDescription.from_json({**metadata, **fields})
        leaves = traverse_util.flatten_dict(description.variables_like(), sep="/")
    # The names in the file lack the collection, `params` or `batch_stats`.
    names = {leaf: leaf.partition("/")[2] for leaf in leaves}
    return WeightFile(arrays, names), description
