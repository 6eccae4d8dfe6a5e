"""Config, metrics and times of a run, read from its workdir without taking the lock.

A run can be read while it is still writing.
"""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from googlenet_flax.config import Config
from googlenet_flax.runs.checkpoint import best_name
from googlenet_flax.runs.metrics import UNIX_SECONDS, read_rows
from googlenet_flax.runs.workdir import IMPORTED_FROM, Workdir

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """Config, metrics and times of a run, finished or not."""

    path: pathlib.Path
    config: Config | None  # None for imported weights.
    imported_from: Mapping[str, str]  # Origin of imported weights; empty for a run.
    rows: Sequence[Row]
    starts: Sequence[Mapping[str, Any]]  # Facts written by `Workdir.write_start`.
    epoch_steps: int | None  # Steps in an epoch at the last start; None if unknown.
    total_steps: int | None  # Steps of the whole run at the last start; None if unknown.

    @classmethod
    def read(cls, workdir: Workdir) -> Self:
        """Reads a run.

        Raises:
          UserError: There is no run, or its config or its metrics cannot be read.
        """
        starts = workdir.read_starts()
        last = starts[-1] if starts else {}
        return cls(
            path=workdir.path,
            config=workdir.load_config(),
            imported_from=workdir.read_config().get(IMPORTED_FROM, {}),
            rows=read_rows(workdir.metrics_file),
            starts=starts,
            epoch_steps=last.get("epoch_steps"),
            total_steps=last.get("total_steps"),
        )

    @property
    def name(self) -> str:
        """Name of the run on a page."""
        return self.path.name or str(self.path)

    @property
    def steps(self) -> int:
        """Number of training steps done, as far as the rows show."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def evaluations(self) -> list[Row]:
        """Rows that hold the accuracy of an evaluation."""
        return [row for row in self.rows if row["split"] == "eval" and "accuracy" in row]

    @property
    def best(self) -> Row | None:
        """Evaluation of the best checkpoint; the latest one if several are equal."""
        rows = self.evaluations
        return max(rows, key=lambda row: (row[best_name(row)], row["step"]), default=None)

    @property
    def session_seconds(self) -> list[float]:
        """Time from each start to its last row; empty if the rows have no times.

        Rows that a later start has removed do not count.
        """
        if not all(UNIX_SECONDS in row for row in self.rows):
            return []
        row_times = [row[UNIX_SECONDS] for row in self.rows]
        start_times = [start["time"] for start in self.starts]
        return [
            max((time - start for time in row_times if start <= time < end), default=0.0)
            for start, end in itertools.pairwise([*start_times, math.inf])
        ]

    def series(self, split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns steps and values of a metric in the rows of a split, float64 `[N]`."""
        points = [
            (row["step"], row[name])
            for row in self.rows
            if row["split"] == split and isinstance(row.get(name), int | float)
        ]
        steps, values = np.array(points, np.float64).reshape(-1, 2).T
        return steps, values
