import gzip
import json

import jax
import jax.numpy as jnp
import pytest
from helpers.configs import named_config

from googlenet_flax.runs.profile import StepProfile
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.train import train_and_evaluate


def traces(directory):
    return sorted(directory.glob("plugins/profile/*/*.xplane.pb"))


@pytest.mark.parametrize(
    ("profiled", "steps", "seen", "number"),
    [
        ((3, 4), range(1, 7), [4, 5, 6], 1),
        ((3, 9), range(1, 5), [], 1),  # The run ends in between.
        ((3, 9), range(5, 12), [9, 10, 11], 1),  # The run is resumed in between.
        ((), range(1, 4), [], 0),
        ((1, 2), range(3, 5), [], 0),
    ],
)
def test_a_trace_is_written_after_the_last_step(tmp_path, profiled, steps, seen, number):
    """Checks that traces exist after the steps `seen`, and their `number` at the end."""
    double, x, folder = jax.jit(lambda x: 2 * x), jnp.ones(3), tmp_path / "profile"
    traced = []
    with StepProfile(folder, profiled) as profile:
        for step in steps:
            profile.before(step, x)
            x = double(x)
            profile.after(step, x)
            traced += [step] if traces(folder) else []
    assert traced == seen
    assert [trace.stat().st_size > 1000 for trace in traces(folder)] == [True] * number
    assert folder.exists() == bool(number)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "profile").write_text("")
    with pytest.raises(UserError, match="profile"):
        StepProfile(tmp_path / "profile", (1, 2)).before(1, None)


def test_a_full_disk_is_not_taken_for_device_memory(tmp_path, monkeypatch, capsys):
    def stop_trace():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", stop_trace)
    profile = StepProfile(tmp_path / "profile", (1, 1))
    profile.before(1, None)
    with pytest.raises(UserError, match=r"profile cannot be written .*No space left"):
        profile.after(1, None)
    with pytest.raises(KeyboardInterrupt), profile:  # The interrupt is not replaced.
        profile.before(1, None)
        raise KeyboardInterrupt
    assert "No space left" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_traced(tmp_path, small_inceptions):
    config = named_config("digits") | {"width_multiplier": 0.25, "batch_size": 8}
    config |= {"train_split": "train[:32]", "eval_split": "test[:12]", "num_epochs": 1}
    config |= {"profile_steps": (2, 3)}
    train_and_evaluate(config, tmp_path)
    (trace,) = tmp_path.glob("profile/plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any("PjitFunction" in event.get("name", "") for event in events)
