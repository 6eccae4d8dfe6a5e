import json
import sys
import types

import pytest
from helpers.tiny_run import train_tiny

from googlenet_flax.config import Config
from googlenet_flax.runs.wandb_mirror import WandbMirror
from googlenet_flax.runtime.errors import UserError

ROWS = [
    {"step": 1, "epoch": 0, "split": "train", "loss": 2.5},
    {"step": 2, "epoch": 1, "split": "train", "loss": 2.25},
    {"step": 2, "epoch": 1, "split": "eval", "loss": 2.125, "accuracy": 0.5},
]


def logged(directory):
    """History rows and configs of W&B's own offline files."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    datastore = pytest.importorskip("wandb.sdk.internal.datastore")
    rows, run_ids = [], set()
    for file in sorted(directory.rglob("*.wandb")):
        store = datastore.DataStore()
        store.open_for_scan(str(file))
        while (data := store.scan_data()) is not None:
            record = pb.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                run_ids.add(record.run.run_id)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append(
                    {
                        "/".join(i.nested_key) or i.key: json.loads(i.value_json)
                        for i in items
                    }
                )
    return rows, run_ids


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def test_a_row_is_sent_without_its_time():
    sent = []
    mirror = object.__new__(WandbMirror)
    mirror._run = types.SimpleNamespace(log=sent.append)
    mirror.write({**ROWS[2], "unix_seconds": 1.6e9})
    position = {"step": 2, "epoch": 1}
    assert sent == [{**position, "eval/loss": 2.125, "eval/accuracy": 0.5}]


@pytest.mark.slow  # On a busy machine wandb itself has lost the last row.
def test_rows_are_mirrored_offline(tmp_path, offline, capfd):
    pytest.importorskip("wandb")
    with WandbMirror("tests", tmp_path / "wandb", Config(seed=3)) as mirror:
        for row in ROWS[:2]:
            mirror.write(row)
    with WandbMirror("tests", tmp_path / "wandb", Config(seed=3)) as mirror:  # Resumed.
        mirror.write(ROWS[2])
    rows, run_ids = logged(tmp_path / "wandb")
    names = ("step", "epoch", "train/loss", "eval/loss", "eval/accuracy")
    assert [{n: row[n] for n in names if n in row} for row in rows] == [
        {"step": 1, "epoch": 0, "train/loss": 2.5},
        {"step": 2, "epoch": 1, "train/loss": 2.25},
        {"step": 2, "epoch": 1, "eval/loss": 2.125, "eval/accuracy": 0.5},
    ]
    assert run_ids == {(tmp_path / "wandb" / "run_id").read_text()}
    out, err = capfd.readouterr()
    assert not out
    assert all("`resume` will be ignored" in line for line in err.splitlines())


def test_without_the_package_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # Importing it fails.
    with pytest.raises(UserError, match=r"pip install .*\[wandb\]"):
        WandbMirror("tests", tmp_path, Config())


@pytest.mark.slow
def test_a_run_is_mirrored(tmp_path, compilation_cache):
    pytest.importorskip("wandb")
    env = {**compilation_cache, "WANDB_MODE": "offline"}
    flag = "--config.wandb_project=tests"
    code, _, err = train_tiny(tmp_path / "run", flag, env=env)
    assert code == 0, err
    rows, _ = logged(tmp_path / "run")
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 11))
    assert [row["step"] for row in rows if "eval/accuracy" in row] == [5, 10]
