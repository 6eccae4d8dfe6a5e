"""Measures how much each optimization of the arithmetic contributes on this CPU.

python benchmarks/cpu_ablation.py [--dtype=float32] [--batch_size=32] [--image_size=224]
    [--variant=seed] [--rounds=3]

Each row of the table is measured in a process of its own. The first row uses all
optimizations, the last one XLA's own operations, and each row between them leaves one out.
A row whose optimization is off for the dtype repeats the first row. Rounds go over all rows
in turn.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys

import compare
import jax
import jax.numpy as jnp
import ours
import peer

from googlenet_flax.model.convolution import STOCK, fastest
from googlenet_flax.runtime.memory import keep_freed_memory
from googlenet_flax.runtime.onednn import use_onednn_for

SECONDS = 6.0  # Duration of the measurement of each figure.
MEMORY = "keep_freed_memory"
ROWS = {
    "all choices": [],
    "max pool by XLA": ["gather_max_pool"],
    "1x1 as convolutions": ["matmul_1x1"],
    "1x1 on one input apart": ["merge_1x1"],
    "conv1's weight gradient by XLA": ["matmul_weight_gradient"],
    "no Winograd": ["winograd"],
    "convolution gradients by XLA": ["onednn_gradients"],
    "max pool after bias and ReLU": ["pool_first"],
    "freed memory given back": [MEMORY],
    "XLA's own operations": [field.name for field in dataclasses.fields(STOCK)],
}


def measure(variant: str, left_out: list[str], work: peer.Work) -> None:
    """Prints `[train, forward]` in images per second; runs in a process of its own."""
    if MEMORY not in left_out:
        keep_freed_memory()  # Must precede the creation of JAX's backend.
    use_onednn_for(work.dtype)
    arithmetic = dataclasses.replace(
        fastest("cpu", jnp.dtype(work.dtype)),
        **{name: False for name in left_out if name != MEMORY},
    )
    *steps, _ = ours.make_steps(variant, arithmetic, work)
    rates = [peer.images_per_second(step, jax.block_until_ready, work) for step in steps]
    print(json.dumps([statistics.median(windows) for windows in rates]))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--variant", default="seed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        work = peer.Work(args.dtype, args.batch_size, args.image_size, SECONDS)
        measure(args.variant, ROWS[args.row], work)
        return
    rates: dict[str, list[list[float]]] = {name: [] for name in ROWS}
    for _ in range(args.rounds):
        for row, figures in rates.items():
            command = [sys.executable, *sys.argv, f"--row={row}"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            figures.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{row}: {figures[-1]}", file=sys.stderr, flush=True)
    print("| | train images/s | forward images/s |\n|---|---|---|")
    for row, figures in rates.items():
        print(compare.row([row, *map(compare.spread, zip(*figures, strict=True))]))


if __name__ == "__main__":
    main()
