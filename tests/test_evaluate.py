"""Evaluation of a network, and over many crops and networks, compared with NumPy."""

import dataclasses
import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from helpers.configs import named_config
from helpers.images import color_blocks, cut_out
from helpers.networks import create_small, numpy_variables
from helpers.untrained_runs import describe, write_run
from scipy.special import softmax

from googlenet_flax import evaluate
from googlenet_flax.config import Config
from googlenet_flax.data import load_split
from googlenet_flax.preprocessing.crops import central_crop, crop_boxes, evaluation_crops
from googlenet_flax.runs.checkpoint_evaluation import evaluation_config, load_eval_split
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.training.sharding import fit_batch_size, replicate

pytestmark = pytest.mark.usefixtures("small_networks")
SIZE = 80
HEADS = {"main": "logits", "aux_4a": "aux_4a", "aux_4d": "aux_4d"}
CLASSES = tuple("0123456789")
COMMON = {"width_multiplier": 0.25, "class_names": CLASSES, "storage_size": 48}
FIRST = describe(input_scale=1 / 255, crop_fraction=0.875, **COMMON)
SECOND = describe(  # This member has another crop, scale and order of channels.
    variant="seed",
    input_scale=1 / 64,
    input_mean=(1.5, 2.0, 2.5),
    channel_order="BGR",
    untrained_heads=("aux_4a", "aux_4d"),
    **COMMON,
)
DESCRIPTIONS = (FIRST, SECOND)
RECIPE = {
    **named_config("digits"),
    "eval_split": "test[:10]",
    "batch_size": 4,
    "aux_weight": 0.5,
    "on_bad_image": "skip",
}
# Shapes of the pictures, and their labels.
SHAPES = {(48, 48): 3, (30, 48): 1, (48, 25): 4, (48, 47): 1, (9, 9): 5, (48, 10): 9}
EXAMPLES = [(color_blocks(label, *shape), label) for shape, label in SHAPES.items()]


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """Writes two networks whose scaled classifiers give different answers."""
    return [
        write_run(tmp_path_factory.mktemp("run"), description, variables_of(n), **RECIPE)
        for n, description in enumerate(DESCRIPTIONS)
    ]


@functools.cache
def variables_of(number):
    variables = numpy_variables(create_small(DESCRIPTIONS[number]), SIZE)
    params = variables["params"]
    for parent in (params["aux_4a"], params["aux_4d"], params):
        rng = np.random.default_rng(10 + number)
        kernel = parent["classifier"]["kernel"]
        parent["classifier"]["kernel"] = rng.permuted(kernel, axis=1)
    return variables


@pytest.fixture(scope="module")
def predictors(members):
    """Loads the networks on four devices."""
    devices = jax.devices()
    return [Predictor.load(Workdir(path), "best", devices) for path in members]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Writes the pictures as files, and one file that cannot be read."""
    path = tmp_path_factory.mktemp("pictures")
    for number, (picture, label) in enumerate(EXAMPLES):
        (path / "test" / str(label)).mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(picture).save(path / "test" / str(label) / f"{number}.png")
    (path / "test" / "3" / "broken.png").write_bytes(b"hello")
    return path


@functools.cache
def apply_of(number):
    model, variables = create_small(DESCRIPTIONS[number]), variables_of(number)
    return jax.jit(lambda images: model.apply(variables, images, train=False))


def expected_probabilities(number, picture, crops):
    """Averages the softmax `[classes]` of each classifier over the crops of a member."""
    fields = DESCRIPTIONS[number].preprocess
    inputs = []
    for own in evaluation_crops(crops, fields.crop_fraction):
        crop = own or central_crop(fields.crop_fraction)
        extents = jnp.array([picture.shape[:2]])
        ((top, left, side, _),) = np.asarray(crop_boxes(extents, crop))
        more, around = 0, picture
        if crop.shift:  # The crop reaches over the border.
            more, around = 2, np.pad(picture, ((2, 2), (2, 2), (0, 0)), "edge")
        pixels = cut_out(around, (top + more, left + more, side, side), SIZE)
        pixels = pixels[:, ::-1] if crop.mirror else pixels
        pixels = pixels[..., ::-1] if fields.channel_order == "BGR" else pixels
        inputs.append((pixels * fields.input_scale - fields.input_mean) / fields.input_std)
    outputs = []
    for start in range(0, len(inputs), 12):  # A constant batch size needs one compilation.
        chunk = np.array(inputs[start : start + 12], np.float32)
        outputs.append(apply_of(number)(np.resize(chunk, (12, SIZE, SIZE, 3))))
    logits = jax.tree.map(lambda *parts: np.concatenate(parts, dtype=np.float64), *outputs)
    return {
        head: softmax(getattr(logits, name)[: len(inputs)], axis=1).mean(axis=0)
        for head, name in HEADS.items()
    }


def expected_metrics(numbers, examples, crops, aux_weight=0.5):
    """Computes metrics of the mean over members from pairs of a picture and its label."""
    rows = []
    for picture, label in examples:
        each = [expected_probabilities(number, picture, crops) for number in numbers]
        row = {}
        for head in HEADS:
            probabilities = np.mean([one[head] for one in each], axis=0)
            rank = np.sum(probabilities >= probabilities[label]) - 1
            row[f"{head}_loss"] = -np.log(probabilities[label])
            row["accuracy" if head == "main" else f"{head}_accuracy"] = rank < 1
            row |= {"top5": rank < 5} if head == "main" else {}
        heads = row["aux_4a_loss"] + row["aux_4d_loss"]
        rows.append({**row, "loss": row["main_loss"] + aux_weight * heads})
    return {name: np.mean([row[name] for row in rows]) for name in rows[0]}


def assert_same(actual, expected, rtol=1e-4):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=rtol, abs=1e-6), name


@pytest.fixture
def loaded(members, predictors, monkeypatch):
    """Records the paths of networks that are loaded, and returns compiled ones instead."""
    known = dict(zip(map(str, members), predictors, strict=True))
    load, paths = Predictor.load, []

    def load_known(workdir, checkpoint, devices, *, raw):
        paths.append(workdir.path)
        path = os.path.realpath(workdir.path)
        if path in known and checkpoint == "best":
            return known[path]
        return load(workdir, checkpoint, devices, raw=raw)

    monkeypatch.setattr(Predictor, "load", load_known)
    return paths


@pytest.fixture
def evaluate_json(run_command, loaded):
    def evaluate_json(*args):
        code, out, err = run_command(evaluate, "--json", *args)
        assert code == 0, err
        metrics = json.loads(out)
        about = [
            metrics.pop(name) for name in ("step", "dataset", "eval_split", "examples")
        ]
        return metrics, about, err

    return evaluate_json


@pytest.mark.parametrize(
    ("numbers", "crops", "batch_size"),
    [
        ((0,), 1, 16),  # More than there are pictures, so the only batch is padded.
        ((1,), 6, 4),
        ((0, 1), 1, 1),  # Rounded up to the devices; the last batch is padded.
        pytest.param((0, 1), 144, 4, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_picture_counts_once_with_the_mean_of_softmax(
    members, folder, evaluate_json, numbers, crops, batch_size
):
    """Averages over members and crops of pictures, one of which is unreadable."""
    metrics, about, err = evaluate_json(
        f"--ensemble={','.join(str(members[number]) for number in numbers)}",
        *(f"--crops={crops}", "--dataset=folder", f"--data_dir={folder}", "--split=test"),
        f"--batch_size={batch_size}",
    )
    assert_same(metrics, expected_metrics(numbers, EXAMPLES, crops))
    assert about == [0, "folder", "test", len(EXAMPLES)]
    skipped, *notes = err.splitlines()
    assert f"skipped {folder}/test/3/broken.png: " in skipped
    note = f"{members[1]}: untrained heads, whose outputs mean nothing: aux_4a, aux_4d"
    assert notes == [f"googlenet_flax: {note}"] * (1 in numbers)


def test_classes_of_other_names_are_compared_by_number(capfd):
    names = (*CLASSES[:-1], "nine")
    load_eval_split(Config.of(RECIPE), dataclasses.replace(FIRST, class_names=names))
    (line,) = capfd.readouterr().err.splitlines()
    assert "1 of 10 have other names: class 9 is '9' in digits and 'nine'" in line


def test_small_probabilities_are_not_lost(members, predictors, evaluate_json, monkeypatch):
    """Checks that a network that is sure and wrong has a finite loss of hundreds."""
    first, variables = predictors[0], variables_of(0)
    params = dict(variables["params"])
    params["classifier"] = {n: 1e3 * leaf for n, leaf in params["classifier"].items()}
    scaled = replicate({**variables, "params": params}, first.devices)
    sure = dataclasses.replace(first, variables=scaled)
    monkeypatch.setattr(Predictor, "load", lambda *_, **__: sure)
    metrics, *_ = evaluate_json(f"--workdir={members[0]}", "--crops=2")
    assert 200 < metrics["main_loss"] < np.inf


def test_the_command(members, evaluate_json):
    """Checks that data, batch size and weight of the heads are those of the run."""
    first, second = members
    digits = load_split("digits", RECIPE["eval_split"], data_dir="")
    examples = list(zip(np.repeat(digits.images, 3, axis=-1), digits.labels, strict=True))
    # Each member uses its own crop.
    both, *_ = evaluate_json(f"--ensemble={first},{second}", "--crops=2")
    assert_same(both, expected_metrics((0, 1), examples, 2))
    # This is the same crop in another notation; the order of members does not matter.
    for flags in (
        [f"--workdir={first}", f"--ensemble={second}"],
        [f"--workdir={second}", f"--ensemble={first},{second},"],
    ):
        assert_same(evaluate_json(*flags, "--crops=2")[0], both, rtol=1e-6)


@pytest.mark.parametrize(
    ("accuracy", "expected_code"),
    # A difference equal to the tolerance is accepted, and 1 of 50,000 pictures more is not.
    [(0.701, 0), (0.695, 0), (0.70102, 5), (0.69498, 5)],
)
def test_an_accuracy_that_is_not_the_expected_one(
    monkeypatch, run_command, accuracy, expected_code
):
    assert abs(0.701 - 0.698) > 0.003  # The tolerance allows for rounding.
    metrics = {"step": 0, "accuracy": accuracy}
    monkeypatch.setattr(evaluate, "evaluate_checkpoints", lambda *_, **__: metrics)
    flags = ["--workdir=run", "--json", "--expect=0.698", "--tolerance=0.003"]
    code, out, err = run_command(evaluate, *flags)
    assert (code, json.loads(out)) == (expected_code, metrics)
    assert err.count("\n") == (expected_code != 0)
    allowed = "--expect=0.698 and --tolerance=0.003 allow 0.695 to 0.701\n"
    assert not err or f"the accuracy is {accuracy}, but {allowed}" in err


def test_a_run_named_twice_counts_once(
    members, loaded, evaluate_json, tmp_path, monkeypatch
):
    first, second = members
    both = evaluate_json(f"--workdir={first}", f"--ensemble={second}")
    link = tmp_path / "link"
    link.symlink_to(first)
    monkeypatch.chdir(first.parent)
    for other in (first.name, f"{first}/../{first.name}", link):
        loaded.clear()
        again = evaluate_json(f"--workdir={first}", f"--ensemble={second},{other}")
        assert len(loaded) == 2, other
        assert again == both, other


@pytest.mark.parametrize(
    ("size", "examples", "devices", "expected"),
    [(32, 100, 4, 32), (30, 100, 4, 32), (32, 10, 4, 12), (32, 3, 4, 4), (5, 1, 1, 1)],
)
def test_a_batch_is_no_larger_than_it_must_be(size, examples, devices, expected):
    assert fit_batch_size(size, examples, devices) == expected


def test_other_data_have_their_own_folder_and_split():
    run = Config(dataset="imagenet2012", data_dir="/data", eval_split="validation")
    same, other = (evaluation_config(run, dataset=n) for n in ("imagenet2012", "cifar10"))
    assert (same.data_dir, same.eval_split) == ("/data", "validation")
    assert (other.data_dir, other.eval_split) == ("", "test")


def test_an_import_is_evaluated_on_a_dataset_that_is_named(tmp_path, refused):
    imported = {"imported_from": {"format": "keras"}}
    workdir = write_run(tmp_path, FIRST, variables_of(0), **imported)
    assert "--dataset" in refused(evaluate, f"--workdir={workdir}")


@pytest.mark.parametrize(("flag", "expected"), [(None, 0.2), (0.0, 0.0), (0.5, 0.5)])
def test_a_fraction_of_zero_overrides_that_of_the_run(flag, expected):
    run = Config(dataset="folder", eval_fraction=0.2)
    assert evaluation_config(run, eval_fraction=flag).eval_fraction == expected


def test_batches_are_those_that_pass_through_the_network_in_training():
    run = Config(batch_size=12, accumulation_steps=3)
    assert evaluation_config(run).batch_size == 4
    assert evaluation_config(run, batch_size=6).batch_size == 6


@pytest.mark.parametrize("names", ["1023456789", "abcdefg"])
def test_other_classes_are_refused(members, tmp_path, refused, loaded, names):
    other = dataclasses.replace(FIRST, class_names=tuple(names))
    variables = numpy_variables(create_small(other), SIZE)
    run = write_run(tmp_path / "other", other, variables, **RECIPE)
    line = refused(evaluate, f"--workdir={members[0]}", f"--ensemble={run}")
    assert str(run) in line and str(members[0]) in line and "classes" in line
    if len(names) < 10:
        line = refused(evaluate, f"--workdir={run}", "--crops=10")
        assert "digits has 10 classes and the network 7" in line


def test_pictures_decoded_in_another_way_are_refused(
    members, folder, tmp_path, refused, loaded
):
    preprocess = dataclasses.replace(FIRST.preprocess, storage_size=512)
    other = dataclasses.replace(FIRST, preprocess=preprocess)
    run = write_run(tmp_path / "other", other, variables_of(0), **RECIPE)
    pictures = ["--dataset=folder", f"--data_dir={folder}", "--split=test"]
    line = refused(evaluate, f"--workdir={members[0]}", f"--ensemble={run}", *pictures)
    assert "storage_size is 48" in line and f"512 in {run}" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ensemble=,"], "name a run with --workdir=DIR or --ensemble=DIR1,DIR2"),
        (["--workdir=RUN", "--crops=7"], "invalid choice: 7"),
        (["--workdir=RUN", "--ensemble=nowhere"], "(config.json is missing)"),
        (["--workdir=RUN", "--checkpoint=5"], "no checkpoint '5'"),
        (["--workdir=RUN", "--batch_size=-4"], ": --batch_size is -4 but must"),
        (["--workdir=RUN", "--dataset=folder"], "of your pictures with --data_dir=DIR"),
        (["--workdir=RUN", "--expect=69.8"], "--expect is 69.8 but must be a fraction"),
        (["--workdir=RUN", "--expect=1", "--tolerance=nan"], "--tolerance is nan but"),
    ],
    ids=str,
)
def test_bad_arguments(members, run_command, loaded, flags, message):
    flags = [flag.replace("RUN", str(members[0])) for flag in flags]
    code, out, err = run_command(evaluate, *flags)
    assert code == 2 and not out
    assert message in err and "Traceback" not in err
