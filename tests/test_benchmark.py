import dataclasses
import json

import jax
import pytest
from helpers.configs import named_config
from helpers.processes import run

from googlenet_flax.config import Config
from googlenet_flax.performance import limits
from googlenet_flax.performance.benchmark import (
    benchmark,
    measure_input,
    synthetic_experiment,
)
from googlenet_flax.performance.report import Report, format_report, print_report


@pytest.fixture
def small_config(monkeypatch, small_inceptions):
    """Returns a config by its name, for a small network and small limits."""
    monkeypatch.setattr(limits, "CPU_MATMUL_SIDE", 64)
    monkeypatch.setattr(limits, "COPY_ELEMENTS", 2**10)
    small = {"width_multiplier": 0.25, "image_size": 80, "batch_size": 4}
    return lambda name, **fields: Config.of({**named_config(name), **small, **fields})


def check(report: dict) -> None:
    """Checks what is true of every report."""
    training, input_rate = (
        report[f"{name}_images_per_second"] for name in ("train", "input")
    )
    assert 0 < training < 1e6 and 0 < report["eval_images_per_second"] < 1e6
    if input_rate is not None:
        assert report["input_share"] == pytest.approx(input_rate / training)
    assert 0 < report["compile_seconds"] < report["first_step_seconds"]
    assert 0 < report["forward_flops_per_image"] < report["flops_per_image"] / 2
    assert report["share_of_compute_limit"] > 0 and report["share_of_bandwidth_limit"] > 0
    assert report["peak_memory_bytes"] > 2**27  # JAX alone needs this much memory.


@pytest.mark.slow
def test_without_data_in_bfloat16_on_two_devices(small_config, tmp_path, capsys):
    config = small_config("cifar10", dtype="bfloat16", data_dir=str(tmp_path))
    report = benchmark(config, jax.local_devices()[:2], seconds=0)
    assert "'cifar10' is not prepared in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # Nothing was downloaded or prepared.
    check(dataclasses.asdict(report))
    assert report.input_images_per_second is report.input_share is None
    assert (report.variant, report.image_size, report.batch_size) == ("seed", 80, 4)
    assert (report.device, report.num_devices) == ("cpu", 2)
    assert report.dtype == "bfloat16"

    print_report(report, json_only=False)
    *table, line = capsys.readouterr().out.splitlines()
    assert json.loads(line) == dataclasses.asdict(report)
    assert any(f"{report.train_images_per_second:,.1f} images/s" in row for row in table)
    assert any("not measured" in row for row in table)
    print_report(report, json_only=True)
    assert capsys.readouterr().out.splitlines() == [line]


def test_the_input_of_digits_is_measured(small_config):
    experiment = synthetic_experiment(small_config("digits"), jax.local_devices()[:2])
    rate = measure_input(experiment, seconds=0)
    assert rate is not None and 1e3 < rate < 1e9


@pytest.mark.parametrize(
    ("dataset", "fields", "message"),
    [
        ("digits", {"train_split": "train[:3]"}, "batch_size"),
        ("digits", {"train_split": "tran"}, "unknown split 'tran'"),
        ("folder", {"data_dir": "nowhere"}, "is not a folder"),
    ],
)
def test_input_that_cannot_be_read_is_named(small_config, capsys, dataset, fields, message):
    experiment = synthetic_experiment(
        small_config(dataset, **fields), jax.local_devices()[:2]
    )
    assert measure_input(experiment, seconds=0) is None
    assert message in capsys.readouterr().err


def test_a_slower_input_is_named_as_the_limit():
    report = Report(**{field.name: 1 for field in dataclasses.fields(Report)})
    for share, words in [(0.5, "the input is the bottleneck"), (3, "3.0x")]:
        assert words in format_report(dataclasses.replace(report, input_share=share))


@pytest.mark.slow
def test_the_whole_command():
    code, out, err = run(
        *("benchmark", "--config=configs/digits.py", "--config.width_multiplier=0.1"),
        *("--config.batch_size=4", "--seconds=0.1", "--json"),
    )
    assert code == 0 and "Traceback" not in err, err
    (line,) = out.splitlines()
    report = json.loads(line)
    check(report)
    assert report["input_images_per_second"] > 0
    assert report["first_step_seconds"] < 600
