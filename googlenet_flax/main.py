"""Trains GoogLeNet from a config file.

googlenet train --config=RECIPE [--config.FIELD=VALUE ...] [--workdir=DIR]

RECIPE is the name of a recipe, such as digits, or the path of a config file. The file
googlenet_flax/config.py explains every field.
"""

import contextlib
import os
import pathlib

from absl import flags
from ml_collections import config_flags

from googlenet_flax.analysis.plan import describe_run
from googlenet_flax.analysis.target import find_target
from googlenet_flax.config import Config
from googlenet_flax.runtime import command_line, distributed
from googlenet_flax.runtime.environment import local_devices
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.runtime.onednn import use_onednn_for
from googlenet_flax.train import train_and_evaluate

CONFIG = command_line.define_config()
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Directory of the run, which is resumed if it exists; default: runs/ and the name of "
    "the recipe.",
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the network and the plan of the run; train nothing."
)
TARGET = flags.DEFINE_string(
    "target",
    None,
    "Chips for which --dry_run compiles the step, such as tpu:v5e:4x4 or cuda:h100:8. This "
    "machine need not have them.",
)
COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address",
    None,
    "HOST:PORT of process 0; needed for several processes if JAX cannot detect it.",
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes",
    None,
    "Number of processes; needed if JAX cannot detect it.",
    lower_bound=1,
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id",
    None,
    "Number of this process from 0; needed if JAX cannot detect it.",
    lower_bound=0,
)


def _train() -> None:
    config = Config.of(CONFIG.value)
    if TARGET.value is not None:
        if not DRY_RUN.value:
            raise UserError(
                "--target needs --dry_run, because the step is only compiled: add --dry_run"
            )
        print(describe_run(config, find_target(TARGET.value)))
        return
    if DRY_RUN.value:
        if config.distributed:
            raise UserError(
                "--dry_run plans one process: set --config.distributed=False, or name the "
                "chips of all processes with --target"
            )
        use_onednn_for(config.dtype)
        print(describe_run(config))
        return
    with _joined_processes(config):
        use_onednn_for(config.dtype)
        local_devices()  # Raises a one-line error if JAX finds no device.
        train_and_evaluate(config, WORKDIR.value or _default_workdir())


def _default_workdir() -> str:
    """Returns and prints the workdir of a run without --workdir."""
    if WORKDIR.value is not None:
        raise UserError("--workdir is empty: name a directory")
    recipe = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = os.path.join("runs", pathlib.Path(recipe).stem)
    distributed.tell_once(f"workdir: {workdir} (choose another with --workdir=DIR)")
    return workdir


def _joined_processes(config: Config) -> contextlib.AbstractContextManager:
    """Connects this process to the others of the run, if there are any."""
    if config.distributed:
        return distributed.joined(
            COORDINATOR_ADDRESS.value, NUM_PROCESSES.value, PROCESS_ID.value
        )
    for flag in (COORDINATOR_ADDRESS, NUM_PROCESSES, PROCESS_ID):
        if flag.present:
            raise UserError(f"--{flag.name} needs --config.distributed=True")
    return contextlib.nullcontext()


def main() -> None:
    """Runs the command."""
    command_line.run(_train, CONFIG)


if __name__ == "__main__":
    main()
