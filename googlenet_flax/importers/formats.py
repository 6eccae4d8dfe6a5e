"""Formats of weight files, the network of each, and their import into a workdir."""

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_flax.data.class_names import NUM_CLASSES, imagenet_class_names
from googlenet_flax.importers import caffe, keras, torchvision
from googlenet_flax.importers.leaves import HEADS, OriginalWeights
from googlenet_flax.model.googlenet import MIN_IMAGE_SIZE
from googlenet_flax.preprocessing.preprocess import Preprocess
from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runs.workdir import IMPORTED_FROM, Workdir
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.training.description import ModelDescription

CLASSIFIER = "params/classifier/kernel"
# SHA-256 prefix in the name of torchvision's file googlenet-1378be20.pth. Its weights come
# from TensorFlow and expect pixels from -1 to 1, so torchvision sets `transform_input`.
TORCHVISION_DIGEST = "1378be20"

Outcome = Literal["loaded", "skipped", "random"]


class Format(NamedTuple):
    """Reader of one kind of weight file, and the variant and input of its network."""

    read: Callable[[pathlib.Path], OriginalWeights]
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
    "onnx": Format(
        caffe.read,
        "paper",
        Preprocess(  # BVLC/caffe models/bvlc_googlenet/train_val.prototxt.
            storage_size=512,
            image_size=224,
            crop_fraction=224 / 256,
            input_scale=1.0,
            input_mean=(104.0, 117.0, 123.0),
            input_std=(1.0, 1.0, 1.0),
            channel_order="BGR",
        ),
    ),
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

    outcome: Outcome
    path: str  # Path in our tree; "" for an array that was skipped.
    source: str  # Name, type and shape in the file.


@dataclasses.dataclass(frozen=True)
class Imported:
    """Imported weights in the form that our network takes."""

    description: ModelDescription
    variables: dict[str, Any]  # float32 NumPy arrays.
    report: tuple[ReportLine, ...]


def read_original(
    format_name: str,
    path: pathlib.Path,
    *,
    image_size: int = 224,
    class_names: tuple[str, ...] = (),
    transform_input: bool | None = None,
) -> Imported:
    """Reads a weight file and maps it to our parameter tree.

    Args:
      format_name: `"torchvision"` (`.pth`, `.safetensors`), `"onnx"` (the model zoo's
        googlenet and inception-v1) or `"keras"` (`.weights.h5` of the tutorial's network).
      path: The file.
      image_size: Side of the network's input in pixels; for `seed` and `paper` it must be
        that of their training.
      class_names: Names in the order of the classifier; by default those of ImageNet for
        1000 classes, and numbers otherwise.
      transform_input: Normalize the input as torchvision's `transform_input` does; by
        default only for torchvision's own trained weights.

    Returns:
      The network. Its heads are random if the file has none.

    Raises:
      UserError: The file cannot be read, or it holds another network; the message names
        the first mismatch.
    """
    if not path.is_file():
        raise UserError(f"--weights={path} is not a file")
    preprocess = _choose_preprocess(format_name, path, image_size, transform_input)
    weights = FORMATS[format_name].read(path)
    description = ModelDescription(
        variant=FORMATS[format_name].variant,
        width_multiplier=1.0,
        dtype="float32",
        class_names=_check_class_names(path, weights, class_names),
        preprocess=preprocess,
    )
    variables_like = description.variables_like()
    absent_heads = [
        head for head in HEADS if not any(f"/{head}/" in name for name in weights.leaves)
    ]
    _check_fit(path, weights, variables_like, absent_heads)
    start = _initialize(description) if absent_heads else variables_like
    report = []

    def fill(path, leaf):
        name = _name(path)
        source = weights.leaves.get(name)
        if source is None:
            report.append(ReportLine("random", name, "not in the file"))
            return np.asarray(leaf)
        array = f"{source.name} {source.values.dtype}{list(source.values.shape)}"
        report.append(ReportLine("loaded", name, array))
        return np.asarray(source.values, np.float32)

    variables = jax.tree_util.tree_map_with_path(fill, start)
    report += [ReportLine("skipped", "", name) for name in weights.skipped]
    return Imported(description, variables, tuple(report))


def _choose_preprocess(
    format_name: str, path: pathlib.Path, image_size: int, transform_input: bool | None
) -> Preprocess:
    """Chooses the preprocessing that the network of the file expects.

    Raises:
      UserError: The image size is too small, or the format has no `transform_input`.
    """
    if image_size < MIN_IMAGE_SIZE:
        raise UserError(
            f"--image_size is {image_size} but must be {MIN_IMAGE_SIZE} or more"
        )
    if transform_input is not None and format_name != "torchvision":
        raise UserError("--transform_input is for --from=torchvision alone: leave it out")
    if transform_input is None:
        transform_input = _sha256(path).startswith(TORCHVISION_DIGEST)
    preprocess = FORMATS[format_name].preprocess
    preprocess = dataclasses.replace(preprocess, image_size=image_size)
    if not transform_input:
        return preprocess
    # torchvision computes (x - mean) / std, then multiplies by std / 0.5 and adds
    # (mean - 0.5) / 0.5. The result is (x - 0.5) / 0.5.
    half = (0.5, 0.5, 0.5)
    return dataclasses.replace(preprocess, input_mean=half, input_std=half)


def _check_class_names(
    path: pathlib.Path, weights: OriginalWeights, class_names: tuple[str, ...]
) -> tuple[str, ...]:
    """Returns the given names of the classes, or defaults for their number.

    Raises:
      UserError: The file has no classifier, or another number of classes.
    """
    if CLASSIFIER not in weights.leaves:
        raise UserError(
            f"{path} is another network: it has no main classifier, but "
            f"{', '.join(weights.unknown[:3]) or 'no weights'}"
        )
    source = weights.leaves[CLASSIFIER]
    if source.values.ndim != 2 or not source.values.size:
        raise UserError(
            f"{path} is another network: its {source.name} has the shape "
            f"{list(source.values.shape)}, which is not that of a classifier"
        )
    num_classes = source.values.shape[1]
    if not class_names:
        numbers = tuple(map(str, range(num_classes)))
        class_names = imagenet_class_names() if num_classes == NUM_CLASSES else numbers
    if len(class_names) != num_classes:
        raise UserError(
            f"--class_names has {len(class_names)} lines but {path} has {num_classes} "
            "classes: one line for each"
        )
    return class_names


def _check_fit(
    path: pathlib.Path,
    weights: OriginalWeights,
    variables_like: dict[str, Any],
    absent_heads: list[str],
) -> None:
    """Checks that the weights have the shapes of our network and are finite floats.

    Raises:
      UserError: The file holds another network; the message names the first mismatch.
    """
    expected = {
        _name(leaf_path): leaf
        for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(variables_like)
    }
    for name, leaf in weights.leaves.items():
        values, shape = leaf.values, list(expected[name].shape)
        if list(values.shape) != shape:
            size = "; set --image_size to that of its training" if "/fc/" in name else ""
            raise UserError(
                f"{path} is another network: its {leaf.name} gives {name} the shape "
                f"{list(values.shape)} instead of {shape}{size}"
            )
        if values.dtype.kind != "f":
            raise UserError(f"{path}: {leaf.name} holds {values.dtype} instead of floats")
        if not np.all(np.isfinite(values)):
            raise UserError(f"{path}: {leaf.name} holds NaN or infinity; get it again")
    for name in expected:
        is_absent = any(f"/{head}/" in name for head in absent_heads)
        if name not in weights.leaves and not is_absent:
            raise UserError(f"{path} is another network: it has nothing for {name}")
    if weights.unknown:
        raise UserError(
            f"{path} is another network: googlenet_flax has no counterpart of its "
            f"{weights.unknown[0]}"
        )


def _initialize(description: ModelDescription) -> dict[str, Any]:
    model, size = description.create_model(), description.preprocess.image_size
    images = jnp.zeros((1, size, size, 3))
    init = jax.jit(
        lambda rng: model.init(rng, images, train=False),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return init(jax.random.key(0, impl="threefry2x32"))


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def import_weights(
    format_name: str,
    path: pathlib.Path,
    workdir: str,
    *,
    image_size: int,
    class_names: tuple[str, ...],
    transform_input: bool | None,
) -> Imported:
    """Reads a weight file and writes a workdir that can be used like that of a run.

    Args:
      format_name: Format of the weight file, as in `read_original`.
      path: The weight file.
      workdir: Directory to create.
      image_size: Side of the network's input in pixels.
      class_names: Names in the order of the classifier, as in `read_original`.
      transform_input: Input normalization of torchvision, as in `read_original`.

    Raises:
      UserError: `read_original` raises it, or the workdir holds a run.
      WorkdirInUseError: Another process uses the workdir.
    """
    _check_unused(workdir)
    imported = read_original(
        format_name,
        path,
        image_size=image_size,
        class_names=class_names,
        transform_input=transform_input,
    )
    with Workdir(workdir) as run_dir:
        with Checkpoints(run_dir.checkpoints) as checkpoints:
            checkpoints.save_variables(imported.variables, description=imported.description)
        origin = {"format": format_name, "file": path.name, "sha256": _sha256(path)}
        run_dir.write_config({IMPORTED_FROM: origin})
    return imported


def _check_unused(path: str) -> None:
    """Checks that a workdir holds no run; leftovers of a killed import may be replaced.

    Raises:
      UserError: The workdir holds a run.
    """
    workdir = Workdir(path)
    if workdir.config_file.exists():
        raise UserError(f"workdir {path!r} holds a run: choose a new --workdir")
    if Checkpoints(workdir.checkpoints).hold_training:
        raise UserError(
            f"workdir {path!r} holds the checkpoints of a run that has lost its "
            f"{workdir.config_file.name}: choose a new --workdir"
        )


def describe_import(imported: Imported) -> str:
    """Formats a line for each leaf, then the input and the classes of the network."""
    leaves = [
        f"{line.outcome:8} {line.path or '-':45} {line.source}" for line in imported.report
    ]
    counts = collections.Counter(line.outcome for line in imported.report)
    inputs = imported.description.preprocess
    names = imported.description.class_names
    summary = [
        f"{counts['loaded']} leaves loaded, {counts['random']} left at random, "
        f"{counts['skipped']} skipped",
        f"input: {inputs.image_size} px {inputs.channel_order}, (pixel x "
        f"{inputs.input_scale:.6g} - {inputs.input_mean}) / {inputs.input_std}",
        f"{len(names)} classes: {names[0]!r} to {names[-1]!r}",
    ]
    return "\n".join([*leaves, *summary])


def read_class_names(path: pathlib.Path) -> tuple[str, ...]:
    """Reads a text file that has the name of a class in each line.

    Raises:
      UserError: The file cannot be read.
    """
    try:
        return tuple(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class_names={path} cannot be read: {error}") from error
