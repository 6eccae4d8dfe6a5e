"""Runs a grain data set ahead of its reader, in threads or in processes."""

import contextlib
import multiprocessing
import multiprocessing.process
import multiprocessing.resource_tracker
import os
import signal
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from typing import TypeVar

import grain
from absl import flags

from googlenet_flax.runtime.errors import UserError

Element = TypeVar("Element")

MAX_THREADS = 16  # More of them wait for Python and not for pictures.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
CLOSE_SECONDS = 1  # Then a process that has not ended by itself is killed.


def read_ahead(
    dataset: grain.MapDataset[Element], buffer_size: int, *, workers: int
) -> Generator[Element, None, None]:
    """The elements of a data set in order, computed ahead of time.

    Closing the generator ends the threads or processes. It does not wait for a thread that
    hangs, as on a network file system, and kills a process that does.

    Args:
      dataset: What it maps must not depend on the thread or process.
      buffer_size: Elements under way; with threads at least one for each.
      workers: Processes; 0 uses threads of this one.

    Raises:
      UserError: A worker process died.
    """
    start = _start_processes if workers else _start_threads
    others = set(multiprocessing.active_children())
    with contextlib.closing(start(dataset, buffer_size, workers)) as iterator:
        try:
            for _ in range(len(dataset)):
                # NOTE: Kept in no variable, so that shared memory is freed in time.
                yield _next(iterator)
        finally:
            # Looked up here because grain starts its processes in the background.
            if started := set(multiprocessing.active_children()) - others:
                threading.Thread(target=_kill_late, args=[started], daemon=True).start()


def _kill_late(processes: Iterable[multiprocessing.process.BaseProcess]) -> None:
    """Kills the processes that are not closed in time; grain waits 25 s for each."""
    time.sleep(CLOSE_SECONDS)
    for process in processes:
        process.kill()


def _next(iterator: grain.DatasetIterator[Element]) -> Element:
    try:
        return next(iterator)
    except RuntimeError as error:
        end, _, _ = str(error).partition(".")
        raise UserError(
            f"pictures cannot be decoded ({end}): memory, or shared memory (/dev/shm), may "
            "have run out; set --config.decode_workers=0"
        ) from error


def _start_threads(
    dataset: grain.MapDataset[Element], buffer_size: int, workers: int
) -> grain.DatasetIterator[Element]:
    del workers
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux; macOS has none.
    processors = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    threads = min(processors, MAX_THREADS)
    options = grain.ReadOptions(threads, max(threads, buffer_size))
    return iter(dataset.to_iter_dataset(options))


def _start_processes(
    dataset: grain.MapDataset[Element], buffer_size: int, workers: int
) -> grain.DatasetIterator[Element]:
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads flags of its own here.
    workers = min(workers, len(dataset))
    # Halved, since grain keeps as many in this process as in the worker.
    per_worker = max(1, buffer_size // (2 * workers))
    iterator = iter(
        dataset.to_iter_dataset(grain.ReadOptions(0, 0)).mp_prefetch(
            grain.MultiprocessingOptions(workers, per_worker),
            worker_init_fn=_watch_parent,
        )
    )
    with _blocked_signals():
        iterator.get_state()  # Makes what the next line starts.
        iterator.start_prefetch()
    return iterator


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Threads and processes that are started here never see `STOP_SIGNALS`.

    Ctrl-C reaches every process of the terminal; only the training loop shall answer, and
    it still needs the batches under way.
    """
    # NOTE: First, since Python unblocks the signals when it starts its tracker.
    multiprocessing.resource_tracker.ensure_running()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _watch_parent(worker: int, num_workers: int) -> None:
    """Lets a worker end with the process that started it, even when that is killed."""
    del worker, num_workers
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
