"""benchmarks/recipe_ablation.py and run_seeds.py: what they change, and their rows."""

import pathlib
import sys

import pytest
from helpers.configs import load_config
from helpers.paths import REPOSITORY

from googlenet_flax.config import Config

sys.path.append(str(REPOSITORY / "benchmarks"))
import recipe_ablation
import run_seeds

BEST = REPOSITORY / "configs/cifar10_best.py"
ROWS = recipe_ablation.rows()
ALL_OUT = "without all of these"


def fields_of(row: str) -> dict:
    return dict(load_config(BEST, *recipe_ablation.SCALE[1:], *ROWS[row]))


@pytest.mark.parametrize("row", ROWS)
def test_each_row_is_a_config_that_changes_what_it_names_alone(row):
    whole, changed = fields_of("the whole recipe"), fields_of(row)
    Config.of(changed)
    named = {change.removeprefix("--config.").partition("=")[0] for change in ROWS[row]}
    assert {name for name in whole if whole[name] != changed[name]} == named


def test_one_row_leaves_all_ingredients_out():
    bare = fields_of(ALL_OUT)
    assert (bare["crop_padding_pixels"], bare["flip"], bare["cutout_fraction"]) == (
        0,
        "none",
        0,
    )
    assert (bare["label_smoothing"], bare["weight_decay"], bare["aux_weight"]) == (0, 0, 0)
    assert (bare["final_rate_fraction"], bare["warmup_epochs"]) == (1, 0)


def test_the_scale_keeps_the_shares_of_the_recipe():
    whole, scaled = dict(load_config(BEST)), fields_of("the whole recipe")
    warmup = [config["warmup_epochs"] / config["num_epochs"] for config in (whole, scaled)]
    assert warmup[0] == pytest.approx(warmup[1])
    steps = 200 * (50_000 // 256), 45 * (1_000 // 32)
    windows = [
        1 / (1 - config["ema_decay"]) / count
        for config, count in zip((whole, scaled), steps, strict=True)
    ]
    assert windows[0] == pytest.approx(windows[1], rel=0.1)


def run_rows(pace: float, first: tuple[float, float], last: tuple[float, float]) -> list:
    """Rows of two steps, with accuracy and accuracy of a head after each."""
    rows = []
    for step, (accuracy, head) in enumerate((first, last), 1):
        train = {"split": "train", "loss": 2.0, "accuracy": 0.1}
        rows.append({**train, "step": step, "images_per_second": pace * (2 * step - 1)})
        evaluation = {"split": "eval", "step": step, "loss": 1.0}
        rows.append({**evaluation, "accuracy": accuracy, "aux_4a_accuracy": head})
    return rows


RUNS = {
    0: run_rows(10.0, (0.99, 0.9), (0.5, 0.4)),
    3: run_rows(20.0, (0.1, 0.1), (0.7, 0.4)),
}


def test_a_row_counts_the_last_evaluation_and_not_the_best():
    columns = run_seeds.summarize(RUNS, [100.0, 130.0])
    assert columns == {
        "seconds a run": "115",
        "images/s": "25",
        "seeds": "2",
        "accuracy, %": "60.00 ± 14.14",  # Of 50 and 70, with n - 1.
        "head 4a, %": "40.00 ± 0.00",
    }


def test_a_row_of_one_seed_has_no_deviation_and_a_resumed_run_no_time():
    columns = run_seeds.summarize({0: RUNS[0]}, [None])
    assert columns["accuracy, %"] == "50.00"
    assert columns["seconds a run"] == "resumed"


def test_markdown():
    assert run_seeds.markdown({"a": "1", "b": "x"}) == "| a | b |\n| --- | --- |\n| 1 | x |"


def test_curves(tmp_path):
    file = tmp_path / "curves.png"
    run_seeds.draw_curves(RUNS, file)
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def commands(monkeypatch):
    """Stands in for training: what would have been called, and with which code it ends."""
    calls, codes = [], []

    class Finished:
        def __init__(self, command, **_):
            calls.append(command)
            pathlib.Path(command[-1].removeprefix("--workdir=")).mkdir(exist_ok=True)
            self.returncode = codes.pop() if codes else 0

    monkeypatch.setattr(run_seeds.subprocess, "run", Finished)
    return calls, codes


def test_a_series_goes_on_where_it_was_interrupted(commands, tmp_path):
    calls, codes = commands
    codes.append(143)
    with pytest.raises(SystemExit) as stopped:
        run_seeds.train(["--config=x.py"], 5, tmp_path / "seed-5")
    assert stopped.value.code == 143
    # Going on, it does not know the time of the whole; then there is nothing left to do.
    assert run_seeds.train(["--config=x.py"], 5, tmp_path / "seed-5") is None
    assert run_seeds.train(["--config=x.py"], 5, tmp_path / "seed-5") is None
    assert len(calls) == 2
    module, *arguments = calls[0][2:]
    assert module == "googlenet_flax.main"
    assert arguments == ["--config=x.py", "--config.seed=5", f"--workdir={tmp_path}/seed-5"]


def test_the_time_of_a_whole_run_is_kept(commands, tmp_path):
    first = run_seeds.train([], 0, tmp_path / "seed-0")
    assert first > 0
    assert run_seeds.train([], 0, tmp_path / "seed-0") == first


@pytest.mark.parametrize("script", [recipe_ablation, run_seeds])
def test_seeds_that_are_no_numbers_are_refused_in_words(
    script, monkeypatch, capsys, tmp_path
):
    workdir = tmp_path / "runs"
    options = ["--config=x.py", "--seeds=0,one", f"--workdir={workdir}"]
    monkeypatch.setattr(sys, "argv", ["script", *options])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 2
    assert "--seeds" in (said := capsys.readouterr().err.splitlines()[-1])
    assert "0,one" in said
    assert not workdir.exists()
