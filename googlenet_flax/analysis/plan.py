"""The plan of a run, described in words and numbers without training."""

import math
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

from googlenet_flax.analysis.cost import ImageCost, image_cost
from googlenet_flax.analysis.table1 import format_table_1
from googlenet_flax.analysis.target import Target, collectives, compile_for
from googlenet_flax.config import Config
from googlenet_flax.data import Split
from googlenet_flax.data.splits import split_positions
from googlenet_flax.data.synthetic import SPLIT_SIZES, black_images
from googlenet_flax.runtime.environment import local_devices
from googlenet_flax.runtime.errors import MissingDataError
from googlenet_flax.runtime.memory import step_bytes
from googlenet_flax.runtime.progress import call_with_clock
from googlenet_flax.training.experiment import (
    Experiment,
    build_experiment,
    load_config_split,
)

NEED_DATA = ("steps", "image size", "learning rate", "evaluations", "operations")
RATE_SHARES = (0, 0.25, 0.5, 0.75, 1)  # Parts of the run at which the rate is listed.


def describe_run(config: Config, target: Target | None = None) -> str:
    """Describes the network as Table 1 prints it, and the plan of the run.

    The data are read if they are there, so errors in them are found, but nothing is
    prepared or trained. Missing data are replaced by stand-ins of the same sizes, if the
    sizes are known. The plan is for `target`, or for the devices of this process if None.

    Raises:
      UserError: The config or the data are wrong, the target's devices cannot share a
        batch, or a step does not fit into their memory.
    """
    splits, unknown = _load_or_stand_in(config)
    devices = target.devices if target else local_devices()
    experiment = build_experiment(config, devices, *splits)
    model = experiment.description.create_model()
    plan = _plan(experiment, target)
    plan |= {name: text for name, text in unknown.items() if name in plan}
    lines = [f"{name + ':':<14} {text}" for name, text in plan.items()]
    return "\n".join([format_table_1(model, config.image_size), "", *lines])


def _load_or_stand_in(config: Config) -> tuple[list[Split], dict[str, str]]:
    """Loads both splits, or creates stand-ins of the same sizes for missing data.

    If the sizes are not known either, the stand-ins hold one batch.

    Returns:
      The splits, and a text for each line of the plan that needs the missing data.
    """
    names = config.train_split, config.eval_split
    counts, unknown = [config.batch_size, config.batch_size], {}
    try:
        return [load_config_split(config, name, may_prepare=False) for name in names], {}
    except MissingDataError as error:
        if sizes := SPLIT_SIZES.get(config.dataset.partition(":")[0]):
            parts = [split_positions(name, sizes) for name in names]
            counts = [sum(rows.stop - rows.start for _, rows in part) for part in parts]
        else:
            unknown = dict.fromkeys(NEED_DATA, "unknown without the data")
            unknown["data"] = f"unknown, and 1,000 classes assumed: {error}"
    stand_ins: list[Split] = [
        black_images(
            config.dataset,
            num_examples=count,
            storage_size=config.storage_size,
            channels=config.input_channels,
        )
        for count in counts
    ]
    return stand_ins, unknown


def _plan(experiment: Experiment, target: Target | None) -> dict[str, str]:
    """Describes each aspect of a run in words."""
    config, devices = experiment.config, experiment.devices
    total_steps = experiment.total_steps
    epochs = total_steps / experiment.epoch_steps
    plan = {
        "data": f"{config.dataset}, {len(experiment.train_set):,} images to train on "
        f"({config.train_split}), {len(experiment.eval_set):,} to evaluate on "
        f"({config.eval_split}), {len(experiment.description.class_names)} classes",
        "steps": f"{total_steps:,} of {config.batch_size} images, "
        f"{experiment.epoch_steps:,} an epoch, {epochs:g} epochs, on {len(devices)} x "
        f"{devices[0].device_kind}",
    }
    if experiment.stage_ends:
        *early, (last_size, _) = experiment.stages
        sizes = [f"{size} px to step {steps.stop:,}" for size, steps in early]
        plan["image size"] = ", ".join([*sizes, f"{last_size} px to the end"])
    rates = ", ".join(
        f"{experiment.learning_rate(round(share * (total_steps - 1))):.3g} at {share:.0%}"
        for share in RATE_SHARES
    )
    evaluations = math.ceil(epochs / config.eval_every_epochs)
    model = experiment.description.create_model()
    last_layers_only = config.trainable == "head"
    cost_at = cache(partial(image_cost, model, last_layers_only=last_layers_only))
    largest, steps = max(experiment.stages, key=lambda stage: stage[0])
    cost = cost_at(largest)
    flops = config.batch_size * sum(
        cost_at(size).training_flops * len(steps) for size, steps in experiment.stages
    )
    return {
        **plan,
        "learning rate": f"{rates} ({config.schedule})",
        "evaluations": f"{evaluations}, each saves a checkpoint",
        "operations": f"{cost.training_flops / 1e9:.3g} GFLOP to train on an image of "
        f"{largest} px, {flops / 1e15:.3g} PFLOP in all",
        **_compiled_step(experiment, steps.start, cost, target),
    }


def _compiled_step(
    experiment: Experiment, step: int, cost: ImageCost, target: Target | None
) -> dict[str, str]:
    """Compiles the update after `step` updates, and describes the compiled program."""
    compile_step = partial(experiment.compile_train_step, step)
    if target is None:
        compiled = call_with_clock("compiling the training step", compile_step)
        return {"memory": _memory(compiled.memory_analysis())}
    compiled = compile_for(target, compile_step)
    exchanges = [
        f"{count} {kind} ({size / 1e6:.3g} MB in all)"
        for kind, (count, size) in collectives(compiled.as_text()).items()
    ]
    limits = target.chip.limits(len(target.devices), experiment.config.dtype)
    return {
        "target": f"{target}: the step compiles; it was not run",
        "memory": f"{_memory(compiled.memory_analysis())}; a step can have "
        f"{target.memory_gib:.3g} GiB",
        "exchange": f"{', '.join(exchanges) or 'nothing'}, on each device in a step",
        "bound": _bound(limits.training_rates(cost)),
    }


def _bound(rates: Mapping[str, float]) -> str:
    """Describes the lowest upper bound of the images per second, and then the others."""
    lowest, *others = sorted((rate, limit) for limit, rate in rates.items())
    rest = "".join(f", {rate:,.0f} by {limit}" for rate, limit in others)
    return (
        f"at most {lowest[0]:,.0f} images/s by {lowest[1]}{rest}, at the published peaks; "
        "not a prediction"
    )


def _memory(plan: Any) -> str:
    """Describes the memory of each device for a step, as the compiler plans it."""
    if plan is None:
        return "this platform's compiler does not say"
    return (
        f"{step_bytes(plan) / 2**30:.3g} GiB of each device for a step, "
        f"{plan.argument_size_in_bytes / 2**20:,.0f} MiB of it for the training state and "
        "the images, as the compiler plans it"
    )
