"""Classifies picture files with a trained network.

python -m googlenet_flax.predict --workdir=DIR IMAGE_OR_FOLDER...
"""

import argparse
import pathlib

import jax

from googlenet_flax.data.decode import printable
from googlenet_flax.preprocessing.crops import CROP_NUMBERS
from googlenet_flax.runs.prediction import (
    find_pictures,
    join_paths,
    predict,
    print_json,
    print_table,
)
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.command import argument_parser, running
from googlenet_flax.runtime.errors import UserError


def main() -> None:
    """Runs the command."""
    args = _parse_arguments()
    with running():
        for name in ("top", "batch_size"):
            if getattr(args, name) < 1:
                raise UserError(f"--{name} is {getattr(args, name)} but must be 1 or more")
        empty_folders: list[pathlib.Path] = []
        pictures = find_pictures(args.paths, on_empty=empty_folders.append)
        predictor = Predictor.load(
            Workdir(args.workdir), args.checkpoint, jax.local_devices()
        )
        predictions = predict(
            predictor,
            pictures,
            top=args.top,
            batch_size=args.batch_size,
            num_crops=args.crops,
        )
        if args.json:
            failed = print_json(predictions)
        else:
            width = max(len(printable(path)) for path in pictures)
            failed = print_table(predictions, width)
        problems = []
        if failed:
            problems.append(f"{failed} of {len(pictures)} pictures could not be read")
        if empty_folders:
            problems.append(f"there is no picture in {join_paths(empty_folders)}")
        if problems:
            raise UserError("; ".join(problems))


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser("predict", __doc__)
    add = parser.add_argument
    add("paths", nargs="+", metavar="IMAGE_OR_FOLDER", help="pictures or folders of them")
    add("--workdir", required=True, help="directory of a run or import")
    add("--checkpoint", default="best", help="checkpoint: best (default), latest or a step")
    add("--top", type=int, default=5, help="classes to print for each picture; default: 5")
    add("--crops", type=int, default=1, choices=CROP_NUMBERS, help="crops to average over")
    add("--batch_size", type=int, default=32, help="pictures per batch; default: 32")
    add("--json", action="store_true", help="print one JSON object per picture")
    return parser.parse_args()


if __name__ == "__main__":
    main()
