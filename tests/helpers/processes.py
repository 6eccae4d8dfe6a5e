"""Commands as real processes, and what they say."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest
from helpers.paths import REPOSITORY

TIMEOUT_SECONDS = 240
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@contextlib.contextmanager
def heard(ignored=()):
    """What starts inside hears all signals but these, also where the tests ignore one."""
    inherited = {
        number: signal.signal(
            number, signal.SIG_IGN if number in ignored else signal.SIG_DFL
        )
        for number in SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in inherited.items():
            signal.signal(number, handler)


def start(command, *args, env=None, **options) -> subprocess.Popen:
    """Starts the command as a process; `options` are those of `subprocess.Popen`."""
    return start_python("-m", f"googlenet_flax.{command}", *args, env=env, **options)


def start_python(*args, env=None, **options) -> subprocess.Popen:
    """Starts `python ARGS` as a process, for a program that calls a command."""
    settings = {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # Much compiled, little run.
        **(env or {}),
    }
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(
        [sys.executable, *map(str, args)],
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **settings},
        **options,
    )


def run(command, *args, env=None, **options) -> tuple[int, str, str]:
    """Runs the command; returns its exit code, stdout and stderr."""
    return finish(start(command, *args, env=env, **options))


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Waits for a process; returns its exit code, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        process.kill()
    return process.returncode, out, err


def wait_for_line(process: subprocess.Popen, text: str) -> None:
    """Reads stderr up to a line that holds `text`."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return
    pytest.fail(f"the process ended without {text!r}: {''.join(lines)}")


def last_line(err: str) -> str:
    """The line that says why a run ended; there must be no traceback."""
    assert "Traceback" not in err, err
    return err.splitlines()[-1]
