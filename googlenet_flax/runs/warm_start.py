"""Initialization of a run with the weights of another run or of an import."""

import dataclasses
import shlex
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.training.description import ModelDescription
from googlenet_flax.training.optimizer import is_head
from googlenet_flax.training.state import Params, TrainState

NETWORK_FIELDS = ("variant", "width_multiplier")
# The weights fit only an input that is scaled the same way.
INPUT_FIELDS = ("input_scale", "input_mean", "input_std", "channel_order")


def warm_start(
    state: TrainState,
    source: Workdir,
    description: ModelDescription,
    devices: Sequence[jax.Device],
) -> tuple[TrainState, str]:
    """Puts the weights of the best checkpoint of another run (or its latest) into a state.

    Heads that are not trained there keep the random weights of `state`, which is replicated
    over `devices` and described by `description`. So does the last layer of each classifier
    if the number of classes differs.

    Returns:
      The state, and a line that names the checkpoint and the layers that are new.

    Raises:
      UserError: There is no such run, or its network does not fit.
    """
    source.read_config("--config.init_from")  # Refuses a directory without a run.
    checkpoints = Checkpoints(source.checkpoints)
    step = checkpoints.resolve("latest" if checkpoints.best_step is None else "best")
    theirs = checkpoints.labels[step].description
    _check_networks(source, theirs, description)
    weights = checkpoints.restore_variables(step, theirs.variables_like(), devices)
    variables, fresh = _fit(source, state.variables, weights, theirs, description)
    origin = f"weights from {source.path}, checkpoint {step}"
    if theirs.untrained_heads:
        origin += f"; new, as not trained there: {', '.join(theirs.untrained_heads)}"
    if fresh:
        origin += f"; new, for {len(description.class_names)} classes: {', '.join(fresh)}"
    elif theirs.class_names != description.class_names:
        origin += "; the classifiers were trained on other classes of the same number"
    batch_stats = variables.get("batch_stats", {})
    state = dataclasses.replace(state, params=variables["params"], batch_stats=batch_stats)
    if state.averages:
        state = dataclasses.replace(state, averages=jax.tree.map(jnp.copy, state.variables))
    return state, origin


def _check_networks(
    source: Workdir, theirs: ModelDescription, ours: ModelDescription
) -> None:
    """Raises a UserError with the options that make `ours` fit the weights."""
    options = [
        f"--config.{name}={shlex.quote(str(getattr(their, name)))}"
        for their, our, names in (
            (theirs, ours, NETWORK_FIELDS),
            (theirs.preprocess, ours.preprocess, INPUT_FIELDS),
        )
        for name in names
        if getattr(their, name) != getattr(our, name)
    ]
    if options:
        raise UserError(
            f"--config.init_from={source.path} is another network: set {' '.join(options)}"
        )


def _fit(
    source: Workdir,
    own_variables: Params,
    their_variables: Params,
    theirs: ModelDescription,
    ours: ModelDescription,
) -> tuple[Params, list[str]]:
    """Merges variables, and returns them with the names of the last layers that stay new.

    They are `their_variables`, except for heads that are not trained there and last layers
    of other shapes, which are `own_variables`.
    """
    fresh: dict[str, None] = {}  # In order, each once.

    def take(path, own, other):
        name = jax.tree_util.keystr(path[1:], simple=True, separator="/")
        if path[1].key in theirs.untrained_heads:
            return own
        if own.shape == other.shape:
            return other
        if not is_head(path):
            raise UserError(
                f"--config.init_from={source.path} does not fit: {name} is "
                f"{list(other.shape)} there and {list(own.shape)} here: set "
                f"--config.image_size={theirs.preprocess.image_size}, which "
                f"{ours.variant!r} is tied to"
            )
        fresh[name.rpartition("/")[0]] = None
        return own

    variables = jax.tree_util.tree_map_with_path(take, own_variables, their_variables)
    return variables, list(fresh)
