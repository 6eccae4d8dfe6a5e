"""Timing of repeated work on devices."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

MIN_CALLS = 3
WINDOWS = 10  # Largest number of windows over which the median is taken.


def call_seconds(call: Callable[[], Any], seconds: float) -> list[float]:
    """Measures consecutive calls, in seconds each, after a first one that may compile.

    A call starts the work and returns arrays that are ready when it is done. While the
    devices work on it, the host already prepares the next one, as in the training loop. The
    measurement takes at least `seconds` and `MIN_CALLS` calls.
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
    """Computes the mean duration in each of up to ten windows, and returns the median.

    The means even out work that comes in bursts, such as reading ahead.
    """
    windows = np.array_split(durations, min(WINDOWS, len(durations)))
    return statistics.median(float(np.mean(window)) for window in windows)
