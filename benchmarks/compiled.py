"""Compiles a training step for chips that this machine lacks, and prints its costs.

    python benchmarks/compiled.py --target=tpu:v5e:1x1 --variant=seed [--batch_size=256]

The step is that of `configs/imagenet2012.py` in bfloat16 without averaged weights, with
`--batch_size` images on each device. Nothing is run. The columns are the variant, the
target, the memory for temporary values, the peak memory, the cost of a step, and the number
and bytes of each kind of collective. The cost is libtpu's estimate of the cycles for a TPU.
For a GPU it is the bytes that the kernels read and write, with each operand counted once.
"""

import argparse
import dataclasses
import pathlib
import re
import runpy
from collections.abc import Iterator

from googlenet_flax.analysis.target import (
    collectives,
    compile_for,
    find_target,
    shape_bytes,
)
from googlenet_flax.config import Config
from googlenet_flax.data.synthetic import black_images
from googlenet_flax.runtime.errors import exit_on_run_error
from googlenet_flax.training.experiment import build_experiment

RECIPE = pathlib.Path(__file__).parent.parent / "configs" / "imagenet2012.py"
# `%name = SHAPE opcode(%operand, ...), attributes` in the text of a program.
INSTRUCTION = re.compile(r"  (?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# These move no bytes.
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast"}


def instructions(program: str) -> Iterator[tuple[str, ...]]:
    """Yields name, shape, opcode, operands and attributes of the main computation."""
    _, _, entry = program.partition("\nENTRY ")
    for line in entry.splitlines():
        if match := INSTRUCTION.match(line):
            yield match.groups()


def traffic_bytes(program: str) -> int:
    """Sums the bytes of all results and operands."""
    sizes, total = {}, 0
    for name, shape, opcode, operands, _ in instructions(program):
        sizes[name] = shape_bytes(shape)
        if opcode not in FREE:
            used = set(re.findall(r"%([\w.-]+)", operands))
            total += sizes[name] + sum(sizes.get(operand, 0) for operand in used)
    return total


def estimated_cycles(program: str) -> int:
    """Sums libtpu's estimates; it gives none for some operations."""
    attributes = [instruction[-1] for instruction in instructions(program)]
    return sum(int(cycles) for text in attributes for cycles in CYCLES.findall(text))


def main() -> None:
    """Compiles the step and prints a row of a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", required=True, help="such as tpu:v5e:1x1, cuda:h100:1")
    parser.add_argument("--variant", default="seed")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch_size", type=int, default=256, help="images per device")
    args = parser.parse_args()
    with exit_on_run_error():
        target = find_target(args.target)
        batch_size = args.batch_size * len(target.devices)
        config = dataclasses.replace(
            Config.of(runpy.run_path(str(RECIPE))["get_config"]()),
            **{"variant": args.variant, "dtype": args.dtype, "batch_size": batch_size},
            averaging="none",
        )
        images = black_images(
            "imagenet2012", num_examples=batch_size, storage_size=config.storage_size
        )
        experiment = build_experiment(config, target.devices, images, images)
        compiled = compile_for(target, lambda: experiment.compile_train_step(0))
    program, plan = compiled.as_text(), compiled.memory_analysis()
    gib = [plan.temp_size_in_bytes / 2**30, plan.peak_memory_in_bytes / 2**30]
    row = [args.variant, args.target, *(f"{value:.2f} GiB" for value in gib)]
    if args.target.startswith("tpu"):
        row.append(f"{estimated_cycles(program) / 1e6:.1f} million cycles")
    else:
        row.append(f"{traffic_bytes(program) / 1e9:.1f} GB")
    exchanged = collectives(program)
    row += [f"{n} {kind}, {size:,} bytes" for kind, (n, size) in exchanged.items()]
    print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
