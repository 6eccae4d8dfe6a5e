from types import SimpleNamespace

import jax
import pytest

from googlenet_flax.performance import limits
from googlenet_flax.performance.limits import find_limits


# Peaks in the vendors' data sheets, dense and without sparsity.
@pytest.mark.parametrize(
    ("kind", "dtype", "flops", "bytes_per_second"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12, 3.35e12),
        ("NVIDIA H100 80GB HBM3", "float32", 495e12, 3.35e12),
        ("TPU v5 lite", "bfloat16", 197e12, 0.819e12),
    ],
)
def test_the_vendors_figures(kind, dtype, flops, bytes_per_second):
    device = SimpleNamespace(device_kind=kind, platform="gpu")
    for count in (1, 4):
        found = find_limits([device] * count, dtype, 0)
        assert found.flops_per_second == count * flops
        assert found.bytes_per_second == count * bytes_per_second
        assert not found.measured


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_others_are_measured(monkeypatch, dtype):
    monkeypatch.setattr(limits, "CPU_MATMUL_SIDE", 64)
    monkeypatch.setattr(limits, "COPY_ELEMENTS", 2**10)
    found = find_limits(jax.local_devices()[:2], dtype, 0)
    assert found.measured
    assert 1e3 < found.flops_per_second < 1e15
    assert 1e3 < found.bytes_per_second < 1e15
