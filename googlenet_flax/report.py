"""Writes an HTML page about a run, or one that compares several runs.

python -m googlenet_flax.report --workdir=DIR [--image=FILE]
python -m googlenet_flax.report --workdir=DIR1,DIR2

The run may still be in progress or interrupted, and is not changed. The page says which
parts are missing and why.
"""

import argparse

from googlenet_flax.data.decode import printable
from googlenet_flax.reports.gather import find_runs, write_report
from googlenet_flax.runs.checkpoint_evaluation import EvaluationData
from googlenet_flax.runtime.command import argument_parser, running
from googlenet_flax.runtime.errors import UserError, out_of_memory_hint

# Default and help of each flag that a comparison of several runs does not take.
ONE_RUN_FLAGS = {
    "checkpoint": ("best", "checkpoint: best (default), latest or a step"),
    "image": ("", "picture whose activations are shown; default: the first one tested"),
    "max_examples": (0, "number of examples of the split to test; 0 tests all"),
    "dataset": ("", "data set to test on; default: the run's"),
    "data_dir": ("", "folder of the data; default: the run's"),
    "split": ("", "TFDS split; default: the run's eval_split"),
}


def main() -> None:
    """Runs the command."""
    args = _parse_arguments()
    hint = "if a run holds the device, set JAX_PLATFORMS=cpu"
    with running(), out_of_memory_hint(hint):
        if args.max_examples < 0:
            raise UserError(f"--max_examples is {args.max_examples} but must be 0 or more")
        workdirs = find_runs(args.workdir)
        for name, (default, _) in ONE_RUN_FLAGS.items():
            if len(workdirs) > 1 and getattr(args, name) != default:
                raise UserError(
                    f"--{name} is for the report of one run: name one --workdir"
                )
        file = write_report(
            workdirs,
            args.out,
            checkpoint=args.checkpoint,
            data=EvaluationData(args.dataset, args.data_dir, args.split),
            image=args.image,
            max_examples=args.max_examples,
        )
        print(printable(file))


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser("report", __doc__)
    add = parser.add_argument
    add(
        "--workdir",
        required=True,
        help="directory of a run, or of several to compare, as DIR1,DIR2",
    )
    add("--out", default="", help="HTML file to write; default: DIR/report/index.html")
    for name, (default, text) in ONE_RUN_FLAGS.items():
        add(f"--{name}", type=type(default), default=default, help=text)
    return parser.parse_args()


if __name__ == "__main__":
    main()
