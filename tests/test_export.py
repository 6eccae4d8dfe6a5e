"""Exported files, read by the programs for which they are meant."""

import dataclasses
import functools
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
from unittest import mock

import jax
import numpy as np
import onnx
import onnxruntime
import PIL.Image
import pytest
import safetensors
import safetensors.numpy
from flax import traverse_util
from helpers.images import color_blocks, random_images
from helpers.networks import (
    SMALL_INCEPTIONS,
    assert_leaves,
    numpy_variables,
    preprocess,
    small_googlenet,
)
from helpers.paths import REPOSITORY
from helpers.untrained_runs import write_run
from scipy.special import softmax

from googlenet_flax import create_model, import_weights
from googlenet_flax import export as command
from googlenet_flax.config import Config
from googlenet_flax.exporters import formats, stablehlo
from googlenet_flax.exporters import onnx as onnx_file
from googlenet_flax.exporters import safetensors as safetensors_file
from googlenet_flax.exporters.network import Network, describe
from googlenet_flax.importers.formats import read_original
from googlenet_flax.model import googlenet
from googlenet_flax.runs.prediction import predict
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.training.description import ModelDescription

HEADS = ("aux_4a", "aux_4d")
TOLERANCE = 1e-5  # Relative to the largest logit.
# No setting is the default.
INPUT = {
    "storage_size": 300,
    "crop_fraction": 0.875,
    "input_scale": 1 / 100,
    "input_mean": (1.0, 0.8, 1.2),
    "input_std": (0.9, 1.0, 1.3),
    "channel_order": "BGR",
}
DESCRIPTION = ModelDescription(
    variant="bn",
    width_multiplier=0.25,
    dtype="bfloat16",  # The export is in float32 all the same.
    class_names=("ant", "Zoë the bird", "caf\udce9", "cat, any cat", '"dog"'),
    preprocess=preprocess(image_size=83, **INPUT),
    untrained_heads=("aux_4d",),
)


def vary(variables):
    """Makes all channels and statistics different, so that an exchange of two shows."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        noise = 0 if path[-1].key == "kernel" else rng.uniform(0, 0.5, leaf.shape)
        return (leaf + noise).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, variables)


def draw_images(size):
    """Draws three images: noise, blocks of color, and one whose half is dark."""
    images = random_images(3, size, size, 3).astype(np.float32)
    images[1] = color_blocks(1, size, size)
    images[2, : size // 2] /= 16
    return images


@functools.cache
def create_network(variant, size, inceptions):
    """Creates a narrow network of three blocks (`small`) or of nine (`whole`)."""
    whole = functools.partial(create_model, num_classes=10, width_multiplier=0.1)
    build = {"small": small_googlenet, "whole": whole}[inceptions]
    googlenet = build(variant, arithmetic=formats.STOCK)
    variables = vary(numpy_variables(googlenet, size))
    return Network(googlenet, variables, preprocess(image_size=size, **INPUT))


@functools.cache
def expected_outputs(network):
    """Computes the logits of `draw_images`; NumPy prepares the input."""
    pixels = draw_images(network.preprocess.image_size)[..., ::-1] * np.float32(1 / 100)
    inputs = (pixels - np.float32([1, 0.8, 1.2])) / np.float32([0.9, 1, 1.3])
    apply = jax.jit(functools.partial(network.model.apply, train=False))
    output = apply(network.variables, inputs)
    return {name: np.asarray(getattr(output, name)) for name in ("logits", *HEADS)}


def check(actual, expected, rows=slice(None)):
    assert actual.keys() == expected.keys()
    for name, logits in expected.items():
        assert actual[name].dtype == np.float32
        difference = np.abs(actual[name] - logits[rows]).max()
        assert difference < TOLERANCE * np.abs(logits).max(), name


def load_onnx(data):
    session = onnxruntime.InferenceSession(data)
    names = [output.name for output in session.get_outputs()]

    def run(images):
        outputs = session.run(names, {"images": images})
        return dict(zip(names, outputs, strict=True))

    return run


def load_stablehlo(data):
    exported = jax.export.deserialize(bytearray(data))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    return lambda images: jax.device_get(exported.call(images))


WRITE = {"onnx": lambda network: onnx_file.write(network, {}), "stablehlo": stablehlo.write}
LOAD = {"onnx": load_onnx, "stablehlo": load_stablehlo}
# The padding of SAME and CEIL differs between these sides.
SMALL = [("seed", 80), ("seed", 127), ("paper", 97), ("paper", 127), ("bn", 32)]
SMALL += [("torchvision", 81)]
WHOLE = itertools.product(googlenet.VARIANTS, (80, 97, 127, 224), ["whole"], ["onnx"])


@pytest.mark.parametrize(
    ("variant", "size", "inceptions", "format_name"),
    [
        *((*case, "small", "onnx") for case in SMALL),
        ("paper", 97, "small", "stablehlo"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in WHOLE),
    ],
)
def test_the_file_computes_what_the_network_does(variant, size, inceptions, format_name):
    network = create_network(variant, size, inceptions)
    images, expected = draw_images(size), expected_outputs(network)
    run = LOAD[format_name](WRITE[format_name](network))
    for rows in (slice(3), slice(1)):  # The batches have three images and one.
        check(run(images[rows]), expected, rows)


def test_stablehlo_keeps_the_folders_of_this_machine_to_itself():
    limit = jax.config.jax_traceback_in_locations_limit
    data = stablehlo.write(create_network("seed", 80, "small"))
    for text in (formats.__file__, "googlenet_flax", "site-packages", ".py"):
        assert text.encode() not in data
    assert jax.config.jax_traceback_in_locations_limit == limit


def test_names_in_the_onnx_graph_are_the_papers():
    network = create_network("bn", 32, "small")
    graph = onnx.load_from_string(onnx_file.write(network, {})).graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    assert network.leaves().keys() <= weights.keys()
    # The order is out, in, height, width.
    assert weights["inception_4a/5x5/conv/kernel"] == (4, 2, 5, 5)
    nodes = {node.name for node in graph.node}
    assert nodes >= {"conv1", "pool1", "inception_4a/pool_proj/conv", "inception_5a"}
    assert nodes >= {"classifier", "aux_4d/fc"}
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    logits = {name: ["batch", 10] for name in ("logits", *HEADS)}
    assert shapes == {"images": ["batch", 32, 32, 3], **logits}


def test_outputs_without_heads_and_their_weights():
    network = create_network("seed", 80, "small")
    network = dataclasses.replace(network, model=network.model.clone(aux_heads=False))
    graph = onnx.load_from_string(onnx_file.write(network, {})).graph
    assert [output.name for output in graph.output] == ["logits"]
    assert not any("aux" in tensor.name for tensor in graph.initializer)
    exported = jax.export.deserialize(bytearray(stablehlo.write(network)))
    assert jax.tree.map(lambda aval: aval.shape[1:], exported.out_avals) == ((10,),)
    assert any("aux_4a" in name for name in network.leaves())


@pytest.fixture(scope="module")
def network():
    """Makes `create_model` build three blocks, which compile fast; returns the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(googlenet, "INCEPTIONS", SMALL_INCEPTIONS)
        patch.setattr(googlenet, "fastest", lambda platform, dtype: formats.STOCK)
        model = DESCRIPTION.create_model().clone(dtype=np.dtype(np.float32))
        yield Network(model, vary(numpy_variables(model, 83)), DESCRIPTION.preprocess)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, network):
    return write_run(tmp_path_factory.mktemp("run"), DESCRIPTION, network.variables)


@pytest.fixture
def export_to(workdir, run_command):
    def export_to(out, format_name, *args):
        flags = (f"--workdir={workdir}", f"--format={format_name}", f"--out={out}")
        return run_command(command, *flags, *args)

    return export_to


def test_the_program_of_the_page(tmp_path, monkeypatch, network, run_command):
    # The training pictures were smaller than the input of the network, as with CIFAR-10.
    inputs = dataclasses.replace(DESCRIPTION.preprocess, storage_size=32)
    described = dataclasses.replace(DESCRIPTION, preprocess=inputs)
    workdir = write_run(tmp_path / "run", described, network.variables)
    page = (REPOSITORY / "docs" / "export.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    flags = f"--workdir={workdir}", "--format=onnx", "--out=photos.onnx"
    assert run_command(command, *flags)[0] == 0
    PIL.Image.fromarray(color_blocks(1, 400, 500)).save("photo.jpg", quality=95)
    values = {}
    exec(program, values)
    predictor = Predictor.load(Workdir(workdir), "best", jax.local_devices()[:1])
    (answer,) = predict(predictor, [tmp_path / "photo.jpg"], top=5, batch_size=1)
    expected = dict(zip(values["names"], softmax(values["logits"][0]), strict=True))
    # The predictor computes in bfloat16.
    assert dict(answer.classes) == pytest.approx(expected, abs=0.02)


def test_the_accuracy_is_that_of_the_averages():
    config = Config(dataset="digits", eval_split="test[:9]")
    metrics = {"accuracy": 0.5, "averaged_accuracy": 0.875}
    assert command._accuracy(config, metrics) == "87.50% on the split test[:9] of digits"
    assert command._accuracy(None, metrics) == command._accuracy(config, None) == ""


@pytest.fixture
def refusal(export_to, tmp_path, monkeypatch):
    """Runs the command, which must refuse and write nothing; returns the error."""
    monkeypatch.chdir(tmp_path)

    def refusal(format_name, *args, out="file"):
        code, printed, err = export_to(out, format_name, *args)
        assert code == 2 and not printed
        assert "usage:" in err or len(err.splitlines()) == 1
        assert not list(tmp_path.iterdir())
        return err

    return refusal


def read_metadata(path):
    if path.suffix == ".stablehlo":
        return json.loads((path.parent / f"{path.name}.json").read_text())
    if path.suffix == ".onnx":
        texts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    else:
        with safetensors.safe_open(path, "numpy") as file:
            texts = file.metadata()
    return {
        name: json.loads(text) if text[0] in "[{0123456789" else text
        for name, text in texts.items()
    }


@pytest.mark.parametrize(("format_name", "heads"), [("onnx", ()), ("stablehlo", HEADS)])
def test_command_writes_a_function(tmp_path, network, export_to, format_name, heads):
    out = tmp_path / f"caf\udce9.{format_name}"
    code, printed, err = export_to(out, format_name, *(["--aux_heads"] if heads else []))
    note = "googlenet_flax: untrained heads, whose outputs mean nothing: aux_4d\n"
    assert code == 0 and err == (note if heads else ""), err
    assert "5 classes: 'ant'" in printed and "RGB, 0 to 255" in printed
    assert "verified" in printed and "not verified" not in printed
    fields = read_metadata(out)
    assert ModelDescription.from_json(fields) == DESCRIPTION
    assert fields["checkpoint_step"] == 0
    assert set(fields["done_inside"]) < set(fields["preprocess"])
    assert fields["input"] == "images: float32 [batch, 83, 83, 3], RGB, 0 to 255"
    is_stablehlo = format_name == "stablehlo"
    assert fields.get("jax_version") == (jax.__version__ if is_stablehlo else None)
    expected = {name: expected_outputs(network)[name] for name in ("logits", *heads)}
    check(LOAD[format_name](out.read_bytes())(draw_images(83)), expected)
    side = [out.with_name(out.name + ".json")] if is_stablehlo else []
    assert sorted(tmp_path.iterdir()) == [out, *side]  # No temporary file is left.


def test_safetensors_is_read_and_imported_again(tmp_path, network, export_to, run_command):
    """Compares the description, and the weights bit for bit, with those of the network."""
    file, again = tmp_path / "caf\udce9.safetensors", tmp_path / "again"
    code, printed, err = export_to(file, "safetensors")
    assert code == 0 and not err, err
    assert "read back bit for bit" in printed
    fields = read_metadata(file)
    assert ModelDescription.from_json(fields) == DESCRIPTION
    assert fields["format"] == "flax" and not fields["done_inside"]
    leaves = {}
    for name, leaf in safetensors.numpy.load_file(file).items():
        collection = "batch_stats" if name.endswith(("/mean", "/var")) else "params"
        leaves[f"{collection}/{name}"] = leaf
    assert_leaves(leaves, network.variables)
    flags = ("--from=googlenet_flax", f"--weights={file}", f"--workdir={again}")
    code, printed, err = run_command(import_weights, *flags)
    assert code == 0 and "0 initialized randomly, 0 skipped" in printed, err
    predictor = Predictor.load(Workdir(again), "best", jax.local_devices()[:1])
    assert predictor.description == DESCRIPTION
    assert_leaves(jax.device_get(predictor.variables), network.variables)


def test_heads_that_an_exported_file_has_lost_are_named(tmp_path, network):
    file = tmp_path / "file.safetensors"
    described = describe(DESCRIPTION, 0, done_inside=False)
    file.write_bytes(safetensors_file.write(network, described))
    with safetensors.safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
        kept = {n: opened.get_tensor(n) for n in opened.keys() if not n.startswith("aux")}
    safetensors.numpy.save_file(kept, file, metadata)
    imported = read_original("googlenet_flax", file)
    assert imported.description.untrained_heads == HEADS
    variables = imported.variables
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, network.variables)
    for head in HEADS:
        leaves = traverse_util.flatten_dict(variables["params"][head])
        kernels = [leaf for path, leaf in leaves.items() if path[-1] == "kernel"]
        assert len(kernels) == 3
        assert all(1e-3 < kernel.std() < np.inf for kernel in kernels)


def test_the_model_card_says_what_the_network_takes(tmp_path, export_to):
    out = tmp_path / "ants.safetensors"
    assert export_to(out, "safetensors")[0] == 0
    card = (tmp_path / "ants.safetensors.md").read_text()
    front_matter, text = card.split("---\n")[1:]
    assert "pipeline_tag: image-classification" in front_matter
    for fact in ("`bn`", "5, from 'ant' to '\"dog\"'", "83 x 83 pixels", "0.875", "BGR"):
        assert fact in text
    assert "(pixel * 0.01 - (1.0, 0.8, 1.2)) / (0.9, 1.0, 1.3)" in text
    assert "Accuracy: not measured" in text and f"--weights={out.name}" in text


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({}, "does not describe its network: write it with googlenet_flax.export"),
        ({"variant": "vgg"}, "is not a safetensors file, or it is broken"),
    ],
)
def test_other_safetensors_files_are_refused(tmp_path, refused, metadata, reason):
    file = tmp_path / "other.safetensors"
    tensors = {"classifier/kernel": np.zeros((3, 3), np.float32)}
    safetensors.numpy.save_file(tensors, file, metadata)
    flags = ("--from=googlenet_flax", f"--weights={file}", f"--workdir={tmp_path / 'run'}")
    assert reason in refused(import_weights, *flags)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("module", "format_name"),
    [("onnx", "onnx"), ("safetensors.numpy", "safetensors"), ("flatbuffers", "stablehlo")],
)
def test_a_missing_package_is_named(refusal, monkeypatch, module, format_name):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    declared = project["project"]["optional-dependencies"]["export"]
    monkeypatch.setitem(sys.modules, module, None)
    package = module.partition(".")[0]
    assert f"pip install {package}, or googlenet_flax[export]" in refusal(format_name)
    assert any(line.startswith(f"{package}>=") for line in declared)


def test_a_network_too_large_for_onnx_is_refused(refusal, monkeypatch):
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 1000)
    assert "less than 2 GiB: export it with --format=safetensors" in refusal("onnx")


def test_without_onnxruntime_the_command_says_what_it_did_not_do(
    tmp_path, export_to, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, printed, _ = export_to(tmp_path / "file", "onnx")
    assert code == 0
    assert "not verified: onnxruntime is missing (pip install onnxruntime)" in printed
    onnx.checker.check_model(onnx.load(tmp_path / "file"))


@pytest.mark.parametrize("error", [2e-4, np.nan])
def test_a_file_with_other_logits_is_not_written(refusal, monkeypatch, error):
    run = onnx_file.run

    def run_wrongly(data, images):
        logits = run(data, images)["logits"]
        logits[1, 2] += error * np.abs(logits).max()
        return {"logits": logits}

    monkeypatch.setattr(onnx_file, "run", run_wrongly)
    assert "other logits" in refusal("onnx")


def test_a_file_with_other_weights_is_not_written(refusal, monkeypatch):
    read = safetensors_file.read

    def read_wrongly(data):
        return {**read(data), "classifier/bias": np.full(5, 2e-4, np.float32)}

    monkeypatch.setattr(safetensors_file, "read", read_wrongly)
    assert "other weights" in refusal("safetensors")


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        (".", "is not a file"),
        ("/dev/null", "is not a file"),
        ("missing/file", "cannot be written (No such file"),
        ("x" * 300, "cannot be written (File name too long)"),
    ],
)
def test_places_that_are_no_file(refusal, out, reason):
    assert reason in refusal("safetensors", out=out)


@pytest.mark.parametrize("format_name", formats.FORMATS)
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, format_name):
    out = tmp_path / "file"
    out.write_text("old")
    metadata = describe(DESCRIPTION, 0, done_inside=False)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=full))
    with pytest.raises(UserError, match="No space left"):
        formats.write_files(out, formats.Exported(b"new", metadata, ""), format_name)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_flags(tmp_path, refusal):
    assert "invalid choice: 'caffe'" in refusal("caffe")
    assert "no checkpoint '17'" in refusal("onnx", "--checkpoint=17")
    assert "no run in" in refusal("onnx", f"--workdir={tmp_path / 'nowhere'}")


@pytest.mark.slow
def test_stablehlo_needs_nothing_of_this_package(tmp_path):
    network = create_network("paper", 97, "whole")
    (tmp_path / "network").write_bytes(stablehlo.write(network))
    np.save(tmp_path / "images.npy", draw_images(97))
    program = (
        "import sys, numpy as np\n"
        "from jax import export\n"
        "exported = export.deserialize(bytearray(open('network', 'rb').read()))\n"
        "np.savez('outputs', **exported.call(np.load('images.npy')))\n"
        "assert not {'googlenet_flax', 'flax'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    check(dict(np.load(tmp_path / "outputs.npz")), expected_outputs(network))
