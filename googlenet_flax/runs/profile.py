"""A profiler trace of a few training steps, for TensorBoard, XProf or Perfetto."""

import pathlib
from collections.abc import Sequence
from typing import Any, Self

import jax

from googlenet_flax.runtime.errors import RESUME, UserError, writing
from googlenet_flax.runtime.streams import tell


class StepProfile:
    """Profiler that writes `plugins/profile/TIME/` into a directory.

    It traces the steps from the first to the last of `steps`, counted from 1; with an empty
    sequence it traces none. A trace that cannot be written raises a `UserError`.
    """

    def __init__(self, directory: pathlib.Path, steps: Sequence[int]):
        self._directory = directory
        self._first, self._last = steps or (0, 0)
        self._is_tracing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._stop()
        except UserError as error:
            if kind is None:
                raise
            tell(str(error))  # The run ends for another reason.

    def before(self, step: int, state: Any) -> None:
        """Starts the trace at the first of the steps; to be called before each update.

        It waits for `state`, so that the trace holds no earlier step. A run that resumes in
        the middle of the range traces the rest of it.
        """
        if self._first <= step <= self._last and not self._is_tracing:
            with writing(self._directory):
                self._directory.mkdir(parents=True, exist_ok=True)
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._directory)
            self._is_tracing = True

    def after(self, step: int, state: Any) -> None:
        """Writes the trace after the last step; to be called after each update."""
        if self._is_tracing and step >= self._last:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        """Writes the trace, if there is one."""
        if self._is_tracing:
            self._is_tracing = False
            try:
                jax.profiler.stop_trace()
            except jax.errors.JaxRuntimeError as error:  # The disk is full, for example.
                raise UserError(
                    f"{self._directory} cannot be written ({error}): {RESUME}"
                ) from error
