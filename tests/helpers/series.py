"""A reader of metrics as TensorBoard shows them."""

import collections
import struct

import pytest
from tensorboardX.proto import event_pb2


def tensorboard_events(directory):
    """Yields the events of all files in a directory."""
    # TFRecord framing: uint64 length, its crc32c, the bytes, their crc32c.
    for path in sorted(directory.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]


def tensorboard_series(directory):
    """Returns what TensorBoard shows: `(step, value)` of every tag."""
    series = collections.defaultdict(list)
    for event in tensorboard_events(directory):
        # event_accumulator.py of TensorBoard, _CheckForRestartAndMaybePurge and _Purge.
        if event.HasField("session_log"):
            assert event.session_log.status == event_pb2.SessionLog.START
            for points in series.values():
                points[:] = [point for point in points if point[0] < event.step]
        for value in event.summary.value:
            series[value.tag].append((event.step, value.simple_value))
    return series


def series_of(rows):
    """Returns the same series from rows of `metrics.jsonl`."""
    series = collections.defaultdict(list)
    for row in rows:
        for name in row.keys() - {"step", "epoch", "split", "unix_seconds"}:
            # TensorBoard stores float32.
            value = pytest.approx(row[name], rel=1e-6)
            series[f"{row['split']}/{name}"].append((row["step"], value))
    return series
