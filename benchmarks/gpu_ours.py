"""Measures our network in several arithmetics in one process; `gpu.py` runs this script.

A training step is `googlenet_flax.training.step.train_step` on a batch that is already on
the device. Every network is compiled and measured for a first window. Then rounds go over
the networks in the order A B C, A B C, ..., so that a drift of the clock affects all of
them.
"""

import argparse
import dataclasses
import functools
import itertools
import math
import pathlib
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import gpu
import jax
import numpy as np
import optax
import peer

from googlenet_flax.analysis.cost import image_cost
from googlenet_flax.model.convolution import STOCK, Arithmetic
from googlenet_flax.model.googlenet import GoogLeNet, create_model
from googlenet_flax.performance.limits import find_limits
from googlenet_flax.runtime.compilation_cache import use_compilation_cache
from googlenet_flax.training.losses import Objective
from googlenet_flax.training.optimizer import create_optimizer
from googlenet_flax.training.state import TrainState, create_state
from googlenet_flax.training.step import train_step

WARM_UP_STEPS = 3
LIMIT_SECONDS = 0.5  # Duration of the measurement of limits that are not known.
MARGIN_SECONDS = 3.0  # Time between the last measurement and the deadline.


@dataclasses.dataclass(frozen=True)
class Work:
    """Settings that all networks have in common."""

    batch_size: int
    image_size: int
    width_multiplier: float
    seconds: float  # Duration of a window.


def find_arithmetic(choice: str) -> Arithmetic:
    """Creates the arithmetic in which only the fields that `choice` names are on."""
    names = [] if choice == "stock" else choice.split("+")
    return dataclasses.replace(STOCK, **dict.fromkeys(names, True))


def build_model(entry: gpu.Entry, choice: str, work: Work) -> GoogLeNet:
    """Creates the network of an entry."""
    return create_model(
        entry.variant,
        num_classes=peer.NUM_CLASSES,
        dtype=entry.dtype,
        width_multiplier=work.width_multiplier,
        arithmetic=find_arithmetic(choice),
    )


@functools.cache
def _optimizer() -> optax.GradientTransformation:
    schedule = optax.constant_schedule(peer.LEARNING_RATE)
    return create_optimizer(schedule, momentum=peer.MOMENTUM, weight_decay=0.0)


@functools.cache
def _start(variant: str, work: Work) -> TrainState:
    """Creates the initial state of a variant on the host; all dtypes share it."""
    model = build_model(gpu.Entry("float32", variant, "stock"), "stock", work)
    init = partial(create_state, model, _optimizer(), image_size=work.image_size)
    return jax.device_get(jax.jit(init)(jax.random.key(0)))


@functools.cache
def _limit(variant: str, dtype: str, work: Work) -> float | None:
    """Computes the training images per second that the chip allows; None for CPUs."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return None
    model = build_model(gpu.Entry(dtype, variant, "stock"), "stock", work)
    cost = image_cost(model, work.image_size)
    limits = find_limits([device], dtype, LIMIT_SECONDS)
    return min(limits.flops / cost.training_flops, limits.bytes / cost.training_bytes)


def draw_batch(work: Work) -> dict[str, jax.Array]:
    """Draws the peers' batch in the form that `train_step` takes, on the device."""
    asked = peer.Work("float32", work.batch_size, work.image_size, work.seconds)
    images, labels = peer.draw_batch(asked)
    index = np.arange(work.batch_size, dtype=np.int32)
    return jax.device_put({"image": images, "label": labels, "index": index})


class Network:
    """One of our networks, its state and its record."""

    def __init__(self, entry: gpu.Entry, choice: str, work: Work, run: str):
        name, dtype = entry.key
        self._work = work
        self._model = build_model(entry, choice, work)
        self._state = jax.device_put(_start(entry.variant, work))
        self._steps: dict[str, Any] = {}
        self._counts: dict[str, int] = {}  # Number of steps in a window.
        self.record: gpu.Record = {
            "name": name,
            "dtype": dtype,
            "title": f"{entry.variant} {choice}",
            "run": run,
            "device": jax.devices()[0].device_kind,
            "version": f"jax {jax.__version__}",
            "limit": _limit(entry.variant, dtype, work),
            "memory_bytes": None,
            "compile_seconds": 0.0,
            "rounds": 0,
            "train": [],
            "eval": [],
        }

    def compile(self, figure: str, batch: dict[str, jax.Array]) -> None:
        """Compiles and warms up `"train"` or `"eval"`, and records a first window."""
        started = time.monotonic()
        if figure == "train":
            step = partial(
                train_step,
                model=self._model,
                tx=_optimizer(),
                inputs=lambda batch, rngs, step: batch["image"],
                objective=Objective(aux_weight=peer.AUX_WEIGHT),
                seed=0,
            )
            compiled = jax.jit(step, donate_argnums=0).lower(self._state, batch).compile()
            self.record["memory_bytes"] = _planned_bytes(compiled)
        else:
            forward = jax.jit(self._logits)
            compiled = forward.lower(self._state.variables, batch["image"]).compile()
        self.record["compile_seconds"] += time.monotonic() - started
        self._steps[figure] = compiled
        self._counts[figure] = 1
        shortest = min(self._run_window(figure, batch) for _ in range(WARM_UP_STEPS))
        self._counts[figure] = max(1, round(self._work.seconds / shortest))
        self.record[figure] = [self.speed(figure, batch)]

    def _logits(self, variables: Any, images: jax.Array) -> jax.Array:
        output: Any = self._model.apply(variables, images, train=False)
        return output.logits

    def measure_round(self, batch: dict[str, jax.Array]) -> None:
        """Adds a window of each figure; the first round replaces the first windows."""
        for figure in self._steps:
            earlier = self.record[figure] if self.record["rounds"] else []
            self.record[figure] = [*earlier, self.speed(figure, batch)]
        self.record["rounds"] += 1

    def speed(self, figure: str, batch: dict[str, jax.Array]) -> float:
        """Measures images per second in one window."""
        seconds = self._run_window(figure, batch)
        return self._work.batch_size * self._counts[figure] / seconds

    def _run_window(self, figure: str, batch: dict[str, jax.Array]) -> float:
        """Measures the seconds of a window of steps, with one wait at its end.

        Raises:
          ValueError: The loss is not finite.
        """
        step, loss = self._steps[figure], 0.0
        started = time.perf_counter()
        if figure == "train":
            for _ in range(self._counts[figure]):
                self._state, metrics = step(self._state, batch)
            jax.block_until_ready((self._state, metrics))
        else:
            for _ in range(self._counts[figure]):
                logits = step(self._state.variables, batch["image"])
            jax.block_until_ready(logits)
        seconds = time.perf_counter() - started
        if figure == "train" and not math.isfinite(loss := float(metrics["loss"])):
            raise ValueError(f"the loss is {loss}")
        return seconds


def _planned_bytes(compiled: Any) -> int | None:
    """Returns the device memory that a call needs by XLA's plan.

    The peak of the allocator would be that of the largest network so far.
    """
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    buffers = plan.argument_size_in_bytes + plan.output_size_in_bytes
    return buffers - plan.alias_size_in_bytes + plan.temp_size_in_bytes


def measure(
    entries: Sequence[gpu.Entry],
    results: gpu.Results,
    work: Work,
    *,
    rounds: int,
    deadline: float,
    run: str,
) -> None:
    """Measures the entries until the deadline, a value of `time.time()`."""
    batch = draw_batch(work)
    networks: list[Network] = []
    durations: dict[str, list[float]] = {}  # Seconds of compilation and first windows.
    for entry in entries:
        rounds_ahead = rounds * (len(networks) + 1) * 2 * work.seconds
        planned = _expected_seconds(durations, entry.dtype) + rounds_ahead
        if time.time() + planned + MARGIN_SECONDS > deadline:
            break
        started = time.monotonic()
        if network := _compile(entry, results, work, batch, run):
            networks.append(network)
        durations.setdefault(entry.dtype, []).append(time.monotonic() - started)
    for number in range(1, rounds + 1):
        _say(f"round {number} of {rounds}")
        for network in list(networks):
            if time.time() + 2 * work.seconds + MARGIN_SECONDS > deadline:
                return
            try:
                network.measure_round(batch)
            except Exception as error:
                networks.remove(network)
                _note_failure(
                    network.record["name"], network.record["dtype"], error, results
                )
                continue
            results.put(network.record)


def _expected_seconds(durations: dict[str, list[float]], dtype: str) -> float:
    """Returns the longest duration so far, without the first one of each dtype.

    The first network of a dtype takes longer, as XLA then tries its algorithms.
    """
    _, *others = durations.get(dtype) or [0.0]
    return max(others or itertools.chain(*durations.values()), default=0.0)


def _compile(
    entry: gpu.Entry,
    results: gpu.Results,
    work: Work,
    batch: dict[str, jax.Array],
    run: str,
) -> Network | None:
    """Compiles a network and records its first figures; returns None if that failed."""
    choice = entry.choice
    if choice == gpu.BEST:
        choice = results.best_choice(entry.dtype)
    _say(f"compiling {entry.variant} {choice} {entry.dtype}")
    try:
        network = Network(entry, choice, work, run)
        for figure in ("train", "eval"):
            network.compile(figure, batch)
            results.put(network.record)
    except Exception as error:  # The other networks are still measured.
        return _note_failure(*entry.key, error, results)
    train, forward = (network.record[figure][0] for figure in ("train", "eval"))
    seconds = network.record["compile_seconds"]
    _say(f"{seconds:.0f} s; train {train:.0f} img/s, forward {forward:.0f} img/s")
    return network


def _note_failure(name: str, dtype: str, error: Exception, results: gpu.Results) -> None:
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0] if lines else ''}"
    _say(f"{name} {dtype} failed: {error}")
    results.put({"name": name, "dtype": dtype, "error": text})


def _say(what: str) -> None:
    print(f"  {what}", file=sys.stderr, flush=True)


def main() -> None:
    """Measures all entries."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("output", "run"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("batch_size", "image_size", "rounds"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("width_multiplier", "seconds", "deadline"):
        parser.add_argument(f"--{name}", type=float, required=True)
    parser.add_argument("entries", nargs="+", type=gpu.Entry.parse)
    flags = parser.parse_args()
    use_compilation_cache()
    flags.platform = "cpu" if jax.default_backend() == "cpu" else "cuda"
    results = gpu.Results(pathlib.Path(flags.output), gpu.work_of(flags))
    names = [field.name for field in dataclasses.fields(Work)]
    work = Work(**{name: getattr(flags, name) for name in names})
    options = {"rounds": flags.rounds, "deadline": flags.deadline, "run": flags.run}
    measure(flags.entries, results, work, **options)


if __name__ == "__main__":
    main()
