"""Shared fixtures, and an environment with four CPU devices to test collectives on."""

import os

from helpers.processes import XLA_FLAGS

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{XLA_FLAGS} --xla_force_host_platform_device_count=4"

import fcntl
import functools
import gc
import json
import pathlib
import sys

import grain  # noqa: F401 Defines flags, which must exist before `flagsaver` saves them.
import jax
import pytest
from absl.testing import flagsaver
from helpers.compilations import TELL_COMPILATIONS
from helpers.networks import SMALL_INCEPTIONS, create_small
from helpers.tiny_run import copy_run, train_well

from googlenet_flax.model import googlenet
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.training.description import ModelDescription


def pytest_collection_finish():
    """Excludes imported modules, which live to the end, from garbage collection."""
    gc.freeze()
    gc.set_threshold(100_000)


def pytest_collection_modifyitems(items):
    """Starts with a long file: at the end it would keep one of two workers waiting."""
    items.sort(key=lambda item: item.path.name != "test_warm_start.py")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> pathlib.Path:
    """Returns a folder that all workers of a test run share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(shared_folder):
    """Lets processes compile each program once per test run."""
    # Only other processes see these variables; JAX has read its own.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(shared_folder / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    # A command in this process would turn on the user's cache for all later tests.
    jax.config.update("jax_compilation_cache_dir", "")


@pytest.fixture(autouse=True)
def forget_large_programs(request):
    """Frees the programs of slow tests, before Linux refuses further memory mappings.

    The program of a whole network takes some 3,000 of the 65,530 mappings that a process
    may have. When none are left, XLA's compiler crashes.
    """
    yield
    if "slow" in request.keywords:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def small_inceptions(monkeypatch):
    """Replaces the nine blocks of every network by three narrow ones, to compile fast."""
    monkeypatch.setattr(googlenet, "INCEPTIONS", SMALL_INCEPTIONS)


@pytest.fixture(scope="module")
def shapes_are_computed_once():
    """Caches the shapes of descriptions, each of which takes a fifth of a second."""
    with pytest.MonkeyPatch.context() as patch:
        variables_like = functools.cache(ModelDescription.variables_like)
        patch.setattr(ModelDescription, "variables_like", variables_like)
        yield


@pytest.fixture(scope="module")
def small_networks(shapes_are_computed_once):
    """Makes every description create a network of three blocks, in a whole module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelDescription, "create_model", create_small)
        yield


@pytest.fixture(scope="session")
def finished_run(shared_folder):
    """Returns workdir, stdout and stderr of a finished tiny run; do not change it."""
    workdir, result = shared_folder / "finished", shared_folder / "finished.json"
    with (shared_folder / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # The first worker trains it for all of them.
        if not result.exists():
            outputs = train_well(workdir, before=TELL_COMPILATIONS)
            result.write_text(json.dumps(outputs))
    return workdir, *json.loads(result.read_text())


@pytest.fixture
def run_to_6(finished_run, tmp_path):
    """Copies the finished run as it was after step 6, and returns the workdir."""
    return copy_run(finished_run[0], tmp_path / "run", newest=6)


@pytest.fixture
def refused(run_command):
    """Runs a command that must be refused; returns its one line of error."""

    def refused(command, *args) -> str:
        code, out, err = run_command(command, *args)
        assert (code, out) == (2, ""), err
        (line,) = err.splitlines()
        return line

    return refused


@pytest.fixture
def run_command(monkeypatch, capfd):
    """Runs a command's `main` in this process; returns exit code, stdout and stderr."""

    def run_command(command, *args):
        monkeypatch.setattr(sys, "argv", [command.__name__, *map(str, args)])
        capfd.readouterr()
        code = 0
        try:
            with flagsaver.flagsaver():
                command.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capfd.readouterr()

    return run_command


@pytest.fixture
def run_with(run_command, monkeypatch):
    """Runs a command on a run whose network is loaded already; returns its output."""

    def run_with(predictor, workdir, command, *args):
        def load(asked, checkpoint, devices):
            assert (asked.path, checkpoint) == (workdir, "best")
            assert list(devices) == list(predictor.devices)
            return predictor

        monkeypatch.setattr(Predictor, "load", load)
        return run_command(command, f"--workdir={workdir}", *args)

    return run_with
