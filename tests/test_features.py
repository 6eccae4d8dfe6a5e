"""Features of pictures and of splits, as files."""

import dataclasses
import functools
import tracemalloc

import jax
import numpy as np
import pytest
from helpers.full_disks import file_size_limit
from helpers.images import color_blocks
from helpers.networks import create_small, numpy_variables
from helpers.untrained_runs import write_run
from helpers.unusual_input import DESCRIPTION, STORED, inputs_of, write_pictures

from googlenet_flax import features as command
from googlenet_flax.analysis.features import write_features
from googlenet_flax.data import load_split
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("small_networks")
MODEL = create_small(DESCRIPTION)


@pytest.fixture(scope="module")
def variables():
    return numpy_variables(MODEL)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, variables):
    recipe = {"dataset": "digits", "eval_split": "test[:10]", "batch_size": 4}
    return write_run(tmp_path_factory.mktemp("run"), DESCRIPTION, variables, **recipe)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Writes a folder of six pictures, named in the order of their pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    return folder, write_pictures(folder)[1]


@pytest.fixture(scope="module")
def predictor(workdir):
    """Loads the network on four devices."""
    return Predictor.load(Workdir(workdir), "best", jax.devices())


@pytest.fixture
def features_to(workdir, predictor, run_with):
    """Runs the command, but without loading the network each time."""

    def features_to(out, *args):
        return run_with(predictor, workdir, command, f"--out={out}", *args)

    return features_to


@pytest.fixture
def mean_colors(monkeypatch):
    """Replaces the network's features by the mean color of each image."""
    create = "googlenet_flax.analysis.features.create_extractor"
    monkeypatch.setattr(create, lambda *_: mean_color)


def mean_color(batch):
    return batch["image"].mean(axis=(1, 2), dtype=np.float32)


def load(path):
    with np.load(path) as arrays:  # By default NumPy refuses pickles.
        return dict(arrays)


# Tests of the features.


def test_features_explain_the_logits(tmp_path, features_to, variables, pictures):
    """Computes the logits from the pooled features, which one layer follows."""
    folder, arrays = pictures
    out = tmp_path / "pool.npz"
    code, printed, err = features_to(out, "--batch_size=3", folder)
    assert (code, err) == (0, "")
    assert printed == f"Done: {out}, features [6, 16] of pool, step 0\n"
    found = load(out)
    assert found.keys() == {"features", "picture"}
    assert found["picture"].tolist() == [str(folder / f"{n}.png") for n in range(6)]
    layer = variables["params"]["classifier"]
    logits = found["features"] @ layer["kernel"] + layer["bias"]
    apply = jax.jit(functools.partial(MODEL.apply, train=False))
    expected = apply(variables, inputs_of(arrays)).logits
    assert np.ptp(expected, axis=0).min() > 0.05, "all pictures are alike to it"
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["inception_5a", "conv1", "aux_4a"])
def test_any_layer_and_its_norm(tmp_path, features_to, pictures, layer):
    for norm in ("none", "l2"):
        out = tmp_path / f"{norm}.npz"
        code, _, err = features_to(
            out, f"--layer={layer}", f"--normalize={norm}", pictures[0]
        )
        assert code == 0, err
    plain, unit = (load(tmp_path / f"{norm}.npz")["features"] for norm in ("none", "l2"))
    assert plain.ndim == (2 if layer == "aux_4a" else 4)
    lengths = np.linalg.norm(plain.reshape(6, -1).astype(np.float64), axis=1)
    expected = plain / lengths.reshape(-1, *[1] * (plain.ndim - 1))
    np.testing.assert_allclose(unit, expected, rtol=1e-5, atol=1e-7)
    if layer == "inception_5a":  # This is the last map of the network.
        features_to(tmp_path / "pool.npz", pictures[0])
        pooled = plain.mean(axis=(1, 2), dtype=np.float64)
        np.testing.assert_allclose(load(tmp_path / "pool.npz")["features"], pooled, 1e-5)


def test_untrained_heads_are_named(
    tmp_path, workdir, predictor, pictures, mean_colors, run_with
):
    description = dataclasses.replace(DESCRIPTION, untrained_heads=("aux_4d",))
    other = dataclasses.replace(predictor, description=description)
    note = "googlenet_flax: untrained heads, whose outputs mean nothing: aux_4d\n"
    for layer, said in (("aux_4d", note), ("aux_4a", "")):
        flags = f"--out={tmp_path / layer}.npz", f"--layer={layer}", pictures[0]
        code, _, err = run_with(other, workdir, command, *flags)
        assert (code, err) == (0, said)


# Tests of the file.


@pytest.mark.parametrize(
    ("flags", "split"),
    [([], "test[:10]"), (["--split=train[5:8]"], "train[5:8]")],
    ids=str,
)
def test_a_split_has_indices_and_labels(tmp_path, features_to, mean_colors, flags, split):
    """Reads the run's split or a named one; data have ten classes, the network seven."""
    out = tmp_path / "new.npz"
    code, printed, err = features_to(out, *flags)
    assert (code, err) == (0, "")
    digits = load_split("digits", split, data_dir="")
    assert f"features [{len(digits)}, 1] of pool" in printed
    found = load(out)
    assert found.keys() == {"features", "picture", "index", "label", "class_names"}
    assert found["picture"].tolist() == [f"example {i}" for i in range(len(digits))]
    np.testing.assert_array_equal(found["index"], np.arange(len(digits)))
    np.testing.assert_array_equal(found["label"], digits.labels)
    np.testing.assert_allclose(found["features"], digits.images.mean(axis=(1, 2)), 1e-6)
    assert found["class_names"].tolist() == list("0123456789")


def test_broken_pictures_are_named_and_the_rest_is_written(
    tmp_path, pictures, features_to, mean_colors
):
    good = [pictures[0] / "0.png", pictures[0] / "2.png"]
    broken = [tmp_path / "cut.png", tmp_path / "missing.png"]
    broken[0].write_bytes(good[0].read_bytes()[:99])
    (tmp_path / "nothing").mkdir()
    out = tmp_path / "new.npz"
    files = (good[0], *broken, good[1], tmp_path / "nothing")
    code, printed, err = features_to(out, "--batch_size=4", *files)
    assert code == 2 and printed.startswith(f"Done: {out}, features [2, 3]")
    *lines, last = err.splitlines()
    for line, path in zip(lines, broken, strict=True):
        assert line.startswith(f"googlenet_flax: {path} cannot be read: ")
    assert last.startswith("googlenet_flax: 2 of 4 pictures could not be read; there is no")
    assert load(out)["picture"].tolist() == list(map(str, good))
    whole = [color_blocks(0, 40, 48), color_blocks(2, 48, 48)]
    expected = [pixels.sum(axis=(0, 1)) / STORED**2 for pixels in whole]
    np.testing.assert_allclose(load(out)["features"], expected, rtol=1e-5)


def test_without_a_readable_picture_there_is_no_file(tmp_path, features_to, mean_colors):
    code, printed, err = features_to(tmp_path / "new.npz", tmp_path / "missing.png")
    assert code == 2 and not printed and "nothing was written" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out=old.npz"], "old.npz exists: delete it, or name another --out=FILE"),
        (["--out=new.npy"], "--out is new.npy but must end in .npz"),
        (["--out=nowhere/new.npz"], "cannot be written (No such file"),
        (
            ["--out=new.npz", "--split=test", "a.png"],
            "--split is for a split, but pictures",
        ),
        (["--out=new.npz", "--batch_size=-1", "a.png"], "batch_size is -1 but must be"),
        (["--out=new.npz", "--split=tset"], "tset"),
        (["--out=new.npz", "--checkpoint=9", "a.png"], "no checkpoint '9'"),
        (["--out=new.npz", "--workdir=nowhere"], "no run in"),
    ],
    ids=str,
)
def test_refused_at_the_door(tmp_path, workdir, refused, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.npz").write_text("old")
    assert message in refused(command, f"--workdir={workdir}", *flags)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


# Tests of failures.


def batches_of(features, count):
    mask = np.ones(len(features), bool)
    return ({"mask": mask, "features": features} for _ in range(count))


def passed_on(batch):
    return batch.pop("features")


@pytest.mark.parametrize("number", [0, 3])
def test_an_interruption_leaves_nothing(tmp_path, number):
    def interrupted():
        yield from batches_of(np.ones((4, 8), np.float32), number)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(tmp_path / "new.npz", passed_on, interrupted())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [2**19, 2**20 + 100], ids=["features", "whole file"])
def test_a_full_disk_leaves_nothing(tmp_path, limit):
    batches = batches_of(np.ones((4, 2**16), np.float32), 1)
    with file_size_limit(limit), pytest.raises(UserError, match="File too large"):
        write_features(tmp_path / "new.npz", passed_on, batches)
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_pictures(tmp_path):
    """Writes 64 MiB of features with less memory."""
    one = np.ones((4, 2**16), np.float32)  # 1 MiB.
    tracemalloc.start()
    try:
        shape = write_features(tmp_path / "new.npz", passed_on, batches_of(one, 64))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert shape == (256, 2**16) == load(tmp_path / "new.npz")["features"].shape
    assert peak < 8 * 2**20
