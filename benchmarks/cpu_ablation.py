"""Measures each choice of `googlenet_flax.model.convolution.Arithmetic` on this CPU.

python benchmarks/cpu_ablation.py [--batch_size=32] [--image_size=224] [--rounds=3]

Each row of the table is a process of its own, with one more choice than the row above.
Rounds go over all rows in turn. Every row except the last keeps freed memory
(`googlenet_flax.runtime.memory`).
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from functools import partial

import jax
import numpy as np
import optax
import peer

from googlenet_flax.model.convolution import STOCK
from googlenet_flax.model.googlenet import create_model
from googlenet_flax.runtime.memory import keep_freed_memory
from googlenet_flax.training.losses import Objective
from googlenet_flax.training.optimizer import create_optimizer
from googlenet_flax.training.state import create_state
from googlenet_flax.training.step import train_step

WARM_UP_STEPS = 2
TIMED_STEPS = 4
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
    model = create_model(
        "seed",
        num_classes=peer.NUM_CLASSES,
        arithmetic=dataclasses.replace(STOCK, **dict.fromkeys(names, True)),
    )
    tx = create_optimizer(
        optax.constant_schedule(peer.LEARNING_RATE),
        momentum=peer.MOMENTUM,
        weight_decay=0.0,
    )
    init = jax.jit(partial(create_state, model, tx, image_size=image_size))
    state = init(jax.random.key(0))
    work = peer.Work("float32", batch_size, image_size, seconds=0.0)
    images, labels = peer.draw_batch(work)
    index = np.arange(batch_size, dtype=np.int32)
    batch = jax.device_put({"image": images, "label": labels, "index": index})
    step = jax.jit(
        partial(
            train_step,
            model=model,
            tx=tx,
            inputs=lambda batch, rngs, step: batch["image"],
            objective=Objective(aux_weight=peer.AUX_WEIGHT),
            seed=0,
        ),
        donate_argnums=0,
    )
    forward = jax.jit(lambda v, x: model.apply(v, x, train=False).logits)

    def train() -> None:
        nonlocal state
        state, _ = step(state, batch)
        jax.block_until_ready(state)

    def evaluate() -> None:
        jax.block_until_ready(forward(state.variables, batch["image"]))

    rates = []
    for call in (train, evaluate):
        seconds = []
        for _ in range(WARM_UP_STEPS + TIMED_STEPS):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        rates.append(batch_size / statistics.median(seconds[WARM_UP_STEPS:]))
    print(json.dumps(rates))


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
