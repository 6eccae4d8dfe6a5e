"""The commands `main` and `evaluate`: output and files of a whole run."""

import logging

import jax
import pytest
from helpers.compilations import compilations_by_step
from helpers.paths import DIGITS
from helpers.processes import finish, last_line, start
from helpers.tiny_run import FINAL_STEP, copy_run, rows_of, tiny_flags

from googlenet_flax import main
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.command import running


def test_a_run_says_what_it_does(finished_run):
    workdir, out, err = finished_run
    assert "GoogLeNet 'bn'" in out and "parameters" in out and "10 steps" in out
    assert out.count("eval loss") == 2
    assert str(workdir) in out
    assert f"step 1/{FINAL_STEP}  loss" in err and "images/s" in err and "ETA" in err
    assert "Traceback" not in err
    assert not set("\r\x1b") & set(out + err)  # They are for terminals.
    (start,) = Workdir(workdir).read_starts()
    assert (start["step"], start["epoch_steps"], start["total_steps"]) == (0, 5, FINAL_STEP)
    assert start["environment"]["jax"] == jax.__version__
    training, evaluations = rows_of(workdir, "train"), rows_of(workdir, "eval")
    assert [row["step"] for row in training] == list(range(1, 11))
    # One stair is an epoch of five updates, and each halves the rate.
    rates = [row["learning_rate"] for row in training]
    assert rates == pytest.approx([0.05] * 5 + [0.025] * 5)
    assert [(row["step"], row["epoch"]) for row in evaluations] == [(5, 1), (10, 2)]
    expected = {"step", "epoch", "split", "loss", "main_loss", "aux_4a_loss", "aux_4d_loss"}
    expected |= {"accuracy", "top5", "aux_4a_accuracy", "aux_4d_accuracy"}
    for row in training + evaluations:
        assert expected <= row.keys()
        heads = row["aux_4a_loss"] + row["aux_4d_loss"]
        assert row["loss"] == pytest.approx(row["main_loss"] + 0.3 * heads, rel=1e-5)


def test_a_run_compiles_its_steps_once(finished_run):
    """Checks a run on one device with two stairs; test_whole_recipe has four devices."""
    compiled = compilations_by_step(finished_run[2])
    # The step, whether or not another thread has compiled it before, the functions that
    # the first log needs, and those of the first evaluation.
    start = compiled.pop(0)
    assert start.count("jit(create_state)") == start.count("jit(_fun)") == 1
    assert compiled == {5: ["jit(_fun)"]}


def test_a_finished_run_says_so(finished_run, run_command, tmp_path, small_inceptions):
    workdir = copy_run(finished_run[0], tmp_path / "run")
    before = (workdir / "metrics.jsonl").read_text()
    code, out, err = run_command(main, *tiny_flags(workdir))
    assert (code, err) == (0, "")
    assert "finished before" in out
    assert (workdir / "metrics.jsonl").read_text() == before


def test_a_workdir_alone_is_not_enough(tmp_path, refused):
    assert "--config is missing" in refused(main, f"--workdir={tmp_path}")


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


def test_a_config_in_the_home_directory(tmp_path, monkeypatch, refused):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = DIGITS.read_text().replace("image_size = 80", "image_size = 31")
    (tmp_path / "mine.py").write_text(text)
    line = refused(main, "--config=~/mine.py", f"--workdir={tmp_path}/run")
    assert "config.image_size is 31 but must be 32" in line


def test_a_device_without_enough_memory_is_one_line(capfd):
    with pytest.raises(SystemExit) as end, running(reads_split=True):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9")
    assert end.value.code == 2
    assert "out of device memory: lower the batch size" in last_line(capfd.readouterr().err)


def test_help_is_no_error():
    code, out, _ = finish(start("main", "--help"))
    assert code == 0 and "--config.FIELD=VALUE" in out


def test_jax_may_say_why_it_uses_no_gpu(monkeypatch):
    logger = logging.getLogger("jax._src.xla_bridge")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    monkeypatch.setattr(logging.root, "level", logging.CRITICAL)  # As absl leaves it.
    with running():
        assert logger.getEffectiveLevel() == logging.WARNING
