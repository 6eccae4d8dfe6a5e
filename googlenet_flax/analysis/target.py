"""Compilation of a run's step for chips that this machine does not have ("targets").

JAX can describe the devices of a target, and the platform's compiler needs nothing but this
description. The compiled program tells how much memory the step takes and what the devices
exchange.
"""

import collections
import contextlib
import dataclasses
import importlib.metadata
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.experimental import topologies

from googlenet_flax.analysis.chips import Chip, find_chip
from googlenet_flax.runtime.errors import UserError, optional_package
from googlenet_flax.runtime.memory import step_bytes
from googlenet_flax.runtime.progress import call_with_clock

# Number of dimensions in the name of a slice, and number of devices in the largest slice: a
# TPU pod (https://cloud.google.com/tpu/docs/system-architecture-tpu-vm) or a GPU host.
SLICES: Mapping[str, tuple[int, int]] = {
    "tpu:v4": (3, 4096),
    "tpu:v5e": (2, 256),
    "tpu:v5p": (3, 8960),
    "tpu:v6e": (2, 256),
    "cuda:h100": (1, 8),
}
# What each platform needs, and the extra of this package that installs it.
PACKAGES = {"tpu": ["libtpu"], "cuda": ["jax-cuda13-plugin", "nvidia-cuda-nvcc"]}
EXTRAS = {"tpu": "tpu", "cuda": "cuda-target"}
# A platform, a chip and sizes; libtpu crashes on a size of 0.
NAME = re.compile("([a-z]+):([a-z0-9]+):([1-9][0-9]{0,3}(?:x[1-9][0-9]{0,3})*)")
# Without a TPU, libtpu would ask a server of Google Cloud for these and print errors.
LIBTPU_ENVIRONMENT: Mapping[str, str] = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
# Share of a GPU's memory that JAX takes (https://docs.jax.dev, "GPU memory allocation").
GPU_MEMORY_SHARE = 0.75
# An H100 in an SXM5 socket, with CUDA 13.0 and cuDNN 9.28, as the text of a
# GpuTargetConfigProto. The facts are public and come from XLA's own description
# (xla/backends/gpu/target_config/specs/h100_sxm.txtpb), which JAX does not ship.
H100 = """
gpu_device_info {
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 l2_cache_size: 52428800
  device_memory_size: 84929347584 memory_bandwidth: 3352320000000
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 28 patch: 1 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
# A collective in the text of a program: `%name = SHAPE all-reduce(%operand, ...)`. An
# asynchronous one has a start and a done; only the done has the shape of the result.
COLLECTIVE = re.compile(rf" = ([^%\"]*) ({COLLECTIVES})(?:-done)?\(")
ARRAY = re.compile(r"(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices of one kind that need not be here."""

    name: str  # Such as "tpu:v5e:4x4".
    devices: list[jax.Device]
    chip: Chip

    def __str__(self) -> str:
        return f"{self.name} ({len(self.devices)} x {self.devices[0].device_kind})"

    @property
    def memory_gib(self) -> float:
        """Memory that a step can use on each device, in GiB."""
        share = GPU_MEMORY_SHARE if self.name.startswith("cuda") else 1
        return share * self.chip.memory_gib


def find_target(name: str) -> Target:
    """Looks up a target, such as `"tpu:v5e:4x4"`, or `"cuda:h100:8"` for 8 GPUs of a host.

    Call it before JAX uses a device. JAX computes on the CPU afterwards.

    Raises:
      UserError: There is no such target, or a package for it is missing.
    """
    platform, kind, shape = _parts(name)
    for package in PACKAGES[platform]:
        with optional_package(package, f"--target={name}", extra=EXTRAS[platform]):
            importlib.metadata.version(package)
    jax.config.update("jax_platforms", "cpu")
    # A program for other devices cannot be loaded from the cache.
    jax.config.update("jax_enable_compilation_cache", False)
    with _explained(name, "choose another slice, or install packages that match JAX"):
        devices = _find_tpus(kind, shape) if platform == "tpu" else _find_gpus(shape)
    limits = find_chip(devices[0].device_kind)
    assert limits is not None
    return Target(name, devices, limits)


def _parts(name: str) -> tuple[str, str, str]:
    """Splits the name of a target into platform, chip and slice, and checks them."""
    match = NAME.fullmatch(name)
    platform, kind, shape = match.groups() if match else ("", "", "")
    sizes = [int(size) for size in shape.split("x") if size]
    dimensions, most = SLICES.get(f"{platform}:{kind}", (0, 0))
    if len(sizes) != dimensions or math.prod(sizes) > most:
        shapes = {1: "N", 2: "XxY", 3: "XxYxZ"}
        known = [f"{chip}:{shapes[n]} up to {most}" for chip, (n, most) in SLICES.items()]
        raise UserError(
            f"--target is {name!r} but must be like tpu:v5e:4x4; the chips and the largest "
            f"numbers of devices are {', '.join(known)}"
        )
    return platform, kind, shape


def _find_tpus(kind: str, shape: str) -> list[jax.Device]:
    for variable, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # JAX joins the two cores of a chip into one device; for v4 it needs this option.
    options = {"chip_config_name": "megacore"} if kind == "v4" else {}
    return topologies.get_topology_desc(f"{kind}:{shape}", "tpu", **options).devices


def _find_gpus(number: str) -> list[jax.Device]:
    """Describes H100s, the only GPUs in `SLICES`."""
    shape = f"1x1x{number}"  # Partitions, hosts and GPUs of each host.
    options = {"topology": shape, "target_config": H100}
    return topologies.get_topology_desc(shape, "cuda", **options).devices


@contextlib.contextmanager
def _explained(name: str, complaint: str) -> Iterator[None]:
    """Turns an error of a compiler into a `UserError` with `complaint` about the target."""
    try:
        yield
    # JAX raises NotImplementedError if a plugin cannot compile for absent chips.
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        cause = " ".join(str(error).split())
        if "lockfile" in cause:
            complaint = "another process uses libtpu: wait until it has ended, or set "
            complaint += "ALLOW_MULTIPLE_LIBTPU_LOAD=1"
        elif "RESOURCE_EXHAUSTED" in cause:
            complaint = _does_not_fit(cause.partition(". ")[0])
        else:
            complaint += f" ({cause[:200]})"
        raise UserError(f"--target={name}: {complaint}") from error


def _does_not_fit(reason: str) -> str:
    return (
        f"the step does not fit into the devices ({reason}): set a smaller "
        "--config.batch_size or a larger --config.accumulation_steps, or use more devices"
    )


def compile_for(target: Target, compile_step: Callable[[], Any]) -> Any:
    """Calls `compile_step`, which compiles the step of a run, and shows how long it takes.

    Raises:
      UserError: The step does not compile, or does not fit into the memory of a device.
    """
    with _explained(target.name, "the step does not compile"):
        compiled = call_with_clock(f"compiling for {target} takes minutes", compile_step)
    needed = step_bytes(compiled.memory_analysis()) / 2**30
    if needed > target.memory_gib:
        reason = _does_not_fit(f"{needed:.3g} GiB of {target.memory_gib:.3g} GiB")
        raise UserError(f"--target={target.name}: {reason}")
    return compiled


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """Counts the collectives of a program, and the bytes of their results, by kind.

    The program is the text `compiled.as_text()`; a kind is such as `"all-reduce"`.
    """
    found = collections.defaultdict(list)
    for shape, kind in COLLECTIVE.findall(program):
        found[kind].append(shape_bytes(shape))
    return {kind: (len(sizes), sum(sizes)) for kind, sizes in found.items()}


def shape_bytes(shape: str) -> int:
    """Returns the bytes of a shape such as `(bf16[8,3]{1,0}, f32[])`, without padding."""
    bits = 0
    for width, sizes in ARRAY.findall(shape):
        bits += int(width or 8) * math.prod(int(size) for size in sizes.split(",") if size)
    return bits // 8
