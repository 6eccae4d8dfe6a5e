"""Reader of torchvision's googlenet, a state dict as `.pth` (torch) or `.safetensors`."""

import pathlib
import pickle
from collections.abc import Iterator

import numpy as np

from googlenet_flax.importers.leaves import WeightFile, from_channels_first, reading
from googlenet_flax.model.googlenet import HEADS, INCEPTIONS
from googlenet_flax.runtime.errors import UserError

STEM = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3"}
BRANCHES = {
    "1x1": "branch1",
    "3x3_reduce": "branch2.0",
    "3x3": "branch2.1",
    "5x5_reduce": "branch3.0",
    "5x5": "branch3.1",
    "pool_proj": "branch4.1",
}
BATCH_COUNTER = "num_batches_tracked"  # torch's batch norm counts batches; ours does not.


def read(path: pathlib.Path) -> WeightFile:
    """Reads a state dict.

    Raises:
      UserError: The file is not a state dict, it may contain code, or a package that reads
        it is missing.
    """
    reader = _read_safetensors if path.suffix == ".safetensors" else _read_pth
    arrays = reader(path)
    skipped = [name for name in arrays if name.endswith(BATCH_COUNTER)]
    return WeightFile(arrays, dict(_names()), skipped, from_channels_first)


def _names() -> Iterator[tuple[str, str]]:
    convs, denses = dict(STEM), {"classifier": "fc"}
    for block in INCEPTIONS:
        for branch, theirs in BRANCHES.items():
            convs[f"{block}/{branch}"] = f"{block.replace('_', '')}.{theirs}"
    for number, head in enumerate(HEADS, start=1):
        convs[f"{head}/proj"] = f"aux{number}.conv"
        denses[f"{head}/fc"] = f"aux{number}.fc1"
        denses[f"{head}/classifier"] = f"aux{number}.fc2"
    for ours, theirs in convs.items():
        yield f"params/{ours}/conv/kernel", f"{theirs}.conv.weight"
        yield f"params/{ours}/bn/scale", f"{theirs}.bn.weight"
        yield f"params/{ours}/bn/bias", f"{theirs}.bn.bias"
        yield f"batch_stats/{ours}/bn/mean", f"{theirs}.bn.running_mean"
        yield f"batch_stats/{ours}/bn/var", f"{theirs}.bn.running_var"
    for ours, theirs in denses.items():
        yield f"params/{ours}/kernel", f"{theirs}.weight"
        yield f"params/{ours}/bias", f"{theirs}.bias"


def _read_pth(path: pathlib.Path) -> dict[str, np.ndarray]:
    hint = "write it with torch.save(model.state_dict(), ...)"
    with reading(path, "a PyTorch file", "torch"):
        import torch

        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} is broken, or holds more than weights, which could run code: "
                f"{hint}"
            ) from error
        if not isinstance(state, dict) or not all(
            isinstance(name, str) and torch.is_tensor(value)
            for name, value in state.items()
        ):
            raise UserError(f"{path} is not a state dict: {hint}")
        # NumPy has no bfloat16.
        bfloat16 = torch.bfloat16
        return {
            name: (value.float() if value.dtype == bfloat16 else value).numpy(force=True)
            for name, value in state.items()
        }


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    with reading(path, "a safetensors file", "safetensors"):
        import safetensors.flax

        # Unlike safetensors.numpy, safetensors.flax can read bfloat16.
        tensors = safetensors.flax.load_file(path)
        return {name: np.asarray(tensor) for name, tensor in tensors.items()}
