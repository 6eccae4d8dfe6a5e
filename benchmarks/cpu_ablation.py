"""Measures how much each optimization of the arithmetic contributes on this CPU.

python benchmarks/cpu_ablation.py [--dtype=float32] [--batch_size=32] [--image_size=224]
    [--variant=seed] [--rounds=3]

Each row of the table is measured in a process of its own. The first row, `ours`, uses all
optimizations. The last row uses XLA's own operations. Each row between leaves one out.
"ours / it" shows how much faster the first row is; README.md in this folder explains the
table. A row whose optimization is off for the dtype repeats the first row. Rounds go over
all rows in turn.
"""

import argparse
import dataclasses
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
    compare.OURS: [],
    "max pool by XLA": ["gather_max_pool"],
    "1x1 as convolutions": ["matmul_1x1"],
    "1x1 on one input apart": ["merge_1x1"],
    "conv1's weight gradient by XLA": ["matmul_weight_gradient"],
    "no Winograd": ["winograd"],
    "convolution gradients by XLA": ["onednn_gradients"],
    "max pool after bias, ReLU and concatenation": ["pool_first"],
    "freed memory given back": [MEMORY],
    "XLA's own operations": [field.name for field in dataclasses.fields(STOCK)],
}


def measure(variant: str, left_out: list[str], work: peer.Work) -> None:
    """Prints the figures of a row; runs in a process of its own."""
    if MEMORY not in left_out:
        keep_freed_memory()  # Must precede the creation of JAX's backend.
    use_onednn_for(work.dtype)
    off = {name: False for name in left_out if name != MEMORY}
    arithmetic = dataclasses.replace(fastest("cpu", jnp.dtype(work.dtype)), **off)
    train, forward, _ = ours.make_steps(variant, arithmetic, work)
    peer.measure_and_print(
        work, device="cpu", train_step=train, eval_step=forward, wait=jax.block_until_ready
    )


def main() -> None:
    """Prints the table; the exit code is 1 if a row failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--variant", default="seed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = peer.Work(args.dtype, args.batch_size, args.image_size, SECONDS)
    if args.row:
        measure(args.variant, ROWS[args.row], work)
        return
    command = (sys.executable, __file__, *sys.argv[1:])
    entries = [compare.Entry(row, work, (*command, f"--row={row}")) for row in ROWS]
    records = compare.run_rounds(entries, rounds=args.rounds, timeout_seconds=1800)
    print(compare.table(records))
    sys.exit(any("error" in record for record in records))


if __name__ == "__main__":
    main()
