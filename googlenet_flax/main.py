"""Trains GoogLeNet from a config file; short on purpose, `train.py` does the work.

python -m googlenet_flax.main --config=configs/cifar10.py --workdir=DIR
"""

from absl import flags

from googlenet_flax import command_line
from googlenet_flax.dry_run import describe_run
from googlenet_flax.errors import UserError
from googlenet_flax.train import train_and_evaluate

CONFIG = command_line.define_config()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run; resumed if it exists."
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the network and the plan of the run; train nothing."
)


def _train() -> None:
    if DRY_RUN.value:
        print(describe_run(CONFIG.value))
    elif WORKDIR.value is None:
        raise UserError("--workdir is missing; see --help")
    else:
        train_and_evaluate(CONFIG.value, WORKDIR.value)


def main() -> None:
    """The command."""
    command_line.run(_train, CONFIG, required=(CONFIG,))


if __name__ == "__main__":
    main()
