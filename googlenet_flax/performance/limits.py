"""What the devices could do at most: operations and bytes a second."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from googlenet_flax.performance.timing import call_seconds

CPU_MATMUL_SIDE = 2048
MATMUL_SIDE = 8192
COPY_ELEMENTS = 2**26  # float32: 256 MiB, more than most caches hold.
COPIES = 8  # Per call.


@dataclasses.dataclass(frozen=True)
class Chip:
    """The vendor's figures for one device, dense."""

    float32_flops: float  # Per second, as XLA multiplies float32 there by default.
    bfloat16_flops: float  # Per second.
    memory_bytes: float  # Per second.


# By the beginning of JAX's `device_kind`, the first that fits. From Ampere on, XLA
# multiplies float32 as TF32; a TPU as bfloat16.
CHIPS: Mapping[str, Chip] = {
    "NVIDIA A100-SXM4-40GB": Chip(156e12, 312e12, 1.555e12),
    "NVIDIA A100-SXM4-80GB": Chip(156e12, 312e12, 2.039e12),
    "NVIDIA A100 80GB PCIe": Chip(156e12, 312e12, 1.935e12),
    "NVIDIA H100 80GB HBM3": Chip(495e12, 989e12, 3.35e12),
    "NVIDIA H100 PCIe": Chip(378e12, 756e12, 2.0e12),
    "NVIDIA H200": Chip(495e12, 989e12, 4.8e12),
    "TPU v4": Chip(275e12, 275e12, 1.2e12),
    "TPU v5 lite": Chip(197e12, 197e12, 0.819e12),
    "TPU v5e": Chip(197e12, 197e12, 0.819e12),
    "TPU v5": Chip(459e12, 459e12, 2.765e12),
    "TPU v6": Chip(918e12, 918e12, 1.64e12),
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of all devices together."""

    flops: float  # Per second.
    bytes: float  # Per second.
    measured: bool  # Here, and not the vendor's figures.


def find_limits(devices: Sequence[jax.Device], dtype: str, seconds: float) -> Limits:
    """The vendor's figures where `CHIPS` has them; else what this machine reaches.

    Args:
      devices: All of one kind.
      dtype: `"float32"` or `"bfloat16"`, of the operands.
      seconds: To measure each of the two for.
    """
    kind = devices[0].device_kind
    for name, chip in CHIPS.items():
        if kind.startswith(name):
            flops = chip.bfloat16_flops if dtype == "bfloat16" else chip.float32_flops
            return Limits(
                flops * len(devices), chip.memory_bytes * len(devices), measured=False
            )
    return Limits(
        matmul_flops(devices, dtype, seconds), copy_bytes(devices, seconds), measured=True
    )


def matmul_flops(devices: Sequence[jax.Device], dtype: str, seconds: float) -> float:
    """Operations a second of large matrix products on all devices at once, at best."""
    side = CPU_MATMUL_SIDE if devices[0].platform == "cpu" else MATMUL_SIDE
    scale = np.full(len(devices), 1 / side)
    create = jax.pmap(lambda x: jnp.full((side, side), x, dtype), devices=devices)
    multiply = jax.pmap(jnp.matmul, devices=devices)
    x = create(scale)
    durations = call_seconds(lambda: multiply(x, x), seconds)
    return 2 * side**3 * len(devices) / min(durations)


def copy_bytes(devices: Sequence[jax.Device], seconds: float) -> float:
    """Bytes a second read and written by large copies on all devices at once, at best."""

    def increment(x: jax.Array, copies: int) -> tuple[jax.Array, jax.Array]:
        # A number of copies that XLA does not know, so that it cannot merge them.
        x = jax.lax.fori_loop(0, copies, lambda _, x: x + 1, x)
        return x, x[0]  # The second says when the first is done, though that is donated.

    zeros = np.zeros(len(devices), np.float32)
    x = jax.pmap(lambda x: jnp.full(COPY_ELEMENTS, x), devices=devices)(zeros)
    # In place: otherwise the system's work on fresh pages would be timed.
    step = jax.pmap(increment, in_axes=(0, None), donate_argnums=0, devices=devices)

    def copy() -> jax.Array:
        nonlocal x
        x, done = step(x, COPIES)
        return done

    moved = 2 * COPIES * COPY_ELEMENTS * zeros.itemsize * len(devices)
    return moved / min(call_seconds(copy, seconds))
