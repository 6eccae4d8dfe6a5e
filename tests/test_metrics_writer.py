import json
import time

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


def test_rows_are_read_back_and_tensorboard_has_the_same(tmp_path):
    before = time.time()
    write_rows(tmp_path, ROWS)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert without_times(rows) == ROWS
    written = [row["unix_seconds"] for row in rows]
    assert before - 0.001 <= written[0] and written[-1] <= time.time() + 0.001
    assert written == sorted(written)
    assert tensorboard_series(tmp_path / "tensorboard") == series_of(ROWS)


def test_a_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
    jsonl_file = tmp_path / "metrics.jsonl"
    assert read_rows(jsonl_file) == []
    with MetricsWriter(jsonl_file, tmp_path / "tensorboard", resume_step=0) as writer:
        writer.write({"loss": 2.5}, step=1, epoch=0, split="train")
        (row,) = without_times(read_rows(jsonl_file))
        assert row == dict(step=1, epoch=0, split="train", loss=2.5)


def test_torn_last_line_is_not_read(tmp_path):
    jsonl_file = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps(row) + "\n" for row in ROWS)
    last = len(json.dumps(ROWS[-1])) + 1
    for cut in range(1, last + 1):
        jsonl_file.write_text(whole[:-cut])
        assert read_rows(jsonl_file) == ROWS[:-1]


def test_resume_cuts_a_torn_last_line_and_later_rows(tmp_path):
    jsonl_file = tmp_path / "metrics.jsonl"
    write_rows(tmp_path, ROWS)
    with jsonl_file.open("a") as file:
        file.write('{"step": 30, "epo')
    for resume_step in (1000, 40, 26, 25, 24, 10, 9, 0):
        kept = [row for row in ROWS if row["step"] <= resume_step]
        write_rows(tmp_path, [], resume_step=resume_step)
        assert without_times(read_rows(jsonl_file)) == kept
        assert len(jsonl_file.read_text().splitlines()) == len(kept)


def later_files(monkeypatch):
    """Lets tensorboardX, which names its files by the second, write another one."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 2)


def test_resumed_run_has_every_step_once(tmp_path, monkeypatch):
    write_rows(tmp_path, ROWS)
    later_files(monkeypatch)
    again = [{**row, "loss": row["loss"] + 1} for row in ROWS if row["step"] > 25]
    write_rows(tmp_path, again, resume_step=25)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    expected = ROWS[:3] + again
    assert without_times(read_rows(tmp_path / "metrics.jsonl")) == expected
    assert tensorboard_series(tmp_path / "tensorboard") == series_of(expected)


def test_run_that_starts_over_shows_nothing_of_the_first_try(tmp_path, monkeypatch):
    write_rows(tmp_path, ROWS)  # It died before its first checkpoint.
    later_files(monkeypatch)
    write_rows(tmp_path, ROWS[:1], resume_step=0)
    assert without_times(read_rows(tmp_path / "metrics.jsonl")) == ROWS[:1]
    series = tensorboard_series(tmp_path / "tensorboard")
    assert {tag: points for tag, points in series.items() if points} == series_of(ROWS[:1])
