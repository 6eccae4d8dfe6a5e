"""The code of README and some pages of the docs, as a reader runs it."""

import re
import shlex

import jax
import numpy as np
import pytest
from helpers.networks import create_small, numpy_variables
from helpers.paths import REPOSITORY
from helpers.pictures import write_pictures
from helpers.untrained_runs import describe, write_run

from googlenet_flax import features
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir

BLOCKS = re.compile(r"```python\n(.*?)```", re.DOTALL)
PAGE = (REPOSITORY / "docs" / "library.md").read_text()


@pytest.mark.slow
def test_the_network_in_seven_lines(small_inceptions):
    readme, values = (REPOSITORY / "README.md").read_text(), {}
    (program,) = BLOCKS.findall(readme)
    exec(program, values)
    assert {x.shape for x in jax.tree.leaves(values["out"])} == {(1, 10)}


@pytest.mark.slow
def test_a_run_from_python(small_inceptions, tmp_path, monkeypatch):
    page, values = (REPOSITORY / "docs" / "runs.md").read_text(), {}
    program = next(p for p in BLOCKS.findall(page) if "train_and_evaluate" in p)
    monkeypatch.chdir(tmp_path)
    assert program.count("80}") == 1
    exec(program.replace("80}", '80, "max_steps": 1, "batch_size": 4}'), values)
    assert 0 <= values["last"]["accuracy"] <= 1


@pytest.mark.slow
def test_the_page(tmp_path, monkeypatch, small_networks, run_command):
    digits = describe(class_names=tuple("0123456789"), storage_size=16)
    variables = numpy_variables(create_small(digits))
    write_run(tmp_path / "runs/digits", digits, variables, dataset="digits")
    write_pictures(tmp_path, {"photos": 6, "flowers/train/a": 2, "flowers/train/b": 3})
    monkeypatch.chdir(tmp_path)
    # The small network has no block 4e, and a few digits are enough.
    assert "inception_4e" in PAGE and "=train " in PAGE
    page = PAGE.replace("inception_4e", "inception_4d").replace("=train ", "=train[:40] ")
    values, outs = {}, []
    for language, code in re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL):
        if language == "python":
            exec(code, values)
            outs.append(values["out"])
            continue
        for line in code.splitlines():
            if "googlenet_flax.features" in line:
                exit_code, _, err = run_command(features, *shlex.split(line)[3:])
                assert exit_code == 0, err
    num_features, _ = variables["params"]["classifier"]["kernel"].shape
    assert values["found"]["pool"].shape == (4, num_features)
    assert values["nearest"][0] == 0 and len(values["nearest"]) == 5
    assert values["classifier"].coef_.shape == (10, num_features)
    assert values["inputs"].shape == values["images"][:2].shape
    own = Predictor.load(Workdir(tmp_path / "runs/own"), "best", jax.local_devices()[:1])
    jax.tree.map(np.testing.assert_array_equal, own.variables["params"], values["params"])
    linen, evaluated, trained = outs[0], *outs[-2:]
    jax.tree.map(np.testing.assert_array_equal, evaluated, linen)
    assert np.abs(trained.logits - linen.logits).max() > 1e-3
    # The training step has changed the statistics.
    again = values["module"](values["images"], train=False)
    assert np.abs(again.logits - linen.logits).max() > 1e-3
