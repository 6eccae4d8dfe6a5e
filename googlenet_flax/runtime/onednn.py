"""Lets XLA:CPU compute convolutions and matrix products with oneDNN."""

import os

import jax

_FLAG = "--xla_cpu_experimental_onednn_custom_call"


def use_onednn_for(dtype: str) -> None:
    """Turns oneDNN on if activations are bfloat16, for which it is the fastest on CPUs.

    Call this function before anything is compiled, because XLA reads its flags only once.
    A value that the user has set in `XLA_FLAGS` is kept. A jaxlib without oneDNN, such as
    0.10, ignores the flag. Programs that use oneDNN are not stored in the compilation
    cache: jaxlib 0.12 fails to write them.

    Args:
      dtype: Type of the network's activations.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if dtype == "bfloat16" and _FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}=true".strip()
        if jax.default_backend() == "cpu":
            jax.config.update("jax_enable_compilation_cache", False)
