"""The commands, as real processes."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import REPOSITORY
from orbax.checkpoint import v1 as ocp

from googlenet_flax.metrics_writer import read_rows

DIGITS = REPOSITORY / "configs" / "digits.py"
TINY_RUN = [
    "--config.width_multiplier=0.1",
    "--config.train_split=train[:40]",
    "--config.eval_split=test[:20]",
    "--config.batch_size=8",
    "--config.num_epochs=2",
    "--config.log_every_steps=1",
    "--config.checkpoint_every_steps=2",
]
FINAL_STEP = 10


@pytest.fixture(scope="module")
def compilation_cache(tmp_path_factory):
    """Lets the second process of a test start in seconds."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(command, *args, env=None):
    return subprocess.Popen(
        [sys.executable, "-m", f"googlenet_flax.{command}", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "XLA_FLAGS": "", **(env or {})},
    )


def run(command, *args, env=None):
    process = start(command, *args, env=env)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def train_tiny(workdir, env, *more):
    return start(
        "main", f"--config={DIGITS}", f"--workdir={workdir}", *TINY_RUN, *more, env=env
    )


def wait_for_line(process, text):
    for line in process.stderr:
        if text in line:
            return
    pytest.fail(f"the process ended without {text!r}")


def rows_without_timings(workdir):
    return [
        {name: value for name, value in row.items() if "second" not in name}
        for row in read_rows(workdir / "metrics.jsonl")
    ]


def final_leaves(workdir):
    items = ocp.load_checkpointables(workdir / "checkpoints" / str(FINAL_STEP))
    return jax.tree.leaves(items)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, compilation_cache):
    workdir = tmp_path_factory.mktemp("finished")
    process = train_tiny(workdir, compilation_cache)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return workdir, out, err


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


def test_a_finished_run_says_so(finished_run, compilation_cache):
    workdir, _, _ = finished_run
    before = (workdir / "metrics.jsonl").read_text()
    process = train_tiny(workdir, compilation_cache)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "finished before" in out
    assert (workdir / "metrics.jsonl").read_text() == before


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


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_resumes_exactly(tmp_path, finished_run, compilation_cache, how):
    whole, _, _ = finished_run
    process = train_tiny(tmp_path, compilation_cache)
    wait_for_line(process, f"step 4/{FINAL_STEP}")
    process.send_signal(how)
    _, err = process.communicate(timeout=120)
    if how == signal.SIGKILL:
        assert process.returncode == -how
    else:
        assert process.returncode == 128 + how
        assert "the state is saved" in err.splitlines()[-1]
    process = train_tiny(tmp_path, compilation_cache)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    if how != signal.SIGKILL:  # Which may come before the first save is whole.
        assert "resuming after step" in out
    assert rows_without_timings(tmp_path) == rows_without_timings(whole)
    for resumed, straight in zip(final_leaves(tmp_path), final_leaves(whole), strict=True):
        np.testing.assert_array_equal(resumed, straight)


def test_two_runs_cannot_share_a_workdir(tmp_path, compilation_cache):
    first = train_tiny(tmp_path, compilation_cache, "--config.num_epochs=50")
    wait_for_line(first, "step 1/")
    second = train_tiny(tmp_path, compilation_cache)
    _, err = second.communicate(timeout=120)
    first.kill()
    first.communicate()
    assert second.returncode == 3
    assert f"process {first.pid}" in err


def test_another_config_is_refused_in_the_same_workdir(finished_run, compilation_cache):
    workdir, _, _ = finished_run
    process = train_tiny(workdir, compilation_cache, "--config.image_size=96")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "image_size was 80 and is now 96" in err


@pytest.mark.slow
def test_a_diverging_run_stops(tmp_path, compilation_cache):
    process = train_tiny(tmp_path, compilation_cache, "--config.learning_rate=2e9")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 4
    last = err.splitlines()[-1]
    assert "loss is" in last and "at step" in last and "learning_rate" in last


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
