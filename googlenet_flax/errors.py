"""What can end a run, each with the exit code that tells a script why."""

import contextlib
import sys
from collections.abc import Iterator


class RunError(Exception):
    """Ends the command with one line on stderr and `exit_code`."""

    exit_code = 1


class UserError(RunError):
    """The user can mend it: configuration, data, arguments or the working directory."""

    exit_code = 2


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
    """Turns a `RunError` into one line on stderr and the exit code it names."""
    try:
        yield
    except RunError as error:
        print(f"googlenet_flax: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
