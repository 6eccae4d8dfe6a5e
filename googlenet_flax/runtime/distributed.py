"""Several processes, on one machine or many, that train one network.

JAX's own runtime connects them. Each process reads its share of every batch, steps on its
own devices and holds the whole state; the first one writes. Where there is one process,
all of this is trivial.
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
from jax.sharding import NamedSharding

from googlenet_flax.runtime.errors import RunError, UserError
from googlenet_flax.runtime.streams import tell

# How long an ending process waits for the others: those that end for the same reason
# come at once, and those that wait for this one must be told.
SHUTDOWN_SECONDS = 10
JOIN_SECONDS = 300  # In which all must have started.
QUIET_SECONDS = 5  # Of them, before somebody is told who is being waited for.
PROBE_SECONDS = 1
MAX_PORT = 2**16 - 1
# jaxlib raises some of what the collectives say as a plain ValueError, told from others by
# its status code: "UNKNOWN: Gloo AllGather failed: ... Connection closed by peer".
STATUS_CODE = re.compile(
    "(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): "
)
# What the runtime and the collectives of each platform say of a process that is gone.
SIGNS_OF_LOSS = (
    "gloo",
    "nccl",
    "connection",
    "socket",
    "coordination service",
    "heartbeat",
    "barrier",
    "unavailable",
    "deadline_exceeded",
)


@contextlib.contextmanager
def joined(
    coordinator_address: str = "", num_processes: int = 0, process_id: int = -1
) -> Iterator[None]:
    """Connects this process with the others, before anything touches a device.

    Arguments that are left out are found out by JAX under Slurm, Open MPI, Kubernetes and
    on Cloud TPU. Errors that only this process has, such as the loss of another one, end
    it here.

    Args:
      coordinator_address: HOST:PORT of the first process, as all can reach it.
      num_processes: Of the run.
      process_id: From 0, which is the one that writes.

    Raises:
      UserError: They do not say, and JAX cannot tell, who the others are; or the first
        one cannot be reached.
    """
    if coordinator_address:
        host, _, port = coordinator_address.rpartition(":")
        if not host or not port.isdecimal() or int(port) > MAX_PORT:
            raise UserError(
                f"--coordinator_address is {coordinator_address!r} but must be HOST:PORT, "
                f"with a port up to {MAX_PORT}"
            )
        if process_id > 0:
            _wait_for_first(host, int(port), process_id)
    try:
        jax.distributed.initialize(
            coordinator_address or None,
            num_processes or None,
            None if process_id < 0 else process_id,
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
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if not _tells_of_loss(error):
            raise
        _leave(
            RunError(
                f"process {jax.process_index()} has lost another one "
                f"({_first_sentence(error)}): look at what the others said, and start all "
                "again with the same command, which goes on from the last checkpoint"
            )
        )
    except RunError as error:
        if error.is_shared:
            raise
        _leave(error)


def _tells_of_loss(error: Exception) -> bool:
    """Whether the runtime or a collective says that another process is gone."""
    text = str(error)
    is_of_runtime = isinstance(error, jax.errors.JaxRuntimeError)
    return (is_of_runtime or STATUS_CODE.match(text) is not None) and any(
        sign in text.lower() for sign in SIGNS_OF_LOSS
    )


def _wait_for_first(host: str, port: int, process_id: int) -> None:
    """Waits until the first process listens; JAX would abort without a word of its own."""
    began, is_told = time.monotonic(), False
    while True:
        try:
            socket.create_connection((host, port), timeout=PROBE_SECONDS).close()
            return
        except OSError as error:
            waited = time.monotonic() - began
            if waited > JOIN_SECONDS:
                raise UserError(
                    f"process {process_id} cannot reach process 0 at {host}:{port} "
                    f"({error}): start it, and give all the address that it has for them "
                    "in --coordinator_address=HOST:PORT"
                ) from error
        if waited > QUIET_SECONDS and not is_told:
            tell(f"process {process_id} waits for process 0 at {host}:{port}")
            is_told = True
        time.sleep(PROBE_SECONDS)


def _leave(error: RunError) -> NoReturn:
    """Ends this process at once; a common end would wait for those that wait for it."""
    tell(str(error))
    sys.stdout.flush()
    os._exit(error.exit_code)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def num_processes() -> int:
    """Of the run."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def all_devices(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Those of all processes, where `devices` are those of this one.

    Raises:
      UserError: The processes have different numbers of devices.
    """
    if num_processes() == 1:
        return list(devices)
    if jax.device_count() != len(devices) * num_processes():
        raise UserError(
            f"process {jax.process_index()} has {len(devices)} of the "
            f"{jax.device_count()} devices of {num_processes()} processes: start processes "
            "that have equally many"
        )
    return jax.devices()


def own_rows(batch_size: int) -> slice:
    """The rows of a global batch that this process reads and steps on."""
    count = batch_size // num_processes()
    start = jax.process_index() * count if num_processes() > 1 else 0
    return slice(start, start + count)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Lets all processes go on, or all end: what stops one of them stops the others.

    Raises:
      RunError: That of this process, or what another one told.
    """
    if num_processes() == 1:
        yield
        return
    own_error = None
    try:
        yield
    except RunError as error:
        own_error = error
    told = "" if own_error is None else json.dumps([own_error.exit_code, str(own_error)])
    reports = _exchange(told)
    for number, report in enumerate(reports):
        if report and own_error is None:
            exit_code, message = json.loads(report)
            own_error = RunError(f"process {number}: {message}")
            own_error.exit_code = exit_code
    if own_error is not None:
        own_error.is_shared = True
        raise own_error


def check_same(facts: Mapping[str, Any], complaint: str) -> None:
    """Refuses to go on where facts, by name, are not those of the first process.

    Raises:
      UserError: With what differs and the `complaint`.
    """
    if num_processes() == 1:
        return
    first, *others = map(json.loads, _exchange(json.dumps(dict(facts))))
    for number, other in enumerate(others, 1):
        differing = [
            f"{name} is {first[name]!r} in process 0 and {other[name]!r} in {number}"
            for name in facts
            if other[name] != first[name]
        ]
        if differing:
            error = UserError(f"{'; '.join(differing)}: {complaint}")
            error.is_shared = True
            raise error


def first_says(flag: bool) -> bool:
    """What the first process says, in all of them."""
    return _exchange("yes" if flag else "")[0] == "yes" if num_processes() > 1 else flag


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if num_processes() > 1:
        _exchange("")


def sum_over_all(sums: Mapping[str, float]) -> dict[str, float]:
    """Adds up what each process has, by name, in float64."""
    if num_processes() == 1:
        return dict(sums)
    parts = [json.loads(report) for report in _exchange(json.dumps(dict(sums)))]
    return {name: sum(part[name] for part in parts) for name in sums}


def to_global(tree: Any, sharding: NamedSharding) -> Any:
    """What `pmap` gives each process as arrays that all of them share, for Orbax.

    Args:
      tree: The same in every process.
      sharding: Over the devices of all.
    """
    if num_processes() == 1:
        return tree
    mesh: Any = sharding.mesh  # Typed as one that might have no devices.
    from jax.experimental import multihost_utils  # noqa: PLC0415 - slow

    return multihost_utils.host_local_array_to_global_array(tree, mesh, sharding.spec)


def to_local(tree: Any, sharding: NamedSharding) -> Any:
    """The inverse of `to_global`: what `pmap` takes."""
    if num_processes() == 1:
        return tree
    mesh: Any = sharding.mesh
    from jax.experimental import multihost_utils  # noqa: PLC0415 - slow

    return multihost_utils.global_array_to_host_local_array(tree, mesh, sharding.spec)


def tell_once(text: str) -> None:
    """One line on stderr, of the first process."""
    if is_first():
        tell(text)


def _exchange(text: str) -> list[str]:
    """What each process has to say, in their order; all wait for each other."""
    from jax.experimental import multihost_utils  # noqa: PLC0415 - slow

    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(data.size, np.int32))
    room = 1 << int(max(sizes)).bit_length()  # Few sizes, since each is compiled.
    rows = multihost_utils.process_allgather(np.pad(data, (0, room - data.size)))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". ")[0][:200]
