"""What the commands do where a flag, or the data, are not given."""

import subprocess
import sys

import jax
import pytest
from helpers.networks import preprocess
from helpers.paths import REPOSITORY

from googlenet_flax.analysis import plan
from googlenet_flax.config import Config
from googlenet_flax.runs import checkpoint_evaluation
from googlenet_flax.runs.checkpoint_evaluation import EvaluationData
from googlenet_flax.training.description import ModelDescription


def test_a_run_without_a_workdir_goes_to_runs_and_says_so(tmp_path):
    config = REPOSITORY / "configs" / "digits.py"
    process = subprocess.run(
        [
            *(sys.executable, "-m", "googlenet_flax.main", f"--config={config}"),
            "--config.batch_size=100000",  # Ends the run before anything is compiled.
        ],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    first, last = process.stderr.strip().splitlines()
    assert process.returncode == 2 and "batch_size is 100000" in last
    assert "workdir: runs/digits (choose another with --workdir=DIR)" in first
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits"]


@pytest.fixture
def plan_of(monkeypatch, tmp_path):
    """The plan of a small network on data that are missing."""
    monkeypatch.setattr(plan, "_memory", lambda _: "not asked")  # It compiles.

    def describe(**fields) -> str:
        small = {
            "width_multiplier": 0.1,
            "image_size": 80,
            "data_dir": str(tmp_path / "no"),
        }
        return plan.describe_run(Config(**{**small, **fields}))

    return describe


def test_a_plan_without_the_data_takes_the_known_sizes(plan_of):
    text = plan_of(dataset="cifar10", train_split="train[:3000]", num_epochs=2)
    assert "inception (3a)" in text
    assert "cifar10, 3,000 images to train on" in text and "10,000 to evaluate on" in text
    assert f"22 of 256 images, 11 an epoch, 2 epochs, on {jax.device_count()} x" in text
    text = plan_of(dataset="imagenet2012", eval_split="validation", storage_size=256)
    assert "5,004 an epoch" in text and "1000 classes" in text


def test_a_plan_of_unknown_data_says_what_is_unknown(plan_of):
    text = plan_of(dataset="folder", batch_size=8)
    assert "inception (3a)" in text
    assert "unknown, and 1,000 classes assumed" in text and "is not a folder" in text
    for name in ("steps", "learning rate", "evaluations"):
        assert f"{name + ':':<14} unknown without the data" in text


@pytest.mark.parametrize(("flag", "expected"), [(None, 0.2), (0.0, 0.0), (0.5, 0.5)])
def test_a_fraction_of_zero_overrides_that_of_the_run(monkeypatch, flag, expected):
    loaded = {}

    def load_split(dataset, split, *, pictures, **_):
        loaded.update(fraction=pictures.eval_fraction)
        return type("Split", (), {"class_names": ("a", "b")})()

    monkeypatch.setattr(checkpoint_evaluation, "load_split", load_split)
    description = ModelDescription("bn", 1.0, "float32", ("a", "b"), preprocess())
    config = Config(dataset="folder", eval_fraction=0.2)
    EvaluationData(eval_fraction=flag).complete(config).load(description)
    assert loaded["fraction"] == expected
