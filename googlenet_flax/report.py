"""Writes an HTML page about a run, or one that compares several runs.

googlenet report --workdir=DIR [--image=FILE]
googlenet report --workdir=DIR1,DIR2

The run may still be in progress or interrupted, and is not changed. The page says which
parts are missing and why.
"""

import os
import pathlib
from typing import Any

from googlenet_flax.data.decode import printable
from googlenet_flax.reports.comparison_page import create_comparison_page
from googlenet_flax.reports.gather import gather
from googlenet_flax.reports.record import RunRecord
from googlenet_flax.reports.run_page import create_run_page
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.command import add_data_flags, argument_parser, running
from googlenet_flax.runtime.errors import UserError, out_of_memory_hint, writing
from googlenet_flax.runtime.files import OUT_HINT, check_writable, file_path
from googlenet_flax.runtime.streams import tell


def main() -> None:
    """Runs the command."""
    parser = argument_parser("report", __doc__)
    add = parser.add_argument
    workdir_help = "directory of a run, or of several to compare, as DIR1,DIR2"
    add("--workdir", required=True, help=workdir_help)
    out_help = "FILE.html to write, and its figures as FILE_NAME.png; default: DIR/report/"
    add("--out", type=file_path, help=out_help)
    add("--checkpoint", help="checkpoint: best (default), latest or a step")
    image_help = "picture whose activations are shown; default: the first one tested"
    add("--image", help=image_help)
    examples_help = "number of examples of the split to test; default: 0, which tests all"
    add("--max_examples", type=int, help=examples_help)
    add_data_flags(parser)
    flags = vars(parser.parse_args())
    hint = "lower --batch_size or, if a run holds the device, set JAX_PLATFORMS=cpu"
    with running(reads_split=True), out_of_memory_hint(hint):
        print(printable(_write_report(**flags)))


def _write_report(*, workdir: str, out: pathlib.Path | None, **flags: Any) -> pathlib.Path:
    """Writes the page of one run, or the page that compares several; returns the file."""
    is_path = os.path.isdir(os.path.expanduser(workdir))  # A name may hold a comma.
    paths = [workdir] if is_path else [path for path in workdir.split(",") if path]
    unique = {os.path.realpath(each.path): each for each in map(Workdir, paths)}
    workdirs = list(unique.values())
    if not workdirs:
        raise UserError("name a run with --workdir=DIR, or several with DIR1,DIR2")
    given = {name: value for name, value in flags.items() if value is not None}
    if given.get("max_examples", 0) < 0:
        raise UserError(f"--max_examples is {given['max_examples']} but must be 0 or more")
    for each in workdirs:
        each.read_config()  # Refuses a directory without a run.
    is_one = len(workdirs) == 1
    if given and not is_one:
        flag = next(iter(given)).replace("eval_split", "split")
        raise UserError(f"--{flag} is for the report of one run: name one --workdir")
    name = "index.html" if is_one else "comparison.html"
    file = out or workdirs[0].path / "report" / name
    if file.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out is {printable(file)} but must end in .html")
    with writing(file.parent, OUT_HINT):
        file.parent.mkdir(parents=True, exist_ok=True)
    check_writable(file)
    if is_one:
        material = gather(workdirs[0], **given)
        for reason in material.missing:
            tell(reason)
        page = create_run_page(material)
    else:
        page = create_comparison_page([RunRecord.read(each) for each in workdirs])
    page.write(file, prefix=f"{out.stem}_" if out else "")
    return file


if __name__ == "__main__":
    main()
