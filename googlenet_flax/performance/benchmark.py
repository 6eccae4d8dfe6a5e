"""Measurements of the command `googlenet_flax.benchmark`.

Each rate is the median of up to ten windows of calls after a warm-up.

- "Training" is the step of `googlenet_flax.main`, with batches from the host.
- "Forward only" is the computation of the logits of the main classifier from images that
  are already preprocessed and on the devices, float32 `[B, H, W, C]` on each.
- "Input pipeline" is the host's work for a batch (reading, decoding, gathering) when
  nothing else runs. The transfer to the devices belongs to the training step.
"""

import dataclasses
import resource
import sys
import time
from contextlib import closing
from typing import Any

import jax
import psutil

from googlenet_flax.analysis.cost import image_cost
from googlenet_flax.config import MAX_NUMBER, Config
from googlenet_flax.data.synthetic import random_images
from googlenet_flax.performance.limits import find_limits
from googlenet_flax.performance.report import Report
from googlenet_flax.performance.timing import call_seconds, median_seconds
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.runtime.memory import give_large_steps_back
from googlenet_flax.runtime.streams import tell
from googlenet_flax.training.experiment import (
    Experiment,
    build_experiment,
    load_config_split,
)
from googlenet_flax.training.schedule import steps_per_epoch
from googlenet_flax.training.state import TrainState

CACHE_HIT = "/jax/compilation_cache/cache_hits"  # Event of `jax.monitoring`.


def benchmark(config: Config, devices: list[jax.Device], seconds: float) -> Report:
    """Measures the speed of training, of the forward pass and of the input pipeline.

    The weights are random, and the training images are noise. The devices split each batch.
    Each rate is measured for `seconds`, over at least three calls.

    Raises:
      UserError: The config is wrong, or the devices cannot share its batch.
    """
    experiment = synthetic_experiment(config, devices)
    cost = image_cost(
        experiment.description.create_model(),
        config.image_size,
        last_layers_only=config.trainable == "head",
    )
    training, state = _measure_training(experiment, seconds)
    rate = training["train_images_per_second"]
    eval_rate = _measure_forward(experiment, state, seconds)
    input_rate = measure_input(experiment, seconds)
    tell("measuring the limits of the devices ...")
    limits = find_limits(devices, config.dtype, seconds)
    bounds = limits.training_rates(cost)
    return Report(
        **training,
        eval_images_per_second=eval_rate,
        input_images_per_second=input_rate,
        flops_per_image=cost.training_flops,
        forward_flops_per_image=cost.forward_flops,
        bytes_per_image=cost.training_bytes,
        share_of_compute_limit=rate / bounds["operations"],
        share_of_bandwidth_limit=rate / bounds["memory traffic"],
        limits_measured=limits.measured,
        input_share=None if input_rate is None else input_rate / rate,
        device=devices[0].device_kind,
        num_devices=len(devices),
        dtype=config.dtype,
        batch_size=config.batch_size,
        image_size=config.image_size,
        variant=config.variant,
        jax_version=jax.__version__,
    )


def synthetic_experiment(config: Config, devices: list[jax.Device]) -> Experiment:
    """Builds the experiment of a config with noise as its data and an endless run."""
    noise = random_images(
        config.dataset,
        num_examples=config.batch_size,
        storage_size=config.storage_size,
        channels=config.input_channels,
    )
    endless = dataclasses.replace(config, max_steps=MAX_NUMBER)
    return build_experiment(endless, devices, train_set=noise, eval_set=noise)


def _measure_training(
    experiment: Experiment, seconds: float
) -> tuple[dict[str, Any], TrainState]:
    """Measures compilation, first step and rate; returns report fields and last state."""
    tell("measuring the first training step ...")
    state, batches, seed = experiment.fresh_state(), experiment.batches(0), experiment.seed
    step: Any = experiment.train_steps[-1]  # Has the method `lower` of a jitted function.
    batch = next(batches)
    events: list[str] = []

    def listen(event: str, **_: Any) -> None:
        events.append(event)

    jax.monitoring.register_event_listener(listen)
    started = time.monotonic()
    compiled = step.lower(state, batch, seed).compile()  # The calls below do not recompile.
    give_large_steps_back(compiled)
    compile_seconds = time.monotonic() - started
    jax.monitoring.unregister_event_listener(listen)
    state, metrics = step(state, batch, seed)
    jax.block_until_ready(metrics)
    first_step_seconds = time.time() - psutil.Process().create_time()

    def next_step() -> Any:
        nonlocal state
        state, metrics = step(state, next(batches), seed)
        return metrics

    tell("measuring training ...")
    step_seconds = median_seconds(call_seconds(next_step, seconds))
    fields = {
        "train_images_per_second": experiment.config.batch_size / step_seconds,
        "compile_seconds": compile_seconds,
        "compilation_cached": CACHE_HIT in events,
        "first_step_seconds": first_step_seconds,
        "peak_memory_bytes": _peak_memory_bytes(experiment.devices),
    }
    return fields, state


def _measure_forward(experiment: Experiment, state: TrainState, seconds: float) -> float:
    """Measures images per second through the main classifier in inference."""
    tell("measuring forward only ...")
    description, devices = experiment.description, experiment.devices
    model = description.create_model(devices)

    def logits(variables: Any, images: jax.Array) -> jax.Array:
        output: Any = model.apply(variables, images, train=False)
        return output.logits

    preprocess = jax.pmap(description.preprocess.__call__, devices=devices)
    forward = jax.pmap(logits, in_axes=(None, 0), devices=devices)
    stored = next(experiment.batches(0))["image"]
    num_devices, shard_size = stored.shape[:2]
    part_size = shard_size // experiment.config.accumulation_steps
    images = preprocess(stored[:, :part_size])
    durations = call_seconds(lambda: forward(state.variables, images), seconds)
    return num_devices * part_size / median_seconds(durations)


def measure_input(experiment: Experiment, seconds: float) -> float | None:
    """Measures how many images per second of the real data the host reads.

    Returns:
      The rate, or None if the data cannot be read; the reason is printed to stderr.
    """
    tell("measuring the input pipeline ...")
    config = experiment.config
    try:
        train_set = load_config_split(config, config.train_split, may_prepare=False)
        steps_per_epoch(len(train_set), config.batch_size)
        real = dataclasses.replace(experiment, train_set=train_set)
        with closing(real.batches(0)) as batches:
            batch_seconds = median_seconds(call_seconds(lambda: next(batches), seconds))
    except UserError as error:
        tell(f"input not measured: {error}")
        return None
    return config.batch_size / batch_seconds


def _peak_memory_bytes(devices: list[jax.Device]) -> int:
    """Returns the peak memory so far, of the device that needed the most.

    CPU devices do not count their memory; for them it is the peak of this process.
    """
    counts = [device.memory_stats() or {} for device in devices]
    if all("peak_bytes_in_use" in count for count in counts):
        return max(count["peak_bytes_in_use"] for count in counts)
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
