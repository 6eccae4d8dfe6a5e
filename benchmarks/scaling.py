"""Prints the scaling efficiency, from the formula of docs/scaling.md or measured here.

    python benchmarks/scaling.py [--images_per_second=5000 --gigabytes_per_second=50 ...]
    python benchmarks/scaling.py --measure=1,2 --workdir=DIR [--config.FIELD=VALUE]

The first command evaluates the formula. Its flags are assumptions about the devices and
their links, not measurements. The second command trains on digits in the given numbers of
processes, each on a CPU core of its own and with the same batch, and prints the measured
rates.
"""

import argparse
import dataclasses
import functools
import math
import os
import pathlib
import socket
import statistics
import subprocess
import sys
from collections.abc import Sequence

import jax

from googlenet_flax import create_model
from googlenet_flax.model.convolution import STOCK
from googlenet_flax.model.googlenet import INCEPTIONS, VARIANTS
from googlenet_flax.runs.metrics import read_rows
from googlenet_flax.runtime.files import file_path

REPOSITORY = pathlib.Path(__file__).parent.parent
DEVICES = (1, 2, 8, 32, 128, 512, 1024)
NUM_BYTES = 4  # Bytes of a float32, the type of gradients and statistics.
NORM_STATISTICS = 2  # Mean and mean of squares of each channel.
NORM_PASSES = 2  # The statistics, and their gradients.
# Groups of norms that wait for each other: one for each convolution of the stem, and in
# each block one for the reductions and one for the convolutions behind them. XLA exchanges
# the statistics of a group together.
NORM_GROUPS = 3 + 2 * len(INCEPTIONS)
IMAGES_PER_PROCESS = 32
MEASURED_STEPS = 30


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Data that the devices exchange in a step."""

    gradient_bytes: int  # Size of all gradients, which are exchanged in one all-reduce.
    norm_bytes: int  # Size of the statistics of all norms and of their gradients.
    norm_exchanges: int  # All-reduces of statistics, which wait for each other.


@functools.cache
def exchange_of(variant: str, num_classes: int, image_size: int) -> Exchange:
    """Computes the exchange of a network from its shapes."""
    model = create_model(variant, num_classes=num_classes, arithmetic=STOCK)
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), "float32")
    init = functools.partial(model.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), images)
    sizes = {
        name: sum(leaf.size for leaf in jax.tree.leaves(tree))
        for name, tree in variables.items()
    }
    channels = sizes.get("batch_stats", 0) // 2  # Each has a mean and a variance.
    return Exchange(
        gradient_bytes=NUM_BYTES * sizes["params"],
        norm_bytes=NUM_BYTES * NORM_PASSES * NORM_STATISTICS * channels,
        norm_exchanges=NORM_PASSES * NORM_GROUPS if channels else 0,
    )


def efficiency(
    num_devices: int,
    exchange: Exchange,
    *,
    step_seconds: float,
    bytes_per_second: float,
    latency_seconds: float,
) -> float:
    """Computes the rate of each device, divided by the rate of a single device.

    The batch grows with the number of devices. A device sends `bytes_per_second` while it
    receives as many, and the latency is that between neighbors in a tree of devices. The
    result is a lower bound, because it assumes that no exchange overlaps with computation.
    """
    share = (num_devices - 1) / num_devices
    sent_bytes = 2 * share * (exchange.gradient_bytes + exchange.norm_bytes)
    waiting = 2 * (1 + exchange.norm_exchanges) * math.log2(num_devices) * latency_seconds
    return step_seconds / (step_seconds + sent_bytes / bytes_per_second + waiting)


def expect(flags: argparse.Namespace) -> str:
    """Formats a table of the formula's values."""
    exchanges = {
        variant: exchange_of(variant, flags.num_classes, flags.image_size)
        for variant in VARIANTS
    }
    lines = [f"| devices | {' | '.join(exchanges)} |", "|---" * (1 + len(exchanges)) + "|"]
    link = {
        "step_seconds": flags.batch_size / flags.images_per_second,
        "bytes_per_second": 1e9 * flags.gigabytes_per_second,
        "latency_seconds": 1e-6 * flags.latency_microseconds,
    }
    for count in DEVICES:
        shares = [f"{efficiency(count, each, **link):.0%}" for each in exchanges.values()]
        lines.append(f"| {count:,} | {' | '.join(shares)} |")
    facts = [
        f"{variant} {exchange.gradient_bytes / 1e6:.1f} MB of gradients, "
        f"{exchange.norm_exchanges} exchanges of "
        f"{exchange.norm_bytes / 1e3:.1f} kB of statistics"
        for variant, exchange in exchanges.items()
    ]
    return "\n".join([*lines, "", *facts])


def measure(count: int, workdir: pathlib.Path, more: Sequence[str]) -> float:
    """Measures images per second of `count` processes, each on a core of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    cores = sorted(os.sched_getaffinity(0))[:count]
    if len(cores) < count:
        sys.exit(f"--measure={count} needs as many CPU cores; there are {len(cores)}")
    processes = [
        subprocess.Popen(
            [
                *("taskset", "--cpu-list", str(core)),
                *(sys.executable, "-m", "googlenet_flax.main"),
                "--config=configs/digits.py",
                f"--config.batch_size={IMAGES_PER_PROCESS * count}",
                f"--config.max_steps={MEASURED_STEPS}",
                "--config.eval_split=test[:32]",
                "--config.log_every_steps=1",
                *more,
                f"--workdir={workdir / str(count)}",
                "--config.distributed=True",
                f"--coordinator_address={address}",
                f"--num_processes={count}",
                f"--process_id={number}",
            ],
            cwd=REPOSITORY,
        )
        for number, core in enumerate(cores)
    ]
    if any([process.wait() for process in processes]):
        sys.exit(f"one of {count} processes failed; see its error above")
    rows = read_rows(workdir / str(count) / "metrics.jsonl")
    return statistics.median(
        row["images_per_second"] for row in rows if "images_per_second" in row
    )


def main() -> None:
    """Prints the table of the formula, or that of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    add = parser.add_argument
    add("--images_per_second", type=float, default=5000.0, help="rate of a single device")
    add("--batch_size", type=int, default=256, help="batch size of each device")
    add("--gigabytes_per_second", type=float, default=50.0, help="rate of a device's link")
    add("--latency_microseconds", type=float, default=10.0, help="latency of one hop")
    add("--num_classes", type=int, default=1000)
    add("--image_size", type=int, default=224)
    add("--measure", default="", help="numbers of processes, separated by commas")
    add("--workdir", type=file_path, help="folder of the measured runs")
    flags, more = parser.parse_known_args()
    if not flags.measure:
        print(expect(flags))
        return
    if flags.workdir is None:
        sys.exit("--measure needs a --workdir")
    counts = [int(count) for count in flags.measure.split(",")]
    workdir = flags.workdir.absolute()
    rates = {count: measure(count, workdir, more) for count in counts}
    print("| processes | images/s | efficiency |\n|---|---|---|")
    first = rates[counts[0]] / counts[0]
    for count, rate in rates.items():
        print(f"| {count} | {rate:.1f} | {rate / count / first:.0%} |")


if __name__ == "__main__":
    main()
