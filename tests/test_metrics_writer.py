import json
import time

import pytest
from helpers.series import series_of, tensorboard_series

from googlenet_flax.runs.metrics import MetricsWriter, read_rows

ROWS = [
    dict(step=10, epoch=0, split="train", loss=2.5, learning_rate=0.01),
    dict(step=20, epoch=0, split="train", loss=1.5, learning_rate=0.01),
    dict(step=25, epoch=1, split="eval", loss=1.25, accuracy=0.5),
    dict(step=30, epoch=1, split="train", loss=0.1, learning_rate=0.0096),
    dict(step=40, epoch=1, split="train", loss=1e-7, learning_rate=0.0096),
]


def write_rows(directory, rows, *, resume_step=0):
    jsonl_file, tensorboard_dir = directory / "metrics.jsonl", directory / "tensorboard"
    with MetricsWriter(jsonl_file, tensorboard_dir, resume_step=resume_step) as writer:
        for row in rows:
            where = {name: row[name] for name in ("step", "epoch", "split")}
            metrics = {name: row[name] for name in row if name not in where}
            writer.write(metrics, **where)


def without_times(rows):
    return [{name: row[name] for name in row if name != "unix_seconds"} for row in rows]


def test_rows_are_read_back(tmp_path):
    before = time.time()
    write_rows(tmp_path, ROWS)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert without_times(rows) == ROWS
    written = [row["unix_seconds"] for row in rows]
    assert before - 0.001 <= written[0] and written[-1] <= time.time() + 0.001
    assert written == sorted(written)


def test_tensorboard_holds_the_same_numbers(tmp_path):
    write_rows(tmp_path, ROWS)
    assert tensorboard_series(tmp_path / "tensorboard") == series_of(ROWS)


def test_a_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
    jsonl_file = tmp_path / "metrics.jsonl"
    with MetricsWriter(jsonl_file, tmp_path / "tensorboard", resume_step=0) as writer:
        writer.write({"loss": 2.5}, step=1, epoch=0, split="train")
        (row,) = without_times(read_rows(jsonl_file))
        assert row == dict(step=1, epoch=0, split="train", loss=2.5)


def test_no_file_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_torn_last_line_is_not_read(tmp_path):
    jsonl_file = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps(row) + "\n" for row in ROWS)
    last = len(json.dumps(ROWS[-1])) + 1
    for cut in range(1, last + 1):
        jsonl_file.write_text(whole[:-cut])
        assert read_rows(jsonl_file) == ROWS[:-1]


@pytest.mark.parametrize("resume_step", [0, 9, 10, 24, 25, 26, 40, 1000])
def test_resume_cuts_later_rows(tmp_path, resume_step):
    write_rows(tmp_path, ROWS)
    rows = read_rows(tmp_path / "metrics.jsonl")
    kept = [row for row in rows if row["step"] <= resume_step]
    write_rows(tmp_path, [], resume_step=resume_step)
    assert read_rows(tmp_path / "metrics.jsonl") == kept


def test_resume_cuts_a_torn_last_line(tmp_path):
    jsonl_file = tmp_path / "metrics.jsonl"
    write_rows(tmp_path, ROWS[:3])
    with jsonl_file.open("a") as file:
        file.write('{"step": 30, "epo')
    write_rows(tmp_path, ROWS[3:], resume_step=25)
    assert without_times(read_rows(jsonl_file)) == ROWS
    assert len(jsonl_file.read_text().splitlines()) == len(ROWS)


def test_resumed_run_has_every_step_once(tmp_path):
    write_rows(tmp_path, ROWS)
    time.sleep(1.1)  # tensorboardX names its files by the second.
    again = [{**row, "loss": row["loss"] + 1} for row in ROWS if row["step"] > 25]
    write_rows(tmp_path, again, resume_step=25)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    expected = ROWS[:3] + again
    assert without_times(read_rows(tmp_path / "metrics.jsonl")) == expected
    assert tensorboard_series(tmp_path / "tensorboard") == series_of(expected)


def test_run_that_starts_over_shows_nothing_of_the_first_try(tmp_path):
    write_rows(tmp_path, ROWS)  # It died before its first checkpoint.
    time.sleep(1.1)
    write_rows(tmp_path, ROWS[:1], resume_step=0)
    assert without_times(read_rows(tmp_path / "metrics.jsonl")) == ROWS[:1]
    series = tensorboard_series(tmp_path / "tensorboard")
    assert {tag: points for tag, points in series.items() if points} == series_of(ROWS[:1])
