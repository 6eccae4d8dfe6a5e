"""Handling of signals that ask a run to save its state and stop."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from googlenet_flax.runtime.errors import StoppedBySignal

Batch = TypeVar("Batch")
Result = TypeVar("Result")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MAX_WAIT_SECONDS = 3  # Longest wait for the next batch after a signal.


class StopRequested(Exception):
    """Interrupts the work in progress, such as an evaluation, to save the state."""


class StopRequest:
    """Records the signal, if any, that asked the run to stop.

    The processes of a distributed run agree on the step at which they all stop. Until
    `wait_for_loop` is set, the first signal ends the process at once, or interrupts what
    runs in `cleaning_up`: the state is then either on disk or a function of the seed, so
    nothing is lost.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.has_received_signal = False
        self._num_checks = 0
        self.wait_for_loop = False
        self.interrupts = False
        self._is_waiting_for_batch = False
        self._is_overdue = False

    @contextmanager
    def cleaning_up(self) -> Iterator[None]:
        """Lets a signal interrupt the block, which then removes what it has half done.

        In a distributed run the process still ends at once, because others may wait for it.
        The block must not wait for a thread, or treat an interrupt as an error.

        Raises:
          StoppedBySignal: A signal arrived.
        """
        self.interrupts = not jax.distributed.is_initialized()
        try:
            yield
        except KeyboardInterrupt:
            if self.signal_number is None:
                raise
            raise StoppedBySignal(self.signal_number, "before the first step") from None
        finally:
            self.interrupts = False

    def is_due(self) -> bool:
        """Returns True if the run has to stop at this step.

        All processes of a distributed run must call this method equally often.
        """
        if self.signal_number is None and jax.distributed.is_initialized():
            self._num_checks += 1
            if multihost_utils.reached_preemption_sync_point(self._num_checks):
                self.signal_number = signal.SIGTERM
        return self.signal_number is not None

    def interruptible(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches; after a signal, waits only briefly for the next one.

        Threads that read pictures may hang, for example on a network file system, and the
        loop would then never reach its next check. Processes of a distributed run keep
        waiting, because they have to stop at the same step.

        Raises:
          StopRequested: No batch arrived within `MAX_WAIT_SECONDS` after a signal.
        """
        iterator = iter(batches)
        while True:
            self._is_waiting_for_batch = True
            try:
                if self._is_overdue:
                    raise StopRequested
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._is_waiting_for_batch = False
            yield batch

    def call(self, function: Callable[[], Result]) -> Result:
        """Calls a function in a thread; after a signal, waits only briefly for its end.

        Raises:
          StopRequested: The function did not end within `MAX_WAIT_SECONDS` after a signal.
            The process still waits for the function when it exits.
        """
        pool = ThreadPoolExecutor(max_workers=1)
        future = pool.submit(function)
        pool.shutdown(wait=False)
        return next(self.interruptible(future.result() for _ in range(1)))

    def checked(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields as `interruptible` does; raises `StopRequested` when a stop is due."""
        for batch in self.interruptible(batches):
            if self.is_due():
                raise StopRequested
            yield batch

    def break_off_wait(self, *_: object) -> None:
        """Handles the SIGALRM that is set `MAX_WAIT_SECONDS` after the first signal."""
        self._is_overdue = True
        if self._is_waiting_for_batch:
            raise StopRequested


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turns the first stop signal that arrives into a request; a second ends the process.

    Before the first step, the first signal ends the process too. In a notebook or at
    Python's prompt, SIGINT raises a `KeyboardInterrupt` instead of ending the process.

    Signals that are ignored, as under `nohup`, stay ignored. With `jax.distributed`, JAX
    handles SIGTERM as a notice of preemption and passes it on to all processes; the other
    signals are turned into a SIGTERM.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals to the main thread only.
        return

    def ask_to_stop(number: int, _: object) -> None:
        if request.has_received_signal:
            if interrupts_cell(number):
                raise KeyboardInterrupt
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        request.has_received_signal = True
        if interrupts_cell(number) and not request.wait_for_loop:
            raise KeyboardInterrupt
        if request.interrupts:
            request.signal_number = number
            raise KeyboardInterrupt  # No `except Exception` takes it for an error.
        if not request.wait_for_loop:
            name = signal.Signals(number).name
            os.write(
                2, f"googlenet_flax: stopped by {name} before the first step\n".encode()
            )
            os._exit(128 + number)  # sys.exit would wait for the compiling thread.
        if signal.SIGTERM in handled_by_jax:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            request.signal_number = number
            previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, request.break_off_wait)
            signal.setitimer(signal.ITIMER_REAL, MAX_WAIT_SECONDS)

    def interrupts_cell(number: int) -> bool:
        """Returns true for an interrupt in a notebook or at Python's prompt."""
        return number == signal.SIGINT and hasattr(sys, "ps1")

    handled_by_jax = {signal.SIGTERM} if jax.distributed.is_initialized() else set()
    previous = {
        number: signal.signal(number, ask_to_stop)
        for number in STOP_SIGNALS
        if number not in handled_by_jax and signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield request
    finally:
        if signal.SIGALRM in previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)
