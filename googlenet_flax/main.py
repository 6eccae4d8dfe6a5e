"""Trains GoogLeNet from a config file; short on purpose, `train.py` does the work.

python -m googlenet_flax.main --config=configs/cifar10.py --workdir=DIR
"""

import contextlib

from absl import flags

from googlenet_flax.analysis.plan import describe_run
from googlenet_flax.runtime import command_line, distributed
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.train import train_and_evaluate

CONFIG = command_line.define_config()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run; resumed if it exists."
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the network and the plan of the run; train nothing."
)
COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address",
    "",
    "HOST:PORT of process 0, where --config.distributed=True cannot find it out.",
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "The same of their number.")
PROCESS_ID = flags.DEFINE_integer("process_id", -1, "The same of this one's, from 0.")


def _train() -> None:
    if DRY_RUN.value:
        print(describe_run(CONFIG.value))
    elif WORKDIR.value is None:
        raise UserError("--workdir is missing; see --help")
    else:
        with _others():
            train_and_evaluate(CONFIG.value, WORKDIR.value)


def _others() -> contextlib.AbstractContextManager:
    """The connection with other processes, if there are any."""
    named = [
        flag for flag in (COORDINATOR_ADDRESS, NUM_PROCESSES, PROCESS_ID) if flag.present
    ]
    if CONFIG.value.get("distributed") is True:
        return distributed.joined(
            COORDINATOR_ADDRESS.value, NUM_PROCESSES.value, PROCESS_ID.value
        )
    if named:
        raise UserError(f"--{named[0].name} needs --config.distributed=True")
    return contextlib.nullcontext()


def main() -> None:
    """The command."""
    command_line.run(_train, CONFIG, required=(CONFIG,))


if __name__ == "__main__":
    main()
