"""Reader of torchvision's googlenet, a state dict as `.pth` (torch) or `.safetensors`."""

import pathlib
import pickle
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from googlenet_flax.importers.leaves import (
    HEADS,
    OriginalWeights,
    Source,
    hwc_rows_from_chw,
    hwio_from_oihw,
    io_from_oi,
    refuse_broken_file,
    same,
    translate,
)
from googlenet_flax.model.googlenet import INCEPTIONS
from googlenet_flax.runtime.errors import UserError, missing_package

STEM = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3"}
BRANCHES = {
    "1x1": "branch1",
    "3x3_reduce": "branch2.0",
    "3x3": "branch2.1",
    "5x5_reduce": "branch3.0",
    "5x5": "branch3.1",
    "pool_proj": "branch4.1",
}
BATCH_COUNTER = "num_batches_tracked"  # torch's batch norm counts; ours does not.


def read(path: pathlib.Path) -> OriginalWeights:
    """Reads a state dict.

    Raises:
      UserError: The file is not a state dict, it may contain code, or a package that reads
        it is missing.
    """
    reader = _read_safetensors if path.suffix == ".safetensors" else _read_pth
    arrays = reader(path)
    skipped = [name for name in arrays if name.endswith(BATCH_COUNTER)]
    return translate(arrays, dict(_sources()), skipped=skipped)


def _sources() -> Iterator[tuple[str, Source]]:
    convs = dict(STEM)
    for block in INCEPTIONS:
        for branch, theirs in BRANCHES.items():
            convs[f"{block}/{branch}"] = f"{block.replace('_', '')}.{theirs}"
    for ours, theirs in convs.items():
        yield from _conv_sources(ours, theirs)
    for number, head in enumerate(HEADS, start=1):
        yield from _conv_sources(f"{head}/proj", f"aux{number}.conv")
        yield from _dense_sources(f"{head}/fc", f"aux{number}.fc1", hwc_rows_from_chw)
        yield from _dense_sources(f"{head}/classifier", f"aux{number}.fc2")
    yield from _dense_sources("classifier", "fc")


def _conv_sources(ours: str, theirs: str) -> Iterator[tuple[str, Source]]:
    yield f"params/{ours}/conv/kernel", Source(f"{theirs}.conv.weight", hwio_from_oihw)
    yield f"params/{ours}/bn/scale", Source(f"{theirs}.bn.weight", same)
    yield f"params/{ours}/bn/bias", Source(f"{theirs}.bn.bias", same)
    yield f"batch_stats/{ours}/bn/mean", Source(f"{theirs}.bn.running_mean", same)
    yield f"batch_stats/{ours}/bn/var", Source(f"{theirs}.bn.running_var", same)


def _dense_sources(ours, theirs, layout=io_from_oi) -> Iterator[tuple[str, Source]]:
    yield f"params/{ours}/kernel", Source(f"{theirs}.weight", layout)
    yield f"params/{ours}/bias", Source(f"{theirs}.bias", same)


def _read_pth(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch  # noqa: PLC0415 - optional package
    except ImportError as error:
        raise missing_package("torch", f"reading {path.name}") from error
    with refuse_broken_file(path, "a file of torch"):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} is broken, or holds more than weights, which could run code: "
                "write it with torch.save(model.state_dict(), ...)"
            ) from error
        if not isinstance(state, dict) or not all(
            isinstance(name, str) and torch.is_tensor(value)
            for name, value in state.items()
        ):
            raise UserError(
                f"{path} is not a state dict: write it with "
                "torch.save(model.state_dict(), ...)"
            )
        return {
            # NumPy has no bfloat16.
            name: (value.float() if value.dtype == torch.bfloat16 else value).numpy(
                force=True
            )
            for name, value in state.items()
        }


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import safetensors.flax  # noqa: PLC0415 - optional package
    except ImportError as error:
        raise missing_package("safetensors", f"reading {path.name}") from error
    with refuse_broken_file(path, "a file of safetensors"):
        tensors = safetensors.flax.load_file(path)  # jax arrays, which can be bfloat16.
        return {
            name: np.asarray(
                tensor.astype(np.float32) if tensor.dtype == jnp.bfloat16 else tensor
            )
            for name, tensor in tensors.items()
        }
