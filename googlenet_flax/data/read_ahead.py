"""Prefetching of a grain data set in threads or processes."""

import contextlib
import gc
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import threading
from collections.abc import Generator
from typing import TypeVar

import grain
from absl import flags

from googlenet_flax.runtime.errors import UserError
from googlenet_flax.runtime.signals import STOP_SIGNALS

Element = TypeVar("Element")

MAX_THREADS = 16  # More threads would only wait for the GIL.
CLOSE_SECONDS = 4  # Time that a worker process has to end before it is killed.


def read_ahead(
    dataset: grain.MapDataset[Element], buffer_size: int, *, workers: int
) -> Generator[Element, None, None]:
    """Yields the elements of a data set in order, computed ahead of time.

    Closing the generator ends the threads or processes. It does not wait for a thread that
    hangs, for example on a network file system, and kills a process that hangs.

    Args:
      dataset: Data set whose elements do not depend on the thread or process.
      buffer_size: Number of elements computed ahead; with threads at least one per thread.
      workers: Number of processes; 0 uses threads of this process.

    Raises:
      UserError: A worker process died.
    """
    others = set(multiprocessing.active_children())
    start = _start_processes if workers else _start_threads
    with contextlib.ExitStack() as stack:
        if workers:  # Exceptions that grain leaves behind hold blocks of shared memory.
            stack.callback(gc.collect)
        elements = contextlib.closing(start(dataset, buffer_size, workers))
        iterator = stack.enter_context(elements)
        try:
            for _ in range(len(dataset)):
                # NOTE: No variable holds the element, so that shared memory is freed early.
                yield next(iterator)
        except RuntimeError as error:
            end, _, _ = str(error).partition(".")
            raise UserError(
                f"pictures cannot be decoded ({end}): memory, or shared memory (/dev/shm), "
                "may have run out, or your script lacks `if __name__ == '__main__':`; "
                "set --config.decode_workers=0"
            ) from error
        finally:
            # Looked up at the end, because grain starts processes in the background.
            for process in set(multiprocessing.active_children()) - others:
                # grain itself would wait 25 s for each.
                timer = threading.Timer(CLOSE_SECONDS, process.kill)
                timer.daemon = True
                timer.start()


def _start_threads(
    dataset: grain.MapDataset[Element], buffer_size: int, _: int
) -> grain.DatasetIterator[Element]:
    has_affinity = hasattr(os, "sched_getaffinity")  # macOS lacks it.
    processors = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    threads = min(processors, MAX_THREADS)
    options = grain.ReadOptions(threads, max(threads, buffer_size))
    return iter(dataset.to_iter_dataset(options))


def _start_processes(
    dataset: grain.MapDataset[Element], buffer_size: int, workers: int
) -> grain.DatasetIterator[Element]:
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads absl flags.
    workers = min(workers, len(dataset))
    # Halved, because grain buffers as many elements again in this process.
    per_worker = max(1, buffer_size // (2 * workers))
    options = grain.MultiprocessingOptions(workers, per_worker)
    one_by_one = dataset.to_iter_dataset(grain.ReadOptions(0, 0))
    iterator = iter(one_by_one.mp_prefetch(options, worker_init_fn=_watch_parent))
    # Ctrl-C and the end of a terminal send a signal to every process in it. Only the
    # training loop handles it, and the loop still needs the batches that are being decoded.
    # The threads and processes started here inherit the blocked signals.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        # NOTE: If this call starts Python's resource tracker, it also unblocks SIGINT and
        # SIGTERM in this thread. So they are blocked once more.
        multiprocessing.resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        iterator.get_state()  # Creates the iterator that start_prefetch needs.
        iterator.start_prefetch()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    return iterator


def _watch_parent(worker: int, num_workers: int) -> None:
    """Ends a worker when its parent process ends, even if the parent is killed."""
    del worker, num_workers
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
