"""Standard output and error, which may be closed, full or unable to show a name."""

import contextlib
import inspect
import io
import os
import sys
import warnings
from typing import Any, TextIO


def make_streams_safe() -> None:
    """Lets text of any kind be printed, also where a stream is closed from the start.

    What Orbax's coroutines and tensorstore's threads have to say after a checkpoint could
    not be read or written is left out: the error itself is raised where it was asked for.
    """
    sys.unraisablehook, sys.excepthook = _unraisable, _uncaught
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str, stream: TextIO) -> None:
    """Prints a line; one that nobody can read any more is no reason to stop."""
    try:
        print(text, file=stream, flush=True)
    except OSError:
        mute(stream)


def tell(text: str) -> None:
    """One line on stderr, under the name of the program."""
    say(f"googlenet_flax: {text}", sys.stderr)


def mute(stream: TextIO) -> None:
    """Sends a stream nowhere, with what it still holds."""
    with contextlib.suppress(OSError, ValueError):  # It may be no file, or closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_noise(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


def _unraisable(unraisable: Any) -> None:
    abandoned = inspect.iscoroutine(unraisable.object)  # Only Orbax has coroutines here.
    if not abandoned and not _is_noise(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def _uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if not _is_noise(error):
        sys.__excepthook__(kind, error, trace)


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")
