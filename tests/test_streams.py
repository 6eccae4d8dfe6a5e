"""Closed pipes, terminals that cannot show all characters, and too little memory."""

import contextlib
import functools
import io
import os
import pathlib
import pty
import resource
import signal
import sys
import termios
import threading

import pytest
from helpers.processes import finish, last_line, start_python
from helpers.tiny_run import (
    FINAL_STEP,
    assert_same_run,
    copy_run,
    start_tiny,
    train_badly,
    train_well,
)

from googlenet_flax.runtime.errors import exit_on_run_error

# No lock is needed between fork and exec.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork")


@pytest.fixture
def half_run(finished_run, tmp_path):
    """Copies a run that has two more steps to go."""
    return copy_run(finished_run[0], tmp_path / "run", newest=8)


def close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.faults
@pytest.mark.parametrize("descriptors", [(1,), (2,), (1, 2), (0, 1, 2)], ids=str)
def test_streams_that_are_closed_from_the_start(half_run, finished_run, descriptors):
    child = functools.partial(close, *descriptors)
    out, err = train_well(half_run, expected=finished_run[0], preexec_fn=child)
    if 1 not in descriptors:
        assert "Done" in out
    if 2 not in descriptors:
        assert f"step {FINAL_STEP}/{FINAL_STEP}" in last_line(err)


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def unread_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.faults
@pytest.mark.parametrize("streams", [("stdout",), ("stderr",), ("stdout", "stderr")])
@pytest.mark.parametrize("sink", [full_disk, unread_pipe])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_streams_that_take_nothing(half_run, finished_run, streams, sink):
    descriptor = sink()
    options = dict.fromkeys(streams, descriptor)
    _, err = train_well(half_run, expected=finished_run[0], **options)
    os.close(descriptor)
    assert "Traceback" not in (err or "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
@pytest.mark.parametrize(
    ("sink", "unbuffered", "code", "words"),
    [
        (full_disk, False, 2, "the output cannot be written (No space left on"),
        (full_disk, True, 2, "the output cannot be written (No space left on"),
        (unread_pipe, False, 128 + signal.SIGPIPE, ""),
    ],
)
def test_an_output_that_cannot_be_written(
    capsys, monkeypatch, sink, unbuffered, code, words
):
    """Fills the disk or closes the pipe, also while the line is in Python's buffer."""
    raw = io.FileIO(sink(), "w")
    buffer = raw if unbuffered else io.BufferedWriter(raw)
    stream = io.TextIOWrapper(buffer, write_through=unbuffered)
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as end, exit_on_run_error():
        print(1)
    stream.close()  # As at the end of Python, where an error would replace the code.
    err = capsys.readouterr().err
    assert end.value.code == code and words in err and len(err.splitlines()) == bool(words)


FAILING = """
from googlenet_flax.runtime.errors import UnexpectedResultError, exit_on_run_error
with exit_on_run_error():
    print(1)
    raise UnexpectedResultError("accuracy 0.5")
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_an_error_keeps_its_code_if_the_output_cannot_be_written():
    descriptor = full_disk()
    env = {"PYTHONUNBUFFERED": ""}  # The line stays in the buffer until the end.
    process = start_python("-c", FAILING, stdout=descriptor, env=env)
    os.close(descriptor)
    code, _, err = finish(process)
    assert (code, err) == (5, "googlenet_flax: accuracy 0.5\n")


@pytest.mark.faults
def test_an_error_that_nobody_reads_has_its_exit_code(tmp_path):
    child = functools.partial(close, 1, 2)
    process = start_tiny(tmp_path, "--config.image_size=31", preexec_fn=child)
    assert finish(process)[0] == 2


def train_on_a_terminal(workdir: pathlib.Path, env) -> tuple[int, str]:
    """Trains on a terminal; returns the exit code and the output."""
    terminal, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 80))  # Without a size, a terminal shows no bar.
    shown = []

    def read() -> None:
        with contextlib.suppress(OSError):  # Linux reports a closed terminal in this way.
            while data := os.read(terminal, 4096):
                shown.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    streams = {"stdin": side, "stdout": side, "stderr": side}
    process = start_tiny(workdir, env=env, start_new_session=True, **streams)
    os.close(side)
    code, _, _ = finish(process)
    reader.join()
    os.close(terminal)
    return code, b"".join(shown).decode(errors="replace")


@pytest.mark.faults
@pytest.mark.parametrize("term", ["xterm-256color", "dumb", ""])
def test_on_a_terminal(half_run, finished_run, term):
    code, shown = train_on_a_terminal(half_run, {"TERM": term})
    assert code == 0, shown
    assert f"{FINAL_STEP}/{FINAL_STEP}" in shown and "step/s" in shown
    assert "Traceback" not in shown
    # Messages have lines of their own.
    lines = shown.replace("\r", "\n").splitlines()
    said = [line for line in lines if "Done. Results" in line]
    assert any(line.rstrip().endswith("best step 10") for line in said), shown
    assert_same_run(half_run, finished_run[0])


POOR = [{"PYTHONIOENCODING": name} for name in ("ascii", "ascii:strict", "latin-1")]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(POOR[0], marks=pytest.mark.ci),
        *(pytest.param(poor, marks=pytest.mark.faults) for poor in POOR[1:]),
    ],
    ids=str,
)
def test_a_name_that_the_locale_cannot_show(finished_run, tmp_path, settings):
    workdir = copy_run(finished_run[0], tmp_path / "雪 run")
    out, err = train_well(workdir, env=settings)
    assert "finished before" in out
    assert "\\u96ea run; best step 10" in out
    assert not err
    (tmp_path / "雪").touch()
    code, _, err = finish(start_tiny(tmp_path / "雪", env=settings))
    (line,) = err.splitlines()
    assert code == 2 and "cannot be used" in line


@pytest.mark.faults
def test_a_name_that_the_locale_cannot_even_tell(tmp_path):
    env = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    assert "PYTHONUTF8=1" in train_badly(tmp_path / "雪", env=env)
    assert not list(tmp_path.iterdir())


def limit_memory() -> None:
    """Limits a child process, because some systems promise more memory than there is."""
    size = 64 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


@pytest.mark.faults
@pytest.mark.parametrize(
    ("image_size", "parts"),
    [
        (30_000, ["out of device memory", "batch_size (now 8)", "image_size (now 30000)"]),
        (100_000, ["image_size"]),  # An index cannot address so many pixels.
    ],
)
def test_a_device_without_enough_memory(tmp_path, image_size, parts):
    flag = f"--config.image_size={image_size}"
    line = train_badly(tmp_path / "run", flag, preexec_fn=limit_memory)
    assert all(part in line for part in parts), line
