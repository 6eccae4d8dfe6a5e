"""Keeps freed memory for the next step, on CPUs."""

import ctypes
import os
import sys
from typing import Any

import jax

# A step's block fits only where one has been. Small blocks come to lie there: a step of
# 12.2 GiB has filled 24 GB.
MAX_KEPT_FRACTION = 1 / 8  # Of the machine's memory.
# One for the steps and one for all other threads: each keeps what its threads have freed,
# and those that write checkpoints come and go.
MAX_ARENAS = 2

# <malloc.h> of glibc.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8
_NEVER = -1  # As a size, the largest.
_DEFAULT_MMAP_MAX = 65536


def keep_freed_memory() -> None:
    """Lets XLA:CPU use the same memory for each step instead of fresh pages.

    XLA asks malloc for all temporaries of a step at once and frees them after it. glibc
    maps and unmaps such sizes, so the kernel clears every page anew: for a batch of 32
    at 224 px, 450,000 page faults and a third of the step. Here they come from the heap,
    which never shrinks and holds at least the largest step. Steps run in the thread that
    calls them, because glibc gives other threads no heap that large.

    Call it before the first computation. Does nothing without glibc, and on accelerators
    changes nothing that matters.
    """
    if _set_option(_M_MMAP_MAX, 0):
        _set_option(_M_TRIM_THRESHOLD, _NEVER)
        _set_option(_M_ARENA_MAX, MAX_ARENAS)
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def give_large_steps_back(compiled: Any) -> bool:
    """Undoes it where a step needs so much that the heap could fill the machine.

    Args:
      compiled: The step, as from `jax.jit(...).lower(...).compile()`.

    Returns:
      Whether it was undone.
    """
    plan = compiled.memory_analysis()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if plan is None or plan.temp_size_in_bytes <= MAX_KEPT_FRACTION * memory:
        return False
    return _set_option(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)


def _set_option(number: int, value: int) -> bool:
    """Of glibc's malloc; returns whether there is one."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        ctypes.CDLL(None).mallopt(number, value)
    except AttributeError:  # Another C library.
        return False
    return True
