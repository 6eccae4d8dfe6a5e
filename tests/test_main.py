"""The commands, as real processes."""

import json
import pathlib
import subprocess
import sys

import pytest
from tiny_run import DIGITS, FINAL_STEP, run, train_tiny

from googlenet_flax.runs.metrics import read_rows


def test_a_run_says_what_it_does(finished_run):
    workdir, out, err = finished_run
    assert "GoogLeNet 'bn'" in out and "parameters" in out and "10 steps" in out
    assert out.count("eval loss") == 2
    assert str(workdir) in out
    assert f"step 1/{FINAL_STEP}  loss" in err and "images/s" in err and "ETA" in err
    assert "Traceback" not in err
    rows = read_rows(workdir / "metrics.jsonl")
    steps = {
        split: [r["step"] for r in rows if r["split"] == split]
        for split in ("train", "eval")
    }
    assert steps == {"train": list(range(1, 11)), "eval": [5, 10]}
    assert [row["epoch"] for row in rows if row["split"] == "eval"] == [1, 2]
    expected = {"step", "epoch", "split", "loss", "main_loss", "aux_4a_loss", "aux_4d_loss"}
    expected |= {"accuracy", "top5", "aux_4a_accuracy", "aux_4d_accuracy"}
    assert all(expected <= row.keys() for row in rows)
    for row in rows:
        heads = row["aux_4a_loss"] + row["aux_4d_loss"]
        assert row["loss"] == pytest.approx(row["main_loss"] + 0.3 * heads, rel=1e-5)


@pytest.mark.slow
def test_a_finished_run_says_so(finished_run, compilation_cache):
    workdir, _, _ = finished_run
    before = (workdir / "metrics.jsonl").read_text()
    code, out, err = train_tiny(workdir, env=compilation_cache)
    assert code == 0, err
    assert "finished before" in out
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_evaluate_repeats_the_last_evaluation(finished_run, compilation_cache):
    workdir, _, _ = finished_run
    code, out, err = run(
        "evaluate",
        f"--workdir={workdir}",
        "--checkpoint=latest",
        "--json",
        env=compilation_cache,
    )
    assert code == 0, err
    metrics = json.loads(out)
    row = [row for row in read_rows(workdir / "metrics.jsonl") if row["split"] == "eval"][
        -1
    ]
    assert metrics.pop("step") == FINAL_STEP
    assert metrics == {name: row[name] for name in metrics}


def test_another_config_is_refused_in_the_same_workdir(finished_run, compilation_cache):
    workdir, _, _ = finished_run
    code, _, err = train_tiny(workdir, "--config.image_size=96", env=compilation_cache)
    assert code == 2
    assert "image_size was 80 and is now 96" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config.variant=sead"], "config.variant is 'sead' but must be one of seed"),
        (["--config.dataset=foo"], "unknown dataset 'foo'"),
        (["--config.train_split=tran"], "unknown split 'tran'"),
        (["--config.image_size=79"], "config.image_size is 79 but must be 80"),
        (["--config.batch_size=-1"], "config.batch_size is -1"),
        (["--config.batch_size=big"], "batch_size"),
        (["--config.batch_sise=8"], "batch_sise"),
        (["--config=configs/nothing.py"], "configs/nothing.py"),
        (["--workdir=/dev/null"], "workdir '/dev/null' cannot be used"),
        (["--workdir="], "--workdir"),
        (["extra"], "unknown argument 'extra'"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(tmp_path, args, message):
    flags = [f"--config={DIGITS}", f"--workdir={tmp_path / 'run'}", *args]
    code, _, err = run("main", *flags)
    lines = err.strip().splitlines()
    assert code == 2, err
    assert message in lines[-1]
    assert len(lines) == 1, err


def test_devices_that_do_not_divide_the_batch_are_refused(tmp_path):
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    flags = [f"--config={DIGITS}", f"--workdir={tmp_path}"]
    code, _, err = run("main", *flags, env=env)
    assert code == 2
    assert err.strip().endswith("set --config.batch_size=30 or 33")


def test_without_config_the_way_out_is_named(tmp_path):
    code, _, err = run("main", f"--workdir={tmp_path}")
    assert code == 2 and "--config is missing" in err


def test_evaluate_without_a_run(tmp_path):
    code, _, err = run("evaluate", f"--workdir={tmp_path}")
    assert code == 2 and "no run in" in err and len(err.strip().splitlines()) == 1


def test_a_config_is_found_from_another_directory(tmp_path):
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "googlenet_flax.main",
            f"--config={DIGITS}",
            f"--workdir={tmp_path}",
            "--config.image_size=79",
        ],
        check=False,
        capture_output=True,
        text=True,
        cwd=pathlib.Path(tmp_path),
    )
    assert process.returncode == 2 and "image_size" in process.stderr
