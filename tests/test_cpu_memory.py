import ctypes
import os
import platform
import re
import statistics
import types

import jax
import pytest
from helpers.processes import finish_well, start_python

from googlenet_flax.runtime import memory
from googlenet_flax.runtime.memory import (
    describe_shortage,
    give_large_steps_back,
    keep_freed_memory,
)

needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back so eagerly"
)

COUNT_FAULTS = """
import resource
from googlenet_flax.runtime import memory
memory.keep_freed_memory()
import jax, jax.numpy as jnp

def use_large_arrays(x):
    for _ in range(4):
        x = jax.lax.optimization_barrier(jnp.concatenate([x, 2 * x]))[: len(x)]
    return x.sum()

x = jnp.ones((1 << 18, 64))  # 64 MiB
step = jax.jit(use_large_arrays).lower(x).compile()
if {is_large}:
    memory.MAX_KEPT_FRACTION = 0
    assert memory.give_large_steps_back(step)
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, is_large: bool) -> list[int]:
    """Counts the page faults of each of twelve steps."""
    program = COUNT_FAULTS.format(is_large=is_large)
    out, _ = finish_well(start_python("-c", program))
    return [int(line) for line in out.split()]


@needs_glibc
@pytest.mark.ci
def test_a_step_finds_the_memory_of_the_one_before():
    first, *later = faults(is_large=False)
    assert first > 10_000
    # The heap needs some steps, because a small block of another thread may split a gap.
    assert statistics.median(later) < first / 20


@needs_glibc
@pytest.mark.slow
def test_a_large_step_faults_again_each_time():
    first, *later = faults(is_large=True)
    assert statistics.median(later) > first / 2


@pytest.mark.parametrize("share", [0.1, 10])
def test_how_large_a_step_must_be_for_that(monkeypatch, share):
    options = []
    monkeypatch.setattr(memory, "_set_option", lambda *args: options.append(args) or 1)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)  # 100 pages of 100 bytes.
    limit = memory.MAX_KEPT_FRACTION * 10_000

    plan = types.SimpleNamespace(temp_size_in_bytes=share * limit)
    compiled = types.SimpleNamespace(memory_analysis=lambda: plan)
    assert bool(give_large_steps_back(compiled)) == bool(options) == (share > 1)


@pytest.mark.parametrize(("count", "words"), [(1, ""), (2, "2.2 GiB of memory and .* 2.0")])
def test_a_step_larger_than_the_memory_is_described(monkeypatch, count, words):
    # Donated arguments are the outputs: 0.25 GiB of them and 0.875 of temporaries.
    sizes = {"argument": 0.25, "output": 0.25, "alias": 0.25, "temp": 0.875}
    fields = {f"{name}_size_in_bytes": size * 2**30 for name, size in sizes.items()}
    plan = types.SimpleNamespace(**fields)
    compiled = types.SimpleNamespace(memory_analysis=lambda: plan)
    monkeypatch.setattr(memory, "machine_memory_bytes", lambda: 2**31)
    said = describe_shortage(compiled, count)
    assert re.search(words, said) and bool(said) == bool(words)


def test_another_c_library_is_left_alone(monkeypatch):
    changed = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    monkeypatch.setattr(jax.config, "update", lambda *args: changed.append(args))
    keep_freed_memory()
    assert not changed


@pytest.mark.parametrize(("limit", "is_lower"), [("4096", True), ("max", False)])
def test_a_container_may_have_less_memory_than_the_machine(
    tmp_path, monkeypatch, limit, is_lower
):
    monkeypatch.setattr(memory, "CONTAINER_LIMIT", tmp_path / "memory.max")
    physical = memory.machine_memory_bytes()  # There is no such file yet.
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    assert memory.machine_memory_bytes() == (4096 if is_lower else physical)
