"""Trains GoogLeNet from a config file; short on purpose, `train.py` does the work.

python -m googlenet_flax.main --config=configs/cifar10.py --workdir=DIR
"""

from absl import flags

from googlenet_flax import command_line
from googlenet_flax.train import train_and_evaluate

CONFIG = command_line.define_config()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run; resumed if it exists."
)


def _train() -> None:
    train_and_evaluate(CONFIG.value, str(WORKDIR.value))


def main() -> None:
    """The command."""
    command_line.run(_train, CONFIG, required=(CONFIG, WORKDIR))


if __name__ == "__main__":
    main()
