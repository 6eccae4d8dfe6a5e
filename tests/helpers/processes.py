"""Commands as real processes, and their output."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from helpers.paths import REPOSITORY

TIMEOUT_SECONDS = 600  # Ends a process that hangs; a slow machine takes minutes for some.
# Tests compile much and compute little. XLA's older way to compile fusions takes a third
# of the time; newer versions do not have it.
XLA_FLAGS = (
    "--xla_backend_optimization_level=0 "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def start(command, *args, before="", **options) -> subprocess.Popen:
    """Starts the command as a process, after the Python statements in `before`."""
    program = ["-m", f"googlenet_flax.{command}"]
    if before:
        run = f"import googlenet_flax.{command} as command\ncommand.main()\n"
        program = ["-c", f"{before}\n{run}"]
    return start_python(*program, *args, **options)


def start_python(*args, **options) -> subprocess.Popen:
    """Starts `python ARGS`; see `start_program`."""
    return start_program(sys.executable, *args, **options)


def start_program(*args, env=None, ignored=(), **options) -> subprocess.Popen:
    """Starts a program that handles all signals but `ignored`.

    Further `options` are those of `subprocess.Popen`.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options = {**pipes, "cwd": REPOSITORY, **options}
    env = {**os.environ, "XLA_FLAGS": XLA_FLAGS, **(env or {})}
    # It would inherit the signals that the process of the tests ignores.
    handlers = {n: signal.SIG_IGN if n in ignored else signal.SIG_DFL for n in SIGNALS}
    before = {number: signal.signal(number, handlers[number]) for number in SIGNALS}
    try:
        return subprocess.Popen(list(map(str, args)), text=True, env=env, **options)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(command, *args, **options) -> tuple[int, str, str]:
    """Runs the command; returns its exit code, stdout and stderr."""
    return finish(start(command, *args, **options))


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Waits for a process; returns its exit code, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        process.kill()
    return process.returncode, out, err


def finish_well(process: subprocess.Popen) -> tuple[str, str]:
    """Waits for a process that must end without an error; returns stdout and stderr."""
    code, out, err = finish(process)
    assert code == 0, err
    return out, err


def wait_for_line(process: subprocess.Popen, text: str, stream: str = "stderr") -> str:
    """Reads a stream up to a line that holds `text`; returns all lines."""
    lines = ""
    for line in getattr(process, stream):
        lines += line
        if text in line:
            return lines
    pytest.fail(f"the process ended without {text!r}: {lines}")


def free_address() -> str:
    """Returns an address whose port is free."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def last_line(err: str) -> str:
    """Returns the line that says why a run ended; there must be no traceback."""
    assert "Traceback" not in err, err
    return err.splitlines()[-1]
