"""Workdirs and checkpoints of runs that were never trained."""

import pathlib

from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runs.label import Label, label_leaves
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.training.description import ModelDescription


def save_weights(
    checkpoints: Checkpoints, step: int, variables, description, accuracy=None
) -> None:
    """A checkpoint as a run saves it, but without the optimizer."""
    metrics = None if accuracy is None else {"accuracy": accuracy}
    items = {"variables": variables}
    label = Label(description, metrics, label_leaves(items))
    checkpoints._start_save(step, items, label)
    checkpoints.wait()


def write_run(path, description: ModelDescription, variables, **config) -> pathlib.Path:
    """The workdir of a run that was never trained."""
    with Workdir(path) as workdir, Checkpoints(workdir.checkpoints) as checkpoints:
        checkpoints.save_variables(variables, description=description)
        workdir.write_config(config)
    return workdir.path
