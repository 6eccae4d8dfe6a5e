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


def run(profile, steps):
    """Runs the steps; returns those at whose end a trace was there."""
    double = jax.jit(lambda x: 2 * x)
    x = jnp.ones(3)
    traced = []
    with profile:
        for step in steps:
            profile.before(step)
            x = double(x)
            profile.after(step, x)
            traced.append(bool(traces(profile._directory)))
    return [step for step, there in zip(steps, traced, strict=True) if there]


def test_a_trace_is_written_after_the_last_step(tmp_path):
    profile = StepProfile(tmp_path / "profile", (3, 4))
    assert run(profile, range(1, 7)) == [4, 5, 6]
    (trace,) = traces(tmp_path / "profile")
    assert trace.stat().st_size > 1000


@pytest.mark.parametrize(
    ("profiled", "steps", "number"),
    [
        ((3, 9), range(1, 5), 1),  # The run ends between them.
        ((3, 9), range(5, 12), 1),  # It is resumed between them.
        ((), range(1, 4), 0),
        ((1, 2), range(3, 5), 0),
    ],
)
def test_a_run_has_its_part_of_the_steps(tmp_path, profiled, steps, number):
    run(StepProfile(tmp_path / "profile", profiled), steps)
    assert len(traces(tmp_path / "profile")) == number
    assert (tmp_path / "profile").exists() == bool(number)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "profile").write_text("")
    with pytest.raises(UserError, match="profile"):
        StepProfile(tmp_path / "profile", (1, 2)).before(1)


@pytest.mark.slow
def test_a_run_is_traced(tmp_path, small_inceptions):
    config = named_config("digits") | {"width_multiplier": 0.25, "batch_size": 8}
    config |= {"train_split": "train[:32]", "eval_split": "test[:12]", "num_epochs": 1}
    config |= {"profile_steps": (2, 3)}
    train_and_evaluate(config, tmp_path)
    (trace,) = tmp_path.glob("profile/plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any("PjitFunction" in event.get("name", "") for event in events)
