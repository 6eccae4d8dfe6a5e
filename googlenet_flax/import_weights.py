"""Imports the weights of another implementation, or of an export, into a workdir.

googlenet import-weights --from=FORMAT [--weights=FILE] --workdir=DIR
"""

import jax

from googlenet_flax.importers import formats
from googlenet_flax.importers.published import describe_published, fetch_published
from googlenet_flax.runtime.command import argument_parser, running
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.runtime.files import file_path


def main() -> None:
    """Runs the command."""
    parser = argument_parser("import_weights", __doc__)
    add = parser.add_argument
    kinds = (*formats.FORMATS, formats.EXPORTED)
    add("--from", required=True, choices=kinds, dest="format_name", help="file format")
    add(
        "--weights",
        type=file_path,
        help="file of weights to import; default: the published weights of torchvision or "
        "caffe, which are downloaded",
    )
    add("--workdir", required=True, help="new directory for the imported network")
    size_help = "input size in pixels; default: 224, or that of an exported network"
    add("--image_size", type=int, help=size_help)
    add("--class_names", type=file_path, help="text file with one class name per line")
    add(
        "--transform_input",
        choices=("true", "false"),
        help="whether to normalize the input as torchvision's transform_input does; "
        "default: true only for torchvision's own trained weights",
    )
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # Nothing here needs an accelerator.
    with running():
        if args.transform_input and args.format_name != "torchvision":
            raise UserError(
                "--transform_input is for --from=torchvision alone: leave it out"
            )
        formats.check_unused(args.workdir)
        names = formats.read_class_names(args.class_names) if args.class_names else ()
        imported = formats.read_original(
            args.format_name,
            args.weights or fetch_published(args.format_name),
            image_size=args.image_size,
            class_names=names,
            transform_input={"true": True, "false": False}.get(args.transform_input),
        )
        formats.write_import(imported, args.workdir)
        print(describe_published(imported.origin["sha256"]), end="")
        print(f"{formats.describe_import(imported)}\nDone: {args.workdir}")


if __name__ == "__main__":
    main()
