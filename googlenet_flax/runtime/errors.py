"""Errors that end a command, each with its own exit code for scripts."""

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn, Self

import jax

from googlenet_flax.runtime.streams import flush, make_streams_safe, mute, tell

RESUME = "fix that and run the same command, which continues from the last checkpoint"
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
EXIT_SECONDS = 2  # Time that threads have to finish after a command was interrupted.


class RunError(Exception):
    """Ends the command with one line on stderr and `exit_code`."""

    exit_code = 1
    is_shared = False  # True if all processes of the run raise the error together.

    def __init__(self, message: str):
        super().__init__(" ".join(line.strip() for line in message.splitlines()))

    def shared(self) -> Self:
        """Returns this error, marked as one that all processes of the run raise."""
        self.is_shared = True
        return self


class UserError(RunError):
    """An error in the config, data, arguments or workdir that the user can fix."""

    exit_code = 2


class MissingDataError(UserError):
    """The data set was not found."""


@contextlib.contextmanager
def optional_package(package: str, purpose: str, extra: str = "import") -> Iterator[None]:
    """Turns the `ImportError` of a package that an extra installs into a `UserError`."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{purpose} needs {package}: pip install {package}, or googlenet_flax[{extra}]"
        ) from error


class WorkdirInUseError(RunError):
    """Another process has locked the workdir."""

    exit_code = 3


class NotFiniteError(RunError):
    """A loss, or a leaf of the training state, became NaN or infinite."""

    exit_code = 4
    is_shared = True


class UnexpectedResultError(RunError):
    """A result is not the one that the user expects."""

    exit_code = 5


class StoppedBySignal(RunError):
    """A signal stopped the run; its state is saved, unless no step had begun."""

    is_shared = True

    def __init__(self, number: int, when: str):
        super().__init__(f"stopped by {signal.Signals(number).name} {when}")
        self.exit_code = 128 + number


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], hint: str = RESUME) -> Iterator[None]:
    """Turns an `OSError` while `path` is written into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{os.fspath(path)} cannot be written ({error.strerror or error}): {hint}"
        ) from error


@contextlib.contextmanager
def out_of_memory_hint(hint: str) -> Iterator[None]:
    """Turns an out-of-memory error of a device into a `UserError` with `hint`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"out of device memory: {hint}") from error


@contextlib.contextmanager
def exit_on_run_error() -> Iterator[None]:
    """Turns a `RunError`, a full disk or Ctrl-C into one line on stderr and an exit code.

    An interrupted command ends within seconds, even if one of its threads hangs.
    """
    make_streams_safe()
    try:
        yield
        sys.stdout.flush()
    except RunError as error:
        tell(str(error))
        if isinstance(error, StoppedBySignal):
            _exit_in_time(error.exit_code)
        flush(sys.stdout)  # An error at the end of Python would replace the exit code.
        sys.exit(error.exit_code)
    except BrokenPipeError:  # The reader has closed the pipe, as `head` does.
        mute(sys.stdout)
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        mute(sys.stdout)
        tell(f"the output cannot be written ({error.strerror}): make room for it")
        sys.exit(UserError.exit_code)
    except KeyboardInterrupt:
        tell("interrupted")
        _exit_in_time(128 + signal.SIGINT)


def _exit_in_time(code: int) -> NoReturn:
    """Exits, and waits at most `EXIT_SECONDS` for other threads.

    `sys.exit` waits without a limit, and a thread that reads from a network file system
    may hang forever. The processes of a distributed run are exempt: they wait for each
    other on exit, with a longer limit of their own.
    """
    if not jax.distributed.is_initialized():
        flush(sys.stdout)
        timer = threading.Timer(EXIT_SECONDS, os._exit, [code])
        timer.daemon = True
        timer.start()
    sys.exit(code)
