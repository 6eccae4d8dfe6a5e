"""The plan of a run, described in words and numbers without training."""

import math

import jax

from googlenet_flax.analysis.cost import image_cost
from googlenet_flax.analysis.table1 import format_table_1
from googlenet_flax.config import Config
from googlenet_flax.data import Split
from googlenet_flax.data.fabricated import SPLIT_SIZES, stand_in
from googlenet_flax.data.splits import split_positions
from googlenet_flax.runtime.errors import MissingDataError
from googlenet_flax.training.experiment import (
    Experiment,
    build_experiment,
    load_config_split,
)

NEED_DATA = ("steps", "image size", "learning rate", "evaluations", "operations")
RATE_SHARES = (0, 0.25, 0.5, 0.75, 1)  # Parts of the run at which the rate is listed.


def describe_run(config: Config) -> str:
    """Describes the network as Table 1 prints it, and the plan of the run.

    The data are read if they are there, so errors in them are found, but nothing is
    prepared or trained. Missing data are replaced by stand-ins of the same sizes, if the
    sizes are known.

    Raises:
      UserError: The config or the data are wrong.
    """
    splits, unknown = _load_or_stand_in(config)
    experiment = build_experiment(config, jax.local_devices(), *splits)
    model = experiment.description.create_model()
    plan = {**_plan(experiment), **unknown}
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
        if sizes := SPLIT_SIZES.get(config.dataset):
            parts = [split_positions(name, sizes) for name in names]
            counts = [sum(rows.stop - rows.start for _, rows in part) for part in parts]
        else:
            unknown = dict.fromkeys(NEED_DATA, "unknown without the data")
            unknown["data"] = f"unknown, and 1,000 classes assumed: {error}"
    stand_ins: list[Split] = [
        stand_in(config.dataset, num_examples=count, storage_size=config.storage_size)
        for count in counts
    ]
    return stand_ins, unknown


def _plan(experiment: Experiment) -> dict[str, str]:
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
        sizes = [*config.progressive_image_sizes, config.image_size]
        ends = [*(f"to step {end:,}" for end in experiment.stage_ends), "to the end"]
        stages = zip(sizes, ends, strict=True)
        plan["image size"] = ", ".join(f"{size} px {end}" for size, end in stages)
    rates = ", ".join(
        f"{experiment.learning_rate(round(share * (total_steps - 1))):.3g} at {share:.0%}"
        for share in RATE_SHARES
    )
    evaluations = math.ceil(epochs / config.eval_every_epochs)
    model = experiment.description.create_model()
    head_only = config.trainable == "head"
    flops = image_cost(model, config.image_size, head_only=head_only).training_flops
    return {
        **plan,
        "learning rate": f"{rates} ({config.schedule})",
        "evaluations": f"{evaluations}, each saves a checkpoint",
        "operations": f"{flops / 1e9:.3g} GFLOP to train on an image of "
        f"{config.image_size} px, {flops * config.batch_size * total_steps / 1e15:.3g} "
        "PFLOP in all",
        "memory": _memory(experiment),
    }


def _memory(experiment: Experiment) -> str:
    """Describes the memory of each device for the largest step, as the compiler plans."""
    compiled = experiment.compile_train_step(experiment.total_steps - 1)
    plan = compiled.memory_analysis()
    if plan is None:
        return "this platform's compiler does not say"
    inputs = plan.argument_size_in_bytes
    outputs = plan.output_size_in_bytes - plan.alias_size_in_bytes
    needed = inputs + outputs + plan.temp_size_in_bytes
    return (
        f"{needed / 2**30:.3g} GiB of each device for a step, {inputs / 2**20:,.0f} MiB of "
        "it parameters, momentum and images; by the compiler's plan"
    )
