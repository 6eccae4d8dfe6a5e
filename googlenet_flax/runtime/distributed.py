"""Communication between the processes, on one machine or many, that train one network.

JAX's distributed runtime connects the processes. Each process reads its shard of every
batch, computes on its own devices and holds the whole state; the first process writes the
files. With a single process every function here is trivial.
"""

import contextlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from googlenet_flax.runtime.errors import RunError, UserError
from googlenet_flax.runtime.streams import flush, tell

# How long an ending process waits for the others. Processes that end for the same reason
# arrive at once; processes that still wait for this one must learn that it has ended.
SHUTDOWN_SECONDS = 10
JOIN_SECONDS = 300  # Time within which all processes must have started.
QUIET_SECONDS = 5  # Time before a process reports that it waits for the first one.
PROBE_SECONDS = 1  # Timeout of one attempt to connect, and pause between attempts.
MAX_PORT = 2**16 - 1
# jaxlib raises some errors of collectives as a ValueError. The status code at the start
# identifies them: "UNKNOWN: Gloo AllGather failed: ... Connection closed by peer".
# Orbax puts words of its own before it.
STATUS_CODE = re.compile(
    "(Timeout waiting at barrier .*: )?"
    "(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): "
)
# Words with which the runtime and the collectives of each platform report a lost process.
LOST_PROCESS_WORDS = (
    *("gloo", "nccl", "connection", "socket", "coordination service", "heartbeat"),
    *("barrier", "unavailable", "deadline_exceeded"),
)


@contextlib.contextmanager
def joined(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[None]:
    """Connects this process with the others; call it before JAX uses a device.

    JAX finds omitted arguments itself under Slurm, Open MPI, Kubernetes and on Cloud TPU.
    On leaving the context, an error that the other processes do not raise, such as the loss
    of another process, ends this process at once.

    Args:
      coordinator_address: HOST:PORT at which all processes can reach the first one.
      num_processes: Number of processes of the run.
      process_id: Number of this process, from 0; process 0 writes the files.

    Raises:
      UserError: Arguments are missing that JAX cannot find itself.
      RunError: The first process cannot be reached; it may not have started yet.
    """
    if coordinator_address:
        host, _, port = coordinator_address.rpartition(":")
        if not host or not port.isdecimal() or int(port) > MAX_PORT:
            raise UserError(
                f"--coordinator_address is {coordinator_address!r} but must be HOST:PORT, "
                f"with a port up to {MAX_PORT}"
            )
        if process_id:
            _wait_for_first(host, int(port), process_id)
    try:
        jax.distributed.initialize(
            coordinator_address or None,
            num_processes,
            process_id,
            initialization_timeout=JOIN_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"this process cannot join the others ({_first_sentence(error)}): give each "
            "--coordinator_address=HOST:PORT, --num_processes=N and --process_id=0 to N-1, "
            "or start them with Slurm, Open MPI, Kubernetes or on Cloud TPU; for one "
            "process set --config.distributed=False"
        ) from error
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError, TimeoutError) as error:
        if not reports_a_lost_process(error):
            raise
        _leave(
            RunError(
                f"process {jax.process_index()} has lost another process "
                f"({_first_sentence(error)}): read the messages of the others, and start "
                "all with the same command, which continues from the last checkpoint"
            )
        )
    except RunError as error:
        if error.is_shared:
            raise
        _leave(error)


def reports_a_lost_process(error: BaseException | None) -> bool:
    """Returns True for an error with which JAX reports that another process is gone."""
    is_of_jax = isinstance(error, jax.errors.JaxRuntimeError)
    return (is_of_jax or STATUS_CODE.match(str(error)) is not None) and any(
        word in str(error).lower() for word in LOST_PROCESS_WORDS
    )


def _wait_for_first(host: str, port: int, process_id: int) -> None:
    """Waits until the first process listens; JAX would abort without a clear message."""
    start_seconds, is_reported = time.monotonic(), False
    while True:
        try:
            place = host.strip("[]"), port  # IPv6 addresses have brackets.
            socket.create_connection(place, timeout=PROBE_SECONDS).close()
            return
        except OSError as error:
            waited_seconds = time.monotonic() - start_seconds
            if waited_seconds > JOIN_SECONDS:
                raise RunError(
                    f"process {process_id} cannot reach process 0 at {host}:{port} "
                    f"({error}): start process 0, and pass every process an address at "
                    "which it can be reached, as --coordinator_address=HOST:PORT"
                ) from error
        if waited_seconds > QUIET_SECONDS and not is_reported:
            tell(f"process {process_id} waits for process 0 at {host}:{port}")
            is_reported = True
        time.sleep(PROBE_SECONDS)


def _leave(error: RunError) -> NoReturn:
    """Prints the error and ends this process at once.

    A regular exit would wait for the other processes, which wait for this one.
    """
    tell(str(error))
    flush(sys.stdout)
    os._exit(error.exit_code)


def is_first() -> bool:
    """Returns True if this process is the one that writes the files."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def num_processes() -> int:
    """Returns the number of processes of the run."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def check_devices() -> None:
    """Checks in each process that all have equally many devices, as `exchange` needs.

    Raises:
      UserError: The numbers of devices differ.
    """
    if num_processes() == 1:
        return
    owners = [device.process_index for device in jax.devices()]
    counts = [owners.count(number) for number in range(num_processes())]
    if len(set(counts)) > 1:
        raise UserError(
            f"the processes have {', '.join(map(str, counts))} devices: start processes "
            "that have equally many"
        ).shared()


def all_devices(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Returns the devices of all processes; `devices` are those of this process."""
    return list(devices) if num_processes() == 1 else jax.devices()


def process_rows(batch_size: int) -> slice:
    """Returns the rows of a global batch that this process reads and trains on."""
    count = batch_size // num_processes()
    start = 0 if is_first() else jax.process_index() * count
    return slice(start, start + count)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raises an error of one process in all processes when the context ends.

    No process leaves the context before all have reached its end.

    Raises:
      RunError: The error of this process, or that of the first other process with one.
    """
    raised = None
    try:
        yield
    except RunError as error:
        if num_processes() == 1:
            raise
        raised = error
    for number, report in enumerate(exchange(raised and [raised.exit_code, str(raised)])):
        if report and raised is None:
            raised = RunError(f"process {number}: {report[1]}")
            raised.exit_code = report[0]
    if raised is not None:
        raise raised.shared()


def exchange(value: Any) -> list[Any]:
    """Gathers a JSON value of each process, in their order; every process must call it."""
    if num_processes() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(data.size, np.int32))
    # The padded size is a power of 2, because every new size is compiled.
    padded_size = 1 << int(max(sizes)).bit_length()
    rows = multihost_utils.process_allgather(np.pad(data, (0, padded_size - data.size)))
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def check_same(facts: Mapping[str, Any], complaint: str) -> None:
    """Raises a `UserError` unless all processes pass the same facts, by name.

    The message names those that differ, followed by the `complaint`.
    """
    first, *others = exchange(dict(facts))
    for number, other in enumerate(others, 1):
        pairs = {name: (first.get(name), other.get(name)) for name in {**first, **other}}
        differing = [
            f"{name} is {ours!r} in process 0 and {theirs!r} in {number}"
            for name, (ours, theirs) in pairs.items()
            if ours != theirs
        ]
        if differing:
            raise UserError(f"{'; '.join(differing)}: {complaint}").shared()


def to_global(tree: Any, sharding: NamedSharding) -> Any:
    """Converts the arrays that `pmap` returns to global arrays, as Orbax needs them.

    They have the same values in every process; `sharding` is over all devices.
    """
    if num_processes() == 1:
        return tree
    mesh: Any = sharding.mesh  # Its declared type also allows a mesh without devices.
    return multihost_utils.host_local_array_to_global_array(tree, mesh, sharding.spec)


def tell_once(text: str) -> None:
    """Prints a line on stderr, in the first process only."""
    if is_first():
        tell(text)


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". ")[0][:200]
