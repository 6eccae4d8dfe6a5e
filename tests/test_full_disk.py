"""Disks that are full, and workdirs that cannot be written or have awkward names."""

import ctypes
import json
import os
import pathlib
import shutil

import pytest
from helpers.full_disks import file_size_limit
from helpers.paths import REPOSITORY
from helpers.processes import finish, last_line
from helpers.tiny_run import (
    FINAL_STEP,
    copy_run,
    evaluate_tiny,
    saved_steps,
    start_tiny,
    tiny_flags,
    train_badly,
    train_well,
)

from googlenet_flax import main

# No lock is needed between fork and exec.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork")

# Linux capabilities with which root ignores permissions.
PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
ONLY_EVALUATED = "--config.checkpoint_every_steps=0"  # A checkpoint is larger than a row.


def obey_permissions() -> None:
    """Lets a child process obey permissions also if the tests run as root."""
    libc = ctypes.CDLL(None)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def assert_whole_lines(jsonl_file: pathlib.Path) -> None:
    text = jsonl_file.read_text()
    assert text.endswith("\n")
    for line in text.splitlines():
        json.loads(line)


def assert_cannot_be_written(line: str, path: pathlib.Path) -> None:
    assert f"{path} cannot be written (File too large)" in line
    assert "run the same command" in line


@pytest.mark.faults
@pytest.mark.parametrize(
    ("size", "newest", "failing"),
    [
        (100_000, 0, 2),
        *((size, 6, 8) for size in (5_000, 50_000, 110_000)),
        (100_000, 8, 10),
    ],
)
def test_a_disk_too_full_for_a_checkpoint(finished_run, tmp_path, size, newest, failing):
    workdir = copy_run(finished_run[0], tmp_path / "run", newest=newest)
    rows = workdir / "metrics.jsonl"
    rows.unlink()  # A new file is short enough for the limit.
    with file_size_limit(size):
        line = train_badly(workdir)
    assert_cannot_be_written(line, workdir / "checkpoints" / str(failing))
    assert saved_steps(workdir) == [step for step in (6, 8) if step <= newest]
    assert_whole_lines(rows)
    shutil.copy(finished_run[0] / rows.name, rows)
    out, _ = train_well(workdir, expected=finished_run[0])
    assert (f"resuming after step {newest}" if newest else "from scratch") in out


@pytest.mark.faults
@pytest.mark.parametrize("room", [-50, 100, 400], ids=["start", "row 7", "row 8"])
def test_a_disk_too_full_for_a_row(finished_run, run_to_6, room):
    path = run_to_6 / "metrics.jsonl"
    kept = [line for line in path.read_bytes().splitlines(True) if b'"step": 7' not in line]
    size = sum(map(len, kept[:7])) + room  # Six training rows and an evaluation.
    with file_size_limit(size):
        line = train_badly(run_to_6, ONLY_EVALUATED)
    assert_cannot_be_written(line, path)
    assert_whole_lines(path)
    assert saved_steps(run_to_6) == [6]
    train_well(run_to_6, expected=finished_run[0])


@pytest.mark.faults
def test_a_disk_too_full_for_tensorboard(finished_run, run_to_6):
    rows = run_to_6 / "metrics.jsonl"
    contents = rows.read_bytes()
    rows.unlink()  # Otherwise this file would be the first to exceed the limit.
    with file_size_limit(1500):
        line = train_badly(run_to_6, ONLY_EVALUATED)
    assert_cannot_be_written(line, run_to_6 / "tensorboard")
    assert_whole_lines(rows)
    rows.write_bytes(contents)
    train_well(run_to_6, expected=finished_run[0])


def test_a_disk_too_full_for_the_config(tmp_path, refused, small_inceptions):
    with file_size_limit(500):
        line = refused(main, *tiny_flags(tmp_path))
    assert_cannot_be_written(line, tmp_path / "config.json")
    assert not (tmp_path / "config.json").exists()


@pytest.fixture
def read_only():
    """Makes folders read-only until the end of the test."""
    folders = []

    def make(*paths: pathlib.Path) -> None:
        for path in paths:
            folders.append(path)
            path.chmod(0o555)

    yield make
    for path in folders:
        path.chmod(0o755)


@pytest.mark.faults
@pytest.mark.parametrize("name", [".", "parent/run"])
def test_a_workdir_that_is_read_only(tmp_path, read_only, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    read_only(folder)
    workdir = folder / name
    code, _, err = finish(start_tiny(workdir, preexec_fn=obey_permissions))
    assert code == 2
    (line,) = err.splitlines()
    assert f"workdir '{workdir}' cannot be used (Permission denied)" in line
    assert not list(folder.iterdir())


@pytest.mark.faults
def test_checkpoints_that_cannot_be_written(run_to_6, read_only):
    read_only(run_to_6 / "checkpoints")
    line = train_badly(run_to_6, preexec_fn=obey_permissions)
    assert f"{run_to_6 / 'checkpoints'} cannot be written (" in line
    assert "ermission denied" in line
    assert saved_steps(run_to_6) == [6]


@pytest.mark.faults
def test_a_run_on_a_read_only_disk_is_evaluated(finished_run, tmp_path, read_only):
    workdir = copy_run(finished_run[0], tmp_path / "run")
    read_only(workdir, *[path for path in workdir.rglob("*") if path.is_dir()])
    out = evaluate_tiny(workdir, "--json", preexec_fn=obey_permissions)
    assert json.loads(out)["step"] == FINAL_STEP


@pytest.mark.parametrize("name", ["file", "file/run", "link"])
def test_a_workdir_that_is_a_file(tmp_path, refused, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("unplugged")
    line = refused(main, *tiny_flags(tmp_path / name))
    assert f"workdir '{tmp_path / name}' cannot be used (" in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["tensorboard", "metrics.jsonl"])
def test_something_else_in_the_place_of(tmp_path, run_command, small_inceptions, name):
    path = tmp_path / name
    if name == "metrics.jsonl":
        path.mkdir()
    else:
        path.write_text("mine")
    code, _, err = run_command(main, *tiny_flags(tmp_path))
    assert code == 2, err
    assert str(path) in last_line(err)
    assert path.is_dir() or path.read_text() == "mine"


@pytest.mark.faults
def test_a_relative_link_with_a_strange_name(finished_run, tmp_path):
    """Trains in a relative path with spaces, other alphabets and a link."""
    real = copy_run(finished_run[0], tmp_path / "mein Lauf ä 雪 %s", newest=8)
    link = tmp_path / "der Link 'é'"
    link.symlink_to(real.name)
    relative = pathlib.Path(os.path.relpath(link, REPOSITORY))
    out, _ = train_well(relative)
    assert "resuming after step 8" in out and str(link) in out
    assert saved_steps(real) == saved_steps(finished_run[0])
    assert link.is_symlink()
