"""Measures our network in every arithmetic, torch and stock Flax on one GPU.

    python benchmarks/gpu.py --output=gpu.json

The measurement takes less than 8 minutes. Contenders that do not fit into this time are
listed as not measured, and the same command with the same file measures them. The script
needs only Python's standard library. README.md in this folder explains the table.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import compare

DTYPES = ("bfloat16", "float32")
# Fields of `googlenet_flax.model.convolution.Arithmetic` that are on, most important first.
BOTH = "merge_1x1+gather_max_pool"
CHOICES = (
    BOTH,
    "stock",
    "gather_max_pool",
    "merge_1x1",
    f"{BOTH}+matmul_1x1",
    f"{BOTH}+winograd",
)
BEST = "best"  # The choice that trains `seed` fastest in the same dtype.
OURS = "ours"  # Name of the job that measures all of our networks in one process.
AS_A_RUN = "python -m googlenet_flax.benchmark"
REFERENCE = ("pytorch_compile", "bfloat16")
MIN_JOB_SECONDS = 10.0  # A job is not started with less time.
TABLE_HEAD = (
    "contender",
    "dtype",
    "train img/s",
    "x compile",
    "of the limit",
    "forward img/s",
    "x compile",
    "GiB",
    "compile s",
)

Record = dict[str, Any]
Key = tuple[str, str]  # The name and the dtype of a contender.


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our networks, a line of the table."""

    dtype: str
    variant: str
    choice: str

    @property
    def key(self) -> Key:
        """Key of its record."""
        return f"{self.variant} {self.choice}", self.dtype

    @classmethod
    def parse(cls, text: str) -> "Entry":
        """Parses the text that `str(entry)` gives."""
        return cls(*text.split(","))

    def __str__(self):
        return ",".join(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Job:
    """A process that measures one or more contenders."""

    name: str
    dtype: str  # "" for `OURS`, which measures all dtypes.
    share: float  # Largest share of the remaining time that the job may take.
    environment: str  # Name of the environment in `--python`.

    @property
    def key(self) -> Key:
        """Key of its record."""
        return self.name, self.dtype


# The first two jobs matter most, and the quick ones follow. Time that a job does not use is
# left to the later ones.
JOBS = (
    Job(*REFERENCE, share=0.4, environment="pytorch"),
    Job(OURS, "", share=0.6, environment="ours"),
    Job("pytorch", "bfloat16", share=0.5, environment="pytorch"),
    Job(AS_A_RUN, "bfloat16", share=0.6, environment="ours"),
    Job("stock_flax", "bfloat16", share=0.6, environment="stock_flax"),
    Job("pytorch_compile", "float32", share=0.7, environment="pytorch"),
    Job("stock_flax", "float32", share=0.7, environment="stock_flax"),
    Job("pytorch", "float32", share=1.0, environment="pytorch"),
)


def our_entries(dtypes: Sequence[str]) -> list[Entry]:
    """Lists our networks in the order in which they are measured."""
    entries = []
    for dtype in DTYPES:
        seed = [Entry(dtype, "seed", choice) for choice in CHOICES]
        others = [Entry(dtype, variant, BEST) for variant in ("paper", "bn")]
        # Winograd, the last choice, matters least. Other variants are trained in bfloat16.
        entries += [*seed[:-1], *others, seed[-1]] if dtype == "bfloat16" else seed
    return [entry for entry in entries if entry.dtype in dtypes]


class ResultsError(Exception):
    """Error for a file that cannot be continued; the message is one line."""


class Results:
    """Records of all contenders, kept in a file.

    A record has `name` and `dtype`, and either an `error` or images per second in lists
    `train` and `eval`, with a figure for each round. Only one process at a time may write.

    Raises:
      ResultsError: The file holds no results, or results of other settings.
    """

    def __init__(self, path: pathlib.Path, work: Mapping[str, Any]):
        self._path = path
        self._work = dict(work)
        self._records: dict[Key, Record] = {}
        self.reload()

    def reload(self) -> None:
        """Reads the file again, after another process wrote it."""
        if not self._path.exists():
            return
        try:
            content = json.loads(self._path.read_text())
            work, records = content["work"], content["records"]
            self._records = {(r["name"], r["dtype"]): r for r in records}
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise ResultsError(f"{self._path} holds no results: {error!r}") from None
        if work != self._work:
            raise ResultsError(
                f"{self._path} is of {work}, not {self._work}: name another --output"
            )

    def put(self, record: Record) -> None:
        """Adds or replaces a record, also in the file."""
        self._records[record["name"], record["dtype"]] = record
        content = {"work": self._work, "records": list(self._records.values())}
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(partial, self._path)  # After a kill the file is complete, old or new.

    def get(self, key: Key) -> Record:
        """Returns the record of a contender, or an empty one."""
        return self._records.get(key, {})

    def is_done(self, key: Key) -> bool:
        """Tells if there is nothing left to measure for a contender."""
        record = self.get(key)
        return "error" not in record and record.get("rounds", 0) > 0

    def best_choice(self, dtype: str) -> str:
        """Returns the arithmetic that trains `seed` fastest so far."""
        speeds = {}
        for choice in CHOICES:
            record = self.get(Entry(dtype, "seed", choice).key)
            if "error" not in record and record.get("train"):
                speeds[choice] = statistics.median(record["train"])
        return max(speeds, key=speeds.get, default=BOTH)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())


def peer_arguments(job: Job, work: compare.Work, platform: str) -> list[str]:
    """Returns the arguments of Python for a contender that is a process of its own."""
    if job.name == AS_A_RUN:
        return compare.our_arguments(work)
    arguments = compare.CONTENDERS[job.name].arguments(work)
    # JAX refuses a CPU by itself.
    refuse_cpu = job.environment == "pytorch" and platform != "cpu"
    return [*arguments, "--gpu"] if refuse_cpu else arguments


def measure_peer(
    job: Job, work: compare.Work, flags: argparse.Namespace, limit_seconds: float
) -> Record | None:
    """Measures a contender; returns its record, or None if it took too long."""
    record = {"name": job.name, "dtype": job.dtype}
    command = [flags.python[job.environment], *peer_arguments(job, work, flags.platform)]
    started = time.monotonic()
    try:
        stdout = compare.run(command, timeout_seconds=limit_seconds)
        figures = compare.read_answer(stdout, work)
    except compare.ContenderError as error:
        if time.monotonic() - started >= limit_seconds:
            return None
        return {**record, "error": str(error)}
    answer = json.loads(compare.last_line(stdout))
    jax_version = answer.get("jax_version")
    return {
        **record,
        "train": answer.get("train_windows") or [figures["train_images_per_second"]],
        "eval": answer.get("eval_windows") or [figures["eval_images_per_second"]],
        "rounds": 1,
        "device": figures["device"],
        "memory_bytes": answer.get("peak_memory_bytes"),
        "compile_seconds": answer.get("compile_seconds"),
        "version": answer.get("version") or (jax_version and f"jax {jax_version}"),
    }


def measure_ours(
    entries: Sequence[Entry],
    results: Results,
    flags: argparse.Namespace,
    limit_seconds: float,
) -> None:
    """Runs `gpu_ours.py`, which adds to the results, and records its failure."""
    command = [
        *(flags.python["ours"], str(compare.BENCHMARKS / "gpu_ours.py")),
        f"--deadline={time.time() + limit_seconds}",
        *(f"--{name}={getattr(flags, name)}" for name in OUR_FLAGS),
        *map(str, entries),
    ]
    error = run_aloud(command, timeout_seconds=limit_seconds)
    results.reload()
    for entry in entries if error else ():
        name, dtype = entry.key
        if not results.get(entry.key):
            results.put({"name": name, "dtype": dtype, "error": error})


OUR_FLAGS = (
    "output",
    "run",
    "batch_size",
    "image_size",
    "width_multiplier",
    "seconds",
    "rounds",
)


def run_aloud(command: Sequence[str], *, timeout_seconds: float) -> str:
    """Runs a program in the repository's root and prints its stderr.

    Returns:
      The error in one line, or "" if the program succeeded or ran out of time.
    """
    expired = threading.Event()
    last = ""
    with subprocess.Popen(
        command,
        cwd=compare.REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:

        def stop() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(timeout_seconds, stop)
        timer.start()
        try:
            for line in process.stderr:
                print(line, end="", file=sys.stderr, flush=True)
                last = line.strip() or last
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
    if expired.is_set() or not code:
        return ""
    return f"exit code {code}: {last}"


def measure(flags: argparse.Namespace, results: Results, deadline: float) -> None:
    """Runs every job that has something to measure, until the deadline."""
    jobs = [job for job in JOBS if missing(job, flags, results)]
    for number, job in enumerate(jobs):
        left = deadline - time.monotonic()
        limit = left if job is jobs[-1] else left * job.share
        title = f"{number + 1} of {len(jobs)}: {job.name} {job.dtype}".rstrip()
        if limit < MIN_JOB_SECONDS:
            print(f"{title}: out of time", file=sys.stderr)
            continue
        print(f"{title}, at most {limit:.0f} s", file=sys.stderr)
        if job.name == OURS:
            measure_ours(missing(job, flags, results), results, flags, limit)
            continue
        # A peer measures ten windows.
        seconds = flags.seconds * 10
        work = compare.Work(job.dtype, flags.batch_size, flags.image_size, seconds)
        record = measure_peer(job, work, flags, limit)
        if record:
            results.put({**record, "run": flags.run})


def missing(job: Job, flags: argparse.Namespace, results: Results) -> list[Any]:
    """Lists what a job still has to measure: entries of our network, or the job itself."""
    if job.name != OURS:
        asked = [job] if job.name in flags.only and job.dtype in flags.dtypes else []
    else:
        asked = [e for e in our_entries(flags.dtypes) if flags.only & set(names_of(e))]
    return [each for each in asked if not results.is_done(each.key)]


def names_of(entry: Entry) -> tuple[str, ...]:
    """Returns the names by which `--only` selects an entry."""
    return OURS, (entry.choice if entry.variant == "seed" else entry.variant)


def asked_keys(flags: argparse.Namespace) -> list[Key]:
    """Lists the contenders of the table in its order."""
    ours = [e.key for e in our_entries(flags.dtypes) if flags.only & set(names_of(e))]
    jobs = [j.key for j in JOBS if j.name in flags.only and j.dtype in flags.dtypes]
    return sorted(ours + jobs, key=lambda key: DTYPES.index(key[1]))


def table(keys: Sequence[Key], results: Results) -> str:
    """Formats a Markdown table with a line for every contender, measured or not."""
    reference = results.get(REFERENCE)
    limits = {
        record["dtype"]: record["limit"]
        for record in results
        if record["name"].startswith("seed ") and record.get("limit")
    }
    numbers = len(TABLE_HEAD) - 2
    lines = [compare.row(TABLE_HEAD), compare.row(["---"] * 2 + ["---:"] * numbers)]
    for name, dtype in keys:
        record = results.get((name, dtype))
        if "error" in record or not record:
            error = f"failed: {record['error']}" if record else "not measured: out of time"
            empty = [""] * (numbers - 1)
            lines.append(compare.row([name, dtype, error.replace("|", "\\|"), *empty]))
            continue
        # A contender without a limit of its own computes `seed`.
        limit = record["limit"] if "limit" in record else limits.get(dtype)
        memory, compiled = record.get("memory_bytes"), record.get("compile_seconds")
        cells = [
            record.get("title", name) + ("" if record["rounds"] else " (first window)"),
            dtype,
            compare.spread(record["train"]),
            ratio(record, reference, "train"),
            f"{statistics.median(record['train']) / limit:.0%}" if limit else "-",
            compare.spread(record["eval"]),
            ratio(record, reference, "eval"),
            f"{memory / 2**30:.2f}" if memory else "-",
            f"{compiled:.0f}" if compiled is not None else "-",
        ]
        lines.append(compare.row(cells))
    return "\n".join(lines)


def ratio(record: Record, reference: Record, figure: str) -> str:
    """Divides the median by that of the reference."""
    if not (record.get(figure) and reference.get(figure)):
        return "-"
    medians = (statistics.median(each[figure]) for each in (record, reference))
    return f"{next(medians) / next(medians):.2f}"


def report(flags: argparse.Namespace, results: Results) -> str:
    """Formats the device and the versions, the table, and the best of our networks."""
    keys = asked_keys(flags)
    records = [record for record in results if "error" not in record]
    found = {r.get("device") for r in records} | {r.get("version") for r in records}
    work = f"batch {flags.batch_size}, {flags.image_size} px"
    lines = ["; ".join([flags.machine, *sorted(found - {None}), work]).removeprefix("; ")]
    lines += ["", table(keys, results), ""]
    lines += ["x compile: the median as a multiple of torch.compile's in bfloat16."]
    runs = sorted({record["run"] for record in records})
    if len(runs) > 1:
        lines += [f"The figures are of {len(runs)} runs, which began {', '.join(runs)}."]
    choice = results.best_choice("bfloat16")
    best = results.get(Entry("bfloat16", "seed", choice).key)
    if best.get("train") and "error" not in best:
        speed = compare.figure(statistics.median(best["train"]))
        multiple = ratio(best, results.get(REFERENCE), "train")
        lines += [f"Best of ours: {choice}, {speed} img/s, {multiple} x torch.compile."]
    return "\n".join(lines)


def describe_machine(platform: str) -> str:
    """Returns the driver's description of the GPU, or "" if there is none."""
    query = "--query-gpu=name,driver_version,power.limit,clocks.max.sm"
    if platform == "cpu":
        return ""
    chosen = f"--id={os.environ['CUDA_VISIBLE_DEVICES']}"
    command = ["nvidia-smi", query, chosen, "--format=csv,noheader"]
    try:
        return compare.run(command, timeout_seconds=20).strip()
    except compare.ContenderError:
        return ""


def prepare_environment(platform: str) -> None:
    """Sets the environment variables of the contenders."""
    if platform != "cpu":
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # One GPU is measured.
        platform = f"{platform},cpu"  # JAX fails if the first platform is missing.
    os.environ["JAX_PLATFORMS"] = platform
    os.environ["JAX_TRACEBACK_FILTERING"] = "off"  # So that the last line is the error.
    paths = [str(compare.REPOSITORY), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def parse_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; an error in it ends the program with exit code 2."""
    environments = sorted({job.environment for job in JOBS})
    names = list(dict.fromkeys(job.name for job in JOBS))
    parts = [*CHOICES, "paper", "bn"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", metavar="FILE.json", help="file of the figures; continued if it exists")
    add("--budget_seconds", type=float, default=460, help="time limit of the whole command")
    add(
        "--python",
        metavar="NAME=PATH",
        action="append",
        default=[],
        help=f"interpreter with {', '.join(environments)}; default: this one",
    )
    add(
        "--only",
        default=",".join(names),
        help=f"contenders, from {', '.join(names)}, or our networks, from {parts}",
    )
    add("--dtypes", default=",".join(DTYPES))
    add("--batch_size", type=int, default=256)
    add("--image_size", type=int, default=224)
    add("--seconds", type=float, default=0.5, help="duration of a window")
    add("--rounds", type=int, default=5, help="windows of each of our networks")
    add("--width_multiplier", type=float, default=1.0, help="width of our networks")
    add("--platform", choices=("cuda", "cpu"), default="cuda")
    flags = parser.parse_args(arguments)
    flags.only, flags.dtypes = set(flags.only.split(",")), flags.dtypes.split(",")
    paths = dict(pair.partition("=")[::2] for pair in flags.python)
    for flag, values, known in (
        ("only", flags.only, names + parts),
        ("dtypes", flags.dtypes, DTYPES),
        ("python", paths, environments),
    ):
        if unknown := sorted(set(values) - set(known)):
            parser.error(
                f"--{flag} has {unknown[0]!r}, which is none of {', '.join(known)}"
            )
    if flags.rounds < 1:
        parser.error("--rounds must be at least 1")
    given = {name: str(compare.absolute_path(path)) for name, path in paths.items()}
    flags.python = {**dict.fromkeys(environments, sys.executable), **given}
    return flags


def main() -> None:
    """Prints the table; the exit code is 1 if a contender failed."""
    deadline = time.monotonic()
    flags = parse_flags()
    deadline += flags.budget_seconds
    prepare_environment(flags.platform)
    flags.machine = describe_machine(flags.platform)
    flags.run = time.strftime("%Y-%m-%dT%H:%M:%S")
    with contextlib.ExitStack() as stack:
        if not flags.output:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            flags.output = str(pathlib.Path(folder) / "results.json")
        flags.output = str(compare.absolute_path(flags.output))
        try:
            results = Results(pathlib.Path(flags.output), work_of(flags))
        except ResultsError as error:
            sys.exit(_refuse(error))
        try:
            measure(flags, results, deadline)
        except KeyboardInterrupt:
            results.reload()
            print("stopped: the table shows the figures so far", file=sys.stderr)
        print(report(flags, results))
        failed = any("error" in results.get(key) for key in asked_keys(flags))
    sys.exit(failed)


def work_of(flags: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings that all figures of a table must share."""
    names = ("batch_size", "image_size", "width_multiplier", "platform")
    return {name: getattr(flags, name) for name in names}


def _refuse(error: Exception) -> int:
    print(f"gpu.py: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
