import sys
from unittest import mock

import pytest
from helpers.tiny_run import train_well

from googlenet_flax.config import Config
from googlenet_flax.runs.wandb_mirror import WandbMirror
from googlenet_flax.runtime.errors import UserError


@pytest.fixture
def wandb(monkeypatch):
    """Replaces the package; `wandb.init.return_value` is the run."""
    package = mock.Mock()
    package.init.return_value.url = None  # As when W&B is offline.
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


def test_a_row_is_sent_without_its_time(tmp_path, wandb):
    row = {"step": 2, "epoch": 1, "split": "eval", "loss": 2.125, "unix_seconds": 1.6e9}
    init = wandb.init.return_value
    wandb.init.side_effect = [OSError("no login"), init, init]
    with pytest.raises(UserError, match="W&B cannot start"):
        WandbMirror(tmp_path / "wandb", Config())
    for _ in range(2):  # The second one resumes the run.
        with WandbMirror(tmp_path / "wandb", Config(seed=3)) as mirror:
            mirror.write(row)
    sent = mock.call({"step": 2, "epoch": 1, "eval/loss": 2.125})
    assert wandb.init.return_value.log.call_args_list == [sent] * 2
    run_id = (tmp_path / "wandb" / "run_id").read_text()
    started = [call.kwargs for call in wandb.init.call_args_list[1:]]
    assert [fields["id"] for fields in started] == [run_id] * 2
    assert started[0]["config"]["seed"] == 3
    assert [fields["name"] for fields in started] == [tmp_path.name, None]


def test_a_run_goes_on_when_wandb_fails(tmp_path, wandb, capfd):
    run = wandb.init.return_value
    run.log.side_effect = run.finish.side_effect = ConnectionResetError("lost")
    with WandbMirror(tmp_path, Config()) as mirror:
        for step in (1, 2):
            mirror.write({"step": step, "epoch": 0, "split": "train", "loss": 1.0})
    (line,) = capfd.readouterr().err.splitlines()
    assert "W&B has failed and may lack metrics" in line and "lost" in line


def test_without_the_package_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # The import fails.
    with pytest.raises(UserError, match=r"pip install .*\[wandb\]"):
        WandbMirror(tmp_path, Config())


@pytest.mark.slow
def test_a_run_is_mirrored(tmp_path):
    pytest.importorskip("wandb")
    flag, env = "--config.wandb_project=tests", {"WANDB_MODE": "offline"}
    train_well(tmp_path / "run", flag, env=env)
    (run_id,) = (tmp_path / "run").rglob("run_id")
    (file,) = (tmp_path / "run").rglob("*.wandb")
    assert file.stem == f"run-{run_id.read_text()}"
    written = file.read_bytes()
    assert b"train/loss" in written and b"eval/accuracy" in written
