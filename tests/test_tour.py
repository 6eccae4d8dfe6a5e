"""Runs the notebook cell by cell, as a reader does."""

import json

import pytest
from helpers.paths import REPOSITORY
from helpers.processes import finish, start_python


@pytest.fixture(scope="module")
def program():
    cells = json.loads((REPOSITORY / "docs" / "tour.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n\n".join(code)


def test_every_cell_compiles(program):
    compile(program, "tour.ipynb", "exec")


@pytest.mark.ci
def test_every_cell_runs(program, tmp_path):
    (tmp_path / "tour.py").write_text(program)
    env = {"MPLBACKEND": "agg", "TMPDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    env["XLA_FLAGS"] = ""  # Optimized code is faster for real training.
    code, out, err = finish(start_python(tmp_path / "tour.py", env=env))
    assert code == 0, err
    assert "10,334,030 parameters" in out
    assert "6,998,552" in out  # From Table 1.
    accuracy = float(out.split("% of 360 held-out digits")[0].split()[-1])
    assert accuracy > 50
