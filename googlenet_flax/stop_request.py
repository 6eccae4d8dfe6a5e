"""SIGTERM and SIGINT as a polite request that the training loop answers."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StopRequest:
    """Which signal, if any, has asked the run to stop."""

    signal_number: int | None = None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turns the first SIGTERM or SIGINT into a request; a second one kills as usual."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals to the main thread only.
        return

    def ask_to_stop(signal_number: int, _: object) -> None:
        request.signal_number = signal_number
        for number, handler in previous.items():
            signal.signal(number, handler)

    previous = {
        number: signal.signal(number, ask_to_stop)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
