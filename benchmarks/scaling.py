"""How far more devices help: the formula of docs/scaling.md, or points measured here.

    python benchmarks/scaling.py [--images_per_second=5000 --gigabytes_per_second=50 ...]
    python benchmarks/scaling.py --measure=1,2 --workdir=DIR [--config.FIELD=VALUE]

The first prints what the formula expects of a device that trains so fast alone; the figures
are assumptions of whoever types them. The second trains on digits in as many processes,
each on a CPU core of its own and with the same batch, and prints what they did.
"""

import argparse
import dataclasses
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
from googlenet_flax.model.googlenet import VARIANTS
from googlenet_flax.runs.metrics import read_rows

REPOSITORY = pathlib.Path(__file__).parent.parent
DEVICES = (1, 2, 8, 32, 128, 512, 1024)
NUM_BYTES = 4  # Of a float32: gradients and statistics.
NORM_STATISTICS = 2  # Mean and mean of squares of each channel.
NORM_EXCHANGES = 2  # All-reduces per norm: the statistics, and their gradients.
IMAGES_PER_PROCESS = 32
MEASURED_STEPS = 30


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What the devices tell each other in a step."""

    gradient_bytes: int  # Of all gradients, in one all-reduce.
    norm_bytes: int  # Statistics of all norms and their gradients.
    num_norms: int  # Norms, which wait for their exchanges one after the other.


def exchange_of(variant: str, num_classes: int, image_size: int) -> Exchange:
    """That of a network."""
    model = create_model(variant, num_classes=num_classes)
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), "float32")
    variables = jax.eval_shape(
        lambda rng, x: model.init(rng, x, train=False), jax.random.key(0), images
    )
    sizes = {
        name: sum(leaf.size for leaf in jax.tree.leaves(tree))
        for name, tree in variables.items()
    }
    channels = sizes.get("batch_stats", 0) // 2  # A mean and a variance of each.
    return Exchange(
        gradient_bytes=NUM_BYTES * sizes["params"],
        norm_bytes=NUM_BYTES * NORM_EXCHANGES * NORM_STATISTICS * channels,
        num_norms=len(jax.tree.leaves(variables.get("batch_stats", {}))) // 2,
    )


def efficiency(
    num_devices: int,
    exchange: Exchange,
    *,
    step_seconds: float,
    bytes_per_second: float,
    latency_seconds: float,
) -> float:
    """What each of the devices does of what one does alone, from 0 to 1.

    Nothing is taken to overlap, so it is a lower bound.

    Args:
      num_devices: That share a batch; with more of them the batch grows.
      exchange: Of the network.
      step_seconds: Of one device alone.
      bytes_per_second: That a device sends while it receives as many.
      latency_seconds: From a device to the next, in a tree.
    """
    share = (num_devices - 1) / num_devices
    sent_bytes = 2 * share * (exchange.gradient_bytes + exchange.norm_bytes)
    num_all_reduces = 1 + NORM_EXCHANGES * exchange.num_norms
    waiting = 2 * num_all_reduces * math.log2(num_devices) * latency_seconds
    return step_seconds / (step_seconds + sent_bytes / bytes_per_second + waiting)


def expect(flags: argparse.Namespace) -> str:
    """A table of the formula."""
    exchanges = {
        variant: exchange_of(variant, flags.num_classes, flags.image_size)
        for variant in VARIANTS
    }
    lines = [f"| devices | {' | '.join(exchanges)} |"]
    lines.append("|---" * (1 + len(exchanges)) + "|")
    for count in DEVICES:
        shares = [
            efficiency(
                count,
                exchange,
                step_seconds=flags.batch_size / flags.images_per_second,
                bytes_per_second=1e9 * flags.gigabytes_per_second,
                latency_seconds=1e-6 * flags.latency_microseconds,
            )
            for exchange in exchanges.values()
        ]
        lines.append(f"| {count:,} | {' | '.join(f'{share:.0%}' for share in shares)} |")
    told = [
        f"{variant} {exchange.gradient_bytes / 1e6:.1f} MB of gradients, "
        f"{exchange.num_norms} norms, {exchange.norm_bytes / 1e3:.1f} kB of statistics"
        for variant, exchange in exchanges.items()
    ]
    return "\n".join([*lines, "", *told])


def measure(count: int, workdir: pathlib.Path, more: Sequence[str]) -> float:
    """Images per second of `count` processes, each on a core of its own."""
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
        sys.exit(f"{count} processes did not come to their end; see above")
    rows = read_rows(workdir / str(count) / "metrics.jsonl")
    paces = [row["images_per_second"] for row in rows if "images_per_second" in row]
    return statistics.median(paces)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    add = parser.add_argument
    add("--images_per_second", type=float, default=5000.0, help="of one device alone")
    add("--batch_size", type=int, default=256, help="of one device")
    add("--gigabytes_per_second", type=float, default=50.0, help="of one device's link")
    add("--latency_microseconds", type=float, default=10.0, help="of one hop")
    add("--num_classes", type=int, default=1000)
    add("--image_size", type=int, default=224)
    add("--measure", default="", help="numbers of processes, with commas")
    add("--workdir", type=pathlib.Path, help="of the measured runs")
    flags, more = parser.parse_known_args()
    if not flags.measure:
        print(expect(flags))
        return
    if flags.workdir is None:
        sys.exit("--measure needs a --workdir")
    counts = [int(count) for count in flags.measure.split(",")]
    workdir = flags.workdir.absolute()
    paces = {count: measure(count, workdir, more) for count in counts}
    print("| processes | images/s | of the first, each |\n|---|---|---|")
    first = paces[counts[0]] / counts[0]
    for count, pace in paces.items():
        print(f"| {count} | {pace:.1f} | {pace / count / first:.0%} |")


if __name__ == "__main__":
    main()
