"""What a workdir says of its run besides the weights; read without its lock.

Everything is read as it lies there, also while the run goes on writing.
"""

import dataclasses
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from googlenet_flax.runs.checkpoint import BEST_METRICS, best_metric
from googlenet_flax.runs.metrics import read_rows
from googlenet_flax.runs.workdir import IMPORTED_FROM, Workdir

FRAME_BYTES = 12  # In front of each record: its length and a checksum.
# An event of TensorBoard begins with its field 1, a double: seconds since 1970.
WALL_TIME_TAG = 9
WALL_TIME = struct.Struct("<xd")

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """Config, metrics and times of a run, finished or not."""

    path: pathlib.Path
    config: Mapping[str, Any]
    rows: Sequence[Row]
    starts: Sequence[Mapping[str, Any]]  # As `Workdir.write_start` wrote them.
    session_seconds: Sequence[float]  # Of each start: until its last row.
    written_at: float | None  # Seconds since 1970 at the last row.

    @classmethod
    def read(cls, workdir: Workdir) -> Self:
        """Reads a run.

        Raises:
          UserError: There is none, or its metrics are not what a run writes.
        """
        config = workdir.read_config()
        rows = read_rows(workdir.metrics_file)
        try:
            written_at = workdir.metrics_file.stat().st_mtime
        except OSError:
            written_at = None
        sessions = [
            _session_seconds(path) for path in sorted(workdir.tensorboard.glob("events*"))
        ]
        starts = workdir.read_starts()
        return cls(workdir.path, config, rows, starts, sessions, written_at)

    @property
    def name(self) -> str:
        """What the run is called on a page."""
        return self.path.name or str(self.path)

    @property
    def is_imported(self) -> bool:
        """Whether the weights were imported, so that nothing was trained here."""
        return IMPORTED_FROM in self.config

    @property
    def steps(self) -> int:
        """Updates done, as far as there are rows."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def evaluations(self) -> list[Row]:
        """Rows that hold the accuracy of an evaluation."""
        return [row for row in self.rows if row["split"] == "eval" and "accuracy" in row]

    @property
    def best(self) -> Row | None:
        """The evaluation of the best checkpoint; the latest of equals."""
        return max(self.evaluations, key=_score, default=None)

    @property
    def epoch_steps(self) -> int | None:
        """Steps in an epoch, as the last start counted them; None if none is recorded."""
        return self.starts[-1]["epoch_steps"] if self.starts else None

    @property
    def total_steps(self) -> int | None:
        """Updates of the whole run, likewise."""
        return self.starts[-1]["total_steps"] if self.starts else None

    def series(self, split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of what the rows of a split call `name`, float64 `[N]` each."""
        points = [
            (row["step"], row[name])
            for row in self.rows
            if row["split"] == split and isinstance(row.get(name), int | float)
        ]
        steps, values = np.array(points, np.float64).reshape(-1, 2).T
        return steps, values


def best_name(row: Row) -> str:
    """The metric that the best checkpoint is chosen by."""
    return next(name for name in BEST_METRICS if name in row)


def _score(row: Row) -> tuple[float, int]:
    return best_metric(row), row["step"]


def _session_seconds(path: pathlib.Path) -> float:
    """Time from the first to the last event of a TensorBoard file; one is written a start.

    Each record is framed as TFRecord does it: uint64 length, its CRC32C, the bytes, theirs.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return 0.0
    times, start = [], FRAME_BYTES
    while start <= len(data):
        (length,) = struct.unpack_from("<Q", data, start - FRAME_BYTES)
        if start + length > len(data):
            break  # It is being written, or was torn.
        if length >= WALL_TIME.size and data[start] == WALL_TIME_TAG:
            times.append(WALL_TIME.unpack_from(data, start)[0])
        start += length + 4 + FRAME_BYTES
    return max(0.0, times[-1] - times[0]) if times else 0.0
