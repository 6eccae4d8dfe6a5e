"""Writes a trained network as a file for other programs.

googlenet export --workdir=DIR --format=onnx --out=FILE
"""

from collections.abc import Mapping

import jax

from googlenet_flax.config import Config
from googlenet_flax.exporters.formats import FORMATS, export, write_files
from googlenet_flax.runs.checkpoint import best_name
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.command import add_run_flags, argument_parser, running
from googlenet_flax.runtime.environment import local_devices
from googlenet_flax.runtime.files import check_writable, file_path
from googlenet_flax.runtime.streams import tell


def main() -> None:
    """Runs the command."""
    parser = argument_parser("export", __doc__)
    add = parser.add_argument
    add_run_flags(parser)
    add("--format", required=True, choices=FORMATS, dest="format_name", help="file format")
    out_help = "file to write; stablehlo also writes FILE.json, and safetensors FILE.md"
    add("--out", required=True, type=file_path, help=out_help)
    heads_help = "also export the heads' logits; safetensors always has their weights"
    add("--aux_heads", action="store_true", help=heads_help)
    args = parser.parse_args()
    # Exported files are verified in full float32 precision, which accelerators do not use
    # by default.
    jax.config.update("jax_platforms", "cpu")
    with running():
        check_writable(args.out)
        workdir = Workdir(args.workdir)
        predictor = Predictor.load(workdir, args.checkpoint, local_devices()[:1])
        exported = export(
            predictor,
            args.format_name,
            aux_heads=args.aux_heads,
            accuracy=_accuracy(workdir.load_config(), predictor.metrics),
        )
        write_files(args.out, exported, args.format_name)
        names = predictor.description.class_names
        if "input" in exported.metadata:
            print(f"input: {exported.metadata['input']}")
        for note in predictor.description.notes if args.aux_heads else ():
            tell(note)
        print(
            f"{len(names)} classes: {names[0]!r} to {names[-1]!r}\n"
            f"{exported.verified}\n"
            f"Done: {args.out}, {len(exported.data) / 1e6:.1f} MB, from checkpoint "
            f"{predictor.checkpoint_step}"
        )


def _accuracy(config: Config | None, metrics: Mapping[str, float] | None) -> str:
    """Says how accurate a checkpoint is; "" if the run has not evaluated it."""
    if config is None or metrics is None:
        return ""
    accuracy = metrics[best_name(metrics)]
    return f"{accuracy:.2%} on the split {config.eval_split} of {config.dataset}"


if __name__ == "__main__":
    main()
