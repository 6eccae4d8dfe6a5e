"""Signals that ask a run to stop, answered where nothing is lost."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax

Batch = TypeVar("Batch")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MAX_WAIT_SECONDS = 3  # From a signal until the wait for the next batch is broken off.


class StopRequested(Exception):
    """Ends what is under way, such as an evaluation, so that the state can be saved."""


class StopRequest:
    """Which signal, if any, has asked the run to stop.

    Where processes train together they agree on the step at which all stop. Until
    `wait_for_loop` is set there is no state that is not on disk or a function of the
    seed, and the first signal ends the process, whatever it waits for.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.has_heard = False
        self._num_asked = 0
        self.wait_for_loop = False
        self._is_waiting = False  # For a batch.
        self._is_overdue = False

    def is_due(self) -> bool:
        """Whether to stop here, in all processes: they must ask equally often."""
        if self.signal_number is None and jax.distributed.is_initialized():
            from jax.experimental import multihost_utils  # noqa: PLC0415 - slow

            self._num_asked += 1
            if multihost_utils.reached_preemption_sync_point(self._num_asked):
                self.signal_number = signal.SIGTERM
        return self.signal_number is not None

    def check(self) -> None:
        """Raises `StopRequested` where it is due."""
        if self.is_due():
            raise StopRequested

    def interruptible(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches; after a signal, waits for the next one only briefly.

        The threads that read pictures may hang, for example on a network file system, and
        the loop would then never get to ask whether to stop. Processes that train together
        keep waiting, because they have to stop at the same step.

        Raises:
          StopRequested: `MAX_WAIT_SECONDS` after a signal there is no next batch.
        """
        iterator = iter(batches)
        while True:
            self._is_waiting = True
            try:
                if self._is_overdue:
                    raise StopRequested
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._is_waiting = False
            yield batch

    def checked(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches as `interruptible` does, and calls `check` before each."""
        for batch in self.interruptible(batches):
            self.check()
            yield batch

    def break_off_wait(self, *_: object) -> None:
        """Handles the alarm that rings `MAX_WAIT_SECONDS` after the first signal."""
        self._is_overdue = True
        if self._is_waiting:
            self._is_waiting = False
            raise StopRequested


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turns the first of `STOP_SIGNALS` into a request; a second one ends the process.

    A signal that is ignored, as by `nohup`, stays so. With `jax.distributed`, SIGTERM is a
    notice of preemption, which JAX passes on to all processes, and the others become one.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals to the main thread only.
        return

    def ask_to_stop(number: int, _: object) -> None:
        if request.has_heard:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        request.has_heard = True
        if not request.wait_for_loop:
            name = signal.Signals(number).name
            line = f"googlenet_flax: stopped by {name} before the first step\n"
            os.write(2, line.encode())
            os._exit(128 + number)  # The compiler, in a thread of its own, would go on.
        if signal.SIGTERM in taken:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            request.signal_number = number
            previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, request.break_off_wait)
            signal.setitimer(signal.ITIMER_REAL, MAX_WAIT_SECONDS)

    taken = {signal.SIGTERM} if jax.distributed.is_initialized() else set()
    previous = {
        number: signal.signal(number, ask_to_stop)
        for number in STOP_SIGNALS
        if number not in taken and signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield request
    finally:
        if signal.SIGALRM in previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)
