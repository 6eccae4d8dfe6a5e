"""Weight files of the originals, and other files that are refused."""

import collections
import dataclasses
import functools
import hashlib
import importlib
import os
import pathlib
import pickle
import re
import sys
from unittest import mock

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import PIL.Image
import pytest
import safetensors.flax
import safetensors.numpy
from flax import traverse_util
from helpers.caffemodels import chunk, new_caffemodel, old_caffemodel
from helpers.configs import named_config
from helpers.images import color_blocks
from helpers.networks import assert_leaves, preprocess
from helpers.paths import REPOSITORY
from helpers.servers import cut_network, serving
from helpers.steps import tiny_state
from originals import caffe_googlenet
from originals.weights import ORIGINALS, draw_images, draw_weights, to_flax

import googlenet_flax
from googlenet_flax import import_weights
from googlenet_flax.config import Config
from googlenet_flax.importers import caffe, formats
from googlenet_flax.importers.formats import read_original, write_import
from googlenet_flax.importers.published import PUBLISHED
from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.downloads import RemoteFile
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.train import train_and_evaluate
from googlenet_flax.training.description import ModelDescription

os.environ.setdefault("KERAS_BACKEND", "jax")  # Read when Keras is first imported.


SIZE = 96  # In pixels; the heads of seed and paper depend on it.
SUFFIXES = {"torchvision": ".safetensors", "onnx": ".onnx", "keras": ".weights.h5"}
VARIANTS = {"torchvision": "torchvision", "onnx": "paper", "keras": "seed"}
HEADS = ("aux_4a", "aux_4d")
KERNEL = "params/inception_4b/3x3/conv/kernel"
CLASSIFIER = "params/classifier/kernel"
ZOO = pathlib.Path(onnx.__file__).parent / "backend/test/data/light"
each_format = pytest.mark.parametrize("format_name", SUFFIXES)

weights_of = functools.cache(lambda variant: draw_weights(variant, SIZE))


@functools.cache
def expected_leaves(format_name):
    variant = VARIANTS[format_name]
    return to_flax(variant, SIZE, weights_of(variant))


pytestmark = pytest.mark.usefixtures("shapes_are_computed_once")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Writes a file with heads in each format, with the original's own library."""
    folder = tmp_path_factory.mktemp("weights")
    paths = {name: folder / f"weights{suffix}" for name, suffix in SUFFIXES.items()}
    counters = {
        "conv1.bn.num_batches_tracked": np.array(7),
        "aux2.conv.bn.num_batches_tracked": np.array(7),
    }
    weights = weights_of("torchvision") | counters
    safetensors.numpy.save_file(weights, paths["torchvision"])
    onnx.save(caffe_googlenet.create_model(weights_of("paper"), SIZE), paths["onnx"])
    keras_model().save_weights(paths["keras"])
    with h5py.File(paths["keras"], "r+") as file:  # As after training with dropout.
        file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, np.uint32)
        file["optimizer/vars/0"] = np.array(3)
    return paths


@functools.cache
def keras_model():
    """Creates the Keras network with the outputs main, aux 1 and aux 2."""
    pytest.importorskip("keras")
    module = importlib.import_module("originals.keras_googlenet")
    return module.create_model(weights_of("seed"), SIZE)


@functools.cache
def arrays_of(path):
    """Reads the arrays of a file by their names in the file."""
    if path.suffix == ".safetensors":
        return safetensors.numpy.load_file(path)
    if path.suffix == ".onnx":
        tensors = onnx.load(path).graph.initializer
        return {t.name: onnx.numpy_helper.to_array(t) for t in tensors}
    arrays = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(visit)
    return arrays


def name_of(leaf, format_name, arrays):
    """Finds the name of one of our leaves in a file; for Keras, by its values."""
    if format_name == "keras":
        values = expected_leaves("keras")[leaf]
        (name,) = (n for n, there in arrays.items() if np.array_equal(there, values))
        return name
    original = ORIGINALS[VARIANTS[format_name]]
    names = [original.names(layer) for layer in original.layers(SIZE)]
    return next(layer[leaf] for layer in names if leaf in layer)


def write(format_name, folder, arrays):
    """Writes only arrays to a file: no graph for ONNX, no names of layers for HDF5."""
    path = folder / f"x{SUFFIXES[format_name]}"
    if format_name == "torchvision":
        safetensors.flax.save_file({k: jnp.asarray(v) for k, v in arrays.items()}, path)
    elif format_name == "onnx":
        write_onnx(path, [onnx.numpy_helper.from_array(v, k) for k, v in arrays.items()])
    else:
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file[name] = values
    return path


def write_onnx(path, tensors, nodes=()):
    graph = onnx.helper.make_graph(nodes, "weights", [], [], tensors)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())


def read(format_name, path, **options):
    return read_original(format_name, path, **{"image_size": SIZE, **options})


@functools.cache
def read_once(format_name, path):
    """Imports one of `files`, which no test changes."""
    return read(format_name, path)


FORMAT_OF = {suffix: name for name, suffix in SUFFIXES.items()}
FORMAT_OF |= {".pth": "torchvision", ".caffemodel": "caffe"}


def flags_of(path, folder):
    """Returns the flags of the command that imports a file into the workdir `run`."""
    format_name = FORMAT_OF["".join(path.suffixes)]
    flags = f"--from={format_name}", f"--weights={path}", f"--workdir={folder / 'run'}"
    return *flags, f"--image_size={SIZE}"


@pytest.fixture
def refusal(refused, tmp_path):
    """Runs the command on a file that must be refused; returns the error."""

    def refusal(path, *args):
        line = refused(import_weights, *flags_of(path, tmp_path), *args)
        assert args or str(path) in line
        assert not (tmp_path / "run").exists()
        return line

    return refusal


def outcomes(imported):
    """Returns our loaded paths, our random ones, and the skipped names of the file."""
    lines = collections.defaultdict(set)
    for line in imported.report:
        lines[line.outcome].add(line.path or line.source)
    assert sum(map(len, lines.values())) == len(imported.report)
    return lines["loaded"], lines["random"], lines["skipped"]


# Tests of loaded weights.


@each_format
def test_every_leaf_is_the_originals_bit_for_bit(files, format_name):
    path = files[format_name]
    imported, arrays = read_once(format_name, path), arrays_of(path)
    expected = expected_leaves(format_name)
    assert_leaves(imported.variables, expected)
    loaded, random, skipped = outcomes(imported)
    assert loaded == set(expected) and not random
    report = {line.path: line.source for line in imported.report if line.path}
    sources = {source.split()[0] for source in report.values()}
    assert skipped == set(arrays) - sources
    assert skipped, "the files hold some that nobody needs"
    assert len(sources) == len(expected)
    for leaf in (KERNEL, CLASSIFIER):
        name = name_of(leaf, format_name, arrays)
        assert report[leaf].startswith(f"{name} float32[")


def test_without_heads_they_are_drawn(tmp_path, monkeypatch):
    keras = pytest.importorskip("keras")
    whole, expected = keras_model(), expected_leaves("keras")
    path = tmp_path / "x.weights.h5"
    keras.Model(whole.input, whole.outputs[0]).save_weights(path)

    def draw_sevens(*_):  # A real draw is slow here; test_export has one.
        sevens = {name: jnp.full(leaf.shape, 7.0) for name, leaf in expected.items()}
        return traverse_util.unflatten_dict(sevens, sep="/")

    monkeypatch.setattr(ModelDescription, "initialize", draw_sevens)
    imported = read("keras", path)
    assert imported.description.untrained_heads == HEADS
    heads = {name for name in expected if name.split("/")[1] in HEADS}
    assert outcomes(imported)[:2] == (set(expected) - heads, heads)
    drawn = {name: np.full_like(expected[name], 7) for name in heads}
    assert_leaves(imported.variables, expected | drawn)


@pytest.mark.parametrize(
    ("format_name", "dtype"),
    [("torchvision", jnp.bfloat16), ("onnx", jnp.bfloat16), ("keras", np.float16)],
)
def test_half_precision(tmp_path, files, format_name, dtype):
    arrays, expected = dict(arrays_of(files[format_name])), expected_leaves(format_name)
    name = name_of(KERNEL, format_name, arrays)
    arrays[name] = arrays[name].astype(dtype)
    imported = read(format_name, write(format_name, tmp_path, arrays))
    rounded = {KERNEL: np.float32(expected[KERNEL].astype(dtype))}
    assert_leaves(imported.variables, expected | rounded)
    (source,) = (line.source for line in imported.report if line.path == KERNEL)
    assert source.startswith(f"{name} {jnp.dtype(dtype).name}[")


def test_the_zoos_own_names(tmp_path):
    """Reads the zoo's graph, which the onnx package ships with constant weights."""
    model = onnx.load(ZOO / "light_inception_v1.onnx")
    shapes = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    rng = np.random.default_rng(0)
    drawn = {
        node.output[0]: rng.normal(size=shapes.pop(node.input[0])).astype(np.float32)
        for node in model.graph.node
        if node.op_type == "ConstantOfShape"
    }
    nodes = [node for node in model.graph.node if node.op_type != "ConstantOfShape"]
    weights = shapes | drawn
    tensors = [onnx.numpy_helper.from_array(v, k) for k, v in weights.items()]
    write_onnx(tmp_path / "zoo.onnx", tensors, nodes)
    file = caffe.read_onnx(tmp_path / "zoo.onnx")
    leaves = file.leaves
    assert not file.unknown
    assert set(file.skipped) == {"OC2_DUMMY_1", "OC2_DUMMY_3"}
    assert len(leaves) == len(weights) - 2 == 116
    hwio = weights["inception_3a/5x5_w_0"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(leaves["params/inception_3a/5x5/conv/kernel"], hwio)
    classifier = weights["loss3/classifier_w_0"].reshape(1000, 1024).T
    np.testing.assert_array_equal(leaves[CLASSIFIER], classifier)


def test_torch_files(tmp_path):
    """Reads files of each dtype, of torch before 1.6, and of parameters with gradients."""
    torch = pytest.importorskip("torch")
    module = importlib.import_module("originals.torchvision_googlenet")
    state = module.create_model(weights_of("torchvision")).state_dict()
    state["fc.weight"] = torch.nn.Parameter(state["fc.weight"])
    path = tmp_path / "googlenet.pth"
    for dtype, zipped in (("float32", False), ("float16", True), ("bfloat16", True)):
        torch_dtype = getattr(torch, dtype)
        cast = {
            k: v.to(torch_dtype) if v.is_floating_point() else v for k, v in state.items()
        }
        torch.save(cast, path, _use_new_zipfile_serialization=zipped)
        imported = read("torchvision", path)
        loaded, random, skipped = outcomes(imported)
        assert loaded == set(expected_leaves("torchvision")) and not random
        assert skipped == {name for name in state if name.endswith("num_batches_tracked")}
        expected = expected_leaves("torchvision").items()
        rounded = {k: np.float32(v.astype(jnp.dtype(dtype))) for k, v in expected}
        assert_leaves(imported.variables, rounded)


def layers_of(weights):
    """Returns the blobs of each layer by Caffe's names of the layers."""
    layers = {}
    for name, values in weights.items():  # Each bias follows its kernel.
        blob = values[0, 0] if values.shape[:2] == (1, 1) else values  # A dense kernel.
        layers.setdefault(name.removesuffix("_w_0").removesuffix("_b_0"), []).append(blob)
    return layers


@pytest.mark.parametrize(
    "encode", [old_caffemodel, pytest.param(new_caffemodel, marks=pytest.mark.slow)]
)
def test_caffemodels(tmp_path, files, encode):
    """Compares every leaf of both versions of the format bit for bit."""
    path = tmp_path / "x.caffemodel"
    path.write_bytes(encode(layers_of(weights_of("paper"))))
    imported, expected = read("caffe", path), expected_leaves("onnx")
    assert_leaves(imported.variables, expected)
    assert outcomes(imported) == (set(expected), set(), set())
    (source,) = (line.source for line in imported.report if line.path == CLASSIFIER)
    assert source == "loss3/classifier[0] float32[1024, 10]"
    assert imported.description == read_once("onnx", files["onnx"]).description


def test_places365(tmp_path, run_command):
    """Imports Caffe's network with other classes, named in a file from Windows."""
    layers = layers_of(weights_of("paper"))
    for name in ("loss1/classifier", "loss2/classifier", "loss3/classifier"):
        layers[name] = [np.ones((365, 1024), np.float32), np.ones(365, np.float32)]
    path, text = tmp_path / "x.caffemodel", tmp_path / "names.txt"
    path.write_bytes(new_caffemodel(layers))
    names = ("Zoë's place", *(f"/p/place {n}" for n in range(364)))
    text.write_text("\n".join([*names, ""]), encoding="utf-8-sig")  # It begins with a mark.
    flags = *flags_of(path, tmp_path), f"--class_names={text}"
    code, out, err = run_command(import_weights, *flags)
    assert code == 0, err
    assert """365 classes: "Zoë's place" to '/p/place 363'""" in out
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.manifests[0].description.class_names == names


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (old_caffemodel({"fc8": [np.ones((5, 4))]}), "no main classifier, but fc8[0]"),
        (old_caffemodel({"loss3/classifier": [np.ones(0)]}), "of a classifier"),
        (new_caffemodel({"loss3/classifier": [np.ones(6)]})[:-9], "or it is broken: "),
        (new_caffemodel({"loss3/classifier": []}), "no main classifier, but no weights"),
        (chunk(100, chunk(1, b"\xff") + chunk(7, b"")), "or it is broken: "),
        (chunk(100, chunk(7, chunk(5, b"12345"))), "or it is broken: "),
        (chunk(100, chunk(7, chunk(5, bytes(24)) + chunk(7, chunk(1, b"\7")))), "broken: "),
    ],
)
def test_caffemodels_of_other_networks(tmp_path, refusal, content, words):
    path = tmp_path / "x.caffemodel"
    path.write_bytes(content)
    assert words in refusal(path)


def test_heads_that_are_not_trained(tmp_path, files, monkeypatch):
    """Recognizes the heads of torchvision's file, and a batch norm without a batch."""
    fresh = {"aux2.conv.bn.running_mean": np.zeros(128, np.float32)}
    path = write("torchvision", tmp_path, arrays_of(files["torchvision"]) | fresh)
    assert read("torchvision", path).description.untrained_heads == ("aux_4d",)
    digest = hashlib.sha256(files["torchvision"].read_bytes()).hexdigest()
    monkeypatch.setattr(formats, "TORCHVISION_DIGEST", digest[:8])
    imported = read("torchvision", files["torchvision"])
    assert imported.description.untrained_heads == HEADS
    last_line = formats.describe_import(imported).splitlines()[-1]
    assert last_line == "untrained heads, whose outputs mean nothing: aux_4a, aux_4d"


# Tests of the description.


@each_format
def test_description(files, format_name):
    variant, digits = VARIANTS[format_name], tuple("0123456789")
    description = read_once(format_name, files[format_name]).description
    inputs = description.preprocess
    assert description == ModelDescription(variant, 1.0, "float32", digits, inputs)
    sizes = inputs.storage_size, inputs.image_size, inputs.crop_fraction
    assert sizes == ((32, SIZE, 1.0) if format_name == "keras" else (512, SIZE, 224 / 256))
    # The seed only divides by 255.
    pixels = np.rint(draw_images("seed", SIZE) * 255)
    original = draw_images(variant, SIZE)
    ours = inputs.normalize(jnp.asarray(pixels))
    np.testing.assert_allclose(ours, original, atol=1e-5 * np.abs(original).max())


def test_transform_input_is_torchvisions_two_steps(files, monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3)).astype(np.float32)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = (x / 255 - mean) / std
    # torchvision.models.GoogLeNet._transform_input.
    transformed = normalised * (std / 0.5) + (mean - 0.5) / 0.5

    def check(flag, expected):
        imported = read("torchvision", files["torchvision"], transform_input=flag)
        ours = imported.description.preprocess.normalize(jnp.asarray(x))
        np.testing.assert_allclose(ours, expected, atol=2e-6)

    check(True, transformed)
    digest = hashlib.sha256(files["torchvision"].read_bytes()).hexdigest()
    monkeypatch.setattr(formats, "TORCHVISION_DIGEST", digest[:8])
    check(None, transformed)  # By default it is on for torchvision's own file.
    check(False, normalised)


KNOWN_CLASSES = {0: "tench", 134: "crane", 517: "crane", 281: "tabby", 340: "zebra"}
KNOWN_CLASSES |= {638: "maillot", 639: "maillot", 933: "cheeseburger", 999: "toilet tissue"}


def test_a_thousand_classes_are_imagenets(tmp_path, files):
    weights = dict(arrays_of(files["torchvision"]))
    for layer in ("fc", "aux1.fc2", "aux2.fc2"):
        weights[f"{layer}.weight"] = np.ones((1000, 1024), np.float32)
        weights[f"{layer}.bias"] = np.ones(1000, np.float32)
    path = write("torchvision", tmp_path, weights)
    names = read("torchvision", path).description.class_names
    assert len(set(names)) == len(names) == 1000
    for index, name in KNOWN_CLASSES.items():
        assert names[index].split(",")[0].split(" (")[0] == name


# Tests of refusals.


def ending_in(values, last):
    return np.append(values.ravel()[:-1], np.float32(last)).reshape(values.shape)


CONV2, EMPTY = "params/conv2/conv/kernel", np.ones((0, 128), np.float32)
# A change of a leaf, None to remove it, and the error that follows.
CHANGES = {
    "turned": (CONV2, np.transpose, f"its {{name}} gives {CONV2} the shape"),
    "3x3": (
        "params/inception_3a/5x5/conv/kernel",
        lambda x: x[..., 1:-1, 1:-1],
        "inception_3a/5x5",
    ),
    "one too few": (KERNEL, None, f"nothing for {KERNEL}"),
    "half a head": ("params/aux_4d/fc/bias", None, "nothing for params/aux_4d/fc/bias"),
    "NaN": (KERNEL, lambda x: ending_in(x, np.nan), "{name} holds NaN or infinity"),
    "infinity": (KERNEL, lambda x: ending_in(x, np.inf), "{name} holds NaN or infinity"),
    "int32": (KERNEL, np.int32, "{name} holds int32"),
    "scalar": (CLASSIFIER, lambda x: np.array(x.ravel()[0]), "{name}"),
    "no classes": (CLASSIFIER, lambda x: EMPTY, "{name}"),
    "no features": ("params/aux_4a/fc/kernel", lambda x: EMPTY, "{name}"),
}


@pytest.mark.parametrize(
    ("format_name", "change"),
    [
        *(("onnx", change) for change in CHANGES),
        ("torchvision", "turned"),
        ("keras", "turned"),
    ],
)
def test_a_leaf_that_does_not_fit(tmp_path, files, refusal, format_name, change):
    arrays = dict(arrays_of(files[format_name]))
    leaf, change_values, words = CHANGES[change]
    name = name_of(leaf, format_name, arrays)
    values = arrays.pop(name)
    if change_values is not None:
        arrays[name] = change_values(values)
    if change == "turned":  # If two are wrong, the error names the first in the network.
        later = name_of("params/inception_5b/1x1/conv/kernel", format_name, arrays)
        arrays[later] = arrays[later][..., :-1]
    message = refusal(write(format_name, tmp_path, arrays))
    assert words.format(name=name) in message


@each_format
def test_a_leaf_too_many(tmp_path, files, refusal, format_name):
    extra = "layers/conv2d_59/vars/0"
    arrays = {**arrays_of(files[format_name]), extra: np.ones(3, np.float32)}
    message = refusal(write(format_name, tmp_path, arrays))
    assert f"no counterpart of its {extra}" in message


def test_another_network_of_the_zoo(refusal):
    message = refusal(ZOO / "light_vgg19.onnx")
    assert "another network: it has no main classifier, but conv1_1_b_0, conv1" in message


NUMBERED, NAMED, UNNAMED = (), ("output", "aux_output_1", "aux_output_2"), ("a", "b", "c")


def save_with_outputs(path, monkeypatch, order, names):
    """Saves the Keras network with named outputs in another order."""
    keras = pytest.importorskip("keras")
    whole = keras_model()
    outputs = whole.outputs
    for name, output in zip(names, outputs, strict=bool(names)):
        monkeypatch.setattr(output._keras_history.operation, "name", name)
    keras.Model(whole.input, [outputs[i] for i in order]).save_weights(path)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        *((NUMBERED, order) for order in ((1, 0, 2), (0, 2, 1))),
        *((NAMED, order) for order in ((1, 2, 0), (1, 0, 2))),
    ],
)
def test_keras_outputs_in_another_order(tmp_path, monkeypatch, refusal, names, order):
    """Reads classifiers of one shape, which only their names distinguish."""
    path = tmp_path / "x.weights.h5"
    save_with_outputs(path, monkeypatch, order, names)
    message = refusal(path)
    if order == (0, 2, 1):  # The heads have different input channels.
        assert "params/aux_4a/proj/conv/kernel the shape" in message
    else:
        assert "dense layers in another order" in message
        assert "[main, aux 1, aux 2]" in message


def test_keras_classifiers_with_names(tmp_path, monkeypatch, refusal):
    path = tmp_path / "x.weights.h5"
    for names in (NAMED, UNNAMED):
        save_with_outputs(path, monkeypatch, (0, 1, 2), names)
        assert_leaves(read("keras", path).variables, expected_leaves("keras"))
    for order in ((0, 1), (0, 2)):  # Only one head is there.
        save_with_outputs(path, monkeypatch, order, UNNAMED)
        refusal(path)


def test_keras_names_of_other_layers_say_nothing(tmp_path, monkeypatch):
    path, whole = tmp_path / "x.weights.h5", keras_model()
    outputs = [output._keras_history.operation for output in whole.outputs]
    dense = [layer for layer in whole.layers if type(layer) is type(outputs[0])]
    for layer in dense:
        if layer not in outputs:
            monkeypatch.setattr(layer, "name", f"aux_{layer.name}")
    assert len(dense) == 5
    whole.save_weights(path)
    assert_leaves(read("keras", path).variables, expected_leaves("keras"))


def test_a_file_that_cannot_be_read(tmp_path, refusal):
    path = tmp_path / "weights.onnx"
    path.symlink_to("/proc/self/mem")
    assert "cannot be read: Input/output error" in refusal(path)


BROKEN = {
    "empty": b"",
    "text": b"These are not the weights you are looking for.\n" * 9,
    "noise": np.random.default_rng(0).bytes(5000),
    "archive": b"PK\x05\x06" + bytes(18),
    "pickle": pickle.dumps({"fc.weight": [1.0]}),
}


@pytest.mark.parametrize("suffix", FORMAT_OF)
@pytest.mark.parametrize("content", [None, *BROKEN])
def test_files_that_are_no_weights(tmp_path, refusal, suffix, content):
    if suffix == ".pth":
        pytest.importorskip("torch")
    path = tmp_path / f"weights{suffix}"
    if content is not None:
        path.write_bytes(BROKEN[content])
    assert not refusal(path).endswith((": ", ":")), "the reason is missing"


@each_format
def test_files_that_end_too_early_or_are_of_other_formats(
    tmp_path, files, refusal, format_name
):
    path = tmp_path / files[format_name].name
    data = files[format_name].read_bytes()
    contents = [data[: int(len(data) * fraction)] for fraction in (0.001, 0.5, 0.999999)]
    contents += [files[name].read_bytes() for name in SUFFIXES if name != format_name]
    for content in contents:
        path.write_bytes(content)
        refusal(path)


def test_onnx_tensors_in_other_files_are_refused(tmp_path, refusal):
    tensor = onnx.numpy_helper.from_array(np.ones(2, np.float32), "loss3/classifier_w_0")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    write_onnx(tmp_path / "weights.onnx", [tensor])
    refusal(tmp_path / "weights.onnx")


def test_hdf5_that_keras_never_writes(tmp_path, refusal):
    for values in (1.0, "text", h5py.Empty("f"), np.zeros(2, [("a", "f4")])):
        refusal(write("keras", tmp_path, {"layers/dense/vars/0": values}))
    # Keras 2 wrote whole models in this way.
    path = write("keras", tmp_path, {"model_weights/conv2d/conv2d/kernel:0": np.ones(3)})
    assert "Keras 3" in refusal(path)


TORCH_STATES = {  # These hold no state dict, or an unusable one.
    "nested": lambda torch, ones: {"state_dict": {"fc.weight": ones}, "epoch": 3},
    "list": lambda torch, ones: [ones],
    "nothing": lambda torch, ones: None,
    "module": lambda torch, ones: torch.nn.Linear(2, 2),
    "numbers": lambda torch, ones: {1: ones},
    "sparse": lambda torch, ones: {"fc.weight": ones.to_sparse()},
    "float8": lambda torch, ones: {"fc.weight": ones.to(torch.float8_e4m3fn)},
    "complex": lambda torch, ones: {"fc.weight": ones.to(torch.complex64)},
    "absent": lambda torch, ones: {"fc.weight": torch.empty(10, 1024, device="meta")},
    "parallel": lambda torch, ones: {"module.fc.weight": ones},
}


@pytest.mark.parametrize("state", TORCH_STATES)
def test_torch_files_without_a_state_dict(tmp_path, refusal, state):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    torch.save(TORCH_STATES[state](torch, torch.ones(10, 1024)), path)
    message = refusal(path)
    if state in ("nested", "list", "nothing", "module"):
        assert "write it with torch.save(model.state_dict()" in message


@pytest.mark.parametrize(
    ("suffix", "package"),
    list(zip(FORMAT_OF, ("safetensors", "onnx", "h5py", "torch", "protobuf"), strict=True)),
)
def test_packages_that_are_not_installed(tmp_path, monkeypatch, refused, suffix, package):
    module = {"protobuf": "google.protobuf"}.get(package, package)
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"weights")
    line = refused(import_weights, *flags_of(path, tmp_path))
    assert f"pip install {package}, or googlenet_flax[import]" in line


@pytest.mark.parametrize(
    ("format_name", "flag", "words"),
    [
        ("onnx", "--class_names=DIR/names.txt", "--class_names has 2 lines but"),
        ("onnx", "--class_names=/dev/null", "/dev/null has 0 lines"),
        ("onnx", "--class_names=DIR/noise.txt", "noise.txt cannot be read"),
        ("onnx", "--class_names=nowhere.txt", "nowhere.txt cannot be read"),
        ("onnx", "--transform_input=true", "--transform_input is for --from=torchvision"),
        ("keras", "--transform_input=false", "--transform_input is for --from=torchvision"),
        ("onnx", "--image_size=79", "--image_size is 79 but must be 80 or more"),
        ("onnx", "--image_size=224", "set --image_size"),
    ],
)
def test_options_that_do_not_fit(tmp_path, files, refusal, format_name, flag, words):
    """Refuses image sizes whose heads flatten another map than that of the file."""
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "noise.txt").write_bytes(b"\xff\xfe")
    assert words in refusal(files[format_name], flag.replace("DIR", str(tmp_path)))


# Tests of the command.


def test_the_command_writes_a_workdir(tmp_path, files, run_command, monkeypatch):
    workdir, expected = Workdir(tmp_path / "run"), expected_leaves("keras")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        # The files are those of a killed import.
        patch.setattr(Workdir, "write_config", mock.Mock(side_effect=KeyboardInterrupt))
        write_import(read_once("keras", files["keras"]), str(workdir.path))
    assert (workdir.checkpoints / "0").is_dir() and not workdir.config_file.exists()
    code, out, err = run_command(import_weights, *flags_of(files["keras"], tmp_path))
    assert code == 0 and not err, err
    rows = [line.split() for line in out.splitlines()]
    assert {row[1] for row in rows if row and row[0] == "loaded"} == set(expected)
    assert "128 leaves loaded, 0 initialized randomly, 2 skipped" in out
    assert str(workdir.path) in out
    digest = hashlib.sha256(files["keras"].read_bytes()).hexdigest()
    origin = {"format": "keras", "file": files["keras"].name, "sha256": digest}
    assert workdir.read_config() == {"imported_from": origin}
    with Checkpoints(workdir.checkpoints) as checkpoints:
        assert checkpoints.resolve("best") == checkpoints.resolve("latest") == 0
        description, devices = checkpoints.manifests[0].description, jax.devices()[:1]
        variables = checkpoints.restore_variables(0, description.variables_like(), devices)
    assert description == read_once("keras", files["keras"]).description
    assert_leaves(variables, expected)
    with pytest.raises(UserError, match=f"--config.init_from={workdir.path}"):
        train_and_evaluate(Config.of(named_config("digits")), str(workdir.path))


@pytest.mark.parametrize(
    ("step", "words"),
    [(None, "holds a run or an import: "), (3, "has lost its config.json: ")],
)
def test_a_workdir_that_holds_a_run(tmp_path, refused, step, words):
    """Refuses a workdir with an import, or with checkpoints that have lost their config."""
    digits, workdir = tuple("0123456789"), Workdir(tmp_path / "run")
    description = ModelDescription("seed", 0.25, "float32", digits, preprocess())
    with Checkpoints(workdir.checkpoints) as checkpoints:
        checkpoints.save(tiny_state(step or 0), description=description)
    if step is None:
        workdir.config_file.write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    flags = flags_of(pathlib.Path("missing.weights.h5"), tmp_path)
    assert f"{words}choose a new --workdir" in refused(import_weights, *flags)
    assert sorted(tmp_path.rglob("*")) == before


# Tests of published weights, with weights of the tests on a local server.


@pytest.fixture
def server(files, tmp_path, monkeypatch):
    content, name = files["torchvision"].read_bytes(), "w.safetensors"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving({name: content}) as server:
        digest = hashlib.sha256(content).hexdigest()
        file = RemoteFile(name, server.url(name), digest, len(content))
        fake = dataclasses.replace(PUBLISHED["torchvision"], file=file)
        monkeypatch.setitem(PUBLISHED, "torchvision", fake)
        yield server


def test_published_weights_are_downloaded_once(server, files, tmp_path, run_command):
    flags = "--from=torchvision", f"--image_size={SIZE}", f"--workdir={tmp_path / 'run'}"
    code, out, err = run_command(import_weights, *flags)
    assert code == 0, err
    assert "downloading w.safetensors" in err
    published = PUBLISHED["torchvision"]
    for words in (published.license, published.citation, published.claims, published.heads):
        assert words in out
    (cached,) = (tmp_path / "cache" / "googlenet_flax" / "weights").iterdir()
    origin = Workdir(tmp_path / "run").read_config()["imported_from"]
    assert origin["file"] == cached.name and origin["sha256"] == published.file.sha256
    model, variables, description = googlenet_flax.load_pretrained(
        "torchvision", image_size=SIZE
    )
    assert len(server.requests) == 1
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables))
    assert_leaves(variables, expected_leaves("torchvision"))
    assert model == description.create_model()
    assert description == read_once("torchvision", files["torchvision"]).description


@pytest.mark.parametrize("name", sorted(PUBLISHED.keys() & formats.FORMATS))
def test_published_weights_without_a_network(tmp_path, monkeypatch, refused, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cut_network(monkeypatch)
    line = refused(import_weights, f"--from={name}", f"--workdir={tmp_path / 'run'}")
    published = PUBLISHED[name]
    place = tmp_path / "cache" / "googlenet_flax" / "weights" / published.file.name
    address = published.file.url or published.page
    for part in (address, published.file.sha256, f"put it at {place}", "--weights=FILE"):
        assert part in line
    assert not list(tmp_path.iterdir())


def test_a_format_without_published_weights(tmp_path, refused):
    line = refused(import_weights, "--from=keras", f"--workdir={tmp_path / 'run'}")
    assert (
        "published for 'keras', only for torchvision" in line and "--weights=FILE" in line
    )


def test_published_digests():
    for published in PUBLISHED.values():
        file = published.file
        assert len(bytes.fromhex(file.sha256)) == 32
        assert not file.url or file.url.endswith(f"/{file.name}")
    # torch.hub checks the digest in the name.
    file = PUBLISHED["torchvision"].file
    assert file.name == f"googlenet-{file.sha256[:8]}.pth"
    assert file.sha256.startswith(formats.TORCHVISION_DIGEST)


@pytest.mark.slow
def test_the_programs_of_the_page(server, tmp_path, monkeypatch):
    page = (REPOSITORY / "docs" / "weights.md").read_text()
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(color_blocks(1, 160, 200)).save("photo.jpg")
    values = {}
    for program in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(program, values)
    assert values["logits"].shape == (1, len(values["description"].class_names))
    output = values["model"].apply(values["variables"], values["images"], train=False)
    assert output.aux_4a is None and not np.any(output.logits)
    assert output.logits.shape == (1, 5)
