"""Evaluation over many crops and networks, against the same written out in numpy."""

import dataclasses
import functools
import json
import os

import jax
import numpy as np
import PIL.Image
import pytest
from helpers.configs import named_config
from helpers.images import cut_out
from helpers.networks import numpy_variables, preprocess
from helpers.small_networks import create_small, small_networks
from helpers.untrained_runs import write_run
from helpers.written_out import color_blocks, softmax

from googlenet_flax import evaluate
from googlenet_flax.data import load_split
from googlenet_flax.runs.checkpoint_evaluation import evaluate_averaged
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.training.description import ModelDescription

SIZE = 80
HEADS = {"main": "logits", "aux_4a": "aux_4a", "aux_4d": "aux_4d"}
NUM_EXAMPLES = 10
DIGITS = tuple("0123456789")
FIRST = ModelDescription(
    "bn",
    0.25,
    "float32",
    DIGITS,
    preprocess(storage_size=48, input_scale=1 / 255, crop_fraction=0.875),
)
SECOND = dataclasses.replace(  # It sees another crop in another scale and order.
    FIRST,
    variant="seed",
    preprocess=preprocess(
        storage_size=48, input_scale=1 / 64, input_mean=(1.5, 2.0, 2.5), channel_order="BGR"
    ),
)
DESCRIPTIONS = (FIRST, SECOND)
RECIPE = {
    **named_config("digits"),
    "eval_split": f"test[:{NUM_EXAMPLES}]",
    "batch_size": 4,
    "aux_weight": 0.5,
    "on_bad_image": "skip",
}


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A split of pictures of several shapes, one of which cannot be read."""

    pictures: tuple[np.ndarray, ...]
    labels: np.ndarray
    class_names: tuple[str, ...] = DIGITS
    storage_size: int = 48
    unreadable: dict = dataclasses.field(default_factory=dict)
    broken: int = 4

    def __len__(self):
        return len(self.pictures)

    def batches(self, index_batches):
        for indices in index_batches:
            images = np.zeros((len(indices), 48, 48, 3), np.uint8)
            readable = indices != self.broken
            shown = np.where(readable, indices, indices + 1)
            for image, index in zip(images, shown, strict=True):
                height, width = self.pictures[index].shape[:2]
                image[:height, :width] = self.pictures[index]
            yield {
                "image": images,
                "extent": np.array([self.pictures[i].shape[:2] for i in shown]),
                "label": self.labels[shown],
                "index": shown.astype(np.int32),
                "readable": readable,
            }


SHAPES = [(48, 48), (30, 48), (48, 25), (48, 47), (9, 9), (48, 10), (20, 30)]
PICTURES = Pictures(
    tuple(color_blocks(number, *shape) for number, shape in enumerate(SHAPES)),
    np.array([3, 1, 4, 1, 5, 9, 2], np.int32),
)
EXAMPLES = list(zip(PICTURES.pictures, PICTURES.labels, strict=True))
del EXAMPLES[PICTURES.broken]


@pytest.fixture(scope="module", autouse=True)
def compiled_in_seconds():
    with small_networks():
        yield


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """Two networks as workdirs, whose classifiers were scaled to be of two minds."""
    workdirs = []
    for number, description in enumerate(DESCRIPTIONS):
        path = tmp_path_factory.mktemp("member")
        workdirs.append(write_run(path, description, variables_of(number), **RECIPE))
    return workdirs


@functools.cache
def variables_of(number):
    variables = numpy_variables(create_small(DESCRIPTIONS[number]), SIZE)
    for head in ("aux_4a", "aux_4d", None):
        parent = variables["params"][head] if head else variables["params"]
        kernel = parent["classifier"]["kernel"]
        rng = np.random.default_rng(10 + number)
        parent["classifier"]["kernel"] = rng.permuted(kernel, axis=1)
    return variables


@pytest.fixture(scope="module")
def predictors(members):
    """On four devices."""
    devices = jax.devices()
    return [Predictor.load(Workdir(path), "best", devices) for path in members]


@functools.cache
def apply_of(number):
    model, variables = create_small(DESCRIPTIONS[number]), variables_of(number)
    return jax.jit(lambda images: model.apply(variables, images, train=False))


def views(picture, crops):
    """Boxes (top, left, side) of the crops and whether each is mirrored, from the text.

    Ten (Krizhevsky et al. 2012): 224 pixels of the shorter side of
    256. The paper, section 7: shorter sides of 256, 288, 320 and 352; three squares; four
    corners, centre and whole square; mirrored.
    """
    height, width = picture.shape[:2]
    short = min(height, width)
    result = []
    for scale in {10: (256,), 144: (256, 288, 320, 352)}[crops]:
        side = short * 224 / scale
        for square in {10: (0.5,), 144: (0, 0.5, 1)}[crops]:
            top, left = (height - short) * square, (width - short) * square
            room = short - side
            corners = [(top + y, left + x) for y in (0, room) for x in (0, room)]
            boxes = [(*corner, side) for corner in corners]
            boxes += [(top + room / 2, left + room / 2, side)]
            boxes += [(top, left, short)] if crops == 144 else []
            result += [(box, mirror) for box in boxes for mirror in (False, True)]
    assert len(result) == crops
    return result


def expected_probabilities(number, picture, crops):
    """By classifier, softmax `[classes]` averaged over the crops of one member."""
    fields = DESCRIPTIONS[number].preprocess
    height, width = picture.shape[:2]
    side = min(height, width) * fields.crop_fraction
    top, left = (height - side) / 2, (width - side) / 2
    if crops == 1:
        boxes = [((top, left, side), False)]
    elif crops in {2, 6}:
        shifts = [0] if crops == 2 else [0, -side / 32, side / 32]
        boxes = [
            ((top + shift, left + shift, side), mirror)
            for shift in shifts
            for mirror in (False, True)
        ]
    else:
        boxes = views(picture, crops)
    # Views that are shifted see more of the border than there is.
    padded = np.pad(picture, ((2, 2), (2, 2), (0, 0)), "edge") if crops == 6 else picture
    more = 2 if crops == 6 else 0
    inputs = []
    for (top, left, length), mirror in boxes:
        box = (top + more, left + more, length, length)
        pixels = cut_out(padded, box, SIZE)
        pixels = pixels[:, ::-1] if mirror else pixels
        pixels = pixels[..., ::-1] if fields.channel_order == "BGR" else pixels
        inputs.append((pixels * fields.input_scale - fields.input_mean) / fields.input_std)
    chunks = np.array_split(np.array(inputs, np.float32), -(-len(inputs) // 12))
    outputs = [_pad_and_apply(number, chunk) for chunk in chunks]
    return {
        head: softmax(np.concatenate([output[head] for output in outputs])).mean(axis=0)
        for head in HEADS
    }


def _pad_and_apply(number, images):
    padded = np.zeros((12, *images.shape[1:]), np.float32)
    padded[: len(images)] = images
    output = apply_of(number)(padded)
    return {h: np.asarray(getattr(output, o))[: len(images)] for h, o in HEADS.items()}


def expected_metrics(numbers, examples, crops, aux_weight):
    """Of the mean over members; `examples` are pairs of a picture and its label."""
    rows = []
    for picture, label in examples:
        each = [expected_probabilities(number, picture, crops) for number in numbers]
        row = {}
        for head in HEADS:
            probabilities = np.mean([one[head] for one in each], axis=0)
            row[f"{head}_loss"] = -np.log(probabilities[label])
            rank = np.sum(probabilities >= probabilities[label]) - 1
            row["accuracy" if head == "main" else f"{head}_accuracy"] = rank < 1
            if head == "main":
                row["top5"] = rank < 5
        row["loss"] = row["main_loss"] + aux_weight * (
            row["aux_4a_loss"] + row["aux_4d_loss"]
        )
        rows.append(row)
    return {name: np.mean([row[name] for row in rows]) for name in rows[0]}


def assert_same(actual, expected, rtol=1e-4):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=rtol, abs=1e-6), name


def evaluate_pictures(predictors, crops, pictures=PICTURES, batch_size=4, aux_weight=0.5):
    options = {"aux_weight": aux_weight, "batch_size": batch_size}
    return evaluate_averaged(predictors, crops, pictures, **options)


@pytest.mark.parametrize(
    ("numbers", "crops", "batch_size"),
    [
        *((numbers, crops, 4) for numbers in ((0,), (1,), (0, 1)) for crops in (1, 10)),
        *(((number,), crops, 4) for number in (0, 1) for crops in (2, 6)),
        ((0, 1), 1, 1),  # Rounded up to the devices, and the last batch filled up.
    ],
    ids=str,
)
def test_the_mean_of_softmax(predictors, numbers, crops, batch_size):
    """Over members and crops, of pictures of all shapes; an unreadable one is left out."""
    members = [predictors[number] for number in numbers]
    metrics = evaluate_pictures(members, crops, batch_size=batch_size)
    assert_same(metrics, expected_metrics(numbers, EXAMPLES, crops, 0.5))


@pytest.mark.slow
def test_the_papers_crops(predictors):
    few = dataclasses.replace(
        PICTURES, pictures=PICTURES.pictures[1:3], labels=PICTURES.labels[1:3]
    )
    metrics = evaluate_pictures(predictors[:1], 144, few)
    assert_same(metrics, expected_metrics((0,), EXAMPLES[1:3], 144, 0.5))


def test_the_mean_is_of_another_mind():
    """Otherwise the tests above could not tell one network from two."""
    picture = PICTURES.pictures[0]
    first, second = (
        expected_probabilities(number, picture, 1)["main"] for number in (0, 1)
    )
    assert np.abs(first - second).max() > 0.1
    ten = expected_probabilities(0, picture, 10)["main"]
    assert np.abs(first - ten).max() > 1e-3


def test_small_probabilities_are_not_lost(predictors):
    """A network that is sure, and wrong, has a loss of hundreds and not of infinity."""
    variables = dict(predictors[0].variables)
    params = dict(variables["params"])
    params["classifier"] = {n: 1e3 * leaf for n, leaf in params["classifier"].items()}
    sure = dataclasses.replace(predictors[0], variables={**variables, "params": params})
    metrics = evaluate_pictures([sure, sure], 10, aux_weight=0.0)
    assert np.isfinite(metrics["main_loss"])
    assert metrics["main_loss"] > 200


# The command.


@pytest.fixture
def loaded(members, predictors, monkeypatch):
    """Paths of the networks that are loaded; those compiled before are taken instead."""
    known, load, paths = list(zip(members, predictors, strict=True)), Predictor.load, []

    def load_known(workdir, checkpoint, devices, *, raw):
        paths.append(workdir.path)
        for path, predictor in known:
            if os.path.realpath(workdir.path) == str(path) and checkpoint == "best":
                return predictor
        return load(workdir, checkpoint, devices, raw=raw)

    monkeypatch.setattr(Predictor, "load", load_known)
    return paths


@pytest.fixture
def evaluate_json(run_command, loaded):
    def evaluate_json(*args):
        code, out, err = run_command(evaluate, "--json", *args)
        assert code == 0, err
        metrics = json.loads(out)
        assert metrics.pop("step") == 0
        return metrics

    return evaluate_json


@pytest.fixture(scope="module")
def digits():
    """Pictures and labels of the split that the runs name."""
    digits = load_split("digits", RECIPE["eval_split"], data_dir="")
    assert len(digits) == NUM_EXAMPLES
    return list(zip(np.repeat(digits.images, 3, axis=-1), digits.labels, strict=True))


def test_the_command(members, evaluate_json, digits):
    """Data, batch size and weight of the heads are the run's."""
    first, second = members
    alone = evaluate_json(f"--workdir={first}")
    assert_same(alone, expected_metrics((0,), digits, 1, 0.5))
    ten = evaluate_json(f"--ensemble={first},{second}", "--crops=10")
    assert_same(ten, expected_metrics((0, 1), digits, 10, 0.5))
    # Another way to say it; and the order of the members does not matter.
    for flags in (
        [f"--workdir={first}", f"--ensemble={second}"],
        [f"--ensemble={second},{first}"],
        [f"--workdir={second}", f"--ensemble={first},{second},"],
    ):
        assert_same(evaluate_json(*flags, "--crops=10"), ten, rtol=1e-6)


def test_each_members_views_are_of_its_own_crop(members, evaluate_json, digits):
    first, second = members
    both = evaluate_json(f"--ensemble={first},{second}", "--crops=2")
    assert_same(both, expected_metrics((0, 1), digits, 2, 0.5))


def test_a_run_named_twice_counts_once(
    members, loaded, evaluate_json, tmp_path, monkeypatch
):
    first, second = members
    both = evaluate_json(f"--workdir={first}", f"--ensemble={second}")
    link = tmp_path / "link"
    link.symlink_to(first)
    roundabout = f"{first}/../{first.name}"
    monkeypatch.chdir(first.parent)
    for other in (first, f"{first}/", first.name, f"./{first.name}", roundabout, link):
        loaded.clear()
        again = evaluate_json(f"--workdir={first}", f"--ensemble={second},{other}")
        assert len(loaded) == 2, other
        assert again == both, other


def test_a_folder_of_pictures(members, tmp_path, run_command, loaded):
    """Each member crops the stored picture; a broken file is named."""
    for number, (picture, label) in enumerate(EXAMPLES):
        folder = tmp_path / "test" / DIGITS[label]
        folder.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(picture).save(folder / f"{number}.png")
    (tmp_path / "test" / "3" / "broken.png").write_bytes(b"hello")
    first, second = members
    code, out, err = run_command(
        evaluate,
        *("--json", f"--ensemble={first},{second}", "--dataset=folder", "--crops=10"),
        *(f"--data_dir={tmp_path}", "--split=test"),
    )
    assert code == 0, err
    assert err.count("\n") == 1
    assert f"skipped {tmp_path}/test/3/broken.png: " in err
    metrics = json.loads(out)
    del metrics["step"]
    assert_same(metrics, expected_metrics((0, 1), EXAMPLES, 10, 0.5))


@pytest.mark.parametrize("names", ["1023456789", "0123456789ab"])
def test_members_must_know_the_same_classes(members, tmp_path, run_command, names):
    other = dataclasses.replace(FIRST, class_names=tuple(names))
    variables = numpy_variables(create_small(other), SIZE)
    run = write_run(tmp_path / "other", other, variables, **RECIPE)
    code, out, err = run_command(evaluate, f"--workdir={members[0]}", f"--ensemble={run}")
    assert code == 2 and not out
    assert err.count("\n") == 1
    assert str(run) in err and str(members[0]) in err and "classes" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name a run with --workdir=DIR or --ensemble=DIR1,DIR2"),
        (["--ensemble=,"], "name a run with --workdir=DIR or --ensemble=DIR1,DIR2"),
        (["--workdir=RUN", "--crops=7"], "invalid choice: 7"),
        (["--workdir=RUN", "--crops=ten"], "--crops"),
        (["--workdir=RUN", "--ensemble=nowhere"], "no run in"),
        (["--workdir=RUN", "--checkpoint=5"], "no checkpoint '5'"),
        (["--workdir=RUN", "--split=tset"], "unknown split 'tset'"),
        (["--workdir=RUN", "--dataset=foo"], "unknown dataset 'foo'"),
        (["--workdir=RUN", "--batch_size=-4"], "batch_size"),
    ],
    ids=str,
)
def test_bad_arguments(members, run_command, loaded, flags, message):
    flags = [flag.replace("RUN", str(members[0])) for flag in flags]
    code, out, err = run_command(evaluate, *flags)
    assert code == 2 and not out
    assert message in err and "Traceback" not in err


def test_data_of_other_classes(tmp_path, run_command):
    """The network knows seven."""
    description = dataclasses.replace(FIRST, class_names=tuple("abcdefg"))
    variables = numpy_variables(create_small(description), SIZE)
    run = write_run(tmp_path, description, variables, **RECIPE)
    code, out, err = run_command(evaluate, f"--workdir={run}", "--crops=10")
    assert code == 2 and not out
    assert "digits has 10 classes and the network 7" in err
