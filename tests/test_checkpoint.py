import dataclasses
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.steps import tiny_state
from helpers.untrained_runs import describe, save_weights
from orbax.checkpoint import v1 as ocp

from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runtime.errors import NotFiniteError, UserError
from googlenet_flax.training.sharding import replicate

DESCRIPTION = describe(class_names=("cat", "dog"), channel_order="BGR")


def save_all(directory, accuracies):
    with Checkpoints(directory) as checkpoints:
        for step, accuracy in enumerate(accuracies, start=1):
            metrics = None if accuracy is None else {"accuracy": accuracy}
            checkpoints.save(
                tiny_state(step, float(step)), description=DESCRIPTION, metrics=metrics
            )
    return Checkpoints(directory)


def kept_steps(directory):
    return {int(path.name) for path in directory.iterdir() if path.is_dir()}


@pytest.mark.parametrize(
    ("accuracies", "kept", "best"),
    [
        ([0.9, 0.5, 0.4, 0.3, 0.2], {1, 3, 4, 5}, 1),
        ([None, 0.5, None, None, None, None], {2, 4, 5, 6}, 2),
        ([None, None, None, None], {2, 3, 4}, None),
        ([0.5, 0.5, 0.1], {1, 2, 3}, 2),
        ([math.nan, 0.5, 0.1, math.nan, 0.2], {2, 3, 4, 5}, 2),
        ([math.nan], {1}, None),
    ],
)
def test_keeps_the_three_latest_and_the_best(tmp_path, accuracies, kept, best):
    with save_all(tmp_path, accuracies) as checkpoints:
        assert kept_steps(tmp_path) == kept
        assert checkpoints.best_step == best
        assert checkpoints.latest_step == len(accuracies)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(tiny_state(1), description=DESCRIPTION)
        with pytest.raises(NotFiniteError, match="kernel is not finite after step 2"):
            checkpoints.save(tiny_state(2, math.inf), description=DESCRIPTION)
    assert kept_steps(tmp_path) == {1}


def test_a_save_whose_wait_is_interrupted_is_complete_on_exit(tmp_path, monkeypatch):
    save = ocp.save_checkpointables_async

    class SavesAtTheSecondWait:
        def __init__(self, *args, **kwargs):
            self.arguments, self.waits = (args, kwargs), 0

        def result(self):
            self.waits += 1
            if self.waits == 1:
                raise KeyboardInterrupt
            args, kwargs = self.arguments
            save(*args, **kwargs).result()

    monkeypatch.setattr(ocp, "save_checkpointables_async", SavesAtTheSecondWait)
    with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(tiny_state(1), description=DESCRIPTION)
        checkpoints.wait()
    assert Checkpoints(tmp_path).latest_step == 1


def test_the_best_is_that_of_averaged_weights(tmp_path):
    raw, averaged = (0.9, 0.1, 0.8, 0.9, 0.2), (0.1, 0.9, 0.3, 0.2, 0.4)
    with Checkpoints(tmp_path) as checkpoints:
        for step, pair in enumerate(zip(raw, averaged, strict=True), start=1):
            metrics = dict(zip(("accuracy", "averaged_accuracy"), pair, strict=True))
            state = tiny_state(step)
            checkpoints.save(state, description=DESCRIPTION, metrics=metrics)
    assert Checkpoints(tmp_path).best_step == 2
    assert kept_steps(tmp_path) == {2, 3, 4, 5}


def test_averages_are_saved_with_the_weights(tmp_path):
    plain = tiny_state(1, 1.0)
    averages = replicate({"params": {"kernel": jnp.full((2, 3), 7.0)}}, jax.devices()[:2])
    state = dataclasses.replace(tiny_state(2, 2.0), averages=averages)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(plain, description=DESCRIPTION)
        checkpoints.save(state, description=DESCRIPTION)
    devices = jax.devices()[:2]
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(2, jax.eval_shape(lambda: state), devices)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    like = jax.eval_shape(lambda: plain.variables)
    for step, raw, value in ((1, False, 1), (1, True, 1), (2, False, 7), (2, True, 2)):
        found = checkpoints.restore_variables(step, like, devices, raw=raw)
        np.testing.assert_array_equal(found["params"]["kernel"], np.full((2, 3), value))


def test_names_of_checkpoints(tmp_path):
    with save_all(tmp_path, [0.9, 0.5, None]) as checkpoints:
        assert [checkpoints.resolve(name) for name in ("best", "latest", "2")] == [1, 3, 2]
        for name in ("7", "newest", "-1"):
            with pytest.raises(UserError, match="use best, latest or one of 1, 2, 3"):
                checkpoints.resolve(name)
        assert checkpoints.manifests[2].metrics and not checkpoints.manifests[3].metrics


def test_there_may_be_no_best_one(tmp_path):
    with pytest.raises(UserError, match="train first"):
        Checkpoints(tmp_path).resolve("latest")
    with pytest.raises(UserError, match="--checkpoint=latest"):
        save_all(tmp_path, [None, None]).resolve("best")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns checkpoints of one step; tests must not change them."""
    with save_all(tmp_path_factory.mktemp("saved"), [0.5]) as checkpoints:
        yield checkpoints


@pytest.mark.parametrize("num_devices", [1, 4])
def test_restores_on_another_number_of_devices(saved, num_devices):
    devices = jax.devices()[:num_devices]
    kernel = saved.restore(1, tiny_state(0), devices).params["kernel"]
    # It has the sharding of a fresh state, or the step would be compiled again.
    assert kernel.sharding == replicate(np.ones((2, 3)), devices).sharding
    np.testing.assert_array_equal(kernel, np.ones((2, 3)))


@pytest.mark.parametrize(
    ("name", "leaf", "message"),
    [
        ("kernel", jnp.zeros((2, 4)), r"float32\[2, 3\] there and float32\[2, 4\]"),
        ("kernel", jnp.zeros((2, 3), jnp.bfloat16), r"and bfloat16\[2, 3\] here"),
        ("filter", jnp.zeros((2, 3)), r"filter is absent there"),
    ],
)
def test_refuses_leaves_that_do_not_fit(saved, name, leaf, message):
    state_like = tiny_state(0).replace(params={name: leaf})
    with pytest.raises(UserError, match=message):
        saved.restore(1, state_like, jax.devices()[:1])


def test_a_process_killed_while_it_deletes_leaves_no_damage(tmp_path, monkeypatch):
    variables = {"params": {"kernel": np.ones(3, np.float32)}}
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)  # As after a kill.
        with Checkpoints(tmp_path) as checkpoints:
            for step in range(1, 6):
                save_weights(checkpoints, step, variables, DESCRIPTION)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("1.dropped", "2.dropped", "3", "4", "5")
    ]
    with Checkpoints(tmp_path) as checkpoints:
        assert not checkpoints.damaged and not checkpoints.strays
        assert checkpoints.latest_step == 5
        save_weights(checkpoints, 6, variables, DESCRIPTION)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "5", "6"]


def test_a_step_that_is_saved_again_is_never_missing(tmp_path):
    run, early, late = (tmp_path / name for name in ("run", "early", "late"))
    with Checkpoints(run) as checkpoints:
        checkpoints.save(tiny_state(7, 1.0), description=DESCRIPTION)
        checkpoints.wait()
        metrics = {"accuracy": 0.5}
        checkpoints.save(tiny_state(7, 2.0), description=DESCRIPTION, metrics=metrics)
        # What a kill leaves before the new checkpoint is complete, and after.
        for killed in (early, late):
            shutil.copytree(run / "7.replaced", killed / "7.replaced")
    assert checkpoints.manifests[7].metrics
    shutil.copytree(run / "7", late / "7")
    for directory, value in ((run, 2.0), (early, 1.0), (late, 2.0)):
        assert not Checkpoints(directory).strays
        with Checkpoints(directory) as checkpoints:
            restored = checkpoints.restore_newest(tiny_state(0), jax.devices()[:1])
        assert restored is not None and restored.params["kernel"][0, 0] == value
        assert [path.name for path in directory.iterdir()] == ["7"]


def test_checkpoints_that_the_user_deletes_are_no_error(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3, 4, 5, 5):
            checkpoints.save(tiny_state(step), description=DESCRIPTION)
            checkpoints.wait()
            if step != 2:
                shutil.rmtree(tmp_path / str(step))
    (tmp_path / "9").mkdir()
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / "9").rmdir()
    assert checkpoints.damaged and not checkpoints.set_damaged_aside()
    assert not list(tmp_path.iterdir())


def test_checkpoints_that_cannot_be_listed_are_not_taken_for_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be read"):
        Checkpoints(tmp_path / "file")
    assert Checkpoints(tmp_path / "missing").latest_step is None


def test_a_checkpoint_that_cannot_be_renamed_is_named(tmp_path):
    (tmp_path / "1.dropped").touch()
    with pytest.raises(UserError, match=r"/1 cannot be written \(Not a directory\)"):
        save_all(tmp_path, [None] * 4)
    (tmp_path / "9").mkdir()
    (tmp_path / "9.damaged").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"/9 cannot be written \(Not a directory\)"):
        Checkpoints(tmp_path).set_damaged_aside()
    assert kept_steps(tmp_path) == {1, 2, 3, 4, 9}
