"""Tests of benchmarks/recipe_ablation.py and run_seeds.py: their runs and rows."""

import pathlib
import subprocess

import pytest
import recipe_ablation
import run_seeds
from helpers.configs import load_config
from helpers.paths import REPOSITORY

from googlenet_flax.config import Config

RECIPE = REPOSITORY / "configs/cifar10_cpu.py"
ROWS = recipe_ablation.rows()


def fields_of(row: str) -> dict:
    return dict(load_config(RECIPE, *recipe_ablation.SCALE[1:], *ROWS[row]))


@pytest.mark.parametrize("row", ROWS)
def test_each_row_is_a_config_that_changes_what_it_names_alone(row):
    whole, changed = fields_of("the whole recipe"), fields_of(row)
    Config.of(changed)
    named = {change.removeprefix("--config.").partition("=")[0] for change in ROWS[row]}
    assert {name for name in whole if whole[name] != changed[name]} == named


def run_rows(pace: float, *accuracies: float) -> list:
    """Returns rows with the accuracy after each step; a head always has 0.4."""
    rows = []
    for step, accuracy in enumerate(accuracies, 1):
        common = {"step": step, "loss": 2.0, "accuracy": accuracy}
        rate = pace * (2 * step - 1)
        rows.append({**common, "split": "train", "images_per_second": rate})
        rows.append({**common, "split": "eval", "aux_4a_accuracy": 0.4})
    return rows


RUNS = [run_rows(10.0, 0.99, 0.5), run_rows(20.0, 0.1, 0.7)]


def test_a_row_counts_the_last_evaluation_and_not_the_best():
    columns = run_seeds.summarize(RUNS, [100.0, 130.0])
    assert columns == {
        "seconds a run": "115",
        "images/s": "25",
        "seeds": "2",
        "accuracy, %": "60.00 ± 14.14",  # The standard deviation of 50 and 70, with n - 1.
        "head 4a, %": "40.00 ± 0.00",
    }


def test_a_row_of_one_seed_has_no_deviation_and_a_resumed_run_no_time():
    columns = run_seeds.summarize(RUNS[:1], [None])
    assert (columns["accuracy, %"], columns["seconds a run"]) == ("50.00", "resumed")


def test_a_series_continues_where_it_was_interrupted(tmp_path, monkeypatch):
    calls, codes = [], [143, 0, 0, 2, 0, 0]

    def run(command, **_):
        calls.append(command)
        pathlib.Path(command[-1].removeprefix("--workdir=")).mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, codes.pop(0))

    def train(seed):
        return run_seeds.train(["--config=x.py"], seed, tmp_path / f"seed-{seed}")

    monkeypatch.setattr(run_seeds.subprocess, "run", run)
    with pytest.raises(SystemExit) as stopped:
        train(5)
    assert stopped.value.code == 143
    # Its duration is unknown, also if the command finds it finished.
    assert train(5) is None and train(5) is None
    with pytest.raises(SystemExit) as refused:  # As with another config.
        train(5)
    assert refused.value.code == 2
    arguments = ["--config=x.py", "--config.seed=5", f"--workdir={tmp_path}/seed-5"]
    assert calls[0][2:] == ["googlenet_flax.main", *arguments]
    first = train(0)
    assert first > 0 and train(0) == first
