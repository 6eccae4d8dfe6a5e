"""Classifies picture files with a trained network.

googlenet predict --workdir=DIR IMAGE_OR_FOLDER...
"""

import functools
import json

from googlenet_flax.data.decode import printable
from googlenet_flax.preprocessing.crops import CROP_NUMBERS
from googlenet_flax.runs.prediction import (
    Prediction,
    describe_missing,
    find_pictures,
    predict,
)
from googlenet_flax.runs.predictor import Predictor, devices_for
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.command import add_run_flags, argument_parser, running
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.runtime.streams import tell


def main() -> None:
    """Runs the command."""
    parser = argument_parser("predict", __doc__)
    add = parser.add_argument
    add("paths", nargs="+", metavar="IMAGE_OR_FOLDER", help="pictures or folders of them")
    add_run_flags(parser)
    add("--top", type=int, default=5, help="classes to print for each picture; default: 5")
    add("--crops", type=int, default=1, choices=CROP_NUMBERS, help="crops to average over")
    add("--batch_size", type=int, default=32, help="pictures per batch; default: 32")
    add("--json", action="store_true", help="print one JSON object per picture")
    args = parser.parse_args()
    with running():
        for name in ("top", "batch_size"):
            if getattr(args, name) < 1:
                raise UserError(f"--{name} is {getattr(args, name)} but must be 1 or more")
        pictures, empty_folders = find_pictures(args.paths)
        workdir = Workdir(args.workdir)
        predictor = Predictor.load(workdir, args.checkpoint, devices_for(workdir))
        for note in predictor.description.notes:
            tell(note)
        predictions = predict(
            predictor,
            pictures,
            top=args.top,
            batch_size=args.batch_size,
            num_crops=args.crops,
        )
        show = _print_json
        if not args.json:
            width = max(len(printable(path)) for path in (*pictures, "picture"))
            print(f"{'picture':{width}}  probability  class", flush=True)
            show = functools.partial(_print_rows, width=width)
        failed = 0
        for prediction in predictions:
            show(prediction)
            if prediction.error:
                failed += 1
                tell(f"{printable(prediction.path)} cannot be read: {prediction.error}")
        if missing := describe_missing(failed, len(pictures), empty_folders):
            raise UserError(missing)


def _print_rows(prediction: Prediction, width: int) -> None:
    """Prints one row per class."""
    label = printable(prediction.path)
    for name, probability in prediction.classes:
        print(f"{label:{width}}  {probability:11.2%}  {name}", flush=True)
        label = ""


def _print_json(prediction: Prediction) -> None:
    """Prints one JSON object."""
    row: dict[str, object] = {"picture": printable(prediction.path)}
    if prediction.error:
        row["error"] = prediction.error
    else:
        row["classes"] = [{"name": n, "probability": p} for n, p in prediction.classes]
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
