"""Weight files of the originals, and what only looks like one."""

import collections
import functools
import hashlib
import importlib
import json
import os
import pathlib
import pickle
import sys

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
import safetensors.flax
import safetensors.numpy
from flax import traverse_util
from helpers.configs import named_config
from helpers.networks import numpy_variables, preprocess
from helpers.paths import REPOSITORY
from helpers.small_networks import create_small, small_networks
from helpers.steps import tiny_state
from helpers.untrained_runs import write_run
from originals import caffe_googlenet
from originals.weights import ORIGINALS, draw_images, draw_weights, to_flax

from googlenet_flax import evaluate, import_weights
from googlenet_flax.config import Config
from googlenet_flax.importers import caffe, formats
from googlenet_flax.importers import keras as keras_reader
from googlenet_flax.importers.formats import read_original
from googlenet_flax.preprocessing.crops import central_crop
from googlenet_flax.preprocessing.preprocess import Preprocess
from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.train import train_and_evaluate
from googlenet_flax.training.description import ModelDescription

os.environ.setdefault("KERAS_BACKEND", "jax")  # Read when Keras is first imported.


SIZE = 96  # Pixels; the heads of seed and paper are tied to it.
SUFFIXES = {"torchvision": ".safetensors", "onnx": ".onnx", "keras": ".weights.h5"}
VARIANTS = {"torchvision": "torchvision", "onnx": "paper", "keras": "seed"}
HEADS = ("aux_4a", "aux_4d")
each_format = pytest.mark.parametrize("format_name", SUFFIXES)


weights_of = functools.cache(lambda variant: draw_weights(variant, SIZE))


@functools.cache
def expected_leaves(format_name):
    variant = VARIANTS[format_name]
    return to_flax(variant, SIZE, weights_of(variant))


@pytest.fixture(scope="module", autouse=True)
def shapes_are_computed_once():
    """Each time takes a fifth of a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ModelDescription,
            "variables_like",
            functools.cache(ModelDescription.variables_like),
        )
        yield


def flat(variables):
    return traverse_util.flatten_dict(variables, sep="/")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each format, written by the original's own library, with heads."""
    folder = tmp_path_factory.mktemp("weights")
    paths = {name: folder / f"weights{suffix}" for name, suffix in SUFFIXES.items()}
    counters = {
        "conv1.bn.num_batches_tracked": np.array(7),
        "aux2.conv.bn.num_batches_tracked": np.array(7),
    }
    weights = weights_of("torchvision") | counters
    safetensors.numpy.save_file(weights, paths["torchvision"])
    weights = weights_of("paper")
    graph = caffe_googlenet.create_model(weights, image_size=SIZE, aux_heads=True)
    onnx.save(graph, paths["onnx"])
    keras_model().save_weights(paths["keras"])
    with h5py.File(paths["keras"], "r+") as file:  # Where there is dropout and training.
        file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, np.uint32)
        file["optimizer/vars/0"] = np.array(3)
    return paths


@functools.cache
def keras_model():
    """With its outputs as [main, aux 1, aux 2]."""
    pytest.importorskip("keras")
    module = importlib.import_module("originals.keras_googlenet")
    return module.create_model(weights_of("seed"), SIZE)


@pytest.fixture(scope="module")
def arrays_of(files):
    """What each file holds, by the names there."""

    @functools.cache
    def arrays_of(format_name):
        if format_name == "torchvision":
            return safetensors.numpy.load_file(files[format_name])
        if format_name == "onnx":
            tensors = onnx.load(files[format_name]).graph.initializer
            return {t.name: onnx.numpy_helper.to_array(t) for t in tensors}
        arrays = {}

        def visit(name, item):
            if isinstance(item, h5py.Dataset):
                arrays[name] = item[()]

        with h5py.File(files[format_name]) as file:
            file.visititems(visit)
        return arrays

    return arrays_of


@pytest.fixture(scope="module")
def name_of(arrays_of):
    """The name in a file of one of our leaves; Keras has none, but the values tell."""

    def name_of(format_name, path):
        if format_name == "keras":
            arrays, values = arrays_of("keras").items(), expected_leaves("keras")[path]
            (name,) = (name for name, there in arrays if np.array_equal(there, values))
            return name
        original = ORIGINALS[VARIANTS[format_name]]
        names = [original.names(layer) for layer in original.layers(SIZE)]
        return next(layer[path] for layer in names if path in layer)

    return name_of


def write(format_name, path, arrays):
    """A file of these arrays alone; ONNX and HDF5 without graph and names of layers."""
    if format_name == "torchvision":
        safetensors.numpy.save_file(
            {name: np.ascontiguousarray(values) for name, values in arrays.items()}, path
        )
    elif format_name == "onnx":
        write_onnx(path, [onnx.numpy_helper.from_array(v, k) for k, v in arrays.items()])
    else:
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file[name] = values


def write_onnx(path, tensors):
    graph = onnx.helper.make_graph([], "weights", [], [], tensors)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())


def read(format_name, path, **options):
    return read_original(format_name, path, **{"image_size": SIZE, **options})


def refusal(format_name, path, **options):
    """What the user is told."""
    with pytest.raises(UserError) as caught:
        read(format_name, path, **options)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def outcomes(imported):
    """Our paths that were loaded, those left at random, and their names skipped."""
    lines = collections.defaultdict(set)
    for line in imported.report:
        lines[line.outcome].add(line.path or line.source)
    assert sum(map(len, lines.values())) == len(imported.report)
    return lines["loaded"], lines["random"], lines["skipped"]


def assert_leaves(variables, expected, dtype=np.float32):
    """All leaves, bit for bit, as float32, after having been rounded to `dtype`."""
    ours = flat(variables)
    assert ours.keys() == expected.keys()
    for path, values in expected.items():
        assert ours[path].dtype == np.float32
        np.testing.assert_array_equal(ours[path], values.astype(dtype), err_msg=path)


# What is loaded.


@each_format
def test_every_leaf_is_the_originals_bit_for_bit(files, arrays_of, name_of, format_name):
    imported, arrays = read(format_name, files[format_name]), arrays_of(format_name)
    expected = expected_leaves(format_name)
    assert_leaves(imported.variables, expected)
    like = imported.description.variables_like()
    assert jax.tree.map(np.shape, imported.variables) == jax.tree.map(np.shape, like)
    loaded, random, skipped = outcomes(imported)
    assert loaded == set(expected)
    assert not random
    report = {line.path: line.source for line in imported.report if line.path}
    sources = {source.split()[0] for source in report.values()}
    assert skipped == set(arrays) - sources
    assert skipped, "the files hold some that nobody needs"
    assert len(sources) == len(expected)
    for path in ("params/conv1/conv/kernel", "params/inception_4c/5x5/conv/kernel"):
        source, _, kind = report[path].partition(" ")
        assert source == name_of(format_name, path)
        assert sorted(json.loads(kind.removeprefix("float32"))) == sorted(
            arrays[source].shape
        )


@pytest.mark.slow
def test_without_heads_they_are_random(tmp_path):
    """As in the files of the ONNX model zoo."""
    weights = weights_of("paper")
    onnx.save(caffe_googlenet.create_model(weights, image_size=SIZE), tmp_path / "x.onnx")
    imported = read("onnx", tmp_path / "x.onnx")
    expected, ours = expected_leaves("onnx"), flat(imported.variables)
    heads = {path for path in expected if path.split("/")[1] in HEADS}
    assert outcomes(imported)[:2] == (set(expected) - heads, heads)
    for path in heads:
        assert ours[path].shape == expected[path].shape
        assert np.isfinite(ours[path]).all()
        assert path.endswith("bias") or ours[path].std() > 1e-3
    assert_leaves(
        traverse_util.unflatten_dict(
            {path: ours[path] for path in expected.keys() - heads}, sep="/"
        ),
        {path: expected[path] for path in expected.keys() - heads},
    )


def test_keras_without_heads(tmp_path):
    keras = pytest.importorskip("keras")
    whole = keras_model()
    path = tmp_path / "x.weights.h5"
    keras.Model(whole.input, whole.outputs[0]).save_weights(path)
    weights = keras_reader.read(path)
    expected = expected_leaves("keras")
    absent = expected.keys() - weights.leaves.keys()
    assert {name.split("/")[1] for name in absent} == set(HEADS)
    for name, leaf in weights.leaves.items():
        np.testing.assert_array_equal(leaf.values, expected[name], err_msg=name)
    assert not weights.unknown


@each_format
def test_half_precision(tmp_path, arrays_of, format_name):
    path = tmp_path / f"half{SUFFIXES[format_name]}"
    arrays = arrays_of(format_name)
    half = {k: v.astype("float16") if v.dtype.kind == "f" else v for k, v in arrays.items()}
    write(format_name, path, half)
    expected = expected_leaves(format_name)
    assert_leaves(read(format_name, path).variables, expected, "float16")


def test_bfloat16(tmp_path, arrays_of):
    path = tmp_path / "half.safetensors"
    arrays = dict(arrays_of("torchvision"))
    arrays["fc.weight"] = jnp.asarray(arrays["fc.weight"], jnp.bfloat16)
    safetensors.flax.save_file(arrays, path)
    expected = dict(expected_leaves("torchvision"))
    rounded = expected["params/classifier/kernel"].astype(jnp.bfloat16)
    expected["params/classifier/kernel"] = rounded
    assert_leaves(read("torchvision", path).variables, expected)


def test_the_zoos_own_names(tmp_path):
    """Its graph comes with the onnx package, with `ConstantOfShape` for the weights."""
    data = pathlib.Path(onnx.__file__).parent / "backend/test/data/light"
    model = onnx.load(data / "light_inception_v1.onnx")
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
    graph = onnx.helper.make_graph(
        nodes, "zoo", model.graph.input, model.graph.output, tensors
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "zoo.onnx")
    leaves = caffe.read(tmp_path / "zoo.onnx")
    assert not leaves.unknown
    assert set(leaves.skipped) == {"OC2_DUMMY_1", "OC2_DUMMY_3"}
    assert len(leaves.leaves) == len(weights) - 2 == 116
    for path, layer in (
        ("params/inception_3a/5x5/conv/kernel", "inception_3a/5x5_w_0"),
        ("params/conv2/conv/kernel", "conv2/3x3_w_0"),
    ):
        oihw = np.moveaxis(leaves.leaves[path].values, (0, 1), (2, 3)).swapaxes(0, 1)
        np.testing.assert_array_equal(oihw, weights[layer])
    classifier = leaves.leaves["params/classifier/kernel"].values
    np.testing.assert_array_equal(
        classifier.T, weights["loss3/classifier_w_0"].reshape(1000, 1024)
    )


def test_torch_files(tmp_path):
    torch = pytest.importorskip("torch")
    module = importlib.import_module("originals.torchvision_googlenet")
    state = module.create_model(weights_of("torchvision")).state_dict()
    expected = expected_leaves("torchvision")
    path = tmp_path / "googlenet.pth"
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
        torch.save(cast, path)
        imported = read("torchvision", path)
        loaded, random, skipped = outcomes(imported)
        assert loaded == set(expected)
        assert not random
        assert skipped == {name for name in state if name.endswith("num_batches_tracked")}
        rounded = jnp.dtype(str(dtype).removeprefix("torch."))
        assert_leaves(imported.variables, expected, rounded)


def test_other_torch_files(tmp_path):
    """As before torch 1.6, and with parameters that still want gradients."""
    torch = pytest.importorskip("torch")
    weights = {k: torch.tensor(v) for k, v in weights_of("torchvision").items()}
    for name in ("fc.weight", "fc.bias"):
        weights[name] = torch.nn.Parameter(weights[name])
    for zipped in (False, True):
        path = tmp_path / "googlenet.pth"
        torch.save(weights, path, _use_new_zipfile_serialization=zipped)
        assert_leaves(read("torchvision", path).variables, expected_leaves("torchvision"))


# What is said of it.

INPUTS = {  # Stored size, cropped fraction, scale, mean, deviation, order.
    "torchvision": (
        *(512, 0.875, 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "RGB",
    ),
    "onnx": (512, 0.875, 1.0, (104.0, 117.0, 123.0), (1.0, 1.0, 1.0), "BGR"),
    "keras": (32, 1.0, 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "RGB"),
}


@each_format
def test_description(files, format_name):
    stored, fraction, scale, mean, deviation, order = INPUTS[format_name]
    assert read(format_name, files[format_name]).description == ModelDescription(
        variant=VARIANTS[format_name],
        width_multiplier=1.0,
        dtype="float32",
        class_names=tuple("0123456789"),
        preprocess=Preprocess(
            storage_size=stored,
            image_size=SIZE,
            crop_fraction=fraction,
            input_scale=scale,
            input_mean=mean,
            input_std=deviation,
            channel_order=order,
        ),
    )


def pixels():
    """The stored outputs' images, 0-255, RGB, before any preprocessing."""
    preprocessed = draw_images("seed", SIZE)  # Divided by 255.
    return np.rint(preprocessed * 255).astype(np.uint8)


@pytest.mark.parametrize(
    "format_name",
    [
        "onnx",
        pytest.param("torchvision", marks=pytest.mark.slow),
        pytest.param("keras", marks=pytest.mark.slow),
    ],
)
def test_the_original_is_computed_from_pixels(tmp_path, files, format_name):
    """Weights, checkpoint and input together, against what the original computed."""
    options = {"image_size": SIZE, "class_names": (), "transform_input": None}
    formats.import_weights(format_name, files[format_name], str(tmp_path), **options)
    predictor = Predictor.load(Workdir(tmp_path), "best", jax.devices()[:1])
    variant = VARIANTS[format_name]
    shard = {"image": pixels()[None]}
    whole = predictor.step(predictor.variables, shard, central_crop(1.0))
    ours = {head: values[0] for head, values in jax.device_get(whole).items()}
    stored = json.loads((REPOSITORY / "tests/originals/outputs.json").read_text())
    for head, values in stored["outputs"][variant][str(SIZE)].items():
        logits = np.array(values)
        peaks = logits.max(axis=1, keepdims=True)
        theirs = logits - peaks
        theirs -= np.log(np.exp(theirs).sum(axis=1, keepdims=True))
        name = "main" if head == "logits" else head
        atol = 1e-4 * np.abs(logits).max()
        np.testing.assert_allclose(ours[name], theirs, atol=atol, err_msg=head)


def test_transform_input_is_torchvisions_two_steps(files):
    x = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3)).astype(np.float32)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    normalised = (x / 255 - mean) / std
    # torchvision.models.GoogLeNet._transform_input.
    transformed = normalised * (std / 0.5) + (mean - 0.5) / 0.5
    for flag, expected in {False: normalised, True: transformed, None: normalised}.items():
        imported = read("torchvision", files["torchvision"], transform_input=flag)
        ours = imported.description.preprocess.normalize(jnp.asarray(x))
        np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_transform_input_is_on_for_torchvisions_own_file(files, monkeypatch):
    digest = hashlib.sha256(files["torchvision"].read_bytes()).hexdigest()
    assert formats.TORCHVISION_DIGEST == "1378be20"
    monkeypatch.setattr(formats, "TORCHVISION_DIGEST", digest[:8])
    for flag, mean in {None: (0.5,) * 3, False: (0.485, 0.456, 0.406)}.items():
        imported = read("torchvision", files["torchvision"], transform_input=flag)
        assert imported.description.preprocess.input_mean == mean


KNOWN_CLASSES = {
    **{0: "tench", 1: "goldfish", 134: "crane", 207: "golden retriever", 281: "tabby"},
    **{285: "Egyptian cat", 291: "lion", 340: "zebra", 388: "giant panda"},
    **{404: "airliner", 517: "crane", 638: "maillot", 639: "maillot"},
    **{817: "sports car", 933: "cheeseburger", 999: "toilet tissue"},
}


def test_a_thousand_classes_are_imagenets(tmp_path, arrays_of):
    weights = dict(arrays_of("torchvision"))
    for layer in ("fc", "aux1.fc2", "aux2.fc2"):
        weights[f"{layer}.weight"] = np.ones((1000, 1024), np.float32)
        weights[f"{layer}.bias"] = np.ones(1000, np.float32)
    path = tmp_path / "x.safetensors"
    write("torchvision", path, weights)
    names = read("torchvision", path).description.class_names
    assert len(set(names)) == len(names) == 1000
    for index, name in KNOWN_CLASSES.items():
        assert names[index].split(",")[0].split(" (")[0] == name
    mine = tuple(f"mine {number}" for number in range(1000))
    imported = read("torchvision", path, class_names=mine)
    assert imported.description.class_names == mine


@each_format
def test_class_names_must_fit(files, format_name):
    names = ("cat", "dog", "Zoë the bird", *"abcdefg")
    description = read(format_name, files[format_name], class_names=names).description
    assert description.class_names == names
    message = refusal(format_name, files[format_name], class_names=names[:9])
    assert "--class_names has 9 lines" in message
    assert "10 classes" in message


# What is refused.


def ones(*shape):
    """Returns a change of the values to ones of this shape."""
    return lambda values: np.ones(shape, np.float32)


def with_last(number):
    """Returns a change of the last value."""
    return lambda values: np.append(values.ravel()[:-1], np.float32(number)).reshape(
        values.shape
    )


def other_side(values):
    """The paper has 5x5 where torchvision has 3x3."""
    shape = tuple({3: 5, 5: 3}.get(side, side) for side in values.shape)
    return np.ones(shape, np.float32)


MIDDLE = "params/inception_4b/3x3/conv/kernel"
# What becomes of a leaf, None for nothing, and what is said of the file.
CHANGES = {
    "turned": (
        "params/conv2/conv/kernel",
        np.transpose,
        "its {name} gives params/conv2/conv/kernel the shape",
    ),
    "5x5": ("params/inception_3a/5x5/conv/kernel", other_side, "inception_3a/5x5"),
    "one too few": (MIDDLE, None, f"nothing for {MIDDLE}"),
    "half a head": ("params/aux_4d/fc/bias", None, "nothing for params/aux_4d/fc/bias"),
    "NaN": (MIDDLE, with_last(np.nan), "{name} holds NaN or infinity"),
    "infinity": (MIDDLE, with_last(np.inf), "{name} holds NaN or infinity"),
    "int32": (MIDDLE, lambda values: np.int32(100 * values), "{name} holds int32"),
    "int64": (MIDDLE, lambda values: np.int64(100 * values), "{name} holds int64"),
    "int8": (MIDDLE, lambda values: np.int8(100 * values), "{name} holds int8"),
    "bool": (MIDDLE, lambda values: values > 0, "{name} holds bool"),
    "scalar": ("params/classifier/kernel", ones(), "{name}"),
    "no classes": ("params/classifier/kernel", ones(0, 128), "{name}"),
    "no features": ("params/aux_4a/fc/kernel", ones(0, 128), "{name}"),
}


# What is checked after reading does not depend on the format.
FORMAT_OF_CHANGE = {
    **{"int32": "torchvision", "bool": "torchvision", "int8": "onnx", "int64": "keras"},
    "infinity": "onnx",
}


@pytest.mark.parametrize(
    ("format_name", "change"),
    [(f, c) for f in SUFFIXES for c in CHANGES if FORMAT_OF_CHANGE.get(c, f) == f],
)
def test_a_leaf_that_does_not_fit(tmp_path, arrays_of, name_of, format_name, change):
    path, arrays = tmp_path / f"x{SUFFIXES[format_name]}", dict(arrays_of(format_name))
    leaf, change_values, words = CHANGES[change]
    name = name_of(format_name, leaf)
    values = arrays.pop(name)
    if change_values is not None:
        arrays[name] = change_values(values)
    # Where two are wrong, the first in the order of the network is named.
    later = name_of(format_name, "params/inception_5b/1x1/conv/kernel")
    if change == "turned":
        arrays[later] = arrays[later][..., :-1]
    write(format_name, path, arrays)
    message = refusal(format_name, path)
    assert words.format(name=name) in message
    assert change != "turned" or "instead of [3, 3, 64, 192]" in message


@each_format
def test_a_leaf_too_many(tmp_path, arrays_of, format_name):
    extra = {
        "torchvision": "inception5c.branch1.conv.weight",
        "onnx": "inception_5c/1x1_w_0",
        "keras": "layers/conv2d_59/vars/0",
    }[format_name]
    path = tmp_path / f"x{SUFFIXES[format_name]}"
    write(format_name, path, {**arrays_of(format_name), extra: np.ones(3, np.float32)})
    assert f"no counterpart of its {extra}" in refusal(format_name, path)


def test_a_residual_network(tmp_path):
    """torchvision's resnet18, by its first and last layers, and resnet50's classifier."""
    path = tmp_path / "resnet.safetensors"
    weights = {
        "conv1.weight": np.ones((64, 3, 7, 7), np.float32),
        "bn1.weight": np.ones(64, np.float32),
        "layer1.0.conv1.weight": np.ones((64, 64, 3, 3), np.float32),
    }
    write("torchvision", path, weights)
    message = refusal("torchvision", path)
    assert "another network" in message and "conv1.weight" in message
    for features in (512, 2048):
        fc = {"fc.weight": np.ones((1000, features), np.float32), "fc.bias": np.ones(1000)}
        write("torchvision", path, weights | fc)
        message = refusal("torchvision", path)
        assert f"fc.weight gives params/classifier/kernel the shape [{features}" in message


@pytest.mark.parametrize("name", ["densenet121", "inception_v2", "resnet50", "vgg19"])
def test_other_networks_of_the_zoo(name):
    data = pathlib.Path(onnx.__file__).parent / "backend/test/data/light"
    assert "another network" in refusal("onnx", data / f"light_{name}.onnx")


NUMBERED, NAMED, UNNAMED = (), ("output", "aux_output_1", "aux_output_2"), ("a", "b", "c")


def save_with_outputs(path, monkeypatch, order, names):
    """The Keras network with its outputs in another order, and the classifiers named."""
    keras = pytest.importorskip("keras")
    whole = keras_model()
    outputs = whole.outputs
    for name, output in zip(names, outputs, strict=bool(names)):
        monkeypatch.setattr(output._keras_history.operation, "name", name)
    keras.Model(whole.input, [outputs[i] for i in order]).save_weights(path)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        *((NUMBERED, order) for order in ((1, 2, 0), (1, 0, 2), (2, 0, 1), (0, 2, 1))),
        *((NAMED, order) for order in ((1, 2, 0), (1, 0, 2))),
    ],
)
def test_keras_outputs_in_another_order(tmp_path, monkeypatch, names, order):
    """All three classifiers have one shape, so that only the names tell."""
    path = tmp_path / "x.weights.h5"
    save_with_outputs(path, monkeypatch, order, names)
    message = refusal("keras", path)
    if order == (0, 2, 1):  # The convolutions of the heads see maps of different depth.
        assert "params/aux_4a/proj/conv/kernel the shape" in message
    else:
        assert "dense layers in another order" in message
        assert "[main, aux 1, aux 2]" in message


def test_keras_classifiers_with_names(tmp_path, monkeypatch):
    for names in (NAMED, UNNAMED):
        path = tmp_path / "x.weights.h5"
        save_with_outputs(path, monkeypatch, (0, 1, 2), names)
        assert_leaves(read("keras", path).variables, expected_leaves("keras"))


def test_keras_with_one_head(tmp_path):
    keras = pytest.importorskip("keras")
    whole = keras_model()
    path = tmp_path / "x.weights.h5"
    for kept in (1, 2):
        keras.Model(whole.input, [whole.outputs[0], whole.outputs[kept]]).save_weights(path)
        refusal("keras", path)


SUFFIXES_OF_FILES = (".safetensors", ".pth", ".onnx", ".weights.h5")
FORMAT_OF = {".pth": "torchvision"} | {
    suffix: format_name for format_name, suffix in SUFFIXES.items()
}


@pytest.fixture
def import_file(run_command, tmp_path):
    """Runs the command on a file that must be refused; returns what it says."""

    def import_file(path, *args):
        format_name = FORMAT_OF["".join(path.suffixes)]
        flags = [f"--from={format_name}", f"--weights={path}", f"--image_size={SIZE}"]
        code, out, err = run_command(
            import_weights, *flags, f"--workdir={tmp_path / 'run'}", *args
        )
        assert code == 2, err
        assert not out
        assert err.startswith("googlenet_flax: ") and err.count("\n") == 1, err
        assert not (tmp_path / "run").exists()
        return err

    return import_file


BROKEN = {
    "empty": b"",
    "one byte": b"\x80",
    "text": b"These are not the weights you are looking for.\n" * 9,
    "page": b"<!DOCTYPE html><html>404</html>",
    "zeros": bytes(5000),
    "noise": np.random.default_rng(0).bytes(5000),
    "archive": b"PK\x05\x06" + bytes(18),
    "pickle": pickle.dumps({"fc.weight": [1.0]}),
}


@pytest.mark.parametrize("suffix", SUFFIXES_OF_FILES)
@pytest.mark.parametrize("content", [None, *BROKEN])
def test_files_that_are_no_weights(tmp_path, import_file, suffix, content):
    if suffix == ".pth":
        pytest.importorskip("torch")
    path = tmp_path / f"weights{suffix}"
    if content is not None:
        path.write_bytes(BROKEN[content])
    message = import_file(path)
    assert str(path) in message
    assert not message.endswith((": \n", ":\n")), "the reason is missing"


@pytest.mark.parametrize("suffix", SUFFIXES.values())
def test_files_that_end_too_early_or_are_of_other_formats(
    tmp_path, files, import_file, suffix
):
    path = tmp_path / f"weights{suffix}"
    data = files[FORMAT_OF[suffix]].read_bytes()
    contents = [data[: int(len(data) * fraction)] for fraction in (0.001, 0.5, 0.999999)]
    contents += [files[FORMAT_OF[s]].read_bytes() for s in SUFFIXES.values() if s != suffix]
    for content in contents:
        path.write_bytes(content)
        assert str(path) in import_file(path)


def onnx_weights(location=None, **changes):
    """A tensor of ones with some of its fields wrong, or kept in another file."""
    ones = np.ones((2, 3), np.float32)
    tensor = onnx.numpy_helper.from_array(ones, "loss3/classifier_w_0")
    tensor.dims[:] = changes.pop("dims", tensor.dims)
    if location is not None:
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        tensor.external_data.add(key="location", value=location)
    for field, value in changes.items():
        setattr(tensor, field, value)
    return tensor


@pytest.mark.parametrize(
    "changes",
    [
        {"dims": [7, 7]},
        {"data_type": 0},
        {"data_type": 99},
        {"location": "absent.bin"},
        {"location": "../../secret"},
    ],
    ids=str,
)
def test_onnx_tensors_that_cannot_be_read(tmp_path, import_file, changes):
    path = tmp_path / "weights.onnx"
    write_onnx(path, [onnx_weights(**changes)])
    assert str(path) in import_file(path)


def test_hdf5_that_keras_never_writes(tmp_path, import_file):
    path = tmp_path / "weights.weights.h5"
    for values in (1.0, "text", h5py.Empty("f"), np.zeros(2, [("a", "f4")])):
        with h5py.File(path, "w") as file:
            file["layers/dense/vars/0"] = values
        assert str(path) in import_file(path)
    with h5py.File(path, "w") as file:  # A whole model, as Keras 2 wrote it.
        file["model_weights/conv2d/conv2d/kernel:0"] = np.ones(3)
    assert "Keras 3" in import_file(path)


@pytest.mark.parametrize("suffix", SUFFIXES.values())
def test_files_with_changed_bytes(tmp_path, suffix):
    """Whatever the library makes of them: weights or words, but no crash."""
    format_name = FORMAT_OF[suffix]
    path = tmp_path / f"weights{suffix}"
    names = {
        "torchvision": ("fc.weight", "fc.bias"),
        "onnx": ("loss3/classifier_w_0", "loss3/classifier_b_0"),
        "keras": ("layers/dense/vars/0", "layers/dense/vars/1"),
    }[format_name]
    write(format_name, path, {name: np.ones((2, 2), np.float32) for name in names})
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(100):
        changed = bytearray(data)
        for position in rng.integers(0, len(data), 3):
            changed[position] = rng.integers(256)
        path.write_bytes(changed)
        refusal(format_name, path)  # They are never the whole network.


TORCH_STATES = {  # They hold no state dict, or one that is of no use.
    "nested": lambda torch, ones: {"state_dict": {"fc.weight": ones}, "epoch": 3},
    "list": lambda torch, ones: [ones],
    "tensor": lambda torch, ones: ones,
    "nothing": lambda torch, ones: None,
    "empty": lambda torch, ones: {},
    "numbers": lambda torch, ones: {1: ones},
    "tuples": lambda torch, ones: {("fc", "weight"): ones},
    "sparse": lambda torch, ones: {"fc.weight": ones.to_sparse()},
    "float8": lambda torch, ones: {"fc.weight": ones.to(torch.float8_e4m3fn)},
    "complex": lambda torch, ones: {"fc.weight": ones.to(torch.complex64)},
    "absent": lambda torch, ones: {"fc.weight": torch.empty(10, 1024, device="meta")},
    "parallel": lambda torch, ones: {"module.fc.weight": ones},
    "scalar": lambda torch, ones: {"fc.weight": torch.tensor(1.0)},
}


@pytest.mark.parametrize("state", TORCH_STATES)
def test_torch_files_without_a_state_dict(tmp_path, import_file, state):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    torch.save(TORCH_STATES[state](torch, torch.ones(10, 1024)), path)
    message = import_file(path)
    if state in ("nested", "list", "tensor", "nothing"):
        assert "is not a state dict: write it with torch.save" in message


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_that_end_too_early(tmp_path, import_file, zipped):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    state = {f"fc.{number}": torch.ones(100) for number in range(100)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for count in range(1, len(data), len(data) // 30):
        path.write_bytes(data[:count])
        assert str(path) in import_file(path)


class CreatesFile:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["torch", "legacy torch", "pickle"])
def test_code_in_a_file_is_not_run(tmp_path, import_file, how):
    torch = pytest.importorskip("torch")
    path, created = tmp_path / "weights.pth", tmp_path / "created"
    state = {"fc.weight": torch.ones(10, 1024), "epoch": CreatesFile(created)}
    if how == "pickle":
        path.write_bytes(pickle.dumps({"epoch": CreatesFile(created)}, protocol=2))
        pickle.loads(path.read_bytes())
    else:
        zipped = how == "torch"
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        torch.load(path, weights_only=False)
    assert created.exists(), "the file is harmless: nothing is tested"
    created.unlink()
    assert "could run code" in import_file(path)
    assert not created.exists()


def test_a_whole_torch_module(tmp_path, import_file):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    assert "model.state_dict()" in import_file(path)


@pytest.mark.parametrize(
    ("suffix", "package"),
    [
        (".pth", "torch"),
        (".safetensors", "safetensors"),
        (".onnx", "onnx"),
        (".weights.h5", "h5py"),
    ],
)
def test_packages_that_are_not_installed(
    tmp_path, monkeypatch, import_file, suffix, package
):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"weights")
    message = import_file(path)
    assert f"pip install {package}" in message
    assert "googlenet_flax[import]" in message


@pytest.mark.parametrize(
    ("format_name", "flag", "words"),
    [
        ("onnx", "--class_names=NAMES", "has 2 lines"),
        ("onnx", "--class_names=NOISE", "noise.txt cannot be read"),
        ("onnx", "--class_names=nowhere.txt", "nowhere.txt cannot be read"),
        ("onnx", "--transform_input=true", "--transform_input is for --from=torchvision"),
        ("keras", "--transform_input=false", "--transform_input is for --from=torchvision"),
        ("onnx", "--image_size=79", "--image_size is 79 but must be 80 or more"),
        ("onnx", "--image_size=224", "set --image_size"),
        ("keras", "--image_size=224", "set --image_size"),
    ],
)
def test_options_that_do_not_fit(tmp_path, files, import_file, format_name, flag, words):
    """At 224 pixels the heads flatten a map of 4x4; here it is 1x1 or 2x2."""
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "noise.txt").write_bytes(b"\xff\xfe")
    flag = flag.replace("NAMES", str(tmp_path / "names.txt"))
    flag = flag.replace("NOISE", str(tmp_path / "noise.txt"))
    assert words in import_file(files[format_name], flag)


# The command.


@pytest.fixture
def import_run(run_command, tmp_path):
    """Runs the command into a new folder; returns exit code, stdout and stderr."""

    def import_run(format_name, weights, *args, workdir=tmp_path / "new folder"):
        flags = [f"--from={format_name}", f"--weights={weights}", f"--image_size={SIZE}"]
        return run_command(import_weights, *flags, f"--workdir={workdir}", *args)

    return import_run


@pytest.fixture(scope="module")
def imported_run(tmp_path_factory, files):
    workdir = tmp_path_factory.mktemp("imported") / "run"
    options = {"image_size": SIZE, "class_names": (), "transform_input": None}
    formats.import_weights("keras", files["keras"], str(workdir), **options)
    return workdir


def test_the_command_writes_a_workdir(tmp_path, files, import_run):
    code, out, err = import_run("keras", files["keras"])
    assert code == 0 and not err, err
    workdir, expected = tmp_path / "new folder", expected_leaves("keras")
    rows = [line.split() for line in out.splitlines()]
    assert {row[1] for row in rows if row and row[0] == "loaded"} == set(expected)
    assert "128 leaves loaded, 0 left at random, 2 skipped" in out
    assert str(workdir) in out
    digest = hashlib.sha256(files["keras"].read_bytes()).hexdigest()
    assert json.loads((workdir / "config.json").read_text()) == {
        "imported_from": {"format": "keras", "file": files["keras"].name, "sha256": digest}
    }
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        assert checkpoints.resolve("best") == checkpoints.resolve("latest") == 0
        description = checkpoints.describe(0)
        variables = checkpoints.restore_variables(
            0, description.variables_like(), jax.devices()[:1]
        )
    assert description == read("keras", files["keras"]).description
    assert_leaves(variables, expected)


@pytest.mark.parametrize("step", [None, 0, 3])
def test_a_workdir_that_holds_a_run(tmp_path, imported_run, files, import_run, step):
    """An import, or checkpoints of a run that has lost its config."""
    workdir, words = imported_run, "holds a run: choose a new --workdir"
    if step is not None:
        description = read("keras", files["keras"]).description
        workdir = tmp_path / "run"
        words = "has lost its config.json: choose a new --workdir"
        with Checkpoints(Workdir(workdir).checkpoints) as checkpoints:
            checkpoints.save(tiny_state(step), description=description)
    before = sorted(workdir.rglob("*"))
    for weights in (files["keras"], "missing.weights.h5"):
        code, out, err = import_run("keras", weights, workdir=workdir)
        assert code == 2 and not out and err.count("\n") == 1
        assert words in err
    assert sorted(workdir.rglob("*")) == before


def test_a_killed_import_is_run_again(tmp_path, files, monkeypatch):
    def kill(*_):
        raise KeyboardInterrupt

    flags = {"image_size": SIZE, "class_names": (), "transform_input": None}
    arguments = "keras", files["keras"], str(tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Workdir, "write_config", kill)
        formats.import_weights(*arguments, **flags)
    workdir = Workdir(tmp_path / "run")
    assert (workdir.checkpoints / "0").is_dir() and not workdir.config_file.exists()
    formats.import_weights(*arguments, **flags)
    assert workdir.read_config()["imported_from"]["format"] == "keras"


@pytest.mark.parametrize("mark", ["", "\ufeff"])  # Editors on Windows write the second.
def test_a_class_names_file(tmp_path, files, import_run, mark):
    names = ["cat", "dog", "Zoë the bird", *"abcdefg"]
    path = tmp_path / "names.txt"
    path.write_text(mark + "\n".join(names) + "\n", encoding="utf-8")
    code, out, err = import_run("onnx", files["onnx"], f"--class_names={path}")
    assert code == 0, err
    assert "10 classes: 'cat' to 'g'" in out
    with Checkpoints(tmp_path / "new folder" / "checkpoints") as checkpoints:
        assert checkpoints.describe(0).class_names == tuple(names)


def test_an_import_is_not_resumed(imported_run):
    with pytest.raises(UserError) as caught:
        train_and_evaluate(Config.of(named_config("digits")), str(imported_run))
    assert f"--config.init_from={imported_run}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_import_evaluates(tmp_path, run_command):
    digits = tuple("0123456789")
    description = ModelDescription("seed", 0.25, "float32", digits, preprocess())
    variables = numpy_variables(create_small(description))
    workdir = write_run(tmp_path, description, variables, imported_from={"format": "keras"})

    def evaluate_import(*args):
        with small_networks():
            return run_command(evaluate, f"--workdir={workdir}", *args)

    code, _, err = evaluate_import()
    assert code == 2 and err.count("\n") == 1
    assert "--dataset" in err
    code, out, err = evaluate_import("--dataset=digits", "--split=test[:8]", "--json")
    assert code == 0, err
    metrics = json.loads(out)
    assert metrics["step"] == 0
    assert metrics["accuracy"] * 8 == round(metrics["accuracy"] * 8)
    assert metrics["loss"] == pytest.approx(metrics["main_loss"])
    code, _, err = evaluate_import("--dataset=folder", "--data_dir=nowhere")
    assert code == 2 and "nowhere" in err
