import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from conftest import (
    REPOSITORY,
    cut_out,
    numpy_variables,
    preprocess,
    save_weights,
    write_run,
)

from googlenet_flax import predict as command
from googlenet_flax.data import ImageSet, load_split
from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runs.prediction import find_pictures, predict
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.errors import UserError
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
MODEL = DESCRIPTION.create_model()
PROBABILITY = {"rtol": 1e-4, "atol": 1e-6}


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
    """Blocks of strong colours, different for each number."""
    rng = np.random.default_rng(number)
    colours = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    rows, columns = np.arange(height) * 3 // height, np.arange(width) * 4 // width
    return colours[rows][:, columns]


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path, **options)
    return path


def softmax(logits):
    powers = np.exp(np.float64(logits) - np.max(logits, axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


apply = jax.jit(lambda variables, images: MODEL.apply(variables, images, train=False))


def network(variables, inputs):
    """Probabilities of any number of inputs, with one compilation for each size."""
    rows = []
    for start in range(0, len(inputs), 10):
        chunk = np.asarray(inputs[start : start + 10], np.float32)
        padded = np.zeros((10, *chunk.shape[1:]), np.float32)
        padded[: len(chunk)] = chunk
        rows.append(apply(variables, padded).logits[: len(chunk)])
    return softmax(np.concatenate(rows))


def expected_probabilities(variables, pictures, side=0.875):
    """Written out: the central square, resized, BGR, scaled, then the network."""
    inputs = []
    for picture in pictures:
        height, width = picture.shape[:2]
        length = min(height, width) * side
        box = ((height - length) / 2, (width - length) / 2, length, length)
        bgr = cut_out(picture, box, 81)[..., ::-1]
        inputs.append((bgr / 127.5 - [1.0, 0.8, 1.2]) / [0.9, 1.0, 1.3])
    return network(variables, inputs)


def all_probabilities(predictions):
    """`[N, classes]` in the order of the class names."""
    rows = []
    for prediction in predictions:
        assert not prediction.error
        by_name = dict(prediction.classes)
        rows.append([by_name[name] for name in CLASS_NAMES])
    return np.array(rows)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Nine files, wide and high ones, and their pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    sizes = [
        (40, 48),
        (48, 31),
        (48, 48),
        (9, 48),
        (48, 40),
        (3, 3),
        (1, 1),
        (48, 1),
        (20, 20),
    ]
    arrays = [coloured(number, *size) for number, size in enumerate(sizes)]
    files = [save(folder / f"{n}.png", pixels) for n, pixels in enumerate(arrays)]
    return files, arrays


def test_probabilities_are_the_networks(predictor, variables, pictures):
    files, arrays = pictures
    expected = expected_probabilities(variables, arrays)
    assert np.ptp(expected, axis=0).max() > 0.05, "all pictures are alike to it"
    ours = all_probabilities(predict(predictor, files, top=7, batch_size=32))
    np.testing.assert_allclose(ours, expected, **PROBABILITY)


@pytest.mark.parametrize(
    ("num_devices", "batch_size"),
    [(4, 1), (4, 4), (4, 5), (4, 32), pytest.param(1, 4, marks=pytest.mark.slow)],
)
def test_batches_and_devices_change_nothing(
    workdir, predictor, variables, pictures, num_devices, batch_size
):
    files, arrays = pictures
    if num_devices == 1:
        predictor = Predictor.load(Workdir(workdir), "latest", jax.devices()[:1])
    predictions = list(predict(predictor, files, top=7, batch_size=batch_size))
    assert [prediction.path for prediction in predictions] == files
    ours = all_probabilities(predictions)
    np.testing.assert_allclose(
        ours, expected_probabilities(variables, arrays), **PROBABILITY
    )


def test_each_lists_its_classes_likeliest_first(predictor, pictures):
    files, _ = pictures
    whole = list(predict(predictor, files, top=7, batch_size=4))
    for prediction in whole:
        probabilities = [probability for _, probability in prediction.classes]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    for top in (1, 5, 100):
        for prediction, full in zip(
            predict(predictor, files, top=top, batch_size=4), whole, strict=True
        ):
            assert prediction.classes == full.classes[:top]


def test_a_stored_image_gets_what_the_network_says_of_it(tmp_path, variables):
    """The same digit from a file and from the data set."""
    digits = load_split("digits", "test[:4]", data_dir="")
    assert isinstance(digits, ImageSet)
    fields = dataclasses.replace(
        DESCRIPTION.preprocess, storage_size=8, image_size=81, crop_fraction=1.0
    )
    description = dataclasses.replace(DESCRIPTION, preprocess=fields)
    run = write_run(tmp_path / "run", description, variables)
    predictor = Predictor.load(Workdir(run), "best", jax.devices())
    files = [
        save(tmp_path / f"{n}.png", image[..., 0]) for n, image in enumerate(digits.images)
    ]
    ours = all_probabilities(predict(predictor, files, top=7, batch_size=4))
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
    (before,) = all_probabilities(predict(predictor, [file], top=7, batch_size=1))
    (after,) = all_probabilities(predict(other, [file], top=7, batch_size=1))
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
    ours = all_probabilities(predict(predictor, files, top=7, batch_size=32))
    expected = expected_probabilities(variables, seen)
    np.testing.assert_allclose(ours, expected, **PROBABILITY)


def test_large_pictures_are_reduced(tmp_path, predictor, variables):
    large = np.repeat(np.repeat(coloured(5), 20, 0), 20, 1)
    file = save(tmp_path / "large.png", large)
    (ours,) = all_probabilities(predict(predictor, [file], top=7, batch_size=1))
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
    (ours,) = all_probabilities(
        predict(predictor, files, top=7, batch_size=1, num_crops=10)
    )
    np.testing.assert_allclose(ours, expected, **PROBABILITY)


# Which files.


def test_order_of_files_and_folders(tmp_path):
    for name in ("b/2.png", "b/a/1.JPG", "b/10.jpeg", "b/.hidden.png", "b/notes.txt"):
        save(
            tmp_path / name.replace(".txt", ".png"), coloured(0)
        ) if ".txt" not in name else (tmp_path / name).write_text("no picture")
    save(tmp_path / "a.png", coloured(0))
    (tmp_path / "c.txt").write_text("asked for by name")
    names = [tmp_path / name for name in ("c.txt", "b", "a.png", "missing.png", "a.png")]
    found = find_pictures([str(name) for name in names])
    relative = [path.relative_to(tmp_path).as_posix() for path in found]
    folder = ["b/10.jpeg", "b/2.png", "b/a/1.JPG"]
    assert relative == ["c.txt", *folder, "a.png", "missing.png", "a.png"]


def test_a_folder_without_pictures(tmp_path, command_of):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(UserError):
        find_pictures([str(tmp_path)])
    code, out, err = command_of(tmp_path)
    assert code == 2 and not out
    assert err.count("\n") == 1
    assert f"no picture in {tmp_path}" in err


def test_an_empty_folder_among_others(tmp_path, command_of):
    save(tmp_path / "full" / "a.png", coloured(0))
    for name in ("empty", "bare"):
        (tmp_path / name).mkdir()
    names = [tmp_path / name for name in ("empty", "full", "bare")]
    code, out, err = command_of("--json", *names)
    assert code == 2
    (row,) = map(json.loads, out.splitlines())
    assert row["picture"] == str(names[1] / "a.png") and row["classes"]
    assert err == f"googlenet_flax: there is no picture in {names[0]}, {names[2]}\n"
    code, out, err = command_of(names[0], names[2])
    assert code == 2 and not out
    assert f"no picture in {names[0]}, {names[2]}: name files or another folder" in err


# What is printed.


def test_table(tmp_path, command_of, predictor):
    files = [
        save(tmp_path / name, coloured(n)) for n, name in enumerate(("a.png", "bbb.png"))
    ]
    code, out, err = command_of("--top=3", *files)
    assert code == 0 and not err
    head, *rows = out.splitlines()
    assert head.split() == ["picture", "probability", "class"]
    predictions = predict(predictor, files, top=3, batch_size=2)
    expected = [
        ("" if rank else str(prediction.path), f"{probability:.2%}", name)
        for prediction in predictions
        for rank, (name, probability) in enumerate(prediction.classes)
    ]
    width = max(len(str(path)) for path in files)
    start = head.index("probability")
    assert start == width + 2
    end = start + len("probability")
    cells = [(r[:width].strip(), r[start:end].strip(), r[end:].strip()) for r in rows]
    assert cells == expected


def test_json(tmp_path, command_of, predictor):
    names = ["zoë & son.png", "one two.png", "a'b\"c.png"]
    files = [save(tmp_path / name, coloured(n)) for n, name in enumerate(names)]
    code, out, err = command_of("--json", "--top=50", *files)
    assert code == 0 and not err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["picture"] for row in rows] == [str(path) for path in files]
    predictions = predict(predictor, files, top=7, batch_size=3)
    for row, prediction in zip(rows, predictions, strict=True):
        assert row.keys() == {"picture", "classes"}
        assert [entry["name"] for entry in row["classes"]] == [
            name for name, _ in prediction.classes
        ]
        np.testing.assert_allclose(
            [entry["probability"] for entry in row["classes"]],
            [probability for _, probability in prediction.classes],
            **PROBABILITY,
        )
    assert {entry["name"] for entry in rows[0]["classes"]} == set(CLASS_NAMES)
    assert "Zoë" in out and "zoë" in out


def test_an_empty_folder_and_a_broken_file(tmp_path, command_of):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_text("no picture")
    code, _, err = command_of(tmp_path / "empty", tmp_path / "a.png")
    assert code == 2
    assert err.splitlines()[-1] == (
        "googlenet_flax: 1 of 1 pictures could not be read; there is no picture in "
        f"{tmp_path / 'empty'}"
    )


def broken_files(folder):
    good = save(folder / "good.png", coloured(0)).read_bytes()
    contents = {"cut.png": good[: len(good) // 2], "empty.png": b"", "text.png": b"hello"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in (*contents, "missing.png")]


@pytest.mark.parametrize("form", ["table", "json"])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
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
    lines = err.splitlines()
    assert len(lines) == 5
    assert lines[-1] == "googlenet_flax: 4 of 7 pictures could not be read"
    for line, path in zip(lines, broken, strict=False):
        assert line.startswith(f"googlenet_flax: {path} cannot be read: ")
        assert not line.endswith(": ")
    if form == "table":
        pictures = [line.split()[0] for line in out.splitlines()[1:]]
        assert pictures == [str(path) for path in good]
        done = [line.split() for line in out.splitlines()]
        assert done == [line.split() for line in alone.splitlines()]
        return
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["picture"] for row in rows] == [str(path) for path in files]
    errors = [row for row in rows if "error" in row]
    assert [row["picture"] for row in errors] == [str(path) for path in broken]
    assert all(row["error"] and "classes" not in row for row in errors)
    done = [row for row in rows if "classes" in row]
    for row, expected in zip(done, map(json.loads, alone.splitlines()), strict=True):
        assert row["picture"] == expected["picture"]
        assert row["classes"][0]["name"] == expected["classes"][0]["name"]


def test_nothing_but_broken_files(tmp_path, command_of):
    broken = broken_files(tmp_path)
    code, out, err = command_of("--json", *broken)
    assert code == 2
    assert all("error" in json.loads(line) for line in out.splitlines())
    assert err.endswith("4 of 4 pictures could not be read\n")


def test_a_picture_named_twice_is_shown_twice(tmp_path, command_of):
    file = save(tmp_path / "a.png", coloured(0))
    code, out, _ = command_of("--json", file, tmp_path, file)
    assert code == 0
    rows = out.splitlines()
    assert len(rows) == 3 and len(set(rows)) == 1


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
    file = save(tmp_path / "a.png", coloured(0))
    code, out, err = run_command(command, f"--workdir={workdir}", flag, file)
    assert code == 2 and not out
    assert message in err
    assert "Traceback" not in err
    assert not (REPOSITORY / "nowhere").exists()


def test_a_workdir_without_checkpoints(tmp_path, run_command):
    file = save(tmp_path / "a.png", coloured(0))
    Workdir(tmp_path).write_config({})
    code, out, err = run_command(command, f"--workdir={tmp_path}", file)
    assert code == 2 and not out
    assert "no checkpoint in" in err and err.count("\n") == 1


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
def compilation_cache(tmp_path_factory):
    """Lets the second process start in seconds."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(*args, env):
    return subprocess.Popen(
        [sys.executable, "-m", "googlenet_flax.predict", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=REPOSITORY,
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "PYTHONUNBUFFERED": "",
            **env,
        },
    )


@pytest.mark.parametrize("form", ["json", pytest.param("table", marks=pytest.mark.slow)])
def test_as_a_process(tmp_path, workdir, variables, compilation_cache, form):
    """With a name as from an old archive: bytes that no encoding explains."""
    arrays = [coloured(number) for number in range(6)]
    for number, pixels in enumerate(arrays):
        save(tmp_path / f"{number}.png", pixels)
    strange = os.fsencode(tmp_path) + b"/caf\xe9.png"
    os.rename(tmp_path / "5.png", strange)
    # As in a locale such as en_US.UTF-8; in C.UTF-8 Python lets such names pass.
    env = {**compilation_cache, "PYTHONIOENCODING": "utf-8:strict"}
    json_flag = ["--json"] if form == "json" else []
    flags = [*json_flag, f"--workdir={workdir}", "--batch_size=4", "--top=7"]
    process = start(*flags, tmp_path, env=env)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and not err, err
    if form == "table":
        assert len(out.splitlines()) == 1 + 6 * 7
        return
    rows = [json.loads(line) for line in out.splitlines()]
    by_name = [{e["name"]: e["probability"] for e in r["classes"]} for r in rows]
    ours = [[row[name] for name in CLASS_NAMES] for row in by_name]
    expected = expected_probabilities(variables, arrays)
    np.testing.assert_allclose(ours, expected, **PROBABILITY)


@pytest.mark.slow
@pytest.mark.parametrize("form", [[], ["--json"]], ids=str)
def test_a_pipe_that_closes(tmp_path, workdir, compilation_cache, form):
    """As before `| head -1`."""
    for number in range(40):
        save(tmp_path / f"{number}.png", coloured(number))
    flags = [f"--workdir={workdir}", "--batch_size=4", "--top=7"]
    process = start(*form, *flags, tmp_path, env=compilation_cache)
    assert process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=120) == 128 + 13, err
    assert not err


def test_a_pipe_that_was_closed_before_the_last_line():
    """Which lies in Python's buffer until the process ends; true of all commands."""
    program = "from googlenet_flax import errors\nwith errors.exit_on_run_error(): print(1)"
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
