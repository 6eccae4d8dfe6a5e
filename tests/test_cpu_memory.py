import ctypes
import platform
import statistics
import subprocess
import sys

import jax
import pytest

from googlenet_flax.cpu_memory import keep_freed_memory

needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back so eagerly"
)

COUNT_FAULTS = """
import resource
from googlenet_flax.cpu_memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
import jax, jax.numpy as jnp

def quarter_of_a_gigabyte(x):
    for _ in range(4):
        x = (jnp.concatenate([x, 2 * x]) @ jnp.ones((64, 64)))[: len(x)]
    return x.sum()

x = jnp.ones((1 << 18, 64))  # 64 MiB
step = jax.jit(quarter_of_a_gigabyte).lower(x).compile()
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> list[int]:
    """Page faults of each of twelve steps."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS.format(keep=keep)],
        check=True,
        capture_output=True,
        text=True,
    )
    return [int(line) for line in done.stdout.split()]


@needs_glibc
def test_a_step_finds_the_memory_of_the_one_before():
    first, *later = faults(keep=True)
    assert first > 10_000
    # The heap settles in some steps: a small block of another thread may split the gap.
    assert statistics.median(later) < first / 20


@needs_glibc
@pytest.mark.slow
def test_without_it_every_step_faults_again():
    first, *later = faults(keep=False)  # Otherwise the module could be deleted.
    assert statistics.median(later) > first / 2


def test_another_c_library_is_left_alone(monkeypatch):
    changed = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    monkeypatch.setattr(jax.config, "update", lambda *args: changed.append(args))
    keep_freed_memory()
    assert not changed
