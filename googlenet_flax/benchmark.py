"""Measures how fast a config trains, and how near its devices' limits.

python -m googlenet_flax.benchmark [--config=configs/X.py] [--config.FIELD=...] [--json]

Trains on fabricated images of the config's shape, so it needs no data set; only the input
pipeline is measured on the real one, where it is there (nothing is downloaded). The last
line on stdout is one JSON object, the fields of `performance.report.Report`; with `--json`
the only line.
"""

import jax
from absl import flags

from googlenet_flax.config import Config
from googlenet_flax.performance.benchmark import benchmark
from googlenet_flax.performance.report import print_report
from googlenet_flax.runtime import command_line

CONFIG = command_line.define_config("configs/cifar10.py")
SECONDS = flags.DEFINE_float(
    "seconds", 10.0, "To measure each figure for.", lower_bound=0.0
)
JSON = flags.DEFINE_boolean("json", False, "Print the JSON line only.")


def _benchmark() -> None:
    report = benchmark(Config.of(CONFIG.value), jax.local_devices(), SECONDS.value)
    print_report(report, json_only=JSON.value)


def main() -> None:
    """Runs the command."""
    command_line.run(_benchmark, CONFIG)


if __name__ == "__main__":
    main()
