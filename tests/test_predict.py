import dataclasses
import io
import json
import os
import sys

import jax
import numpy as np
import PIL.Image
import pytest
from helpers.images import color_blocks
from helpers.networks import create_small, numpy_variables
from helpers.untrained_runs import write_run
from helpers.unusual_input import (
    CLASS_NAMES,
    DESCRIPTION,
    STORED,
    inputs_of,
    write_pictures,
)
from scipy.special import softmax

from googlenet_flax import predict as command
from googlenet_flax.runs.prediction import find_pictures, predict
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("small_networks")
MODEL = create_small(DESCRIPTION)
PROBABILITY = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def variables():
    return numpy_variables(MODEL)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, variables):
    return write_run(tmp_path_factory.mktemp("run"), DESCRIPTION, variables)


@pytest.fixture(scope="module")
def predictor(workdir):
    """Loads the network on four devices."""
    return Predictor.load(Workdir(workdir), "best", jax.devices())


def test_a_variant_that_is_not_there_is_named(tmp_path, variables):
    description = dataclasses.replace(DESCRIPTION, variant="mine")
    run = write_run(tmp_path, description, variables)
    with pytest.raises(UserError, match=r"the variant 'mine', which VARIANTS in .* lacks"):
        Predictor.load(Workdir(run), "best", jax.devices())


@pytest.fixture
def command_of(workdir, predictor, run_with):
    """Runs the command, but without compiling the network each time."""

    def command_of(*args):
        return run_with(predictor, workdir, command, *args)

    return command_of


def save(path, number=0):
    """Writes a picture of colors that are different for each number; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(color_blocks(number, 40, STORED)).save(path)
    return path


apply = jax.jit(lambda variables, images: MODEL.apply(variables, images, train=False))


def network(variables, inputs):
    """Computes the probabilities of up to ten inputs, with one compilation."""
    padded = np.zeros((10, *inputs[0].shape), np.float32)
    padded[: len(inputs)] = inputs
    return softmax(np.float64(apply(variables, padded).logits[: len(inputs)]), axis=1)


def all_probabilities(predictor, files, batch_size):
    """Returns probabilities `[N, classes]` in the order of the class names."""
    predictions = list(predict(predictor, files, top=7, batch_size=batch_size))
    assert [prediction.path for prediction in predictions] == files
    by_name = [dict(prediction.classes) for prediction in predictions]
    return np.array([[row[name] for name in CLASS_NAMES] for row in by_name])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Writes six files, wide and high ones; returns their paths and pixels."""
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize(("num_devices", "batch_size"), [(4, 1), (4, 32), (1, 4)])
def test_probabilities_are_the_networks(
    workdir, predictor, variables, pictures, num_devices, batch_size
):
    files, arrays = pictures
    if num_devices == 1:
        predictor = Predictor.load(Workdir(workdir), "latest", jax.devices()[:1])
    expected = network(variables, inputs_of(arrays))
    assert np.ptp(expected, axis=0).max() > 0.05, "all pictures are alike to it"
    ours = all_probabilities(predictor, files, batch_size)
    np.testing.assert_allclose(ours, expected, **PROBABILITY)


def test_each_lists_its_classes_likeliest_first(predictor, pictures):
    files, _ = pictures
    whole = list(predict(predictor, files, top=7, batch_size=4))
    for prediction in whole:
        probabilities = [probability for _, probability in prediction.classes]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    for top in (1, 5, 100):
        rows = predict(predictor, files, top=top, batch_size=4)
        assert [row.classes for row in rows] == [row.classes[:top] for row in whole]


def test_crops_are_averaged(command_of, variables, pictures):
    """Averages the corners and the center of the middle square, also mirrored."""
    picture = pictures[1][0]
    height, width = picture.shape[:2]
    short = min(height, width)
    side, boxes = short * 224 / 256, []
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)):
        top = (height - short) / 2 + (short - side) * row
        left = (width - short) / 2 + (short - side) * column
        boxes.append((top, left, side, side))
    squares = inputs_of([picture] * 5, boxes)
    inputs = np.concatenate([squares, squares[:, :, ::-1]])
    expected = network(variables, inputs).mean(axis=0)
    code, out, _ = command_of("--json", "--top=7", "--crops=10", pictures[0][0])
    ours = {entry["name"]: entry["probability"] for entry in json.loads(out)["classes"]}
    assert code == 0
    np.testing.assert_allclose(
        [ours[name] for name in CLASS_NAMES], expected, **PROBABILITY
    )


# Tests of the choice of files.


def test_order_of_files_and_folders(tmp_path):
    for name in ("b/2.png", "b/a/1.JPG", "b/10.jpeg", "b/.hidden.png", "a.png"):
        save(tmp_path / name)
    for name in ("b/notes.txt", "c.txt"):
        (tmp_path / name).write_text("no picture")
    others = ["a.png", "missing.png", "long" * 100, "a.png"]
    found, _ = find_pictures([str(tmp_path / name) for name in ("c.txt", "b", *others)])
    relative = [path.relative_to(tmp_path).as_posix() for path in found]
    assert relative == ["c.txt", "b/10.jpeg", "b/2.png", "b/a/1.JPG", *others]


def test_folders_without_pictures(tmp_path, command_of):
    save(tmp_path / "full" / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("no picture")
    names = [tmp_path / name for name in ("empty", "full", "texts")]
    code, out, err = command_of("--json", *names)
    assert code == 2
    (row,) = map(json.loads, out.splitlines())
    assert row["picture"] == str(names[1] / "a.png") and row["classes"]
    assert err == f"googlenet_flax: there is no picture in {names[0]}, {names[2]}\n"
    code, out, err = command_of(names[0], names[2])
    assert code == 2 and not out and err.count("\n") == 1
    assert f"no picture in {names[0]}, {names[2]}: name files or another folder" in err


# Tests of the output.


def test_table(tmp_path, command_of, predictor):
    names = ("a.png", "bbb.png")
    files = [save(tmp_path / name, n) for n, name in enumerate(names)]
    code, out, err = command_of("--top=3", *files)
    assert code == 0 and not err
    head, *rows = out.splitlines()
    assert head.split() == ["picture", "probability", "class"]
    start, end = head.index("probability"), head.index("class") - 2
    assert start == max(len(str(path)) for path in files) + 2
    cells = [(r[:start].strip(), r[start:end].strip(), r[end:].strip()) for r in rows]
    assert cells == [
        ("" if rank else str(prediction.path), f"{probability:.2%}", name)
        for prediction in predict(predictor, files, top=3, batch_size=2)
        for rank, (name, probability) in enumerate(prediction.classes)
    ]


def test_json(tmp_path, command_of, predictor):
    """Names a picture twice, which is then printed twice."""
    names = ["zoë & son.png", "one two.png", "a'b\"c.png"]
    files = [save(tmp_path / name, n) for n, name in enumerate(names)]
    files.append(files[0])
    code, out, err = command_of("--json", "--top=50", *files)
    assert code == 0 and not err
    rows = [json.loads(line) for line in out.splitlines()]
    for row, prediction in zip(
        rows, predict(predictor, files, top=7, batch_size=4), strict=True
    ):
        assert row.keys() == {"picture", "classes"}
        assert row["picture"] == str(prediction.path)
        pairs = [(entry["name"], entry["probability"]) for entry in row["classes"]]
        assert pairs == [(name, pytest.approx(p, 1e-4)) for name, p in prediction.classes]
    assert out.isascii()  # So it is JSON whatever stdout can encode.


def test_untrained_heads_are_named(tmp_path, workdir, command_of, predictor, run_with):
    """Checks stderr; the answers are those of the main classifier."""
    file = save(tmp_path / "a.png")
    _, answers, _ = command_of("--json", file)
    untrained = dataclasses.replace(DESCRIPTION, untrained_heads=("aux_4d",))
    other = dataclasses.replace(predictor, description=untrained)
    line = "googlenet_flax: untrained heads, whose outputs mean nothing: aux_4d\n"
    assert run_with(other, workdir, command, "--json", file) == (0, answers, line)


@pytest.mark.parametrize("form", [[], ["--json"]], ids=str)
def test_broken_files_are_named_and_the_rest_is_done(tmp_path, command_of, form):
    good = [save(tmp_path / f"{number}.png", number) for number in range(2)]
    picture = good[0].read_bytes()
    contents = {"cut.png": picture[: len(picture) // 2], "empty.png": b"", "text.png": b"a"}
    broken = [tmp_path / name for name in (*contents, "missing.png")]
    for path, content in zip(broken, contents.values(), strict=False):
        path.write_bytes(content)
    (tmp_path / "nothing").mkdir()
    files = [good[0], *broken, good[1]]
    flags = ["--batch_size=4", "--top=1", *form]
    _, alone, _ = command_of(*flags, *good)
    code, out, err = command_of(*flags, *files, tmp_path / "nothing")
    assert code == 2
    *lines, last = err.splitlines()
    assert last == (
        "googlenet_flax: 4 of 6 pictures could not be read; there is no picture in "
        f"{tmp_path / 'nothing'}"
    )
    for line, path in zip(lines, broken, strict=True):
        assert line.startswith(f"googlenet_flax: {path} cannot be read: ")
    rows = out.splitlines()
    if form:
        errors = [json.loads(row) for row in rows[1:-1]]
        assert [row["picture"] for row in errors] == [str(path) for path in broken]
        assert all(row.keys() == {"picture", "error"} for row in errors)
        del rows[1:-1]
    assert " ".join(rows).split() == alone.split()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--top=0", "--top is 0 but must be 1 or more"),
        ("--batch_size=-1", "--batch_size is -1 but must be 1 or more"),
        ("--crops=7", "invalid choice: 7"),
        ("--checkpoint=9", "no checkpoint '9'"),
        ("--workdir=nowhere", "no run in"),
        ("--workdir=", "workdir is empty"),
    ],
)
def test_bad_arguments(tmp_path, workdir, run_command, flag, message):
    file = save(tmp_path / "a.png")
    code, out, err = run_command(command, f"--workdir={workdir}", flag, file)
    assert code == 2 and not out
    assert message in err and "Traceback" not in err


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_name_that_no_encoding_explains(tmp_path, command_of, monkeypatch, form):
    """Uses bytes as from an old archive, in a locale such as en_US.UTF-8."""
    strange = os.fsencode(tmp_path) + b"/caf\xe9.png"
    os.rename(save(tmp_path / "a.png"), strange)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8", "strict"))
    code, _, err = command_of(*(["--json"] * (form == "json")), tmp_path)
    sys.stdout.flush()
    assert code == 0 and not err
    assert b"/caf\\xe9.png" in sys.stdout.buffer.getvalue().replace(b"\\\\", b"\\")
