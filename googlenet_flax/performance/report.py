"""Results of a benchmark, printed as a table and as JSON."""

import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Report:
    """Results of a benchmark; the fields are the keys of the JSON line."""

    train_images_per_second: float
    eval_images_per_second: float
    input_images_per_second: float | None  # None if the data cannot be read.
    compile_seconds: float  # Tracing, lowering and compiling the training step.
    compilation_cached: bool  # True if JAX's persistent cache had the compiled step.
    first_step_seconds: float  # Time from process start to the end of the first step.
    flops_per_image: int  # Operations of a training step.
    forward_flops_per_image: int  # Operations for the logits of the main classifier.
    bytes_per_image: float  # Lower bound of the memory traffic of a training step.
    share_of_compute_limit: float  # Training rate divided by that at full FLOP/s.
    share_of_bandwidth_limit: float  # Training rate divided by that at full bandwidth.
    limits_measured: bool  # True if measured on this machine, False if the vendor's.
    input_share: float | None  # Input rate divided by training rate.
    peak_memory_bytes: int  # Peak at the end of training; on a CPU, that of the process.
    device: str
    num_devices: int
    dtype: str
    batch_size: int
    image_size: int
    variant: str
    jax_version: str


def format_report(report: Report) -> str:
    """Formats the results as a table."""
    origin = "measured here" if report.limits_measured else "as the vendor states them"
    cached = "from JAX's cache" if report.compilation_cached else "not cached"
    owner = "process" if report.device == "cpu" else "device with the highest peak"
    input_rate, input_note = "not measured", "the reason is on stderr"
    if report.input_images_per_second is not None and report.input_share is not None:
        slower = "input" if report.input_share < 1 else "training step"
        input_rate = f"{report.input_images_per_second:,.1f} images/s"
        share = f"{report.input_share:,.1f}x what training needs"
        input_note = f"{share}: the {slower} is the bottleneck"
    rows = [
        (
            "training",
            f"{report.train_images_per_second:,.1f} images/s",
            f"{report.share_of_compute_limit:.0%} of the compute limit, "
            f"{report.share_of_bandwidth_limit:.0%} of the bandwidth limit, {origin}",
        ),
        ("forward only", f"{report.eval_images_per_second:,.1f} images/s", ""),
        ("input pipeline", input_rate, input_note),
        ("compilation", f"{report.compile_seconds:.1f} s", f"training step, {cached}"),
        (
            "first step done",
            f"{report.first_step_seconds:.1f} s",
            "after the start of the process, without reading data",
        ),
        ("peak memory", f"{report.peak_memory_bytes / 2**30:.2f} GiB", f"of the {owner}"),
        (
            "arithmetic",
            f"{report.flops_per_image / 1e9:.3g} GFLOP",
            f"per image in training, {report.forward_flops_per_image / 1e9:.3g} forward",
        ),
        ("memory traffic", f"{report.bytes_per_image / 1e6:.3g} MB", "per image, at least"),
    ]
    title = (
        f"GoogLeNet {report.variant!r}, {report.image_size} px, batch {report.batch_size}, "
        f"{report.dtype}, on {report.num_devices} x {report.device}, "
        f"jax {report.jax_version}"
    )
    lines = [f"{name:15}  {value:>18}  {note}".rstrip() for name, value, note in rows]
    return "\n".join([title, *lines])


def print_report(report: Report, *, json_only: bool) -> None:
    """Prints the table, unless `json_only`, and the JSON line."""
    if not json_only:
        print(format_report(report))
    print(json.dumps(dataclasses.asdict(report)))
