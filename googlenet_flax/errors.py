"""What can end a run, each with the exit code that tells a script why."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator


class RunError(Exception):
    """Ends the command with one line on stderr and `exit_code`."""

    exit_code = 1

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class UserError(RunError):
    """The user can mend it: configuration, data, arguments or the working directory."""

    exit_code = 2


def missing_package(package: str, purpose: str) -> UserError:
    """The error for a package that only some users need."""
    return UserError(
        f"{purpose} needs {package}: pip install {package}, or googlenet_flax[import]"
    )


class WorkdirInUseError(RunError):
    """Another process is training in the working directory."""

    exit_code = 3


class NotFiniteError(RunError):
    """A loss became NaN or infinite."""

    exit_code = 4


class StoppedBySignal(RunError):
    """The run was asked to stop and has saved its state."""

    def __init__(self, message: str, *, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


@contextlib.contextmanager
def exit_on_run_error() -> Iterator[None]:
    """Turns a `RunError`, or Ctrl-C, into one line on stderr and an exit code."""
    try:
        yield
        sys.stdout.flush()
    except RunError as error:
        print(f"googlenet_flax: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        print("googlenet_flax: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
