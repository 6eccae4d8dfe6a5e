"""Shows where the time of a training step goes on a CPU, by layer and by operation.

    python benchmarks/step_profile.py --config=configs/cifar10.py [--config.FIELD=...]

It trains on noise, as `googlenet_flax.benchmark` does, and sums the durations that
`jax.profiler` records. The sums exceed the duration of a step where operations run at the
same time. A fusion is listed under the last of its operations.
"""

import collections
import pathlib
import re
import tempfile
import time
from typing import Any

import jax
from absl import flags
from jax.profiler import ProfileData

from googlenet_flax.config import Config
from googlenet_flax.performance.benchmark import synthetic_experiment
from googlenet_flax.runtime import command_line
from googlenet_flax.runtime.memory import give_large_steps_back
from googlenet_flax.runtime.onednn import use_onednn_for

CONFIG = command_line.define_config("cifar10")
STEPS = flags.DEFINE_integer("steps", 5, "Number of steps to record.", lower_bound=1)
# `%name = ..., metadata={op_name="jit(f)/jvp(GoogLeNet)/conv1/conv/dot_general" ...}`.
INSTRUCTION = re.compile(r'%?([\w.-]+) = .*op_name="([^"]+)"')
LAYER = re.compile("(conv1|conv2_reduce|conv2|inception_[345][a-e]|aux_4[ad]|classifier)")


def record(experiment: Any, num_steps: int) -> tuple[dict[str, float], str]:
    """Returns milliseconds per step by instruction, and the text of the program.

    The duration of a whole step is printed.
    """
    state, batches, seed = experiment.fresh_state(), experiment.batches(0), experiment.seed
    step, batch = experiment.train_steps[-1], next(batches)
    compiled = step.lower(state, batch, seed).compile()
    give_large_steps_back(compiled)

    def train(state: Any) -> Any:
        return jax.block_until_ready(step(state, batch, seed)[0])

    state = train(train(state))  # The first steps also take memory from the system.
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            cpu_started, started = time.process_time(), time.monotonic()
            for _ in range(num_steps):
                state = train(state)
            seconds = time.monotonic() - started
            cpu_seconds = time.process_time() - cpu_started
        (trace,) = pathlib.Path(folder).rglob("*.xplane.pb")
        milliseconds: dict[str, float] = collections.defaultdict(float)
        for plane in ProfileData.from_file(str(trace)).planes:
            for event in (event for line in plane.lines for event in line.events):
                name, _, _ = event.name.partition("__")  # Without `__onednn$convolution`.
                milliseconds[name] += event.duration_ns / 1e6 / num_steps
    cores = cpu_seconds / seconds
    print(f"a step takes {seconds / num_steps * 1e3:.0f} ms; {cores:.2f} cores")
    return milliseconds, compiled.as_text()


def layer_of(path: str) -> str:
    """Names the layer of an operation by its path in the program."""
    if "GoogLeNet" not in path:
        return "outside the network"
    layer = LAYER.search(path.partition("GoogLeNet")[2])
    return layer[1] if layer else "between the layers"


def print_table(title: str, milliseconds: dict[str, float]) -> None:
    """Prints a table of durations of 1 ms or more, the longest first."""
    print(f"\n| {title} | ms a step |\n|---|---|")
    for name, duration in sorted(milliseconds.items(), key=lambda item: -item[1]):
        if duration >= 1:
            print(f"| {name} | {duration:.0f} |")


def main() -> None:
    """Runs the command."""

    def profile() -> None:
        config = Config.of(CONFIG.value)
        use_onednn_for(config.dtype)
        experiment = synthetic_experiment(config, jax.local_devices())
        milliseconds, program = record(experiment, STEPS.value)
        by_layer: dict[str, float] = collections.defaultdict(float)
        by_operation: dict[str, float] = collections.defaultdict(float)
        for name, path in INSTRUCTION.findall(program):
            if duration := milliseconds.get(name):
                by_layer[layer_of(path)] += duration
                way = "backward" if "transpose(" in path else "forward"
                by_operation[f"{path.rpartition('/')[2]}, {way}"] += duration
        print_table("layer", by_layer)
        print_table("operation", by_operation)

    command_line.run(profile, CONFIG)


if __name__ == "__main__":
    main()
