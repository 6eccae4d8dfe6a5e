"""Four CPU devices, so that collectives are tested on a laptop, and small stand-ins."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 "
    "--xla_backend_optimization_level=0"  # Tests compile much and compute little.
)

import dataclasses
import fcntl
import hashlib
import io
import json
import pathlib
import sys
import tarfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from jax.extend.core import jaxprs_in_params
from tiny_run import REPOSITORY, train_tiny

from googlenet_flax.data.builders import cifar
from googlenet_flax.model.googlenet import VARIANTS, GoogLeNet
from googlenet_flax.model.layers import InceptionWidths
from googlenet_flax.preprocessing.augment import Augment
from googlenet_flax.preprocessing.preprocess import Preprocess
from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runs.label import Label, label_leaves
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.training.description import ModelDescription
from googlenet_flax.training.losses import Objective
from googlenet_flax.training.step import Inputs, train_step

__all__ = ["REPOSITORY"]

# Only the blocks that the heads and the last pool hang on.
SMALL_INCEPTIONS = {
    "inception_4a": InceptionWidths(16, 12, 16, 8, 16, 16),
    "inception_4d": InceptionWidths(16, 12, 16, 8, 16, 16),
    "inception_5a": InceptionWidths(16, 12, 16, 8, 16, 16),
}


def small_googlenet(variant: str, **fields) -> GoogLeNet:
    """A GoogLeNet of three narrow blocks that compiles in seconds."""
    fields = {"num_classes": 10, "width_multiplier": 0.25, **fields}
    return GoogLeNet(variant=VARIANTS[variant], inceptions=SMALL_INCEPTIONS, **fields)


def preprocess(**fields) -> Preprocess:
    """One that only cuts out the largest central square; pixels stay 0 to 255."""
    off = {
        "storage_size": 256,
        "image_size": 80,
        "crop_fraction": 1.0,
        "input_scale": 1.0,
        "input_mean": (0.0, 0.0, 0.0),
        "input_std": (1.0, 1.0, 1.0),
        "channel_order": "RGB",
    }
    return Preprocess(**{**off, **fields})


def augment(**fields) -> Augment:
    """One that changes nothing but what is named."""
    off = {
        "crop_padding_pixels": 0,
        "crop_min_area": 1.0,
        "crop_max_aspect": 4 / 3,
        "flip": "none",
        "color_jitter": 0.0,
        "interpolations": ("bilinear",),
        "cutout_fraction": 0.0,
    }
    return Augment(**{**off, **fields})


def bind_step(*, preprocess: Preprocess, augment: Augment, epoch_steps: int = 1, **fields):
    """A training step of `(state, batch)`; fields of the objective are named alone."""
    objective = {
        field.name: fields.pop(field.name)
        for field in dataclasses.fields(Objective)
        if field.name in fields
    }
    return partial(
        train_step,
        inputs=Inputs(preprocess, augment, epoch_steps),
        objective=Objective(**objective),
        **fields,
    )


def random_images(*shape) -> np.ndarray:
    """Noise of the whole range, uint8."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def numpy_variables(model: GoogLeNet, size: int = 80):
    """Variables in the ranges of a real start, without compiling sixty generators."""
    shapes = jax.eval_shape(
        lambda rng: model.init(rng, jnp.zeros((1, size, size, 3)), train=False),
        jax.random.key(0),
    )
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return rng.normal(scale=deviation, size=leaf.shape).astype(np.float32)
        return np.full(leaf.shape, {"bias": 0.1, "mean": 0.0}.get(name, 1.0), np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


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


def cut_out(picture: np.ndarray, box, size: int) -> np.ndarray:
    """A box of a picture `[h, w, C]` as a square: bilinear, antialiased, float64."""
    for axis, (start, length) in enumerate(zip(box[:2], box[2:], strict=True)):
        pixels = np.moveaxis(np.asarray(picture, np.float64), axis, 0)
        step = length / size
        result = []
        for number in range(size):
            centre = start + (number + 0.5) * step
            distances = np.abs(np.arange(len(pixels)) + 0.5 - centre) / max(step, 1)
            weights = np.clip(1 - distances, 0, None)
            result.append(np.tensordot(weights / weights.sum(), pixels, 1))
        picture = np.moveaxis(np.stack(result), 0, axis)
    return picture


def stock_convolution(x, kernel, stride=1, padding="SAME"):
    """XLA's own."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def draw_convolution(x_shape, kernel_shape, stride=1, padding="SAME", seed=0):
    """An input as after a ReLU, a kernel and a gradient of the output, float64."""
    rng = np.random.default_rng(seed)
    x, kernel = rng.normal(size=x_shape), rng.normal(size=kernel_shape)
    y = jax.eval_shape(
        lambda x, kernel: stock_convolution(x, kernel, stride, padding), x, kernel
    )
    return np.maximum(x, 0), kernel, rng.normal(size=y.shape)


def output_and_gradients(convolve, x, kernel, grad) -> list[np.ndarray]:
    """What `convolve(x, kernel)` computes, and its gradients of both."""

    def run(x, kernel, grad):
        y, vjp = jax.vjp(convolve, x, kernel)
        return y, *vjp(grad)

    return jax.device_get(list(jax.jit(run)(x, kernel, grad)))


def largest_differences(actual, expected) -> list[float]:
    """Of each pair of arrays, as a fraction of the largest value."""
    pairs = zip(actual, expected, strict=True)
    return [float(np.abs(a - e).max() / np.abs(e).max()) for a, e in pairs]


def equations(jaxpr):
    """Those of a jaxpr and of all jaxprs inside."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def cifar_archive_bytes(archive: cifar.Archive, examples_per_file: int) -> bytes:
    """A tar.gz in the official layout with random images and labels."""
    rng = np.random.default_rng(0)
    num_labels = len(archive.label_files)
    files = {
        name: rng.integers(0, 256, (examples_per_file, num_labels + 3072), dtype=np.uint8)
        for names in archive.files.values()
        for name in names
    }
    for records in files.values():
        records[:, :num_labels] = np.arange(examples_per_file)[:, None] % 10
    contents = {name: records.tobytes() for name, records in files.items()}
    for feature, name in archive.label_files.items():
        number = {"coarse_label": 20, "label": 10}[feature]
        if archive is cifar.CIFAR100 and feature == "label":
            number = 100
        names = "".join(f"{feature}_{i}\n" for i in range(number))
        contents[name] = (names + "\n").encode()  # The official file ends so.
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in contents.items():
            member = tarfile.TarInfo(f"{archive.folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def pytest_collection_modifyitems(items):
    """Begins with a long file: at the end it would keep one of two workers waiting."""
    items.sort(key=lambda item: item.path.name != "test_warm_start.py")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> pathlib.Path:
    """One for all tests of a test run, whichever worker they are in."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def compilation_cache(shared_folder) -> dict[str, str]:
    """Environment in which processes compile each program once per test run."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(shared_folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="session")
def finished_run(shared_folder, compilation_cache):
    """Workdir, stdout and stderr of a tiny run that nothing disturbed; do not change it."""
    workdir, result = shared_folder / "finished", shared_folder / "finished.json"
    with (shared_folder / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # The first worker makes it for all.
        if not result.exists():
            code, out, err = train_tiny(workdir, env=compilation_cache)
            assert code == 0, err
            result.write_text(json.dumps([out, err]))
    return workdir, *json.loads(result.read_text())


@pytest.fixture
def run_command(monkeypatch, capfd):
    """Runs the `main` of a command here; returns exit code, stdout and stderr."""

    def run_command(command, *args):
        monkeypatch.setattr(sys, "argv", [command.__name__, *map(str, args)])
        capfd.readouterr()
        code = 0
        try:
            with flagsaver.flagsaver():
                command.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capfd.readouterr()

    return run_command


@pytest.fixture
def small_cifar10(monkeypatch, tmp_path):
    """A data_dir that holds a hand-placed archive of 100 + 20 images."""
    data = cifar_archive_bytes(cifar.CIFAR10, examples_per_file=20)
    _use_archive(monkeypatch, cifar.Cifar10, cifar.CIFAR10, data)
    (tmp_path / cifar.CIFAR10.file_name).write_bytes(data)
    return tmp_path


@pytest.fixture
def small_cifar100(monkeypatch, tmp_path):
    """The same for CIFAR-100, 50 + 50 images."""
    data = cifar_archive_bytes(cifar.CIFAR100, examples_per_file=50)
    _use_archive(monkeypatch, cifar.Cifar100, cifar.CIFAR100, data)
    (tmp_path / cifar.CIFAR100.file_name).write_bytes(data)
    return tmp_path


def _use_archive(monkeypatch, builder_class, archive, data: bytes) -> None:
    small = dataclasses.replace(
        archive, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
    monkeypatch.setattr(builder_class, "ARCHIVE", small)
