"""Display of a run's progress on the terminal."""

import concurrent.futures
import contextlib
import datetime
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import tqdm

from googlenet_flax.runtime.distributed import is_first, tell_once
from googlenet_flax.runtime.streams import say

CLOCK_SECONDS = 30  # Time between two lines about work that takes long.


class Progress:
    """A progress bar if stderr is a terminal, and plain lines otherwise.

    The bar counts steps from `start_step` to `total_steps`. Only the first of several
    processes prints anything.
    """

    def __init__(self, *, total_steps: int, start_step: int, batch_size: int):
        self._is_shown = is_first()
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._bar = tqdm.tqdm(
            total=total_steps,
            initial=start_step,
            unit="step",
            disable=None if self._is_shown else True,  # None shows it on a terminal only.
            dynamic_ncols=True,
            file=sys.stderr,
        )
        self.restart_clock(start_step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self) -> None:
        """Advances the bar by one step."""
        self._bar.update()

    def restart_clock(self, step: int) -> None:
        """Excludes the time so far (compilation, an evaluation) from images per second."""
        self._clock_step, self._clock_seconds = step, time.monotonic()

    def images_per_second(self, step: int) -> float | None:
        """Returns the rate since the clock was restarted, or None before the next step."""
        steps = step - self._clock_step
        seconds = time.monotonic() - self._clock_seconds
        return steps * self._batch_size / seconds if steps else None

    def report(self, step: int, *, loss: float, images_per_second: float | None) -> None:
        """Shows loss and rate at a logged step and restarts the clock."""
        parts = [f"loss {loss:.4f}"]
        if images_per_second:
            parts.append(f"{images_per_second:.1f} images/s")
        if not self._bar.disable:
            self._bar.set_postfix_str(" ".join(parts))
        elif self._is_shown:
            if images_per_second:
                seconds = (self._total_steps - step) * self._batch_size / images_per_second
                parts.append(f"ETA {datetime.timedelta(seconds=round(seconds))}")
            say("  ".join([f"step {step}/{self._total_steps}", *parts]), sys.stderr)
        self.restart_clock(step)

    def say(self, line: str) -> None:
        """Prints a permanent line on stdout, above the bar."""
        if self._is_shown:
            with self._bar.external_write_mode(file=sys.stdout):
                say(line, sys.stdout)


@contextlib.contextmanager
def clock(task: str) -> Iterator[None]:
    """Prints a line on stderr after every `CLOCK_SECONDS` that the block takes.

    The line says how long `task` has taken, for example "compiling the step: 30 s". Only
    the first of several processes prints it.
    """
    is_done = threading.Event()

    def tick() -> None:
        start_seconds = time.monotonic()
        while not is_done.wait(CLOCK_SECONDS):
            with tqdm.tqdm.external_write_mode(file=sys.stderr):
                tell_once(f"{task}: {time.monotonic() - start_seconds:.0f} s")

    threading.Thread(target=tick, daemon=True).start()
    try:
        yield
    finally:
        is_done.set()


def call_with_clock(task: str, call: Callable[[], Any]) -> Any:
    """Calls a function that takes minutes, inside a `clock`, and returns its result.

    The call runs in a thread of its own, so Ctrl-C ends the command meanwhile.
    """
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    with clock(task):
        return future.result()
