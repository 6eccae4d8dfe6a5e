"""Runs the notebook cell by cell, as a reader does."""

import json

import pytest
from helpers.paths import REPOSITORY
from helpers.processes import finish_well, start_python


@pytest.mark.ci
def test_every_cell_runs(tmp_path):
    cells = json.loads((REPOSITORY / "docs" / "tour.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (tmp_path / "tour.py").write_text("\n\n".join(code))
    env = {"MPLBACKEND": "agg", "TMPDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    env["XLA_FLAGS"] = ""  # Optimized code is faster for real training.
    out, _ = finish_well(start_python(tmp_path / "tour.py", env=env))
    assert "10,334,030 parameters" in out
    assert "6,998,552" in out  # From Table 1.
    accuracy = float(out.split("% of 360 held-out digits")[0].split()[-1])
    assert accuracy > 50
