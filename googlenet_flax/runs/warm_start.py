"""Initialization of a run with the weights of another run or of an import."""

import dataclasses
import itertools
import shlex
import statistics
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_flax.preprocessing.preprocess import Preprocess
from googlenet_flax.runs.checkpoint import Checkpoints, retried
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.training.description import ModelDescription
from googlenet_flax.training.optimizer import is_last_layer
from googlenet_flax.training.state import TrainState, Variables

NETWORK_FIELDS = ("variant", "width_multiplier")
# The weights fit only an input that is scaled the same way.
INPUT_FIELDS = ("input_channels", "input_scale", "input_mean", "input_std", "channel_order")
CONVERTIBLE_CHANNELS = (1, 3)  # Other counts may include alpha, which is no color.


@retried
def warm_start(
    state: TrainState,
    source: Workdir,
    description: ModelDescription,
    devices: Sequence[jax.Device],
    *,
    last_layers_only: bool = False,
) -> tuple[TrainState, str]:
    """Replaces the weights of a new state by those of another run or of an import.

    The new weights are from the best checkpoint, or from the latest if none was evaluated.
    The random weights of `state` are kept for heads that the other run did not train, and
    for the last layer of each classifier if the number of classes differs. If the number of
    input channels differs, `convert_kernel` converts the kernel of `conv1`.

    Args:
      state: A state with random weights, replicated over `devices`.
      source: Workdir of the other run or of the import.
      description: Description of the network of `state`.
      devices: Devices of this process.
      last_layers_only: Whether the run trains only the last layer of each classifier.

    Returns:
      The state, and a line that names the checkpoint and the layers that are new.

    Raises:
      UserError: There is no such run, its network does not fit, or random layers of a head
        would not be trained.
    """
    source.read_config("--config.init_from")  # Refuses a directory without a run.
    checkpoints = Checkpoints(source.checkpoints)
    step = checkpoints.resolve("latest" if checkpoints.best_step is None else "best")
    theirs = checkpoints.manifests[step].description
    if last_layers_only and set(theirs.untrained_heads) - set(description.untrained_heads):
        heads = " and ".join(theirs.untrained_heads)
        raise UserError(
            f"config.trainable is 'head' but {heads} are not trained in {source.path}: set "
            "--config.aux_weight=0 to leave them out, or --config.trainable=all"
        )
    inputs = _convert_input(theirs.preprocess, description.preprocess)
    _check_networks(source, dataclasses.replace(theirs, preprocess=inputs), description)
    weights = checkpoints.restore_variables(step, theirs.variables_like(), devices)
    variables, fresh = _fit(source, state.variables, weights, theirs)
    origin = f"weights from {source.path}, checkpoint {step}"
    if theirs.untrained_heads:
        heads = ", ".join(theirs.untrained_heads)
        origin += f"; random weights in {heads}, which are not trained there"
    if fresh:
        count = len(description.class_names)
        origin += f"; random weights in {', '.join(fresh)}, for {count} classes"
    elif theirs.class_names != description.class_names:
        origin += "; the classifiers were trained on other classes of the same number"
    old, new = (x.preprocess.input_channels for x in (theirs, description))
    if old != new:
        origin += f"; conv1 was converted from {old} to {new} input channels"
    state = dataclasses.replace(state, **variables)
    if state.averages:
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))  # One program for all.
        state = dataclasses.replace(state, averages=copy(state.variables))
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


def _channel_map(theirs: Preprocess, channels: int) -> np.ndarray:
    """Returns which channels of another network's input correspond to which of ours.

    Two channels correspond if their numbers, in the order RGB, are equal modulo the smaller
    number of channels. So gray corresponds to each of red, green and blue, and red to the
    first and the fourth of 4 channels. The result is bool `[their channels, channels]`.
    """
    count = theirs.input_channels
    numbers = np.arange(count)[:: -1 if theirs.channel_order == "BGR" else 1]
    return np.subtract.outer(numbers, np.arange(channels)) % min(count, channels) == 0


def convert_kernel(kernel: np.ndarray, theirs: Preprocess, channels: int) -> np.ndarray:
    """Converts a kernel of `conv1`, `[h, w, C, F]`, to `[h, w, channels, F]`.

    The kernel comes from a network with the input `theirs`. Kernels of channels that become
    one are summed. The kernel of a channel that becomes several is divided by their number.
    So, apart from rounding, a gray picture gets the same response as its RGB copy.
    """
    mapping = _channel_map(theirs, channels)
    shares = mapping / mapping.sum(axis=1, keepdims=True)
    return np.einsum("hwcf,cd->hwdf", kernel, shares).astype(kernel.dtype)


def _convert_input(theirs: Preprocess, ours: Preprocess) -> Preprocess:
    """Returns the input that their weights need after the conversion of `conv1`.

    Mean and standard deviation are averaged over the channels that correspond to one of
    ours. `theirs` is returned if both have the same number of channels, or if its channels
    cannot be converted.
    """
    count = theirs.input_channels
    if count == ours.input_channels or count not in CONVERTIBLE_CHANNELS:
        return theirs
    columns = _channel_map(theirs, ours.input_channels).T
    mean, std = (
        tuple(statistics.mean(itertools.compress(values, column)) for column in columns)
        for values in (theirs.input_mean, theirs.input_std)
    )
    return dataclasses.replace(
        theirs, input_mean=mean, input_std=std, channel_order=ours.channel_order
    )


def _fit(
    source: Workdir,
    own_variables: Variables,
    their_variables: Variables,
    theirs: ModelDescription,
) -> tuple[Variables, list[str]]:
    """Replaces `own_variables` by `their_variables` where these fit.

    Heads that are not trained there, and last layers of other shapes, keep their own
    values. The kernel of a `conv1` with other channels is converted. The result also holds
    the names of the last layers that keep their own values because of their shape.
    """
    fresh: dict[str, None] = {}  # In order, each once.

    def take(path, own, other):
        name = jax.tree_util.keystr(path[1:], simple=True, separator="/")
        if path[1].key in theirs.untrained_heads:
            return own
        if own.shape == other.shape:
            return other
        if name == "conv1/conv/kernel":
            kernel = convert_kernel(np.asarray(other), theirs.preprocess, own.shape[2])
            return jax.device_put(kernel, own.sharding)
        if not is_last_layer(path):
            raise UserError(
                f"--config.init_from={source.path} does not fit: {name} is "
                f"{list(other.shape)} there and {list(own.shape)} here, because the shapes "
                f"of {theirs.variant!r} depend on the image size: set "
                f"--config.image_size={theirs.preprocess.image_size}"
            )
        fresh[name.rpartition("/")[0]] = None
        return own

    variables = jax.tree_util.tree_map_with_path(take, own_variables, their_variables)
    return variables, list(fresh)
