"""The numbers of a run on disk: `metrics.jsonl`, and the same in TensorBoard."""

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Literal, Self

import tensorboardX


class MetricsWriter:
    """Appends one row at a time; a resumed run first drops what lies past its start.

    Args:
      jsonl_file: One JSON object a line.
      tensorboard_dir: Event files.
      resume_step: Updates done at the start; rows of later steps are cut, since they will
        be written again.
    """

    def __init__(
        self,
        jsonl_file: pathlib.Path,
        tensorboard_dir: pathlib.Path,
        *,
        resume_step: int,
    ):
        _cut_after(jsonl_file, resume_step)
        self._jsonl = jsonl_file.open("a", encoding="utf-8")
        self._tensorboard = tensorboardX.SummaryWriter(
            str(tensorboard_dir),
            purge_step=resume_step + 1,
            # The name holds whole seconds only; a quick restart must not overwrite.
            filename_suffix=f".{time.time_ns()}",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._jsonl.close()
        self._tensorboard.close()

    def write(
        self,
        metrics: Mapping[str, float],
        *,
        step: int,
        epoch: int,
        split: Literal["train", "eval"],
    ) -> None:
        """Writes a row and makes it visible to readers at once."""
        row = {"step": step, "epoch": epoch, "split": split, **metrics}
        self._jsonl.write(json.dumps(row) + "\n")
        self._jsonl.flush()
        for name, value in metrics.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)
        self._tensorboard.flush()


def read_rows(jsonl_file: pathlib.Path) -> list[dict]:
    """The rows of a `metrics.jsonl`; a last line that was torn by a crash is left out."""
    if not jsonl_file.exists():
        return []
    rows = []
    for line in jsonl_file.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


def _cut_after(jsonl_file: pathlib.Path, step: int) -> None:
    kept = [row for row in read_rows(jsonl_file) if row["step"] <= step]
    temporary = jsonl_file.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    temporary.replace(jsonl_file)
