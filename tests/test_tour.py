"""The notebook, cell by cell, as a reader runs it."""

import json
import os

import pytest
from helpers.paths import REPOSITORY
from helpers.processes import finish, start_python

TOUR = REPOSITORY / "docs" / "tour.ipynb"


def code_cells() -> list[str]:
    cells = json.loads(TOUR.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_every_cell_compiles():
    for source in code_cells():
        compile(source, TOUR.name, "exec")


@pytest.mark.slow
def test_every_cell_runs(tmp_path):
    program = tmp_path / "tour.py"
    program.write_text("\n\n".join(code_cells()))
    env = {"MPLBACKEND": "agg", "TMPDIR": str(tmp_path), "PYTHONPATH": os.getcwd()}
    env["XLA_FLAGS"] = ""  # It trains a real network: well compiled is faster.
    code, out, err = finish(start_python(program, env=env))
    assert code == 0, err
    assert "10,334,030 parameters" in out
    assert "6,998,552" in out  # Of Table 1.
    accuracy = float(out.split("% of 360 held-out digits")[0].split()[-1])
    assert accuracy > 50
