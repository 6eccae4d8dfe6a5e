import dataclasses
import functools
import re
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest
from helpers.images import random_images
from helpers.networks import create_small, numpy_variables, preprocess, small_googlenet
from helpers.untrained_runs import describe, write_run

from googlenet_flax import dream as command
from googlenet_flax.analysis import dream as drawing
from googlenet_flax.analysis import gradient_ascent as library
from googlenet_flax.analysis.endpoints import activations
from googlenet_flax.analysis.gradient_ascent import (
    Objective,
    Settings,
    create_ascent,
    dream,
    octave_sizes,
)
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runtime.errors import UserError

MODEL = small_googlenet("seed")  # The heads of this network fit 80 pixels only.
SCALING = preprocess(
    input_scale=1 / 127.5,
    input_mean=(1.0, 0.8, 1.2),
    input_std=(0.9, 1.0, 1.3),
    channel_order="BGR",
)
ASCENT = create_ascent(MODEL, SCALING, 0.0)  # The function is compiled once for each size.
CLIMB = Settings(octaves=1, steps=5, rate=2.0, jitter=3, smoothness=0.0)


@pytest.fixture(scope="module")
def variables():
    return numpy_variables(MODEL)


def picture(height=80, width=80):
    return jnp.asarray(random_images(height, width, 3), jnp.float32)


def climb(variables, objective, image=None, seed=0, ascent=ASCENT, **settings):
    image = picture() if image is None else image
    settings = dataclasses.replace(CLIMB, **settings)
    rng = jax.random.key(seed)
    with mock.patch.object(library, "create_ascent", lambda *_: ascent):
        return dream(
            MODEL, variables, SCALING, image, objective, settings=settings, rng=rng
        )


def normalised(pixels):
    """Scales pixels to the input of the network, as `SCALING` describes."""
    return (pixels[..., ::-1] / 127.5 - jnp.array([1, 0.8, 1.2])) / jnp.array([0.9, 1, 1.3])


# Tests of the ascent.


@pytest.mark.parametrize(
    ("size", "octaves", "sizes"),
    [
        ((224, 224), 4, [(82, 82), (114, 114), (160, 160), (224, 224)]),
        ((224, 224), 9, [(82, 82), (114, 114), (160, 160), (224, 224)]),
        ((400, 120), 3, [(286, 86), (400, 120)]),
        ((80, 80), 9, [(80, 80)]),
    ],
)
def test_sizes_of_octaves(size, octaves, sizes):
    assert octave_sizes(*size, octaves) == sizes
    assert octave_sizes(*size, 1) == [size]


@pytest.mark.parametrize(("layer", "channel"), [("classifier", 4), ("inception_4a", None)])
def test_each_step_follows_the_gradient(variables, layer, channel):
    """Compares each step with one written in NumPy around the public network."""

    def score(pixels):
        if layer == "classifier":
            images = normalised(pixels)[None]
            return MODEL.apply(variables, images, train=False).logits[0, channel]
        maps = activations(MODEL, variables, normalised(pixels)[None], [layer])[layer]
        return (maps**2).mean()

    expected, scores = picture(), []
    value_and_gradient = jax.jit(jax.value_and_grad(score))
    for _ in range(3):
        value, gradient = value_and_gradient(expected)
        scores.append(value)
        step = gradient / jnp.abs(gradient).mean()
        expected = jnp.clip(expected + 2.0 * step, 0, 255)
    scores.append(value_and_gradient(expected)[0])
    assert scores[-1] > scores[0]
    pixels, *ends = climb(variables, Objective(layer, channel), steps=3, jitter=0)
    np.testing.assert_allclose(pixels, expected, rtol=0, atol=0.05)
    np.testing.assert_allclose(ends, [scores[0], scores[-1]], rtol=1e-4)


def test_objective_of_a_channel_and_of_a_layer():
    maps = np.random.default_rng(0).normal(size=(1, 5, 6, 7)).astype(np.float32)
    objectives = Objective("inception_4a", 3), Objective("inception_4a")
    found = [float(objective(jnp.asarray(maps))) for objective in objectives]
    np.testing.assert_allclose(found, [maps[..., 3].mean(), (maps**2).mean()], rtol=1e-5)


def test_a_shift_moves_the_picture_around_its_edges_and_the_direction_back(variables):
    objective = Objective("inception_4a")
    pixels, shift = picture(), np.array([17, -5])
    score, direction = ASCENT(objective, variables, pixels, shift)
    moved = jnp.asarray(np.roll(pixels, shift, axis=(0, 1)))
    stay = jnp.zeros(2, jnp.int32)
    expected_score, there = ASCENT(objective, variables, moved, stay)
    assert score == pytest.approx(float(expected_score), rel=1e-6)
    expected = np.roll(there, -shift, axis=(0, 1))
    np.testing.assert_allclose(direction, expected, rtol=0, atol=1e-4)
    assert np.abs(direction).mean() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ("rows", "columns", "power"), [(3, 4, 0.5), (3, 4, 1.0), (0, 2, 1.0), (0, 0, 0.5)]
)
def test_smoothing_divides_each_wave_by_its_frequency(rows, columns, power):
    y, x = np.mgrid[:40, :50]
    wave = np.cos(2 * np.pi * (rows * y / 40 + columns * x / 50))[..., None] * [1, 2, 3]
    frequency = np.hypot(rows / 40, columns / 50) or 1 / 50  # The mean: as the lowest.
    smooth = library._smooth(jnp.asarray(wave, jnp.float32), power)
    np.testing.assert_allclose(smooth, wave / frequency**power, rtol=0, atol=2e-3)


def test_what_an_octave_drew_is_carried_to_the_next(variables):
    shifts = []

    def brighten(objective, variables, pixels, shift):
        shifts.append((pixels.shape, tuple(map(int, shift))))
        return pixels.mean(), jnp.ones_like(pixels)

    image, settings = picture(180, 160) / 2, {"ascent": brighten, "steps": 4}
    pixels, before, after = climb(variables, None, image, octaves=3, rate=1.5, **settings)
    np.testing.assert_allclose(pixels, image + 3 * 4 * 1.5, rtol=0, atol=1e-3)
    sizes = [(92, 82), (129, 114), (180, 160)]
    assert {shape for shape, _ in shifts} == {(*size, 3) for size in sizes}
    assert after - before == pytest.approx(18, abs=1e-2)
    steps = [shift for _, shift in shifts if shift != (0, 0)]
    assert len(set(steps)) > 6  # Twelve are drawn from 49, with repetition.
    assert all(max(map(abs, shift)) <= 3 for shift in steps)
    bright, *_ = climb(variables, None, image, octaves=2, rate=50.0, **settings)
    assert bright.max() == 255 and bright.min() == 255


def test_a_picture_that_is_too_small(variables):
    with pytest.raises(ValueError, match="90x79 px but needs 80 px a side"):
        climb(variables, Objective("classifier", 4), np.zeros((79, 90, 3)))


def test_what_cannot_rise_leaves_the_picture_alone(variables):
    silent = jax.tree.map(jnp.zeros_like, variables)
    pixels, *ends = climb(silent, Objective("inception_4a"), steps=2)
    np.testing.assert_array_equal(pixels, picture())
    assert ends == [0, 0]


# Tests of the command.


CLASS_NAMES = ("ant", "Zoë the bird", "3", "dog")  # Numbers of classes begin with 0.
DESCRIPTION = describe(
    width_multiplier=0.25,
    class_names=CLASS_NAMES,
    input_scale=1 / 255,
    untrained_heads=("aux_4d",),
)


@pytest.fixture
def network(small_networks):
    """Makes every description create a small network."""
    return create_small(DESCRIPTION)


@pytest.fixture
def quick_command(monkeypatch, network, run_command):
    """Runs the command with stand-ins for weights and ascent; records their arguments."""
    calls = []

    def stand_in(model, variables, scaling, image, objective, *, settings, rng):
        assert scaling is DESCRIPTION.preprocess
        calls.append((image, objective, settings, rng))
        after = 0.0 if objective.channel == 5 else 2.5
        return image, 0.0, after

    predictor = types.SimpleNamespace(description=DESCRIPTION, variables={})
    monkeypatch.setattr(drawing, "dream", stand_in)
    monkeypatch.setattr(Predictor, "load", lambda *_: predictor)
    return lambda *args: (*run_command(command, "--workdir=run", *args), calls)


def save(path, pixels):
    PIL.Image.fromarray(pixels).save(path)
    return path


def test_from_gray_to_a_class_and_from_a_picture(
    tmp_path, monkeypatch, network, run_command
):
    run = write_run(tmp_path / "run", DESCRIPTION, numpy_variables(network))
    # The command then compiles once for two pictures.
    monkeypatch.setattr(library, "create_ascent", functools.cache(create_ascent))
    traced = mock.Mock(wraps=activations)
    monkeypatch.setattr(library, "activations", traced)

    def draw(*flags):
        code, stdout, stderr = run_command(command, f"--workdir={run}", *flags)
        assert code == 0 and not stderr
        return stdout

    out = tmp_path / "pictures" / "zoë.PNG"
    out.parent.mkdir()
    flags = ["--layer=aux_4a", "--channel=Zoë the bird", "--steps=3", f"--out={out}"]
    head, _, scores = draw(*flags).strip().partition(" from ")
    assert head == f"{out}: 80x80 pixels, objective of aux_4a channel Zoë the bird"
    before, after = map(float, scores.split(" to "))
    assert after > before
    first = out.read_bytes()
    with PIL.Image.open(out) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (80, 80), "RGB")
        assert not image.info
        assert np.std(image) > 4
    draw(*flags)
    assert out.read_bytes() == first
    assert list(out.parent.iterdir()) == [out]
    assert traced.call_count == 1  # Once for all steps and for both pictures.
    pixels = random_images(80, 96, 3)
    image = save(tmp_path / "in.png", pixels)
    flags = ["--layer=conv2", "--steps=1", "--rate=3", f"--out={out}"]
    said = draw(f"--image={image}", *flags)
    assert said.startswith(f"{out}: 96x80 pixels, objective of conv2 from ")
    change = np.abs(np.int32(PIL.Image.open(out)) - pixels)
    assert 1 < change.mean() <= 3.1  # Pixels beyond black and white are clipped.


def test_says_that_a_head_is_not_trained(tmp_path, quick_command):
    flags = "--channel=0", "--octaves=1", f"--out={tmp_path / 'out.png'}"
    code, _, err, _ = quick_command("--layer=aux_4a", *flags)
    assert (code, err) == (0, "")
    code, _, err, _ = quick_command("--layer=aux_4d", *flags)
    assert code == 0 and "untrained heads, whose outputs mean nothing: aux_4d" in err


def test_settings_depend_on_where_it_begins(tmp_path, quick_command):
    image, out = save(tmp_path / "in.png", random_images(90, 100, 3)), tmp_path / "o.png"
    flags = ["--layer=inception_4a", "--steps=7", f"--out={out}"]
    quick_command(*flags, "--seed=3")
    quick_command(*flags, "--seed=4", "--size=100")
    *_, calls = quick_command(*flags, f"--image={image}", "--smoothness=0.5")
    (noise, objective, settings, rng), (large, _, _, other), (start, _, changed, _) = calls
    assert objective == Objective("inception_4a")
    assert noise.shape == (80, 80, 3) and large.shape == (100, 100, 3)
    assert abs(float(noise.mean()) - 128) < 1 and 1 < float(noise.std()) < 3
    assert settings == dataclasses.replace(drawing.FROM_NOISE, steps=7)
    expected = {"steps": 7, "smoothness": 0.5}
    assert changed == dataclasses.replace(drawing.FROM_PICTURE, **expected)
    assert (jax.random.key_data(rng) != jax.random.key_data(other)).any()
    np.testing.assert_array_equal(start, np.asarray(PIL.Image.open(image)))
    np.testing.assert_array_equal(PIL.Image.open(out), start)


@pytest.mark.parametrize(
    ("layer", "channel", "expected"),
    [
        ("classifier", "dog", 3),
        ("aux_4a", "0", 0),
        ("aux_4d", "3", 2),  # A name has precedence over a number.
        ("classifier", "2", 2),
        ("inception_4a", "15", 15),
        ("inception_4a", "", None),
        ("pool", "", None),
    ],
)
def test_channels(network, layer, channel, expected):
    objective = drawing.choose_objective(layer, channel, DESCRIPTION)
    assert objective == Objective(layer, expected)


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((90, 120), None, (90, 120)),
        ((600, 1024), None, (300, 512)),
        ((90, 120), 240, (180, 240)),
        ((600, 300), 200, (200, 100)),
        ((8, 8), 96, (96, 96)),
    ],
)
def test_sizes_of_pictures(tmp_path, shape, size, expected):
    file = save(tmp_path / "a.png", random_images(*shape, 3))
    assert drawing.load_picture(file, size).shape == (*expected, 3)


@pytest.mark.parametrize(
    ("shape", "size", "drawn", "hint"),
    [
        ((8, 8), None, "8x8", "use --size=80 or more"),
        ((30, 300), 200, "200x20", "use --size=800 or more"),
        ((160, 8000), None, "512x10", "use --size=4000 or more"),
        ((20, 1040), None, "512x10", "a part that is at most 51 times as long as wide"),
    ],
)
def test_pictures_that_are_too_small_or_too_narrow(tmp_path, shape, size, drawn, hint):
    file = save(tmp_path / "a.png", random_images(*shape, 3))
    height, width = shape
    message = f"{width}x{height} pixels would be drawn at {drawn} but .*{hint}"
    with pytest.raises(UserError, match=message):
        drawing.load_picture(file, size)
    if "--size=" in hint:
        enough = int(re.search(r"\d+", hint)[0])
        assert min(drawing.load_picture(file, enough).shape[:2]) == 80


def test_a_narrow_picture_on_its_side(tmp_path):
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6
    PIL.Image.new("RGB", (20000, 1)).save(tmp_path / "a.png", exif=exif)
    with pytest.raises(UserError, match="1x20000 pixels would be drawn at 1x512 "):
        drawing.load_picture(tmp_path / "a.png", None)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--layer=inception_6a", "--layer is 'inception_6a' but must be one of conv1"),
        ("--layer=classifier", "needs --channel=CLASS, one of ant, Zoë the bird, 3, dog"),
        ("--channel=16", "--channel is '16' but must be a number from 0 to 15"),
        ("--channel=cat --layer=aux_4a", "0 to 3 or one of ant, Zoë the bird, 3, dog"),
        ("--channel=dog", "--channel is 'dog' but must be a number from 0 to 15"),
        ("--image=nowhere.jpg", "--image nowhere.jpg cannot be read: no such file"),
        ("--size=79", "--size is 79 but must be 80 to 4096"),
        ("--octaves=0", "--octaves is 0 but must be 1 to 16"),
        ("--steps=0", "--steps is 0 but must be 1"),
        ("--rate=nan", "--rate is nan but must be 0 to 255"),
        ("--smoothness=5", "--smoothness is 5.0 but must be 0 to 4"),
        ("--out=a.jpg", "--out is a.jpg but must end in .png"),
        (f"--out={'a' * 300}.png", "cannot be written (File name too long)"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, quick_command, flag, message):
    monkeypatch.chdir(tmp_path)
    flags = ["--layer=inception_4a", "--out=a.png", *flag.split()]
    code, stdout, stderr, calls = quick_command(*flags)
    assert code == 2 and not stdout and not calls
    assert message in stderr and stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_head_that_knows_one_size(tmp_path):
    seed = dataclasses.replace(DESCRIPTION, variant="seed")
    objective = Objective("aux_4a", 1)
    drawing.check_head_size(objective, seed, [(80, 80)])
    drawing.check_head_size(objective, DESCRIPTION, [(80, 80), (112, 112)])
    drawing.check_head_size(Objective("classifier", 1), seed, [(80, 80), (112, 112)])
    for sizes in ([(80, 80), (112, 112)], [(112, 112)], [(80, 96)]):
        with pytest.raises(UserError, match="takes 80x80 pixels only: use --octaves=1"):
            drawing.check_head_size(objective, seed, sizes)


def test_a_silent_channel_is_said_and_nothing_written(tmp_path, quick_command):
    out = tmp_path / "a.png"
    code, _, stderr, _ = quick_command("--layer=conv1", "--channel=5", f"--out={out}")
    assert code == 2 and not out.exists()
    assert "conv1 channel 5 does not respond at all" in stderr
