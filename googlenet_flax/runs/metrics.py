"""The metrics of a run on disk: `metrics.jsonl`, and the same rows for TensorBoard."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

from googlenet_flax.runtime.errors import UserError, writing
from googlenet_flax.runtime.files import replace_file

UNIX_SECONDS = "unix_seconds"  # Time at which a row was written, which is not a metric.
ROW_FIELDS = frozenset({"step", "epoch", "split", UNIX_SECONDS})


class MetricsWriter:
    """Writer of metrics, which appends one row at a time.

    A run that starts after `resume_step` updates first removes the rows that it will write
    again: the rows of later steps and, unless the state `was_evaluated`, the evaluation row
    of this step. `mirror`, if it is set, is called with each new row.

    Raises:
      UserError: A file cannot be written, or `metrics.jsonl` cannot be read.
    """

    def __init__(
        self,
        jsonl_file: pathlib.Path,
        tensorboard_dir: pathlib.Path,
        *,
        resume_step: int,
        was_evaluated: bool = True,
    ):
        self._jsonl_file, self._tensorboard_dir = jsonl_file, tensorboard_dir
        self.mirror: Callable[[Mapping[str, Any]], None] | None = None
        kept = [
            row
            for row in read_rows(jsonl_file)
            if row["step"] < resume_step
            or (row["step"] == resume_step and (was_evaluated or row["split"] == "train"))
        ]
        replace_file(jsonl_file, "".join(map(_to_line, kept)).encode())
        with writing(tensorboard_dir), contextlib.ExitStack() as on_error:
            # tensorboardX imports torch where it is installed.
            from googlenet_flax.runs.event_file import EventFile  # noqa: PLC0415 - slow

            tensorboard_dir.mkdir(exist_ok=True)
            self._events = EventFile(tensorboard_dir)
            on_error.callback(self._events.close)
            self._events.begin(resume_step)
            for row in kept:
                if row["step"] == resume_step:
                    self._events.write(resume_step, tagged_metrics(row))
            with writing(jsonl_file):
                self._jsonl = os.open(jsonl_file, os.O_WRONLY | os.O_APPEND)
            on_error.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._jsonl)
        self._events.close()

    def write(
        self,
        metrics: Mapping[str, float],
        *,
        step: int,
        epoch: int,
        split: Literal["train", "eval"],
    ) -> None:
        """Appends a row to `metrics.jsonl` and TensorBoard, then calls `mirror`.

        `step` is the number of updates done, and `epoch` the number of complete epochs. The
        row is written to `metrics.jsonl` completely or not at all. If only TensorBoard
        cannot be written, the row stays in `metrics.jsonl`.

        Raises:
          UserError: The row cannot be written.
        """
        row = {"step": step, "epoch": epoch, "split": split, **metrics}
        row[UNIX_SECONDS] = round(time.time(), 3)
        with writing(self._jsonl_file):
            self._append(_to_line(row).encode())
        with writing(self._tensorboard_dir):
            self._events.write(step, tagged_metrics(row))
        if self.mirror is not None:
            self.mirror(row)

    def _append(self, line: bytes) -> None:
        size = os.fstat(self._jsonl).st_size
        try:
            written = os.write(self._jsonl, line)
            if written < len(line):
                os.write(self._jsonl, line[written:])  # Raises the error of the disk.
        except OSError:
            os.ftruncate(self._jsonl, size)
            raise


def read_rows(jsonl_file: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the rows of a `metrics.jsonl`, without a last line that a crash cut short.

    A file that does not exist has no rows.

    Raises:
      UserError: The file cannot be read, or another line is not a row.
    """
    try:
        *lines, _ = jsonl_file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"{jsonl_file} cannot be read ({error.strerror}): move it away"
        ) from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            _ = row["step"], row["split"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{jsonl_file} line {number} is not a row of metrics: fix that line, or "
                "move the file away"
            ) from error
        rows.append(row)
    return rows


def tagged_metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metrics of a row by their names in TensorBoard, as `eval/accuracy`."""
    return {
        f"{row['split']}/{name}": value
        for name, value in row.items()
        if name not in ROW_FIELDS
    }


def _to_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"
