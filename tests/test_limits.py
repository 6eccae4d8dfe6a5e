from types import SimpleNamespace

import jax
import pytest

from googlenet_flax.performance import limits
from googlenet_flax.performance.limits import Limits, find_limits


# The peaks in NVIDIA's data sheet, dense and without sparsity.
@pytest.mark.parametrize(("dtype", "flops"), [("bfloat16", 989e12), ("float32", 495e12)])
def test_the_vendors_figures(dtype, flops):
    device = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3", platform="gpu")
    for count in (1, 4):
        expected = Limits(count * flops, count * 3.35e12, measured=False)
        assert find_limits([device] * count, dtype, 0) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_others_are_measured(monkeypatch, dtype):
    monkeypatch.setattr(limits, "CPU_MATMUL_SIDE", 64)
    monkeypatch.setattr(limits, "COPY_ELEMENTS", 2**10)
    found = find_limits(jax.local_devices()[:2], dtype, 0)
    assert found.measured
    assert 1e3 < found.flops_per_second < 1e15
    assert 1e3 < found.bytes_per_second < 1e15
