"""Limits of the devices: operations and bytes per second."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_flax.analysis.chips import Limits, find_chip
from googlenet_flax.performance.timing import call_seconds

CPU_MATMUL_SIDE = 2048
MATMUL_SIDE = 8192
COPY_ELEMENTS = 2**26  # float32: 256 MiB, more than most caches hold.
COPIES = 8  # Number of copies in a call.


def find_limits(devices: Sequence[jax.Device], dtype: str, seconds: float) -> Limits:
    """Looks up the limits of devices of one kind, and measures those of unknown kinds.

    Operations are measured with operands of type `dtype`. Each limit is measured for
    `seconds`.
    """
    if chip := find_chip(devices[0].device_kind):
        return chip.limits(len(devices), dtype)
    flops = matmul_flops_per_second(devices, dtype, seconds)
    return Limits(flops, copy_bytes_per_second(devices, seconds), measured=True)


def matmul_flops_per_second(
    devices: Sequence[jax.Device], dtype: str, seconds: float
) -> float:
    """Measures the highest rate of large matrix products on all devices, in FLOP/s."""
    side = CPU_MATMUL_SIDE if devices[0].platform == "cpu" else MATMUL_SIDE
    scale = np.full(len(devices), 1 / side)
    create = jax.pmap(lambda x: jnp.full((side, side), x, dtype), devices=devices)
    multiply = jax.pmap(jnp.matmul, devices=devices)
    x = create(scale)
    durations = call_seconds(lambda: multiply(x, x), seconds)
    return 2 * side**3 * len(devices) / min(durations)


def copy_bytes_per_second(devices: Sequence[jax.Device], seconds: float) -> float:
    """Measures the highest rate of large copies on all devices, in bytes per second.

    Bytes that are read and bytes that are written both count.
    """

    def increment(x: jax.Array, copies: int) -> tuple[jax.Array, jax.Array]:
        # `copies` is an argument, so that XLA does not know it and cannot merge the copies.
        x = jax.lax.fori_loop(0, copies, lambda _, x: x + 1, x)
        return x, x[0]  # The first is donated again; the second can be waited for.

    zeros = np.zeros(len(devices), np.float32)
    x = jax.pmap(lambda x: jnp.full(COPY_ELEMENTS, x), devices=devices)(zeros)
    # Works in place; otherwise the page faults of new memory would be timed too.
    step = jax.pmap(increment, in_axes=(0, None), donate_argnums=0, devices=devices)

    def copy() -> jax.Array:
        nonlocal x
        x, done = step(x, COPIES)
        return done

    moved = 2 * COPIES * COPY_ELEMENTS * zeros.itemsize * len(devices)
    return moved / min(call_seconds(copy, seconds))
