"""What a run or a report is made with: versions, system and devices."""

import importlib.metadata
import platform
from collections.abc import Sequence

import jax

from googlenet_flax.version import __version__

# Those whose arithmetic or formats a result depends on.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe_environment(devices: Sequence[jax.Device] | None = None) -> dict[str, str]:
    """By name, in words; the devices only where they are given, as asking wakes them."""
    found = {"googlenet_flax": __version__, "Python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in PACKAGES}
    found["system"] = f"{platform.system()} on {platform.machine()}"
    if devices:
        found["devices"] = f"{len(devices)} x {devices[0].device_kind}"
    return found
