"""Networks for gray pictures, RGBA and other numbers of channels."""

import shlex

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from helpers.configs import load_config, named_config
from helpers.images import random_images
from helpers.networks import augment, bind_step, preprocess, small_googlenet
from helpers.paths import DIGITS
from helpers.pictures import write_pictures
from helpers.steps import start_state
from helpers.tiny_run import TINY_RUN

from googlenet_flax import dream, evaluate, export, predict, report
from googlenet_flax.config import Config
from googlenet_flax.data.decode import decode_image
from googlenet_flax.data.folder import load_folder
from googlenet_flax.data.image_set import ImageSet, PictureOptions
from googlenet_flax.preprocessing.preprocess import with_channels
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.train import train_and_evaluate
from googlenet_flax.training.experiment import build_experiment
from googlenet_flax.training.optimizer import create_optimizer

GRAY = {"input_channels": 1, "input_mean": (0.5,), "input_std": (0.25,)}
RGBA = {"input_channels": 4, "input_mean": (0.5,) * 4, "input_std": (0.25,) * 4}


def test_gray_is_repeated_and_color_becomes_luma():
    gray, color = random_images(2, 5, 6, 1), random_images(2, 5, 6, 3)
    for channels in (1, 3, 4, 7):
        repeated = with_channels(jnp.asarray(gray), channels)
        np.testing.assert_array_equal(repeated, np.repeat(gray, channels, axis=-1))
    expected = [np.asarray(PIL.Image.fromarray(image).convert("L")) for image in color]
    luma = with_channels(jnp.asarray(color, jnp.float32), 1)[..., 0]
    np.testing.assert_allclose(luma, expected, atol=0.51)  # Pillow rounds to whole numbers.
    for stored, channels in ((3, 4), (4, 3), (4, 1), (2, 3)):
        words = f"have {stored} channels .* has {channels}: set --config.input_channels="
        with pytest.raises(UserError, match=words):
            with_channels(jnp.zeros((1, 2, 2, stored)), channels)


def test_following_the_advice_gives_a_config():
    flags = ["--config.input_channels=1", "--config.color_jitter=0.5"]
    with pytest.raises(UserError, match=r"config\.input_channels is 1: set ") as error:
        Config.of(load_config(DIGITS, *flags))
    advice = shlex.split(str(error.value).partition(": set ")[2])
    config = Config.of(load_config(DIGITS, *flags, *advice))
    assert (config.input_mean, config.input_std) == ((0.0,), (1.0,))
    assert config.color_jitter == 0


@pytest.mark.parametrize(
    ("name", "value"), [("color_jitter", 0.5), ("channel_order", "BGR")]
)
def test_what_needs_three_channels(name, value):
    digits = named_config("digits")
    Config.of({**digits, name: value})
    for fields in (GRAY, RGBA):
        words = f"config.{name} is {value!r} .* config.input_channels is"
        with pytest.raises(UserError, match=words):
            Config.of({**digits, **fields, name: value})


def test_pictures_are_decoded_to_each_mode(tmp_path):
    pixels = random_images(5, 7, 4)
    file = tmp_path / "train" / "ant" / "a.png"
    for folder in ("ant", "bee"):
        (tmp_path / "train" / folder).mkdir(parents=True)
        PIL.Image.fromarray(pixels).save(tmp_path / "train" / folder / "a.png")
    rgba, rgb, gray = (decode_image(file, 8, channels)[0] for channels in (4, 3, 1))
    np.testing.assert_array_equal(rgba[:5, :7], pixels)
    alpha = pixels[..., 3:] / 255
    blended = alpha * pixels[..., :3] + (1 - alpha) * 255
    np.testing.assert_allclose(rgb[:5, :7], blended, atol=1)
    luma = np.asarray(PIL.Image.fromarray(rgb).convert("L"))
    np.testing.assert_array_equal(gray[..., 0], luma)
    train = load_folder("train", str(tmp_path), PictureOptions(8, input_channels=4))
    (batch,) = train.batches([np.arange(2)])
    np.testing.assert_array_equal(batch["image"], [rgba, rgba])
    with pytest.raises(UserError, match=r"input_channels is 5 but .* set --config"):
        load_folder("train", str(tmp_path), PictureOptions(8, input_channels=5))
    with pytest.raises(UserError, match=r"input_channels is 2 but .* set --config"):
        decode_image(file, 8, 2)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_a_step_learns_from_every_channel(channels):
    model = small_googlenet("seed", input_channels=channels, num_classes=2)
    inputs = preprocess(
        **{"image_size": 80, "input_scale": 1 / 255, "input_mean": (0.5,) * channels},
        input_std=(0.25,) * channels,
    )
    tx = create_optimizer(lambda step: 0.1, momentum=0.9, weight_decay=0.0)
    fields = {"augment": augment(), "aux_weight": 0.3}
    step = bind_step(model=model, tx=tx, preprocess=inputs, **fields)
    batch = {"image": random_images(2, 16, 16, channels), "label": np.arange(2)}
    state = start_state(model, tx)
    after, metrics = jax.jit(step)(state, {**batch, "index": np.arange(2)}, 0)
    assert np.isfinite(metrics["loss"])
    old, new = (x.params["conv1"]["conv"]["kernel"] for x in (state, after))
    assert old.shape == (7, 7, channels, 16)
    assert np.all(np.any(old != new, axis=(0, 1, 3)))


# Tests of whole runs and of the commands.

CHANNELS = [pytest.param(GRAY, id="gray"), pytest.param(RGBA, id="rgba")]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Writes translucent pictures of two classes."""
    root = tmp_path_factory.mktemp("pictures")
    counts = {"train/ant": 6, "train/bee": 6, "test/ant": 2, "test/bee": 2}
    write_pictures(root, counts, channels=4)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("fields", CHANNELS)
def test_every_command(tmp_path, small_inceptions, run_command, pictures, fields):
    run, count = tmp_path / "run", fields["input_channels"]
    colored = {"input_mean": (0.5,) * 3, "input_std": (0.25,) * 3}
    config = {
        **load_config(DIGITS, *TINY_RUN),
        **{"dataset": "folder", "data_dir": str(pictures), "train_split": "train"},
        **{"eval_split": "test", "storage_size": 12, "num_epochs": 1, "batch_size": 4},
    }
    train_and_evaluate({**config, **colored}, tmp_path / "rgb")
    train_and_evaluate({**config, **fields, "init_from": str(tmp_path / "rgb")}, run)
    picture = next((pictures / "test" / "ant").iterdir())
    out = tmp_path / "drawn.png"

    def command(module, *flags):
        code, said, error = run_command(module, f"--workdir={run}", *flags)
        assert code == 0, error
        return said

    assert "accuracy" in command(evaluate)
    assert str(picture) in command(predict, picture)
    for kind in ("onnx", "stablehlo", "safetensors"):
        said = command(export, f"--format={kind}", f"--out={tmp_path / kind}")
        assert "verified:" in said
    command(report, f"--image={picture}")
    assert "Grad-CAM" in (run / "report" / "index.html").read_text()
    for flags in ([], [f"--image={picture}"]):
        command(dream, f"--out={out}", "--layer=conv2", "--steps=1", "--size=107", *flags)
        with PIL.Image.open(out) as image:
            assert image.mode == {1: "L", 4: "RGBA"}[count]


def test_data_of_another_count_are_refused_before_they_are_trained_on(small_inceptions):
    """Refuses images of three channels for a network of four."""
    images = ImageSet(random_images(8, 8, 8, 3), np.arange(8, dtype=np.int32), "abcdefgh")
    config = Config.of({**named_config("digits"), **RGBA, "batch_size": 4})
    experiment = build_experiment(config, jax.devices()[:1], images, images)
    with pytest.raises(UserError, match=r"set --config\.input_channels=3"):
        experiment.compile_train_step(0)
