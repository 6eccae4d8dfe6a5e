"""Writes what a part of a trained network computes for pictures, as an NPZ file.

googlenet features --workdir=DIR --out=FILE.npz IMAGE_OR_FOLDER...
googlenet features --workdir=DIR --out=FILE.npz --split=test
"""

import argparse
import dataclasses

import numpy as np

from googlenet_flax.analysis import features
from googlenet_flax.analysis.endpoints import ENDPOINTS
from googlenet_flax.data.decode import printable
from googlenet_flax.runs.checkpoint_evaluation import IMPORT_DEFAULTS, evaluation_config
from googlenet_flax.runs.prediction import describe_missing, find_pictures
from googlenet_flax.runs.predictor import Predictor, devices_for
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.command import (
    add_data_flags,
    add_run_flags,
    argument_parser,
    data_fields,
    running,
)
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.runtime.files import file_path
from googlenet_flax.runtime.streams import tell
from googlenet_flax.training.experiment import load_config_split


def main() -> None:
    """Runs the command."""
    parser = argument_parser("features", __doc__)
    add = parser.add_argument
    pictures_help = "pictures or folders of them; without any, the split is read"
    add("pictures", nargs="*", metavar="IMAGE_OR_FOLDER", help=pictures_help)
    add_run_flags(parser)
    add("--out", required=True, type=file_path, help="new NPZ file to write")
    layer_help = f"part of the network: {', '.join(ENDPOINTS)}; default: pool"
    add("--layer", default="pool", choices=ENDPOINTS, metavar="LAYER", help=layer_help)
    norm_help = "l2 divides the features of each picture by their Euclidean norm"
    add("--normalize", default="none", choices=features.NORMS, help=norm_help)
    add_data_flags(parser)
    args = parser.parse_args()
    with running(reads_split=True):
        _write(args)


def _write(args: argparse.Namespace) -> None:
    """Computes and writes the features that the flags name."""
    data = data_fields(args)
    batch_size = data.pop("batch_size")
    given = [name for name, value in data.items() if value is not None]
    if args.pictures and given:
        flag = given[0].replace("eval_split", "split")
        raise UserError(
            f"--{flag} is for a split, but pictures are named too: leave out one of them"
        )
    features.check_out(args.out)
    workdir, missing = Workdir(args.workdir), ""
    run = IMPORT_DEFAULTS if args.pictures else workdir.load_config()
    config = evaluation_config(run, **data, batch_size=batch_size)
    pictures, empty_folders = find_pictures(args.pictures) if args.pictures else ([], [])
    predictor = Predictor.load(workdir, args.checkpoint, devices_for(workdir))
    extract = features.create_extractor(predictor, args.layer, args.normalize)
    if pictures:
        batches = features.picture_batches(predictor, pictures, config.batch_size)
        shape = features.write_features(args.out, extract, batches)
        failed = len(pictures) - shape[0]
        missing = describe_missing(failed, len(pictures), empty_folders)
    else:
        # The data set may have other classes than the network. Because `class_names` is
        # empty, it is read with its own classes.
        network = dataclasses.replace(predictor.description, class_names=())
        split = load_config_split(config, config.eval_split, network=network)
        batches = features.split_batches(predictor, split, config.batch_size)
        class_names = np.array(split.class_names)
        shape = features.write_features(args.out, extract, batches, class_names=class_names)
        for path, reason in split.unreadable.items():
            tell(f"skipped {path}: {reason}")
    description = predictor.description
    for note in description.notes if args.layer in description.untrained_heads else ():
        tell(note)
    print(
        f"Done: {printable(args.out)}, features {list(shape)} of {args.layer}, step "
        f"{predictor.checkpoint_step}"
    )
    if missing:
        raise UserError(missing)


if __name__ == "__main__":
    main()
