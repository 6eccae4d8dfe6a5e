"""Keeps freed memory for the next step, on CPUs."""

import ctypes
import sys

import jax

# <malloc.h> of glibc.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = -1  # As a size, the largest.


def keep_freed_memory() -> None:
    """Lets XLA:CPU use the same memory for each step instead of fresh pages.

    XLA asks malloc for all temporaries of a step at once and frees them after it. glibc
    maps and unmaps such sizes, so the kernel clears every page anew: for a batch of 32
    at 224 px, 450,000 page faults and a third of the step. Here they come from the heap,
    which never shrinks; its size is that of the largest step. Steps run in the thread
    that calls them, because glibc gives other threads no heap that large.

    Call it before the first computation. Does nothing without glibc, and on accelerators
    changes nothing that matters.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # Another C library.
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)
    jax.config.update("jax_cpu_enable_async_dispatch", False)
