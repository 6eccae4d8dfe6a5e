"""Versions, system and devices, as runs and reports record them."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import jax

from googlenet_flax.runtime.errors import UserError
from googlenet_flax.version import __version__

# Packages whose arithmetic or file formats affect a result.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe_environment(devices: Sequence[jax.Device] | None = None) -> dict[str, str]:
    """Returns versions, system and devices by name.

    Devices are included only if they are passed, because querying them initializes JAX.
    """
    found = {"googlenet_flax": __version__, "Python": platform.python_version()}
    found |= {name: importlib.metadata.version(name) for name in PACKAGES}
    found["system"] = f"{platform.system()} on {platform.machine()}"
    if devices:
        found["devices"] = f"{len(devices)} x {devices[0].device_kind}"
    return found


def on_the_cpu() -> AbstractContextManager:
    """Creates a context in which JAX computes on the CPU, if `JAX_PLATFORMS` allows it."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return nullcontext()


def local_devices() -> list[jax.Device]:
    """Returns the devices of this process.

    Raises:
      UserError: JAX finds none, or cannot use them.
    """
    try:
        return jax.local_devices()
    except (RuntimeError, AssertionError) as error:
        # JAX says nothing if a plugin finds no device of the platform that was chosen.
        chosen = os.environ.get("JAX_PLATFORMS", "")
        reason = str(error) or f"there is none for JAX_PLATFORMS={chosen}; unset it"
        raise UserError(f"JAX cannot use its devices: {reason}") from error
