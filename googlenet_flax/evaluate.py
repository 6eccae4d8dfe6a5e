"""Evaluates a trained network, or the averaged predictions of several.

googlenet evaluate --workdir=DIR [--crops=N] [--ensemble=DIR1,DIR2]
googlenet evaluate --workdir=DIR --expect=0.698 --tolerance=0.003
"""

import json
import os

from googlenet_flax.preprocessing.crops import CROP_NUMBERS
from googlenet_flax.runs.checkpoint_evaluation import check_accuracy, evaluate_checkpoints
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.command import (
    add_data_flags,
    argument_parser,
    data_fields,
    running,
)
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.training.evaluation import format_metrics


def main() -> None:
    """Runs the command."""
    parser = argument_parser("evaluate", __doc__)
    add = parser.add_argument
    add("--workdir", default="", help="directory of a run or import")
    add("--ensemble", default="", help="more runs to average with, as DIR1,DIR2")
    add("--checkpoint", default="best", help="checkpoint: best (default), latest or a step")
    add("--crops", type=int, default=1, choices=CROP_NUMBERS, help="crops to average over")
    raw_help = "use the checkpoint's own weights, not their average over steps"
    add("--raw_weights", action="store_true", help=raw_help)
    add_data_flags(parser)
    expect_help = (
        "expected accuracy, 0 to 1; exit with code 5 if it is off by more than --tolerance"
    )
    add("--expect", type=float, help=expect_help)
    tolerance_help = "largest difference from --expect; default: 0.001"
    add("--tolerance", type=float, default=0.001, help=tolerance_help)
    add("--json", action="store_true", help="print the metrics as one JSON object")
    args = parser.parse_args()
    with running(reads_split=True):
        paths = [path for path in (args.workdir, *args.ensemble.split(",")) if path]
        if not paths:
            raise UserError("name a run with --workdir=DIR or --ensemble=DIR1,DIR2")
        for name in ("expect", "tolerance"):
            value = getattr(args, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"--{name} is {value} but must be a fraction from 0 to 1")
        workdirs = {os.path.realpath(each.path): each for each in map(Workdir, paths)}
        metrics = evaluate_checkpoints(
            list(workdirs.values()),
            checkpoint=args.checkpoint,
            num_crops=args.crops,
            raw=args.raw_weights,
            **data_fields(args),
        )
        if args.json:
            print(json.dumps(metrics))
        else:
            print(
                f"checkpoint {metrics['step']}, {metrics['examples']:,} examples of "
                f"{metrics['dataset']} {metrics['eval_split']}: {format_metrics(metrics)}"
            )
        if args.expect is not None:
            check_accuracy(metrics["accuracy"], args.expect, args.tolerance)


if __name__ == "__main__":
    main()
