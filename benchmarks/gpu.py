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
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import compare
import jax
import ours
import peer

from googlenet_flax.analysis.cost import image_cost
from googlenet_flax.model.googlenet import create_model
from googlenet_flax.performance.limits import find_limits
from googlenet_flax.runtime.compilation_cache import use_compilation_cache
from googlenet_flax.runtime.files import replace_file

Key = tuple[str, str]  # The name of a row and its dtype.
Row = dict[str, Any]  # The figures of a row, or an error.

DTYPES = ("bfloat16", "float32")
# Fields of `googlenet_flax.model.convolution.Arithmetic` that are on.
FASTEST = "merge_1x1+gather_max_pool+pool_first"
CHOICES = (
    *(FASTEST, "stock", "gather_max_pool", "merge_1x1"),
    *(f"{FASTEST}+matmul_1x1", f"{FASTEST}+winograd"),
)
NETWORKS: Sequence[Key] = (
    *((f"{variant} {FASTEST}", "bfloat16") for variant in ("seed", "bn", "paper")),
    *((f"seed {choice}", "bfloat16") for choice in CHOICES[1:]),
    *((f"seed {choice}", "float32") for choice in CHOICES),
)
REFERENCE = ("pytorch_compile", "bfloat16")
# Rows that one process measures, most important first.
JOBS: Sequence[Sequence[Key]] = (
    *([REFERENCE], NETWORKS),
    *([(name, "bfloat16")] for name in ("pytorch", compare.OURS, "stock_flax")),
    *([(name, "float32")] for name in ("pytorch_compile", "stock_flax", "pytorch")),
)
LIMIT_SECONDS = 0.5  # Duration of the measurement of a chip that is not in `CHIPS`.


def measure_network(name: str, work: peer.Work) -> None:
    """Measures one of `NETWORKS` and prints a JSON line, also if that fails."""
    variant, choice = name.split(" ")
    device = jax.devices()[0]
    facts = {"name": name, "version": f"jax {jax.__version__}"}
    try:
        names = [] if choice == "stock" else choice.split("+")
        arithmetic = ours.choose_arithmetic(*names)
        train, forward, figures = ours.make_steps(variant, arithmetic, work)
        model = create_model(variant, num_classes=peer.NUM_CLASSES, dtype=work.dtype)
        cost = image_cost(model, work.image_size)
        limits = find_limits([device], work.dtype, LIMIT_SECONDS)
        limit = min(limits.training_rates(cost).values())
        peer.measure_and_print(
            work,
            device=device.device_kind,
            train_step=train,
            eval_step=forward,
            wait=jax.block_until_ready,
            facts=lambda: {**facts, **figures, "limit": limit},
        )
    except Exception as error:  # The other networks are still measured.
        reason = str(error).partition("\n")[0]
        text = f"{type(error).__name__}: {reason}"
        print(json.dumps({**facts, "dtype": work.dtype, "error": text}), flush=True)


def job_command(keys: Sequence[Key], flags: argparse.Namespace) -> list[str]:
    """Returns the command that measures the rows of a job."""
    (name, dtype), *_ = keys
    contender = compare.CONTENDERS.get(name)
    if contender is None:
        return [sys.executable, __file__, *sys.argv[1:], f"--networks={json.dumps(keys)}"]
    python = flags.python.get(contender.environment, sys.executable)
    arguments = contender.arguments(compare.Work(dtype, **flags.settings))
    # torch would take minutes on a CPU.
    refuse_cpu = ["--gpu"] if contender.environment == "pytorch" else []
    return [str(compare.absolute_path(python)), *arguments, *refuse_cpu]


def run_job(
    keys: Sequence[Key], flags: argparse.Namespace, seconds: float
) -> Iterator[tuple[Key, Row]]:
    """Runs a job for at most `seconds` and yields each row as soon as it is measured.

    If the job fails, the error becomes the row of each key that it has not measured.
    """
    left = list(keys)
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(
            job_command(keys, flags),
            cwd=compare.REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            for line in process.stdout or ():
                if line.startswith("{"):
                    row = json.loads(line)
                    key = row.get("name", keys[0][0]), row["dtype"]
                    left.remove(key)
                    if row.get("device") == "cpu":
                        row = {"error": "it ran on the CPU"}
                    yield key, row
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
        stderr.seek(0)
        text = stderr.read()
    if code and code != -signal.SIGKILL:
        print(text, file=sys.stderr)
        error = compare.last_line(text) or f"exit code {code}"
        yield from ((key, {"error": error}) for key in left)


def measure(
    keys: Sequence[Key], rows: dict[Key, Row], flags: argparse.Namespace, deadline: float
) -> None:
    """Runs the jobs that have something left to measure, and saves each row."""
    left = [key for key in keys if "error" in rows.get(key, {"error": ""})]
    for job in ([key for key in job if key in left] for job in JOBS):
        seconds = deadline - time.monotonic()
        if not job or seconds <= 0:
            continue
        for key, row in run_job(job, flags, seconds):
            rows[key] = {**row, "name": key[0], "dtype": key[1]}
            content = {"settings": flags.settings, "rows": list(rows.values())}
            data = json.dumps(content, indent=1).encode()
            replace_file(flags.output, data, "fix that and run the same command")
            print(f"{' '.join(key)}: {row.get('error', 'measured')}", file=sys.stderr)


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
    head += ["forward img/s", "x compile", "GiB", "compile s"]
    lines = [compare.row(head), compare.row(["---"] * 2 + ["---:"] * 7)]
    reference = rows.get(REFERENCE, {})

    def multiple(row: Row, speed: str) -> str:
        return f"{row[speed] / reference[speed]:.2f}" if speed in reference else "-"

    for key in keys:
        row = rows.get(key)
        if row is None or "error" in row:
            text = f"failed: {row['error']}" if row else "not measured: out of time"
            lines.append(compare.row([*key, compare.escape(text), *[""] * 6]))
            continue
        train, forward = (row[speed] for speed in compare.SPEEDS)
        lines.append(
            compare.row(
                [
                    *key,
                    compare.spread(row.get("train_windows", [train])),
                    multiple(row, "train_images_per_second"),
                    f"{train / row['limit']:.0%}" if "limit" in row else "-",
                    compare.spread(row.get("eval_windows", [forward])),
                    multiple(row, "eval_images_per_second"),
                    f"{(row.get('peak_memory_bytes') or 0) / 2**30:.2f}",
                    f"{row['compile_seconds']:.0f}" if "compile_seconds" in row else "-",
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
    names = list(dict.fromkeys(name for job in JOBS for name, _ in job))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--output", type=pathlib.Path, required=True, help="file to continue or make")
    add("--budget_seconds", type=float, default=3600, help="time limit of the command")
    add("--python", metavar="NAME=PATH", action="append", default=[], help="interpreter")
    add("--only", default=",".join(names), help="rows; default: all")
    add("--dtypes", default=",".join(DTYPES))
    add("--batch_size", type=int, default=256)
    add("--image_size", type=int, default=224)
    add("--seconds", type=float, default=5.0, help="duration of each measurement")
    add("--networks", type=json.loads, help=argparse.SUPPRESS)  # For `job_command`.
    flags = parser.parse_args()
    environments = ("pytorch", "stock_flax", "ours")
    known = {"only": names, "dtypes": DTYPES, "python": environments}
    compare.split_lists(parser, flags, known)
    flags.output = compare.absolute_path(flags.output)
    settings = ("batch_size", "image_size", "seconds")
    flags.settings = {name: getattr(flags, name) for name in settings}
    return flags


def main() -> None:
    """Prints the table; the exit code is 1 if a row failed, and 2 without a GPU."""
    flags = parse_flags()
    deadline = time.monotonic() + flags.budget_seconds
    if flags.networks:
        use_compilation_cache()
        for name, dtype in flags.networks:
            measure_network(name, peer.Work(dtype, **flags.settings))
        return
    machine, rows = find_gpu(), read_rows(flags)
    os.environ["JAX_PLATFORMS"] = "cuda,cpu"  # JAX prefers the first.
    os.environ["JAX_TRACEBACK_FILTERING"] = "off"  # So that the last line is the error.
    paths = [str(compare.REPOSITORY), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    keys = [key for job in JOBS for key in job if key[0] in flags.only]
    keys = [key for dtype in flags.dtypes for key in keys if key[1] == dtype]
    try:
        measure(keys, rows, flags, deadline)
    except KeyboardInterrupt:
        print("stopped: the table shows the figures so far", file=sys.stderr)
    work = f"batch {flags.batch_size}, {flags.image_size} px"
    versions = {row["version"] for row in rows.values() if "version" in row}
    print("; ".join([machine, *sorted(versions), work]), table(keys, rows), sep="\n\n")
    sys.exit(any("error" in rows.get(key, {}) for key in keys))


if __name__ == "__main__":
    main()
