"""Reader of the safetensors files that `googlenet_flax.export` writes."""

import dataclasses
import json
import pathlib

from flax import traverse_util

from googlenet_flax.importers.leaves import Source, WeightFile, reading
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.training.description import ModelDescription

TEXTS = ("variant", "dtype")  # The other fields of a description are JSON in the file.


def read(path: pathlib.Path) -> tuple[WeightFile, ModelDescription]:
    """Reads the weights and statistics of a network, and its description.

    Raises:
      UserError: The file was not written by `export`, or the package safetensors is
        missing.
    """
    with reading(path, "a safetensors file", "safetensors"):
        import safetensors  # noqa: PLC0415 - optional package

        with safetensors.safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata() or {}
        if "variant" not in metadata:
            raise UserError(
                f"{path} does not describe its network: write it with googlenet_flax.export"
            )
        fields = {field.name for field in dataclasses.fields(ModelDescription)}
        description = ModelDescription.from_json(
            {
                name: text if name in TEXTS else json.loads(text)
                for name, text in metadata.items()
                if name in fields
            }
        )
        leaves = traverse_util.flatten_dict(description.variables_like(), sep="/")
    # The names in the file lack the collection, `params` or `batch_stats`.
    sources = {leaf: Source(leaf.partition("/")[2]) for leaf in leaves}
    return WeightFile(arrays, sources, skipped=()), description
