"""Compares our network, in six settings of its arithmetic, with torch and stock Flax.

    python benchmarks/gpu.py --output=gpu.json

It uses one NVIDIA GPU. Compiling a row can take minutes. After `--budget_seconds` the
other rows are listed as not measured, and the same command with the same file measures
them. README.md in this folder explains the table.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import compare

from googlenet_flax.runtime.files import replace_file

Key = tuple[str, str]  # The name of a row and its dtype.
Row = dict[str, Any]  # The figures of a row, or an error.

DTYPES = ("bfloat16", "float32")
# Fields of `googlenet_flax.model.convolution.Arithmetic` that are on.
FASTEST = "merge_1x1+gather_max_pool+pool_first"
CHOICES = (
    *("stock", "gather_max_pool", "merge_1x1"),
    *(f"{FASTEST}+matmul_1x1", f"{FASTEST}+winograd"),
)
NETWORKS = (
    *((variant, FASTEST) for variant in ("seed", "bn", "paper")),
    *(("seed", choice) for choice in CHOICES),
)
REFERENCE = "pytorch_compile"
# The rows, most important first. With --gpu, torch refuses a CPU, where it would take
# minutes.
CONTENDERS: Mapping[str, compare.Contender] = {
    REFERENCE: compare.peer("pytorch", "--gpu", "--compile"),
    **{
        f"{variant} {choice}": compare.peer(
            "ours", f"--variant={variant}", f"--arithmetic={choice}"
        )
        for variant, choice in NETWORKS
    },
    "pytorch": compare.peer("pytorch", "--gpu"),
    **{name: compare.CONTENDERS[name] for name in (compare.OURS, "stock_flax")},
}


def measure(keys: Sequence[Key], rows: dict[Key, Row], flags: argparse.Namespace) -> None:
    """Measures the rows that have no figures yet, and saves each at once."""
    deadline = time.monotonic() + flags.budget_seconds
    for key in (key for key in keys if "error" in rows.get(key, {"error": ""})):
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            return
        name, dtype = key
        contender, work = CONTENDERS[name], compare.Work(dtype, **flags.settings)
        python = flags.python.get(contender.environment, sys.executable)
        command = str(compare.absolute_path(python)), *contender.arguments(work)
        (row,) = compare.run_rounds(
            [compare.Entry(name, work, command)], rounds=1, timeout_seconds=seconds
        )
        if "error" in row and time.monotonic() >= deadline:
            return  # The row had too little time.
        if row.get("device") == "cpu":
            row = {"name": name, "dtype": dtype, "error": "it ran on the CPU"}
        rows[key] = row
        content = {"settings": flags.settings, "rows": list(rows.values())}
        data = json.dumps(content, indent=1).encode()
        replace_file(flags.output, data, "fix that and run the same command")


def read_rows(flags: argparse.Namespace) -> dict[Key, Row]:
    """Reads the rows of the file.

    If they were measured with other settings, the program ends with exit code 2.
    """
    if not flags.output.exists():
        return {}
    content = json.loads(flags.output.read_text())
    if (found := content["settings"]) != flags.settings:
        refuse(f"{flags.output} is of {found}, not {flags.settings}: name another --output")
    return {(row["name"], row["dtype"]): row for row in content["rows"]}


def refuse(message: str) -> NoReturn:
    """Prints a line and exits with code 2."""
    print(f"gpu.py: {message}", file=sys.stderr)
    sys.exit(2)


def table(keys: Sequence[Key], rows: Mapping[Key, Row]) -> str:
    """Formats a Markdown table with a line for every row, measured or not."""
    head = ["contender", "dtype", "train img/s", "x compile", "of the limit"]
    head += ["forward img/s", "x compile", "GiB"]
    lines = [compare.row(head), compare.row(["---"] * 2 + ["---:"] * 6)]
    reference = rows.get((REFERENCE, "bfloat16"), {})

    def multiple(row: Row, speed: str) -> str:
        return f"{row[speed] / reference[speed]:.2f}" if speed in reference else "-"

    for key in keys:
        row = rows.get(key)
        if row is None or "error" in row:
            text = f"failed: {row['error']}" if row else "not measured: out of time"
            lines.append(compare.row([*key, compare.escape(text), *[""] * 5]))
            continue
        train, forward = compare.SPEEDS
        lines.append(
            compare.row(
                [
                    *key,
                    compare.spread(row.get("train_windows", [row[train]])),
                    multiple(row, train),
                    f"{row[train] / row['limit']:.0%}" if "limit" in row else "-",
                    compare.spread(row.get("eval_windows", [row[forward]])),
                    multiple(row, forward),
                    f"{(row.get('peak_memory_bytes') or 0) / 2**30:.2f}",
                ]
            )
        )
    return "\n".join(lines)


def find_gpu() -> str:
    """Returns the driver's description of the GPU; without one the program ends."""
    # One GPU is measured, which CUDA and nvidia-smi must number alike.
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    os.environ.update(CUDA_VISIBLE_DEVICES=gpu, CUDA_DEVICE_ORDER="PCI_BUS_ID")
    query = "--query-gpu=name,driver_version,power.limit,clocks.max.sm"
    command = ["nvidia-smi", query, f"--id={gpu}", "--format=csv,noheader"]
    try:
        return compare.run(command, timeout_seconds=20).strip()
    except compare.ContenderError as error:
        refuse(f"there is no NVIDIA GPU: {error}")


def parse_flags() -> argparse.Namespace:
    """Parses the command line; an error in it ends the program with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--output", type=pathlib.Path, required=True, help="file to continue or make")
    add("--budget_seconds", type=float, default=3600, help="time limit of the command")
    add("--python", metavar="NAME=PATH", action="append", default=[], help="interpreter")
    add("--only", default=",".join(CONTENDERS), help="rows; default: all")
    add("--dtypes", default=",".join(DTYPES))
    add("--batch_size", type=int, default=256)
    add("--image_size", type=int, default=224)
    add("--seconds", type=float, default=5.0, help="duration of each measurement")
    flags = parser.parse_args()
    environments = {contender.environment for contender in CONTENDERS.values()}
    known = {"only": CONTENDERS, "dtypes": DTYPES, "python": sorted(environments)}
    compare.split_lists(parser, flags, known)
    flags.output = compare.absolute_path(flags.output)
    settings = ("batch_size", "image_size", "seconds")
    flags.settings = {name: getattr(flags, name) for name in settings}
    return flags


def main() -> None:
    """Prints the table; the exit code is 1 if a row failed, and 2 without a GPU."""
    flags = parse_flags()
    machine, rows = find_gpu(), read_rows(flags)
    os.environ["JAX_PLATFORMS"] = "cuda,cpu"  # JAX prefers the first.
    os.environ["JAX_TRACEBACK_FILTERING"] = "off"  # So that the last line is the error.
    paths = [str(compare.REPOSITORY), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    keys = [(name, dtype) for dtype in flags.dtypes for name in flags.only]
    try:
        measure(keys, rows, flags)
    except KeyboardInterrupt:
        print("stopped: the table shows the figures so far", file=sys.stderr)
    work = f"batch {flags.batch_size}, {flags.image_size} px"
    versions = {row["version"] for row in rows.values() if "version" in row}
    print("; ".join([machine, *sorted(versions), work]), table(keys, rows), sep="\n\n")
    sys.exit(any("error" in rows.get(key, {}) for key in keys))


if __name__ == "__main__":
    main()
