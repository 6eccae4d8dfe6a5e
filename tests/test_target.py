"""Plans for other chips; the quick tests do not need the compilers of these chips."""

import importlib.metadata
import importlib.util
import re
from types import SimpleNamespace
from unittest import mock

import jax
import pytest
from helpers.paths import DIGITS
from helpers.processes import run
from jax.errors import JaxRuntimeError

from googlenet_flax import main
from googlenet_flax.analysis import target
from googlenet_flax.analysis.cost import ImageCost
from googlenet_flax.analysis.target import SLICES, collectives, compile_for, find_target
from googlenet_flax.model.convolution import FASTEST
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.training.description import ModelDescription
from googlenet_flax.training.experiment import Experiment

# Lines of steps that were compiled for four H100s and four TPUs v5e.
CUDA_PROGRAM = """
ENTRY %main.1_spmd (param.1: f32[2,6]) -> f32[2,6] {
  %psum.1 = f32[2,6]{1,0} all-reduce(%fusion.63), channel_id=1, to_apply=%region_4.5
  %all-reduce-start.1 = ((f32[2,6]{1,0}), f32[2,6]{1,0}) all-reduce-start(%fusion.62)
  %fusion.7 = f32[8]{0} fusion(%all-reduce-start.1), kind=kLoop, calls=%computation.7
  %all-reduce-done.1 = f32[2,6]{1,0} all-reduce-done(%all-reduce-start.1)
  %all-gather-start = (f32[24]{0}, f32[96]{0}) all-gather-start(%fusion.8)
  %all-gather-done = f32[96]{0} all-gather-done(%all-gather-start), dimensions={0}
}
"""
TPU_PROGRAM = """
%computation.3 (param_0.1: bf16[8,3]) -> (bf16[8,3], f32[]) {
  ROOT %a = (bf16[8,3]{1,0:T(8,128)(2,1)S(1)}, f32[]{:T(128)}) all-reduce(%param_0.1, %p)
}
ENTRY %main.2_spmd (param.1: f32[2,64]) -> f32[2,64] {
  %b = f32[2,64]{1,0:T(2,128)S(1)} all-reduce(%f), metadata={op_name="jit(_fun)/psum"}
  %c = (f32[4]{0}, s32[], u8[4], pred[2], s8[1], /*index=5*/f32[8]{0}) all-reduce(%q, %r)
  %d = f32[4]{0:T(128)} get-tuple-element(%c), index=0, metadata={op_name=" all-reduce("}
  %collective-permute.1 = f32[2]{0} collective-permute(%x), source_target_pairs={{0,1}}
}
"""
GIB = 2**30
TPUS, GPUS = "tpu:v5e:2x2", "cuda:h100:4"


def compiled(gib):
    """Fabricates a compiled step that needs some memory."""
    sizes = SimpleNamespace(
        argument_size_in_bytes=GIB,
        output_size_in_bytes=GIB,
        alias_size_in_bytes=GIB,
        temp_size_in_bytes=(gib - 1) * GIB,
    )
    return SimpleNamespace(as_text=lambda: TPU_PROGRAM, memory_analysis=lambda: sizes)


@pytest.fixture
def elsewhere(monkeypatch, small_inceptions):
    """Fabricates four devices of each chip; returns a mock that compiles the step."""
    table_1 = "googlenet_flax.analysis.plan.format_table_1"
    monkeypatch.setattr(table_1, lambda *_: "")  # Leaves Table 1 out of the plan.
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.0")
    kinds = {"tpu": "TPU v5 lite", "gpu": "NVIDIA H100 80GB HBM3"}
    for platform, kind in kinds.items():
        devices = [SimpleNamespace(platform=platform, device_kind=kind)] * 4
        monkeypatch.setattr(target, f"_find_{platform}s", lambda *_, found=devices: found)

    compile_step = mock.Mock(return_value=compiled(2.5))
    monkeypatch.setattr(Experiment, "compile_train_step", compile_step)
    cache = jax.config.jax_enable_compilation_cache
    yield compile_step
    jax.config.update("jax_enable_compilation_cache", cache)


def plan_for(name):
    tiny = [f"--config={DIGITS}", "--config.width_multiplier=0.1"]
    return [*tiny, "--dry_run", f"--target={name}"]


def test_collectives_are_counted_with_the_bytes_of_their_results():
    assert collectives(CUDA_PROGRAM) == {
        "all-reduce": (2, 2 * 2 * 6 * 4),
        "all-gather": (1, 96 * 4),
    }
    assert collectives(TPU_PROGRAM) == {
        "all-reduce": (3, (8 * 3 * 2 + 4) + 2 * 64 * 4 + (16 + 4 + 4 + 2 + 1 + 32)),
        "collective-permute": (1, 8),
    }
    assert collectives("ENTRY %main { ROOT %dot.1 = f32[2,2]{1,0} dot(%a, %b) }") == {}


@pytest.mark.parametrize(
    "name",
    [
        *("", "v5e:4x4", "tpu:v5e:4", "tpu:v5e:4x0", "tpu:v5e:17x16", "tpu:v5e:4x4x1"),
        *("tpu:v7x:2x2", "cuda:h100:9", "cuda:a100:8", "cuda:h100:0"),
        f"tpu:v5e:{'9' * 5000}",
    ],
)
def test_an_unknown_target_is_refused_with_those_that_are_known(name):
    with pytest.raises(UserError, match=r"--target is .*tpu:v5e:XxY up to 256") as error:
        find_target(name)
    assert all(chip in str(error.value) for chip in SLICES)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        (TPUS, "libtpu", "tpu"),
        ("cuda:h100:1", "jax-cuda13-plugin", "cuda-target"),
        ("cuda:h100:1", "nvidia-cuda-nvcc", "cuda-target"),
    ],
)
def test_a_missing_package_is_named(elsewhere, monkeypatch, name, package, extra):
    def version(asked):
        if asked == package:
            raise importlib.metadata.PackageNotFoundError(asked)

    monkeypatch.setattr(importlib.metadata, "version", version)
    hint = f"--target={name} needs {package}: pip install {package}, or googlenet_flax"
    with pytest.raises(UserError, match=re.escape(f"{hint}[{extra}]")):
        find_target(name)


def test_a_plan_for_tpus(elsewhere, run_command):
    code, out, err = run_command(main, *plan_for(TPUS))
    assert (code, err) == (0, "")
    text = dict(re.findall(r"^([a-z ]+): +(.*)$", out, flags=re.MULTILINE))
    assert text["steps"].endswith("on 4 x TPU v5 lite")
    words = "tpu:v5e:2x2 (4 x TPU v5 lite): the step compiles; it was not run"
    assert text["target"] == words
    assert text["memory"].startswith("2.5 GiB of each device for a step, 1,024 MiB of it")
    assert text["memory"].endswith("; a step can have 16 GiB")
    exchange = "3 all-reduce (0.000623 MB in all), 1 collective-permute (8e-06 MB in all)"
    assert text["exchange"] == f"{exchange}, on each device in a step"
    bound = r"at most [\d,]+ images/s by memory traffic, [\d,]+ by op.*not a prediction"
    assert re.fullmatch(bound, text["bound"])
    elsewhere.return_value = compiled(17)
    code, out, err = run_command(main, *plan_for(TPUS))
    assert (code, out) == (2, "") and "17 GiB of 16 GiB" in err


@pytest.mark.parametrize(
    ("name", "dtype", "gflops", "gigabytes"),
    [
        (TPUS, "bfloat16", 197, 0.819),
        (GPUS, "bfloat16", 989, 3.35),
        (GPUS, "float32", 495, 3.35),
    ],
)
def test_bounds_are_the_published_peaks_by_the_cost_of_an_image(
    elsewhere, name, dtype, gflops, gigabytes
):
    work = {"training_flops": gflops * 10**9, "training_bytes": gigabytes * 1e9}
    cost = ImageCost(forward_flops=0, **work)
    found = find_target(name)
    rates = found.chip.limits(len(found.devices), dtype).training_rates(cost)
    bounds = {"operations": 4 * 1000, "memory traffic": 4 * 1000}
    assert rates == pytest.approx(bounds)


@pytest.mark.parametrize(
    ("name", "result", "hint"),
    [
        (TPUS, compiled(17), "not fit into the devices (17 GiB of 16 GiB)"),
        (GPUS, compiled(61), "not fit into the devices (61 GiB of 60 GiB)"),
        (
            TPUS,
            JaxRuntimeError("RESOURCE_EXHAUSTED: (15.9G) exceeds HBM (15.75G). HLO: x."),
            "(15.9G) exceeds HBM (15.75G)): set a smaller --config.batch_size",
        ),
        (TPUS, JaxRuntimeError("INTERNAL: a\nb"), "does not compile (INTERNAL: a b)"),
        (TPUS, JaxRuntimeError("libtpu lockfile"), "ALLOW_MULTIPLE_LIBTPU_LOAD=1"),
    ],
)
def test_what_does_not_compile_or_fit_is_one_line(elsewhere, name, result, hint):
    elsewhere.side_effect = [result]  # Returned, or raised if it is an error.
    with pytest.raises(UserError, match=re.escape(hint)) as error:
        compile_for(find_target(name), elsewhere)
    message = str(error.value)
    assert message.startswith(f"--target={name}: ") and "\n" not in message


def test_the_devices_of_the_target_must_share_a_batch(elsewhere, refused):
    line = refused(main, *plan_for(TPUS), "--config.batch_size=30")
    assert "4 devices cannot share equally" in line


def test_the_arithmetic_is_that_of_the_target(elsewhere, monkeypatch, run_command):
    used = set()
    create_model = ModelDescription.create_model

    def create(description, devices=(), **options):
        model = create_model(description, devices, **options)
        used.update([model.arithmetic] if devices else [])
        return model

    monkeypatch.setattr(ModelDescription, "create_model", create)
    for name, platform in {TPUS: "tpu", GPUS: "gpu"}.items():
        used.clear()
        assert run_command(main, *plan_for(name))[0] == 0
        assert used == {FASTEST[platform]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module"),
    [(TPUS, "libtpu"), ("tpu:v4:2x2x1", "libtpu"), (GPUS, "jax_cuda13_plugin")],
)
def test_the_real_step_compiles(name, module):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    env = {"XLA_FLAGS": ""}
    code, out, err = run("main", *plan_for(name), "--config.variant=seed", env=env)
    assert code == 0, err
    assert "the step compiles" in out and ", on 4 x " in out
    # The step exchanges the gradients, 4 bytes each, and a few metrics.
    count, size = re.search(r"exchange: +(\d+) all-reduce \(([\d.]+) MB", out).groups()
    assert 1 <= int(count) <= 3
    parameters = int(re.search(r"with heads +([\d,]+)", out)[1].replace(",", ""))
    assert float(size) == pytest.approx(4e-6 * parameters, rel=0.01)
