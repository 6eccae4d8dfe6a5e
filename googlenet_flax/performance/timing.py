"""How long repeated work on devices takes."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

MIN_CALLS = 3
WINDOWS = 10


def call_seconds(call: Callable[[], Any], seconds: float) -> list[float]:
    """Durations of calls, back to back for so many seconds and at least three times.

    A first call, which may compile, is left out. One call is always under way while the
    next is prepared, as in the training loop: so the host's work hides behind the devices'.

    Args:
      call: Starts the work and returns arrays that are ready when it is done.
      seconds: To go on for; what is under way then is still finished.
    """
    jax.block_until_ready(call())
    pending = call()
    durations: list[float] = []
    started = ended = time.perf_counter()
    while len(durations) < MIN_CALLS or ended - started < seconds:
        following = call()
        jax.block_until_ready(pending)
        now = time.perf_counter()
        durations.append(now - ended)
        pending, ended = following, now
    jax.block_until_ready(pending)
    return durations


def median_seconds(durations: list[float]) -> float:
    """The typical duration: the median over ten windows of consecutive calls.

    Within a window it is the mean, for work that comes in bursts, as from a read-ahead.
    """
    windows = np.array_split(durations, min(WINDOWS, len(durations)))
    return statistics.median(float(np.mean(window)) for window in windows)
