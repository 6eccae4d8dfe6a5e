"""Workdirs and checkpoints of runs that were never trained."""

import dataclasses
import pathlib

from helpers.networks import preprocess

from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runs.manifest import Manifest, describe_leaves
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.training.description import ModelDescription


def describe(**fields) -> ModelDescription:
    """Describes a network; `fields` may be its own or those of its preprocessing."""
    names = {field.name for field in dataclasses.fields(ModelDescription)}
    own = {"variant": "bn", "width_multiplier": 0.1, "dtype": "float32"}
    own |= {name: fields.pop(name) for name in names & fields.keys()}
    return ModelDescription(**own, preprocess=preprocess(**fields))


def save_weights(
    checkpoints: Checkpoints, step: int, variables, description, accuracy=None, **items
) -> None:
    """Saves a checkpoint as a run does, but without the optimizer."""
    metrics = None if accuracy is None else {"accuracy": accuracy}
    items = {"variables": variables, **items}
    label = Manifest(description, metrics, describe_leaves(items))
    checkpoints._start_save(step, items, label)
    checkpoints.wait()


def write_run(path, description: ModelDescription, variables, **config) -> pathlib.Path:
    """Writes the workdir of a run that was never trained."""
    with Workdir(path) as workdir, Checkpoints(workdir.checkpoints) as checkpoints:
        checkpoints.save_variables(variables, description=description)
        workdir.write_config(config)
    return workdir.path
