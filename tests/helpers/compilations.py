"""Records of what JAX compiles, whether or not the cache holds it."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def recorded_compilations() -> Iterator[list[str]]:
    """Yields a list, to which each compilation inside adds the name of its function."""
    compiled = []

    def listen(event, _, *, fun_name="", **about):
        del about
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


# Statements that make a process print "compiled jit(function)" on stderr.
TELL_COMPILATIONS = """
import jax

def listen(event, _, *, fun_name="", **about):
    if event == "/jax/core/compile/backend_compile_duration":
        print("compiled", fun_name, file=sys.stderr, flush=True)

jax.monitoring.register_event_duration_secs_listener(listen)
"""


def compilations_by_step(err: str) -> dict[int, list[str]]:
    """Reads from a run's stderr which functions were compiled after which step."""
    step, compiled = 0, {}
    for line in err.splitlines():
        if line.startswith("compiled "):
            compiled.setdefault(step, []).append(line.split(maxsplit=1)[1].strip())
        elif line.startswith("step "):
            step = int(line.split()[1].partition("/")[0])
    return compiled
