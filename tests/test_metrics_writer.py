import json
import os
import time

import pytest
from helpers.series import series_of, tensorboard_series
from helpers.tiny_run import rows_without_timings

from googlenet_flax.runs.metrics import MetricsWriter, read_rows
from googlenet_flax.runtime.errors import UserError

ROWS = [
    dict(step=10, epoch=0, split="train", loss=2.5, learning_rate=0.01),
    dict(step=20, epoch=0, split="train", loss=1.5, learning_rate=0.01),
    dict(step=25, epoch=1, split="eval", loss=1.25, accuracy=0.5),
    dict(step=30, epoch=1, split="train", loss=0.1, learning_rate=0.0096),
    dict(step=40, epoch=1, split="train", loss=1e-7, learning_rate=0.0096),
]


def write_rows(directory, rows, *, resume_step=0):
    """Writes rows and checks that each is on disk at once."""
    jsonl_file, tensorboard_dir = directory / "metrics.jsonl", directory / "tensorboard"
    with MetricsWriter(jsonl_file, tensorboard_dir, resume_step=resume_step) as writer:
        for row in rows:
            where = {name: row[name] for name in ("step", "epoch", "split")}
            metrics = {name: row[name] for name in row if name not in where}
            writer.write(metrics, **where)
            assert read_rows(jsonl_file)[-1].items() >= row.items()


def test_rows_are_read_back_and_tensorboard_has_the_same(tmp_path):
    assert rows_without_timings(tmp_path) == []
    before = time.time()
    write_rows(tmp_path, ROWS)
    assert rows_without_timings(tmp_path) == ROWS
    times = [row["unix_seconds"] for row in read_rows(tmp_path / "metrics.jsonl")]
    assert before - 0.001 <= times[0] and times[-1] <= time.time() + 0.001
    assert times == sorted(times)
    assert tensorboard_series(tmp_path / "tensorboard") == series_of(ROWS)


def test_torn_last_line_is_not_read(tmp_path):
    jsonl_file = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps(row) + "\n" for row in ROWS)
    for cut in range(1, len(json.dumps(ROWS[-1])) + 2):
        jsonl_file.write_text(whole[:-cut])
        assert read_rows(jsonl_file) == ROWS[:-1]


def test_a_resumed_run_has_every_step_once_and_one_started_over_nothing_else(tmp_path):
    """Resumes after a torn last line, after all rows, and at earlier steps."""
    jsonl_file, rows = tmp_path / "metrics.jsonl", ROWS
    write_rows(tmp_path, ROWS)
    with jsonl_file.open("a") as file:
        file.write('{"step": 30, "epo')
    for resume_step in (1000, 26, 25, 24, 0):
        again = [row for row in rows if row["step"] > resume_step]
        again = [{**row, "loss": row["loss"] + 1} for row in again]
        rows = [row for row in rows if row["step"] <= resume_step] + again
        write_rows(tmp_path, again, resume_step=resume_step)
        assert rows_without_timings(tmp_path) == rows
        assert len(jsonl_file.read_text().splitlines()) == len(rows)
        assert tensorboard_series(tmp_path / "tensorboard") == series_of(rows)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 6


def test_a_writer_that_cannot_be_made_leaves_no_file_open(tmp_path):
    (tmp_path / "tensorboard").write_bytes(b"")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(UserError, match="tensorboard cannot be written"):
        write_rows(tmp_path, [])
    assert os.listdir("/proc/self/fd") == before
