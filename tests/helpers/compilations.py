"""What JAX compiles."""

import contextlib
from collections.abc import Callable, Iterator

import jax

COMPILATION = "/jax/core/compile/backend_compile_duration"  # Also of what a cache held.


@contextlib.contextmanager
def told_of_compilations(tell: Callable[[str], object]) -> Iterator[None]:
    """Calls `tell` with the name of each function that is compiled inside."""

    def listen(event, _, *, fun_name="", **about):
        del about
        if event == COMPILATION:
            tell(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
