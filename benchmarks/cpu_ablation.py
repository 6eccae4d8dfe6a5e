"""Measures each choice of `googlenet_flax.model.convolution.Arithmetic` on this CPU.

python benchmarks/cpu_ablation.py [--batch_size=32] [--image_size=224] [--rounds=3]

Each row of the table is a process of its own, with one more choice than the row above.
Rounds go over all rows in turn. Every row except the last keeps freed memory
(`googlenet_flax.runtime.memory`).
"""

import argparse
import json
import statistics
import subprocess
import sys

import jax
import ours
import peer

from googlenet_flax.runtime.memory import keep_freed_memory

SECONDS = 6.0  # Duration of the measurement of each figure.
ROWS = (
    ("XLA's own operations", (), True),
    ("+ max pool remembers its winners", ("gather_max_pool",), True),
    ("+ 1x1 as matrix products", ("matmul_1x1",), True),
    ("+ 1x1 on one input merged", ("merge_1x1",), True),
    ("+ conv1's weight gradient as one", ("matmul_weight_gradient",), True),
    ("+ Winograd for 3x3 and 5x5", ("winograd",), True),
    ("all, freed memory given back", (), False),
)


def measure(names: list[str], keep: bool, batch_size: int, image_size: int) -> None:
    """Prints `[train, forward]` in images per second; runs in a process of its own."""
    if keep:
        keep_freed_memory()
    work = peer.Work("float32", batch_size, image_size, SECONDS)
    *steps, _ = ours.make_steps("seed", ours.choose_arithmetic(*names), work)
    rates = [peer.images_per_second(step, jax.block_until_ready, work) for step in steps]
    print(json.dumps([statistics.median(windows) for windows in rates]))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        measure(*json.loads(args.row), args.batch_size, args.image_size)
        return
    rates: dict[str, list[list[float]]] = {name: [] for name, _, _ in ROWS}
    for _ in range(args.rounds):
        names: list[str] = []
        for row, more, keep in ROWS:
            names += more
            command = [sys.executable, __file__, f"--row={json.dumps([names, keep])}"]
            command += [
                f"--batch_size={args.batch_size}",
                f"--image_size={args.image_size}",
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rates[row].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{row}: {rates[row][-1]}", file=sys.stderr, flush=True)
    print("| | train images/s | forward images/s |\n|---|---|---|")
    for row, figures in rates.items():
        train, forward = (
            " / ".join(f"{f(column):.1f}" for f in (min, statistics.median, max))
            for column in zip(*figures, strict=True)
        )
        print(f"| {row} | {train} | {forward} |")


if __name__ == "__main__":
    main()
