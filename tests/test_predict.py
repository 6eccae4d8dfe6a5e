import dataclasses
import io
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from helpers.images import cut_out
from helpers.networks import numpy_variables, preprocess
from helpers.paths import REPOSITORY
from helpers.processes import run
from helpers.processes import start as start_process
from helpers.small_networks import create_small, small_networks
from helpers.untrained_runs import save_weights, write_run
from helpers.written_out import color_blocks, softmax

from googlenet_flax import create_model
from googlenet_flax import predict as command
from googlenet_flax.data import load_split
from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runs.prediction import find_pictures, predict
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.training.description import ModelDescription

CLASS_NAMES = ("ant", "Zoë the bird", "cat, any cat", "dog", "elk", "fox", "gnu")
STORED = 48  # Pixels; pictures that are not larger are read as they are.
# Nothing is as it would be by default.
DESCRIPTION = ModelDescription(
    variant="bn",
    width_multiplier=0.25,
    dtype="float32",
    class_names=CLASS_NAMES,
    preprocess=preprocess(
        storage_size=STORED,
        image_size=81,
        crop_fraction=0.875,
        input_scale=1 / 127.5,
        input_mean=(1.0, 0.8, 1.2),
        input_std=(0.9, 1.0, 1.3),
        channel_order="BGR",
    ),
)
MODEL = create_small(DESCRIPTION)
PROBABILITY = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module", autouse=True)
def compiled_in_seconds():
    with small_networks():
        yield


@pytest.fixture(scope="module")
def variables():
    return numpy_variables(MODEL)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, variables):
    return write_run(tmp_path_factory.mktemp("run"), DESCRIPTION, variables)


@pytest.fixture(scope="module")
def predictor(workdir):
    """On four devices."""
    return Predictor.load(Workdir(workdir), "best", jax.devices())


@pytest.fixture
def command_of(workdir, predictor, monkeypatch, run_command):
    """Runs the command, but without compiling the network each time."""

    def load(asked, checkpoint, devices):
        assert (asked.path, checkpoint) == (workdir, "best")
        assert list(devices) == list(predictor.devices)
        return predictor

    def command_of(*args):
        monkeypatch.setattr(Predictor, "load", load)
        return run_command(command, f"--workdir={workdir}", *args)

    return command_of


def coloured(number, height=40, width=STORED):
    return color_blocks(number, height, width)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path, **options)
    return path


apply = jax.jit(lambda variables, images: MODEL.apply(variables, images, train=False))


def network(variables, inputs):
    """Probabilities of any number of inputs, with one compilation for each size."""
    rows = []
    for first in range(0, len(inputs), 10):
        chunk = np.asarray(inputs[first : first + 10], np.float32)
        padded = np.zeros((10, *chunk.shape[1:]), np.float32)
        padded[: len(chunk)] = chunk
        rows.append(apply(variables, padded).logits[: len(chunk)])
    return softmax(np.concatenate(rows))


def expected_probabilities(variables, pictures):
    """Written out: the central square, resized, BGR, scaled, then the network."""
    inputs = []
    for picture in pictures:
        height, width = picture.shape[:2]
        length = min(height, width) * 0.875
        box = ((height - length) / 2, (width - length) / 2, length, length)
        bgr = cut_out(picture, box, 81)[..., ::-1]
        inputs.append((bgr / 127.5 - [1.0, 0.8, 1.2]) / [0.9, 1.0, 1.3])
    return network(variables, inputs)


def all_probabilities(predictor, files, batch_size=4, **options):
    """`[N, classes]` in the order of the class names."""
    predictions = list(predict(predictor, files, top=7, batch_size=batch_size, **options))
    assert [prediction.path for prediction in predictions] == files
    by_name = [dict(prediction.classes) for prediction in predictions]
    return np.array([[row[name] for name in CLASS_NAMES] for row in by_name])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Nine files, wide and high ones, and their pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    sizes = [(40, 48), (48, 31), (48, 48), (9, 48), (48, 40), (3, 3), (1, 1), (48, 1)]
    sizes.append((20, 20))
    arrays = [coloured(number, *size) for number, size in enumerate(sizes)]
    files = [save(folder / f"{n}.png", pixels) for n, pixels in enumerate(arrays)]
    return files, arrays


@pytest.mark.parametrize(("num_devices", "batch_size"), [(4, 1), (4, 5), (4, 32), (1, 4)])
def test_probabilities_are_the_networks(
    workdir, predictor, variables, pictures, num_devices, batch_size
):
    files, arrays = pictures
    if num_devices == 1:
        predictor = Predictor.load(Workdir(workdir), "latest", jax.devices()[:1])
    expected = expected_probabilities(variables, arrays)
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


def test_a_stored_image_gets_what_the_network_says_of_it(tmp_path, variables):
    """The same digit from a file and from the data set."""
    digits = load_split("digits", "test[:4]", data_dir="")
    fields = dataclasses.replace(DESCRIPTION.preprocess, storage_size=8, crop_fraction=1.0)
    description = dataclasses.replace(DESCRIPTION, preprocess=fields)
    run = write_run(tmp_path / "run", description, variables)
    predictor = Predictor.load(Workdir(run), "best", jax.devices())
    files = [
        save(tmp_path / f"{n}.png", image[..., 0]) for n, image in enumerate(digits.images)
    ]
    ours = all_probabilities(predictor, files)
    expected = network(variables, fields(jnp.asarray(digits.images)))
    np.testing.assert_allclose(ours, expected, **PROBABILITY)


def test_preprocessing_is_the_checkpoints(tmp_path, predictor, variables):
    """Another one saved with the same weights gives what it should."""
    fields = preprocess(
        storage_size=STORED,
        image_size=97,
        crop_fraction=0.5,
        input_scale=1 / 255,
        input_mean=(0.2, 0.4, 0.9),
        input_std=(0.3, 0.2, 0.5),
        channel_order="RGB",
    )
    description = dataclasses.replace(DESCRIPTION, preprocess=fields)
    run = write_run(tmp_path / "run", description, variables)
    other = Predictor.load(Workdir(run), "best", jax.devices())
    assert other.description.preprocess == fields
    pixels = coloured(1)
    file = save(tmp_path / "picture.png", pixels)
    (before,) = all_probabilities(predictor, [file])
    (after,) = all_probabilities(other, [file])
    assert np.abs(after - before).max() > 1e-2
    rgb = cut_out(pixels, (10, 14, 20, 20), 97)
    (expected,) = network(variables, [(rgb / 255 - [0.2, 0.4, 0.9]) / [0.3, 0.2, 0.5]])
    np.testing.assert_allclose(after, expected, **PROBABILITY)


def test_pictures_of_all_kinds(tmp_path, predictor, variables):
    """Each as the RGB pixels that a person sees."""
    rgb = coloured(3)
    seen, files = [], []

    def add(name, image, pixels, **options):
        image.save(tmp_path / name, **options)
        files.append(tmp_path / name)
        seen.append(pixels)

    plain = PIL.Image.fromarray(rgb)
    turned = PIL.Image.fromarray(np.ascontiguousarray(np.rot90(rgb)))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # The first row is the right side: turn it clockwise.
    add("turned.png", turned, rgb, exif=exif)
    grey = coloured(4)[..., 0]
    add("grey.png", PIL.Image.fromarray(grey), np.repeat(grey[..., np.newaxis], 3, 2))
    deep = PIL.Image.fromarray(grey.astype(np.uint16) * 257)
    add("deep.png", deep, np.repeat(grey[..., np.newaxis], 3, 2))
    hidden = np.dstack([rgb, np.where(np.arange(STORED) < 9, 0, 255) + 0 * rgb[..., 0]])
    clear = np.where(np.arange(STORED)[:, np.newaxis] < 9, 255, rgb)
    add("clear.png", PIL.Image.fromarray(hidden.astype(np.uint8)), clear)
    inks = PIL.Image.fromarray(np.dstack([255 - rgb, 0 * rgb[..., :1]]), mode="CMYK")
    add("inks.tiff", inks, np.asarray(inks.convert("RGB")))
    add("palette.gif", plain, np.asarray(plain.quantize().convert("RGB")))
    ours = all_probabilities(predictor, files)
    expected = expected_probabilities(variables, seen)
    np.testing.assert_allclose(ours, expected, **PROBABILITY)


def test_large_pictures_are_reduced(tmp_path, predictor, variables):
    large = np.repeat(np.repeat(coloured(5), 20, 0), 20, 1)
    file = save(tmp_path / "large.png", large)
    (ours,) = all_probabilities(predictor, [file])
    (expected,) = expected_probabilities(variables, [large])
    np.testing.assert_allclose(ours, expected, atol=0.02)


def test_crops_are_averaged(predictor, variables, pictures):
    """Corners and centre of 224/256 of the middle square, and mirrored."""
    files, arrays = [pictures[0][0]], [pictures[1][0]]
    inputs, (height, width) = [], arrays[0].shape[:2]
    short, side = min(height, width), min(height, width) * 224 / 256
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)):
        top = (height - short) / 2 + (short - side) * row
        left = (width - short) / 2 + (short - side) * column
        square = cut_out(arrays[0], (top, left, side, side), 81)[..., ::-1]
        inputs += [square, square[:, ::-1]]
    x = (np.array(inputs) / 127.5 - [1.0, 0.8, 1.2]) / [0.9, 1.0, 1.3]
    expected = network(variables, x).mean(axis=0)
    (ours,) = all_probabilities(predictor, files, num_crops=10)
    np.testing.assert_allclose(ours, expected, **PROBABILITY)


# Which files.


def test_order_of_files_and_folders(tmp_path):
    for name in ("b/2.png", "b/a/1.JPG", "b/10.jpeg", "b/.hidden.png", "a.png"):
        save(tmp_path / name, coloured(0))
    for name in ("b/notes.txt", "c.txt"):
        (tmp_path / name).write_text("no picture")
    names = [tmp_path / name for name in ("c.txt", "b", "a.png", "missing.png", "a.png")]
    found, _ = find_pictures([str(name) for name in names])
    relative = [path.relative_to(tmp_path).as_posix() for path in found]
    folder = ["b/10.jpeg", "b/2.png", "b/a/1.JPG"]
    assert relative == ["c.txt", *folder, "a.png", "missing.png", "a.png"]


def test_folders_without_pictures(tmp_path, command_of):
    save(tmp_path / "full" / "a.png", coloured(0))
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


# What is printed.


def test_table(tmp_path, command_of, predictor):
    names = ("a.png", "bbb.png")
    files = [save(tmp_path / name, coloured(n)) for n, name in enumerate(names)]
    code, out, err = command_of("--top=3", *files)
    assert code == 0 and not err
    head, *rows = out.splitlines()
    assert head.split() == ["picture", "probability", "class"]
    expected = [
        ("" if rank else str(prediction.path), f"{probability:.2%}", name)
        for prediction in predict(predictor, files, top=3, batch_size=2)
        for rank, (name, probability) in enumerate(prediction.classes)
    ]
    start, end = head.index("probability"), head.index("class") - 2
    assert start == max(len(str(path)) for path in files) + 2
    cells = [(r[:start].strip(), r[start:end].strip(), r[end:].strip()) for r in rows]
    assert cells == expected


def test_json(tmp_path, command_of, predictor):
    """A picture that is named twice is shown twice."""
    names = ["zoë & son.png", "one two.png", "a'b\"c.png"]
    files = [save(tmp_path / name, coloured(n)) for n, name in enumerate(names)]
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
    assert "Zoë" in out and "zoë" in out


def broken_files(folder):
    good = save(folder / "good.png", coloured(0)).read_bytes()
    contents = {"cut.png": good[: len(good) // 2], "empty.png": b"", "text.png": b"hello"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in (*contents, "missing.png")]


@pytest.mark.parametrize(("form", "batch_size"), [("table", 4), ("json", 1), ("json", 32)])
def test_broken_files_are_named_and_the_rest_is_done(
    tmp_path, command_of, form, batch_size
):
    broken = broken_files(tmp_path)
    good = [save(tmp_path / f"{number}.png", coloured(number)) for number in range(3)]
    files = [good[0], *broken[:2], good[1], *broken[2:], good[2]]
    flags = [f"--batch_size={batch_size}", "--top=1", *(["--json"] * (form == "json"))]
    code, out, err = command_of(*flags, *files)
    alone = command_of(*flags, *good)[1]
    assert code == 2
    *lines, last = err.splitlines()
    assert last == "googlenet_flax: 4 of 7 pictures could not be read"
    for line, path in zip(lines, broken, strict=True):
        assert line.startswith(f"googlenet_flax: {path} cannot be read: ")
        assert not line.endswith(": ")
    if form == "table":
        assert [line.split() for line in out.splitlines()] == [
            line.split() for line in alone.splitlines()
        ]
        return
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["picture"] for row in rows] == [str(path) for path in files]
    errors = [row for row in rows if row.get("error")]
    assert [row["picture"] for row in errors] == [str(path) for path in broken]
    assert not any("classes" in row for row in errors)
    done = [(r["picture"], r["classes"][0]["name"]) for r in rows if "classes" in r]
    right = [json.loads(line) for line in alone.splitlines()]
    assert done == [(r["picture"], r["classes"][0]["name"]) for r in right]


def test_nothing_but_broken_files(tmp_path, command_of):
    (tmp_path / "empty").mkdir()
    code, out, err = command_of("--json", *broken_files(tmp_path), tmp_path / "empty")
    assert code == 2
    assert all("error" in json.loads(line) for line in out.splitlines())
    assert err.endswith(
        f"4 of 4 pictures could not be read; there is no picture in {tmp_path / 'empty'}\n"
    )


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--top=0", "--top is 0 but must be 1 or more"),
        ("--batch_size=-1", "--batch_size is -1 but must be 1 or more"),
        ("--crops=7", "invalid choice: 7"),
        ("--checkpoint=9", "no checkpoint '9'"),
        ("--workdir=nowhere", "no run in"),
        ("--workdir=", "workdir is empty"),
        ("--workdir=UNTRAINED", "no checkpoint in"),
    ],
)
def test_bad_arguments(tmp_path, workdir, run_command, flag, message):
    (tmp_path / "untrained").mkdir()
    Workdir(tmp_path / "untrained").write_config({})
    file = save(tmp_path / "a.png", coloured(0))
    flag = flag.replace("UNTRAINED", str(tmp_path / "untrained"))
    code, out, err = run_command(command, f"--workdir={workdir}", flag, file)
    assert code == 2 and not out
    assert message in err and "Traceback" not in err
    assert not (REPOSITORY / "nowhere").exists()


def test_checkpoints_are_chosen(tmp_path, variables):
    """Of two, `best` is not `latest`, and each has its own description."""
    renamed = dataclasses.replace(DESCRIPTION, class_names=tuple("ABCDEFG"))
    with Workdir(tmp_path) as run, Checkpoints(run.checkpoints) as checkpoints:
        for step, description, accuracy in ((1, DESCRIPTION, 0.9), (2, renamed, 0.1)):
            save_weights(checkpoints, step, variables, description, accuracy)
        run.write_config({})
    for name, step, first in (("best", 1, "ant"), ("latest", 2, "A"), ("1", 1, "ant")):
        predictor = Predictor.load(Workdir(tmp_path), name, jax.devices()[:1])
        assert predictor.checkpoint_step == step
        assert predictor.description.class_names[0] == first


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Workdir and variables of the network that a process creates."""
    variables = numpy_variables(
        create_model("bn", num_classes=len(CLASS_NAMES), width_multiplier=0.25)
    )
    return write_run(tmp_path_factory.mktemp("whole"), DESCRIPTION, variables)


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_name_that_no_encoding_explains(tmp_path, command_of, monkeypatch, form):
    """Bytes as from an old archive, in a locale such as en_US.UTF-8."""
    strange = os.fsencode(tmp_path) + b"/caf\xe9.png"
    os.rename(save(tmp_path / "a.png", coloured(0)), strange)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8", "strict"))
    code, _, err = command_of(*(["--json"] * (form == "json")), tmp_path)
    sys.stdout.flush()
    assert code == 0 and not err
    assert b"/caf\\xe9.png" in sys.stdout.buffer.getvalue().replace(b"\\\\", b"\\")


@pytest.mark.slow
@pytest.mark.parametrize("form", [[], ["--json"]], ids=str)
def test_as_a_process(tmp_path, whole_run, compilation_cache, form):
    """To its end, and with a pipe that closes, as before `| head -1`."""
    for number in range(40):
        save(tmp_path / f"{number}.png", coloured(number))
    args = (*form, f"--workdir={whole_run}", "--batch_size=4", "--top=7", tmp_path)
    code, out, err = run("predict", *args, env=compilation_cache)
    assert code == 0 and not err, err
    assert len(out.splitlines()) == (40 if form else 1 + 40 * 7)
    process = start_process("predict", *args, env=compilation_cache)
    assert process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=120) == 128 + 13, err
    assert not err


def test_a_pipe_that_was_closed_before_the_last_line():
    """Which lies in Python's buffer until the process ends; true of all commands."""
    program = (
        "from googlenet_flax.runtime.errors import exit_on_run_error\n"
        "with exit_on_run_error(): print(1)"
    )
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )
    os.close(writer)
    assert process.returncode == 128 + 13
    assert not process.stderr
