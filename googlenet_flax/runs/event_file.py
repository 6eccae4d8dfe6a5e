"""A file of events, from which TensorBoard draws its curves."""

import contextlib
import pathlib
import socket
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX import summary
from tensorboardX.proto import event_pb2 as proto
from tensorboardX.record_writer import RecordWriter

messages: Any = proto  # Protobuf creates its classes at run time.


class EventFile:
    """A new event file in a directory, for one start of a run."""

    def __init__(self, directory: pathlib.Path):
        # NOTE: This thread writes the events. The thread that tensorboardX would start
        # dies without an error if the disk is full, and the run would wait for it.
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._writer = RecordWriter(str(directory / name))

    def begin(self, step: int) -> None:
        """Writes the head of the file; it hides older values from `step` on."""
        self._write(0, file_version="brain.Event:2")
        purge = messages.SessionLog(status=messages.SessionLog.START)
        self._write(step, session_log=purge)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a value for each name, and passes them on to the disk."""
        for name, value in values.items():
            self._write(step, summary=summary.scalar(name, value))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file; an error is ignored, because `write` has flushed all values."""
        with contextlib.suppress(OSError):
            self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        event = messages.Event(wall_time=time.time(), step=step, **content)
        self._writer.write(event.SerializeToString())
