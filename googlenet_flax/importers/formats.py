"""Formats of weight files, the network of each, and their import into a workdir."""

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from googlenet_flax.data.class_names import NUM_CLASSES, imagenet_class_names
from googlenet_flax.importers import caffe, exported, keras, torchvision
from googlenet_flax.importers.leaves import WeightFile
from googlenet_flax.model.googlenet import HEADS, VARIANTS
from googlenet_flax.preprocessing.preprocess import Preprocess
from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runs.workdir import IMPORTED_FROM, Workdir
from googlenet_flax.runtime.environment import on_the_cpu
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.training.description import ModelDescription

CLASSIFIER = "params/classifier/kernel"
# SHA-256 prefix in the name of torchvision's file googlenet-1378be20.pth. Its weights come
# from TensorFlow and expect pixels from -1 to 1, so torchvision sets `transform_input`. Its
# heads do not come from there: torchvision warns that they are not pretrained.
TORCHVISION_DIGEST = "1378be20"
EXPORTED = "googlenet_flax"  # Name of the format that `googlenet_flax.export` writes.
CAFFE_INPUT = Preprocess(  # BVLC/caffe models/bvlc_googlenet/train_val.prototxt.
    storage_size=512,
    image_size=224,
    crop_fraction=224 / 256,
    input_scale=1.0,
    input_mean=(104.0, 117.0, 123.0),
    input_std=(1.0, 1.0, 1.0),
    channel_order="BGR",
)


class Format(NamedTuple):
    """Reader of one kind of weight file, and the variant and input of its network."""

    read: Callable[[pathlib.Path], WeightFile]
    variant: str
    preprocess: Preprocess


FORMATS: Mapping[str, Format] = {
    "torchvision": Format(
        torchvision.read,
        "torchvision",
        Preprocess(  # torchvision.models.GoogLeNet_Weights: 224 pixels of 256.
            storage_size=512,
            image_size=224,
            crop_fraction=224 / 256,
            input_scale=1 / 255,
            input_mean=(0.485, 0.456, 0.406),
            input_std=(0.229, 0.224, 0.225),
            channel_order="RGB",
        ),
    ),
    "caffe": Format(caffe.read, "paper", CAFFE_INPUT),
    "onnx": Format(caffe.read_onnx, "paper", CAFFE_INPUT),
    "keras": Format(
        keras.read,
        "seed",
        Preprocess(  # The tutorial resizes CIFAR-10.
            storage_size=32,
            image_size=224,
            crop_fraction=1.0,
            input_scale=1 / 255,
            input_mean=(0.0, 0.0, 0.0),
            input_std=(1.0, 1.0, 1.0),
            channel_order="RGB",
        ),
    ),
}


class ReportLine(NamedTuple):
    """Outcome of the import for one leaf of our tree or one array of the file."""

    outcome: Literal["loaded", "skipped", "random"]
    path: str  # Path in our tree; "" for an array that was skipped.
    source: str  # Name, type and shape in the file.


@dataclasses.dataclass(frozen=True)
class Imported:
    """Imported weights in the form that our network takes."""

    description: ModelDescription
    variables: dict[str, Any]  # float32 NumPy arrays.
    report: tuple[ReportLine, ...]
    origin: dict[str, str]  # Format, name and SHA-256 of the file.


def read_original(
    format_name: str,
    path: pathlib.Path,
    *,
    image_size: int | None = None,
    class_names: tuple[str, ...] = (),
    transform_input: bool | None = None,
) -> Imported:
    """Reads a weight file and maps it to our parameter tree.

    Args:
      format_name: `"torchvision"` (`.pth`, `.safetensors`), `"caffe"` (`.caffemodel`),
        `"onnx"` (the model zoo's googlenet and inception-v1), `"keras"` (`.weights.h5` of
        the tutorial's network) or `"googlenet_flax"` (`.safetensors` of
        `googlenet_flax.export`).
      path: The file.
      image_size: Side of the network's input in pixels; by default 224, or that of an
        exported network. For `seed` and `paper` it must be that of their training.
      class_names: Names in the order of the classifier; by default those of an exported
        network, those of ImageNet for 1000 classes, and numbers otherwise.
      transform_input: Normalize the input as torchvision's `transform_input` does; by
        default only for torchvision's own trained weights.

    Returns:
      The network. Its heads are random if the file has none, and its description names the
      heads that are not trained.

    Raises:
      UserError: The file cannot be read, or it holds another network; the message names
        the first mismatch.
    """
    if not os.path.isfile(path):
        raise UserError(f"--weights={path} is not a file")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"--weights={path} cannot be read: {error.strerror}") from error
    if format_name == EXPORTED:
        weights, like = exported.read(path)
    else:
        weights = FORMATS[format_name].read(path)
        like = _describe_original(format_name, digest, transform_input)
    size = like.preprocess.image_size if image_size is None else image_size
    smallest = VARIANTS[like.variant].min_image_size
    if size < smallest:
        raise UserError(f"--image_size is {size} but must be {smallest} or more")
    description = dataclasses.replace(
        like,
        class_names=_check_class_names(path, weights, class_names or like.class_names),
        preprocess=dataclasses.replace(like.preprocess, image_size=size),
        untrained_heads=tuple(
            head
            for head in HEADS
            if head in like.untrained_heads or not _is_trained(head, weights)
        ),
    )
    variables, report = _fit(path, weights, description)
    origin = {"format": format_name, "file": path.name, "sha256": digest}
    return Imported(description, variables, report, origin)


def _describe_original(
    format_name: str, digest: str, transform_input: bool | None
) -> ModelDescription:
    """Returns the description of a network that another program wrote, without classes."""
    preprocess = FORMATS[format_name].preprocess
    if transform_input is None:
        transform_input = digest.startswith(TORCHVISION_DIGEST)
    if transform_input:
        # torchvision computes (x - mean) / std, then multiplies by std / 0.5 and adds
        # (mean - 0.5) / 0.5. The result is (x - 0.5) / 0.5.
        half = (0.5, 0.5, 0.5)
        preprocess = dataclasses.replace(preprocess, input_mean=half, input_std=half)
    return ModelDescription(
        variant=FORMATS[format_name].variant,
        width_multiplier=1.0,
        dtype="float32",
        class_names=(),
        preprocess=preprocess,
        untrained_heads=HEADS if digest.startswith(TORCHVISION_DIGEST) else (),
    )


def _check_class_names(
    path: pathlib.Path, weights: WeightFile, class_names: tuple[str, ...]
) -> tuple[str, ...]:
    """Returns the given names of the classes, or defaults for their number."""
    kernel = weights.leaves.get(CLASSIFIER)
    if kernel is None:
        raise UserError(
            f"{path} is another network: it has no main classifier, but "
            f"{', '.join(weights.unknown[:3]) or 'no weights'}"
        )
    if kernel.ndim != 2 or not kernel.size:
        raise UserError(
            f"{path} is another network: its {weights.names[CLASSIFIER]} has the shape "
            f"{list(kernel.shape)}, which is not that of a classifier"
        )
    num_classes = kernel.shape[1]
    if not class_names:
        numbers = tuple(map(str, range(num_classes)))
        class_names = imagenet_class_names() if num_classes == NUM_CLASSES else numbers
    if len(class_names) != num_classes:
        raise UserError(
            f"--class_names has {len(class_names)} lines but {path} has {num_classes} "
            "classes: write one line for each class"
        )
    return class_names


def _is_trained(head: str, weights: WeightFile) -> bool:
    """Returns True if the file has the head and the head has seen a batch."""
    leaves = weights.leaves
    # If all means are exactly 0, the batch norm has never seen a batch.
    means = leaves.get(f"batch_stats/{head}/proj/bn/mean", 1)
    return f"params/{head}/fc/kernel" in leaves and bool(np.any(means))


def _fit(
    path: pathlib.Path, weights: WeightFile, description: ModelDescription
) -> tuple[dict[str, Any], tuple[ReportLine, ...]]:
    """Puts the weights into our tree, and draws the heads that the file does not have."""
    leaves = weights.leaves
    like: Any = traverse_util.flatten_dict(description.variables_like(), sep="/")
    variables, report = {}, []
    for name, values in leaves.items():
        source, shape = weights.names[name], list(like[name].shape)
        if list(values.shape) != shape:
            size = "; set --image_size to that of its training" if "/fc/" in name else ""
            raise UserError(
                f"{path} is another network: its {source} gives {name} the shape "
                f"{list(values.shape)} instead of {shape}{size}"
            )
        if not jnp.issubdtype(values.dtype, jnp.floating):
            raise UserError(f"{path}: {source} holds {values.dtype} instead of floats")
        if not np.all(np.isfinite(values)):
            raise UserError(f"{path}: {source} holds NaN or infinity: get the file again")
        variables[name] = np.asarray(values, np.float32)
        report.append(ReportLine("loaded", name, f"{source} {values.dtype}{shape}"))
    absent_heads = set(HEADS) - {name.split("/")[1] for name in leaves}
    absent = [name for name in like if name not in leaves]
    for name in absent:
        if name.split("/")[1] not in absent_heads:
            raise UserError(f"{path} is another network: it has nothing for {name}")
    if weights.unknown:
        raise UserError(
            f"{path} is another network: googlenet_flax has no counterpart of its "
            f"{weights.unknown[0]}"
        )
    if absent:
        variables |= _draw(description, absent)
    report += [ReportLine("random", name, "not in the file") for name in absent]
    report += [ReportLine("skipped", "", name) for name in weights.skipped]
    return traverse_util.unflatten_dict(variables, sep="/"), tuple(report)


def _draw(description: ModelDescription, names: list[str]) -> dict[str, np.ndarray]:
    """Draws the initial values of some leaves, which are named by their paths."""

    def draw(rng: jax.Array) -> dict[str, Any]:
        variables = traverse_util.flatten_dict(description.initialize(rng), sep="/")
        return {name: variables[name] for name in names}

    fast = {"xla_backend_optimization_level": 0}  # Compiles faster.
    with on_the_cpu():
        key = jax.random.key(0, impl="threefry2x32")
        return jax.device_get(jax.jit(draw, compiler_options=fast)(key))


def check_unused(path: str) -> None:
    """Raises a `UserError` if a workdir holds a run or an import.

    A workdir in which an import was interrupted is accepted.
    """
    workdir = Workdir(path)
    if os.path.exists(workdir.config_file):
        raise UserError(
            f"workdir {path!r} holds a run or an import: choose a new --workdir"
        )
    if Checkpoints(workdir.checkpoints).hold_training:
        raise UserError(
            f"workdir {path!r} holds the checkpoints of a run that has lost its "
            f"{workdir.config_file.name}: choose a new --workdir"
        )


def write_import(imported: Imported, path: str) -> None:
    """Writes a workdir that can be used like that of a run.

    Raises:
      UserError: The workdir cannot be written, or holds a run or an import.
      WorkdirInUseError: Another process uses the workdir.
    """
    with Workdir(path) as workdir:
        check_unused(path)  # Another import may have ended meanwhile.
        with Checkpoints(workdir.checkpoints) as checkpoints:
            checkpoints.save_variables(imported.variables, description=imported.description)
        workdir.write_config({IMPORTED_FROM: imported.origin})


def describe_import(imported: Imported) -> str:
    """Formats a line for each leaf, then the input and the classes of the network."""
    leaves = [
        f"{line.outcome:8} {line.path or '-':45} {line.source}" for line in imported.report
    ]
    counts = collections.Counter(line.outcome for line in imported.report)
    inputs = imported.description.preprocess
    names = imported.description.class_names
    order = f" {inputs.channel_order}" if inputs.input_channels == 3 else ""
    summary = [
        f"{counts['loaded']} leaves loaded, {counts['random']} initialized randomly, "
        f"{counts['skipped']} skipped",
        f"input: {inputs.image_size} px{order}, (pixel x "
        f"{inputs.input_scale:.6g} - {inputs.input_mean}) / {inputs.input_std}",
        f"{len(names)} classes: {names[0]!r} to {names[-1]!r}",
        *imported.description.notes,
    ]
    return "\n".join([*leaves, *summary])


def read_class_names(path: pathlib.Path) -> tuple[str, ...]:
    """Reads a text file that has the name of a class in each line.

    Raises:
      UserError: The file cannot be read, or is empty.
    """
    try:
        names = tuple(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class_names={path} cannot be read: {error}") from error
    if not names:
        raise UserError(f"--class_names={path} has 0 lines: write one for each class")
    return names
