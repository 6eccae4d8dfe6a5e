import dataclasses
import os
import shlex
import shutil
from functools import partial

import jax
import numpy as np
import optax
import pytest
from helpers.configs import load_config, named_config
from helpers.networks import assert_leaves, create_small, flat, numpy_variables
from helpers.paths import REPOSITORY
from helpers.pictures import write_pictures
from helpers.untrained_runs import describe, save_weights, write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1 as ocp

from googlenet_flax.data.folder import load_folder
from googlenet_flax.data.image_set import PictureOptions
from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runs.warm_start import convert_kernel, warm_start
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.train import train_and_evaluate
from googlenet_flax.training.sharding import replicate
from googlenet_flax.training.state import TrainState

pytestmark = pytest.mark.usefixtures("small_networks")
CLASSIFIERS = ("classifier", "aux_4a/classifier", "aux_4d/classifier")
FIELDS = {"class_names": tuple("0123456789"), "storage_size": 8, "input_scale": 1 / 255}
DESCRIPTION = describe(**FIELDS)
THREE = ("ant", "bee", "cat")


def changed(**fields):
    """Describes the network with other fields."""
    return describe(**{**FIELDS, **fields})


def trained_variables(description, seed=1):
    """Draws variables that differ from fresh ones in every leaf."""
    rng = np.random.default_rng(seed)
    start = numpy_variables(create_small(description), description.preprocess.image_size)
    return jax.tree.map(
        lambda leaf: leaf + rng.uniform(0.01, 0.1, leaf.shape).astype(np.float32), start
    )


def source_run(path, description=DESCRIPTION):
    """Writes a trained run; returns its workdir and its variables."""
    variables = trained_variables(description)
    return Workdir(write_run(path, description, variables)), variables


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return source_run(tmp_path_factory.mktemp("source"))


def fresh_state(description):
    """Creates the state that a run starts with, on all devices."""
    size = description.preprocess.image_size
    variables = numpy_variables(create_small(description), size)
    state = TrainState.of(variables, optax.sgd(0.1, momentum=0.9))
    return replicate(state, jax.devices())


def start(run, description):
    """Returns the warm state by path, the printed line, and the fresh state by path."""
    fresh = fresh_state(description)
    before = {name: np.asarray(leaf) for name, leaf in flat(fresh.variables).items()}
    state, said = warm_start(fresh, run, description, jax.devices())
    assert "\n" not in said
    assert int(state.step) == 0 and state.averages == {}
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.opt_state))
    for old, new in zip(jax.tree.leaves(fresh), jax.tree.leaves(state), strict=True):
        assert new.sharding == old.sharding  # Or the step would compile twice.
    return flat(state.variables), said, before


def refusal(run, description):
    with pytest.raises(UserError) as caught:
        start(run, description)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    assert str(run.path) in message
    return message


def is_classifier(path):
    return path.split("/", 1)[1].rpartition("/")[0] in CLASSIFIERS


def test_averages_begin_with_the_sources_weights(source):
    run, _ = source
    description = changed(class_names=THREE)
    plain = fresh_state(description)
    fresh = dataclasses.replace(
        plain, averages=jax.tree.map(np.zeros_like, plain.variables)
    )
    state, _ = warm_start(fresh, run, description, jax.devices())
    averages, variables = flat(state.averages), flat(state.variables)
    assert_leaves(averages, state.variables)
    for path, leaf in variables.items():
        # A step donates its state, and no buffer can be donated twice.
        assert averages[path] is not leaf
        assert averages[path].sharding == leaf.sharding


@pytest.mark.parametrize("class_names", [THREE, tuple(map(str, range(1000)))], ids=len)
def test_another_number_of_classes(source, class_names):
    """Checks that exactly the last layers are new, and that the run names them."""
    run, theirs = source
    after, said, fresh = start(run, changed(class_names=class_names))
    expected = {p: fresh[p] if is_classifier(p) else v for p, v in flat(theirs).items()}
    assert_leaves(after, expected)
    origin, _, news = said.partition("; ")
    assert origin == f"weights from {run.path}, checkpoint 0"
    modules, count = news.removeprefix("random weights in ").rsplit(", ", maxsplit=1)
    assert count == f"for {len(class_names)} classes"
    assert sorted(modules.split(", ")) == sorted(CLASSIFIERS)


@pytest.mark.parametrize(
    ("variant", "heads", "image_size"),
    [("bn", ("aux_4d",), 80), ("seed", ("aux_4a", "aux_4d"), 224)],
)
def test_untrained_heads_are_new(tmp_path, variant, heads, image_size):
    """Checks that untrained heads are new, also at a size that trained ones do not fit."""
    run, theirs = source_run(tmp_path, changed(variant=variant, untrained_heads=heads))
    after, said, fresh = start(run, changed(variant=variant, image_size=image_size))
    expected = {
        path: fresh[path] if path.split("/")[1] in heads else leaf
        for path, leaf in flat(theirs).items()
    }
    assert_leaves(after, expected)
    news = f"random weights in {', '.join(heads)}, which are not trained there"
    assert said.endswith(f"checkpoint 0; {news}")


def test_untrained_heads_are_not_frozen(tmp_path):
    heads = ("aux_4a", "aux_4d")
    run, _ = source_run(tmp_path, changed(untrained_heads=heads))

    def start_frozen(description):
        state, devices = fresh_state(description), jax.devices()
        return warm_start(state, run, description, devices, last_layers_only=True)

    with pytest.raises(UserError, match="aux_4a and aux_4d are not trained"):
        start_frozen(DESCRIPTION)
    _, said = start_frozen(changed(untrained_heads=heads))  # Those of aux_weight=0.
    assert "random weights in aux_4a, aux_4d, which are not trained there" in said


def test_the_best_checkpoint_is_taken(tmp_path):
    """Takes the latest while none is evaluated, and averages where there are some."""
    weights = {step: trained_variables(DESCRIPTION, seed=step) for step in range(3, 8)}

    def check(saves, taken, expected):
        with Workdir(tmp_path) as run, Checkpoints(run.checkpoints) as checkpoints:
            run.write_config({})
            for step, accuracy, items in saves:
                variables = weights[step]
                save_weights(checkpoints, step, variables, DESCRIPTION, accuracy, **items)
        after, said, _ = start(run, DESCRIPTION)
        assert said == f"weights from {tmp_path}, checkpoint {taken}"
        assert_leaves(after, expected)

    check([(3, None, {}), (4, None, {})], taken=4, expected=weights[4])
    averages = {"averages": weights[7]}
    check([(5, 0.9, averages), (6, 0.2, {})], taken=5, expected=weights[7])


def test_what_may_differ(source):
    """Changes the input size of `bn`, and the dtype; parameters are always float32."""
    run, theirs = source
    sizes = {"image_size": 97, "crop_fraction": 0.5, "storage_size": 100}
    news = "; the classifiers were trained on other classes of the same number"
    for change, words in (
        ({**sizes, "dtype": "bfloat16"}, ""),
        ({"class_names": tuple("abcdefghij")}, news),
    ):
        after, said, _ = start(run, changed(**change))
        assert_leaves(after, theirs)
        assert said == f"weights from {run.path}, checkpoint 0{words}"


def test_the_size_that_seed_is_tied_to(tmp_path):
    """Changes the image size of `seed`, whose heads flatten maps of one size."""
    run, theirs = source_run(tmp_path, changed(variant="seed"))
    message = refusal(run, changed(variant="seed", image_size=224))
    assert "--config.image_size=80" in message
    assert "/fc/kernel" in message and "'seed'" in message
    # All sizes that give the same map are possible.
    after, _, _ = start(run, changed(variant="seed", image_size=90))
    assert_leaves(after, theirs)


def described_by(config):
    """Returns the description that a run of a config saves with its checkpoints."""
    of_input = [field.name for field in dataclasses.fields(DESCRIPTION.preprocess)]
    names = ("variant", "width_multiplier", "dtype", *of_input)
    return describe(class_names=THREE, **{name: config[name] for name in names})


def test_what_must_not_differ(tmp_path):
    """Checks that the options named by the error make the network fit."""
    source_fields = {
        **{"variant": "torchvision", "width_multiplier": 0.125, "input_scale": 2.0},
        "input_mean": (104.0, 117.0, 123.0),
        "input_std": (-1e-3 + 1, 1e-7, 1e5),
        "channel_order": "BGR",
    }
    run, theirs = source_run(tmp_path, changed(**source_fields))
    digits = REPOSITORY / "configs" / "digits.py"
    flags = ["--config.width_multiplier=0.1", f"--config.init_from={tmp_path}"]
    message = refusal(run, described_by(load_config(digits, *flags)))
    options = shlex.split("--" + message.partition("set --")[2])
    assert [option.partition("=")[0] for option in options] == [
        f"--config.{name}" for name in source_fields
    ]
    fixed = load_config(digits, *flags, *options)
    for name, value in source_fields.items():
        assert fixed[name] == value
    after, _, _ = start(run, described_by(fixed))
    for path, leaf in flat(theirs).items():
        if not is_classifier(path):
            np.testing.assert_array_equal(after[path], leaf, err_msg=path)


def of_channels(count, **fields):
    """Describes the network with other input channels, which are all scaled alike."""
    return changed(input_mean=(0.5,) * count, input_std=(0.25,) * count, **fields)


@settings(max_examples=20, deadline=None)
@given(
    theirs=st.sampled_from([1, 3]),
    channels=st.integers(1, 9),
    order=st.sampled_from(["RGB", "BGR"]),
)
def test_conv1_responds_as_before_where_channels_are_equal(theirs, channels, order):
    """Compares inputs whose additional channels are copies of the other ones."""
    rng, fewer = np.random.default_rng(0), min(theirs, channels)
    kernel, pixels = rng.normal(size=(7, 7, theirs, 4)), rng.normal(size=(7, 7, fewer))
    inputs, theirs_inputs = (pixels[..., np.arange(n) % fewer] for n in (channels, theirs))
    if order == "BGR":
        theirs_inputs = theirs_inputs[..., ::-1]
    described = of_channels(theirs, channel_order=order).preprocess
    converted = convert_kernel(kernel, described, channels)
    assert converted.shape == (7, 7, channels, 4)
    response = partial(np.einsum, "hwc,hwcf->f")
    expected = response(theirs_inputs, kernel)
    np.testing.assert_allclose(response(inputs, converted), expected, rtol=1e-9)


def test_another_number_of_channels(tmp_path):
    """Checks the mean of the new input, and that only `conv1` has changed."""
    colors = {"input_mean": (104.0, 117.0, 124.0), "input_std": (1.0, 2.0, 3.0)}
    theirs = changed(**colors, channel_order="BGR")
    run, weights = source_run(tmp_path, theirs)
    message = refusal(run, of_channels(4))
    assert "--config.input_mean='(124.0, 117.0, 104.0, 124.0)'" in message
    message = refusal(run, of_channels(1))
    options = "--config.input_mean='(115.0,)' --config.input_std='(2.0,)'"
    assert message.endswith(f"set {options}")
    after, said, _ = start(run, changed(input_mean=(115.0,), input_std=(2.0,)))
    assert said.endswith("; conv1 was converted from 3 to 1 input channels")
    kernel = weights["params"]["conv1"]["conv"]["kernel"]
    name = "params/conv1/conv/kernel"
    summed = kernel.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(after[name], summed, rtol=1e-5, atol=1e-6)
    assert_leaves({**after, name: kernel}, weights)


@pytest.mark.slow
def test_alpha_is_no_color(tmp_path):
    run, _ = source_run(tmp_path, of_channels(4))
    message = refusal(run, of_channels(3))
    assert "set --config.input_channels=4 --config.input_mean=" in message


def test_sources_without_weights(tmp_path):
    missing, stopped = Workdir(tmp_path / "missing"), Workdir(tmp_path)
    message = refusal(missing, DESCRIPTION)
    assert "no run in" in message and "--config.init_from" in message
    assert not missing.path.exists()
    stopped.write_config({})
    assert "no checkpoint in" in refusal(stopped, DESCRIPTION)


@pytest.mark.slow
def test_only_the_classifiers_are_trained(tmp_path, source, capsys):
    """Checks that other layers keep every bit, also in a resumed run without a source.

    One of the pictures is broken, and another start in the workdir was refused before.
    """
    workdir, start_from, root = (tmp_path / name for name in ("run", "source", "pictures"))
    with Workdir(workdir) as refused:
        refused.write_config({"width_multiplier": 0.2})
    shutil.copytree(source[0].path, start_from)
    write_pictures(root, dict.fromkeys(THREE, 10))
    options = PictureOptions(storage_size=64, eval_fraction=0.2)
    broken = load_folder("train", str(root), options).pictures.paths[7]
    os.truncate(broken, 200)
    config = {
        **named_config("folder"),
        **{"data_dir": str(root), "eval_fraction": 0.2, "storage_size": 64},
        **{"width_multiplier": 0.1, "image_size": 80, "batch_size": 4},
        **{"log_every_steps": 1, "checkpoint_every_steps": 3},
        **{"init_from": str(start_from), "trainable": "head", "on_bad_image": "skip"},
    }
    train_and_evaluate({**config, "max_steps": 3}, workdir)
    out = capsys.readouterr().out
    assert f"weights from {start_from}, checkpoint 0; random weights in " in out
    assert "only the last layer of each classifier is trained" in out
    assert "24 images to train on" in out and "6 to evaluate on" in out
    assert f"unreadable pictures skipped so far: 1: {broken} (truncated)" in out
    shutil.rmtree(start_from)
    train_and_evaluate({**config, "max_steps": 6}, workdir)
    out = capsys.readouterr().out
    assert "resuming after step 3" in out and "weights from" not in out
    early, late = (
        flat(ocp.load_checkpointables(workdir / "checkpoints" / step)["variables"])
        for step in ("3", "6")
    )
    theirs = flat(source[1])
    assert early.keys() == late.keys() == theirs.keys()
    for path in theirs:
        if is_classifier(path):
            assert np.any(early[path] != late[path]), path
        else:
            np.testing.assert_array_equal(early[path], theirs[path], err_msg=path)
            np.testing.assert_array_equal(late[path], theirs[path], err_msg=path)
