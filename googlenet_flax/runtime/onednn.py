"""Lets XLA:CPU compute convolutions and matrix products with oneDNN."""

import os

import jax
import jaxlib.version

from googlenet_flax.runtime.environment import local_devices

_FLAG = "--xla_cpu_experimental_onednn_custom_call"


def use_onednn_for(dtype: str) -> None:
    """Turns oneDNN on for activations in bfloat16, for which it is the fastest on CPUs.

    Call this function before JAX creates its devices, because XLA reads its flags then. A
    value that the user has set in `XLA_FLAGS` is kept. For a jaxlib without oneDNN, nothing
    is changed. Where oneDNN is on, compiled programs are not cached, because jaxlib 0.12
    fails to write those that use oneDNN.
    """
    if jaxlib.version.__version_info__ < (0, 12):
        return
    flags = os.environ.get("XLA_FLAGS", "")
    if dtype == "bfloat16" and _FLAG not in flags:
        flags = os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}=true".strip()
    is_on = _FLAG in flags and f"{_FLAG}=false" not in flags
    if is_on and local_devices()[0].platform == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)
