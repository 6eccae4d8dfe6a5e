"""Published limits of accelerators, and the rates of images that limits allow."""

import dataclasses
from collections.abc import Mapping

from googlenet_flax.analysis.cost import ImageCost


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of several devices together."""

    flops_per_second: float
    bytes_per_second: float
    measured: bool  # True if measured on this machine, False for the vendor's figures.

    def training_rates(self, cost: ImageCost) -> dict[str, float]:
        """Returns the images per second at which training would reach each limit.

        The limits are named `"operations"` and `"memory traffic"`.
        """
        return {
            "operations": self.flops_per_second / cost.training_flops,
            "memory traffic": self.bytes_per_second / cost.training_bytes,
        }


@dataclasses.dataclass(frozen=True)
class Chip:
    """Limits of one device as its vendor states them, for dense matrices."""

    # FLOP/s of float32 matrix products, in the type that XLA uses for them by default.
    float32_flops: float
    bfloat16_flops: float  # FLOP/s of bfloat16 matrix products.
    memory_bytes_per_second: float  # Bytes that the memory reads or writes.
    memory_gib: float  # Capacity of the memory.

    def limits(self, count: int, dtype: str) -> Limits:
        """Returns the limits of `count` chips, for `"float32"` or `"bfloat16"`."""
        flops = self.bfloat16_flops if dtype == "bfloat16" else self.float32_flops
        return Limits(count * flops, count * self.memory_bytes_per_second, measured=False)


# The keys are prefixes of JAX's `device_kind`; the first that matches counts. XLA
# multiplies float32 as TF32 on GPUs from Ampere on, and as bfloat16 on TPUs. NVIDIA's data
# sheets and https://cloud.google.com/tpu/docs/system-architecture-tpu-vm give all figures;
# their gigabytes of memory are taken as GiB.
CHIPS: Mapping[str, Chip] = {
    "NVIDIA A100-SXM4-40GB": Chip(156e12, 312e12, 1.555e12, 40),
    "NVIDIA A100-SXM4-80GB": Chip(156e12, 312e12, 2.039e12, 80),
    "NVIDIA A100 80GB PCIe": Chip(156e12, 312e12, 1.935e12, 80),
    "NVIDIA H100 80GB HBM3": Chip(495e12, 989e12, 3.35e12, 80),
    "NVIDIA H100 PCIe": Chip(378e12, 756e12, 2.0e12, 80),
    "NVIDIA H200": Chip(495e12, 989e12, 4.8e12, 141),
    "TPU v4": Chip(275e12, 275e12, 1.2e12, 32),
    "TPU v5 lite": Chip(197e12, 197e12, 0.819e12, 16),
    "TPU v5e": Chip(197e12, 197e12, 0.819e12, 16),
    "TPU v5": Chip(459e12, 459e12, 2.765e12, 95),
    "TPU v6": Chip(918e12, 918e12, 1.64e12, 32),
}


def find_chip(device_kind: str) -> Chip | None:
    """Returns the limits of a kind of device, or None if they are not in `CHIPS`."""
    found = (chip for name, chip in CHIPS.items() if device_kind.startswith(name))
    return next(found, None)
