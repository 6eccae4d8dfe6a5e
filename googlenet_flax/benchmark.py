"""Measures a config's training speed, and compares it with the devices' limits.

googlenet benchmark [--config=RECIPE] [--config.FIELD=...] [--json]

The command trains on synthetic images with the shape of the config's data set. It measures
the input pipeline on the real data, if they are present, and downloads nothing.

The last line on stdout is one JSON object with the fields of `performance.report.Report`;
`--json` prints this line only.
"""

from absl import flags

from googlenet_flax.config import Config
from googlenet_flax.performance.benchmark import benchmark
from googlenet_flax.performance.report import print_report
from googlenet_flax.runtime import command_line
from googlenet_flax.runtime.environment import local_devices
from googlenet_flax.runtime.onednn import use_onednn_for

CONFIG = command_line.define_config("cifar10")
SECONDS = flags.DEFINE_float(
    "seconds", 10.0, "Seconds for which each rate is measured.", lower_bound=0.0
)
JSON = flags.DEFINE_boolean("json", False, "Print only the JSON line.")


def _benchmark() -> None:
    config = Config.of(CONFIG.value)
    use_onednn_for(config.dtype)
    report = benchmark(config, local_devices(), SECONDS.value)
    print_report(report, json_only=JSON.value)


def main() -> None:
    """Runs the command."""
    command_line.run(_benchmark, CONFIG)


if __name__ == "__main__":
    main()
