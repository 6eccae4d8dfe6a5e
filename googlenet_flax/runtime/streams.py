"""Printing to standard output and error, which may be closed, full or not UTF-8."""

import contextlib
import inspect
import io
import os
import sys
import warnings
from typing import Any, TextIO


def make_streams_safe() -> None:
    """Lets any text be printed, even if a stream was closed before the process started.

    It also hides the follow-up errors of Orbax's coroutines and tensorstore's threads
    after a checkpoint could not be read or written; the caller receives the first error.
    """
    sys.unraisablehook, sys.excepthook = _report_unraisable, _report_uncaught
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str, stream: TextIO) -> None:
    """Prints a line; if the stream cannot be written, mutes it instead of failing."""
    try:
        print(text, file=stream, flush=True)
    except OSError:
        mute(stream)


def flush(stream: TextIO) -> None:
    """Writes buffered output; if the stream cannot be written, mutes it instead."""
    try:
        stream.flush()
    except OSError:
        mute(stream)


def tell(text: str) -> None:
    """Prints a line on stderr, prefixed with the name of the program."""
    say(f"googlenet_flax: {text}", sys.stderr)


def mute(stream: TextIO) -> None:
    """Redirects a stream to the null device, including its buffered output."""
    with contextlib.suppress(OSError, ValueError):  # It may be closed or no file.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_closed_loop(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


def _report_unraisable(unraisable: Any) -> None:
    is_of_orbax = inspect.iscoroutine(unraisable.object)  # Only Orbax uses coroutines.
    if not is_of_orbax and not _is_closed_loop(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def _report_uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if not _is_closed_loop(error):
        sys.__excepthook__(kind, error, trace)
