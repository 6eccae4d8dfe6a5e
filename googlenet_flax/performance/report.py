"""What a benchmark has measured, as a table and as JSON."""

import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Report:
    """What was measured; the keys of the JSON line."""

    train_images_per_second: float
    eval_images_per_second: float
    input_images_per_second: float | None  # None where the data set is absent.
    compile_seconds: float  # Tracing, lowering and compiling the training step.
    compilation_cached: bool  # It came out of JAX's persistent cache.
    first_step_seconds: float  # From the start of the process to the end of the first step.
    flops_per_image: int  # Of a training step.
    forward_flops_per_image: int  # Of the main classifier's logits.
    bytes_per_image: float  # That a training step must move at least.
    share_of_compute_limit: float  # Of the training rate that the arithmetic allows.
    share_of_bandwidth_limit: float  # Of the training rate that the memory allows.
    limits_measured: bool  # On this machine; otherwise the vendor's figures.
    input_share: float | None  # Input rate divided by training rate.
    peak_memory_bytes: int  # By the end of training: see `peak_memory_bytes`.
    device: str
    num_devices: int
    dtype: str
    batch_size: int
    image_size: int
    variant: str
    jax_version: str


def format_report(report: Report) -> str:
    """Lays the figures out as a table."""
    origin = "measured here" if report.limits_measured else "by the vendor's figures"
    cached = "from JAX's cache" if report.compilation_cached else "compiled anew"
    rows = [
        (
            "training",
            f"{report.train_images_per_second:,.1f} images/s",
            f"{report.share_of_compute_limit:.0%} of the compute limit, "
            f"{report.share_of_bandwidth_limit:.0%} of the bandwidth limit, {origin}",
        ),
        ("forward only", f"{report.eval_images_per_second:,.1f} images/s", ""),
        ("input pipeline", *_input_columns(report)),
        ("compilation", f"{report.compile_seconds:.1f} s", f"training step, {cached}"),
        (
            "first step done",
            f"{report.first_step_seconds:.1f} s",
            "from process start, no data read",
        ),
        (
            "peak memory",
            f"{report.peak_memory_bytes / 2**30:.2f} GiB",
            "of the process" if report.device == "cpu" else "of the fullest device",
        ),
        (
            "arithmetic",
            f"{report.flops_per_image / 1e9:.3g} GFLOP",
            f"an image in training, {report.forward_flops_per_image / 1e9:.3g} forward",
        ),
        ("memory traffic", f"{report.bytes_per_image / 1e6:.3g} MB", "an image, at least"),
    ]
    title = (
        f"GoogLeNet {report.variant!r}, {report.image_size} px, batch {report.batch_size}, "
        f"{report.dtype}, on {report.num_devices} x {report.device}, "
        f"jax {report.jax_version}"
    )
    lines = [f"{name:15}  {value:>18}  {note}".rstrip() for name, value, note in rows]
    return "\n".join([title, *lines])


def _input_columns(report: Report) -> tuple[str, str]:
    """Returns the rate, and which of host and devices waits for the other."""
    if report.input_images_per_second is None or report.input_share is None:
        return "not measured", "the reason is on stderr"
    binds = "input" if report.input_share < 1 else "training step"
    return (
        f"{report.input_images_per_second:,.1f} images/s",
        f"{report.input_share:,.1f}x what training consumes: the {binds} binds",
    )


def print_report(report: Report, *, json_only: bool) -> None:
    """Prints the table, unless `json_only`, and the JSON line."""
    if not json_only:
        print(format_report(report))
    print(json.dumps(dataclasses.asdict(report)))
