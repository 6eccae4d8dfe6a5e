"""What the commands do where a flag is not given."""

import pytest
from helpers.networks import preprocess
from helpers.paths import DIGITS

from googlenet_flax import main
from googlenet_flax.config import Config
from googlenet_flax.runs.checkpoint_evaluation import evaluation_config, load_eval_split
from googlenet_flax.training import experiment
from googlenet_flax.training.description import ModelDescription


def test_a_run_without_a_workdir_goes_to_runs_and_says_so(
    tmp_path, monkeypatch, run_command
):
    monkeypatch.chdir(tmp_path)
    refused = "--config.batch_size=100000"  # Ends the run before anything is compiled.
    code, _, err = run_command(main, f"--config={DIGITS}", refused)
    first, last = err.strip().splitlines()
    assert code == 2 and "batch_size is 100000" in last
    assert "workdir: runs/digits (choose another with --workdir=DIR)" in first
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits"]


@pytest.mark.parametrize(("flag", "expected"), [(None, 0.2), (0.0, 0.0), (0.5, 0.5)])
def test_a_fraction_of_zero_overrides_that_of_the_run(monkeypatch, flag, expected):
    loaded = {}

    def load_split(dataset, split, *, pictures, **_):
        loaded.update(fraction=pictures.eval_fraction)
        return type("Split", (), {"class_names": ("a", "b")})()

    monkeypatch.setattr(experiment, "load_split", load_split)
    description = ModelDescription("bn", 1.0, "float32", ("a", "b"), preprocess())
    config = Config(dataset="folder", eval_fraction=0.2)
    load_eval_split(evaluation_config(config, eval_fraction=flag), description)
    assert loaded["fraction"] == expected
