"""Writes a page about a run, or one that compares several; a command.

python -m googlenet_flax.report --workdir=DIR [--image=FILE]
python -m googlenet_flax.report --workdir=DIR1,DIR2

It reads a run that is still going on, or was interrupted, without disturbing it; what it
cannot show, the page says.
"""

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from googlenet_flax.data import Split
from googlenet_flax.data.decode import BadImageError, decode_image, printable
from googlenet_flax.reports.answers import collect_answers, confident_mistakes
from googlenet_flax.reports.comparison_page import create_comparison_page
from googlenet_flax.reports.look_inside import look_inside, shown_pixels
from googlenet_flax.reports.page import Page, prepare_file
from googlenet_flax.reports.record import RunRecord
from googlenet_flax.reports.run_page import (
    Inside,
    Material,
    Network,
    Tested,
    create_run_page,
)
from googlenet_flax.runs.checkpoint import DamagedCheckpointError
from googlenet_flax.runs.checkpoint_evaluation import DEFAULT_BATCH_SIZE, EvaluationData
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.compilation_cache import use_compilation_cache
from googlenet_flax.runtime.errors import (
    UserError,
    exit_on_run_error,
    out_of_memory_hint,
)
from googlenet_flax.runtime.memory import keep_freed_memory
from googlenet_flax.runtime.streams import tell

# A run that goes on may drop a checkpoint that is being read; then another is the best.
LOAD_ATTEMPTS = 3
MISTAKES = 12  # To show.
COMPARISON = "comparison.html"
# Flags about one run: default and help.
ONE_RUN_FLAGS = {
    "checkpoint": ("best", "best, latest or a step"),
    "image": ("", "picture to look inside with; default: the first one tested"),
    "max_examples": (0, "of the split to test with; 0 is all"),
    "dataset": ("", "default: the run's"),
    "data_dir": ("", "folder of the data; default: the run's"),
    "split": ("", "TFDS split; default: the run's eval_split"),
}

Picture = tuple[np.ndarray, tuple[int, int] | None, str]  # Pixels, extent and name.


def gather(
    workdir: Workdir,
    *,
    checkpoint: str,
    data: EvaluationData,
    image: str = "",
    max_examples: int = 0,
) -> Material:
    """All that the page of a run shows; what there is not is named instead.

    Args:
      workdir: Of the run.
      checkpoint: `best`, `latest` or a step.
      data: What to test on.
      image: File of the picture to look inside with; default: the first one tested.
      max_examples: Test with this many of the split; 0 is all.

    Raises:
      UserError: No such run, no checkpoint of that step, or a picture that cannot be read.
    """
    record = RunRecord.read(workdir)
    missing = []
    if not record.rows:
        reason = "these weights were imported" if record.is_imported else "none was written"
        missing.append(f"There are no curves: {reason}.")
    try:
        predictor = _load_predictor(workdir, checkpoint)
    except UserError as error:
        if checkpoint not in ("best", "latest"):
            raise
        missing.append(f"There is nothing about answers and weights: {error}.")
        return Material(record, missing=missing)
    network, tested = _network(predictor, record), None
    picture = _read_picture(image, predictor) if image else None
    try:
        split = data.load(record.config, predictor.description, may_prepare=False)
        tested = _test(predictor, split, record.config, data, max_examples)
        picture = picture or _first_picture(split, tested)
    except UserError as error:
        missing.append(f"There is nothing about answers to a data set: {error}.")
    if picture is None:
        missing.append("No picture was looked at: name one with --image=FILE.")
        return Material(record, network, tested, missing=missing)
    pixels, extent, name = picture
    view = look_inside(
        predictor.description.create_model(),
        predictor.description.preprocess,
        predictor.variables,
        pixels,
        extent,
    )
    return Material(record, network, tested, Inside(view, name), missing)


def _load_predictor(workdir: Workdir, checkpoint: str) -> Predictor:
    for attempt in range(1, LOAD_ATTEMPTS + 1):
        try:
            return Predictor.load(workdir, checkpoint, jax.local_devices()[:1])
        except DamagedCheckpointError:
            if attempt == LOAD_ATTEMPTS:
                raise
    raise AssertionError


def _network(predictor: Predictor, record: RunRecord) -> Network:
    averaging = record.config.get("averaging", "none")
    weights = "weights as imported" if record.is_imported else "weights as trained"
    return Network(
        predictor.checkpoint_step,
        predictor.description,
        weights if averaging == "none" else f"averaged weights, {averaging}",
        np.asarray(predictor.variables["params"]["conv1"]["conv"]["kernel"], np.float32),
    )


def _test(
    predictor: Predictor,
    split: Split,
    config: Mapping[str, Any],
    data: EvaluationData,
    max_examples: int,
) -> Tested:
    """Runs the network over a split, and looks up its most confident mistakes."""
    batch_size = data.batch_size or config.get("batch_size", DEFAULT_BATCH_SIZE)
    answers = collect_answers(
        predictor, split, batch_size=batch_size, max_examples=max_examples
    )
    main = answers.classifiers["main"]
    rows = confident_mistakes(main, answers.labels, MISTAKES)
    pictures = np.zeros((0, 1, 1, 3), np.uint8)
    if len(rows):
        batch = next(iter(split.batches([answers.examples[rows]])))
        pictures = shown_pixels(
            predictor.description.preprocess, batch["image"], batch.get("extent")
        )
    name = data.split or config.get("eval_split", "test")
    dataset = data.dataset or config["dataset"]
    words = f"{dataset!r}, split {name!r}"
    return Tested(answers, words, len(split), rows, pictures)


def _read_picture(image: str, predictor: Predictor) -> Picture:
    """A picture file.

    Raises:
      UserError: It cannot be read.
    """
    name = printable(image)
    try:
        return *decode_image(image, predictor.description.preprocess.storage_size), name
    except BadImageError as error:
        raise UserError(f"--image={name} cannot be read: {error}") from error


def _first_picture(split: Split, tested: Tested) -> Picture:
    """The first example that was tested."""
    example = tested.answers.examples[:1]
    batch = next(iter(split.batches([example])))
    extent = tuple(batch["extent"][0].tolist()) if "extent" in batch else None
    return batch["image"][0], extent, f"example {example[0]} of {tested.split}"


def create_page(args: argparse.Namespace) -> tuple[Page, pathlib.Path]:
    """The page that was asked for, and the file to write it to.

    Raises:
      UserError: As `gather`; a file that cannot be written; a flag of one run for several.
    """
    paths = [path for path in args.workdir.split(",") if path]
    workdirs = list({each.path.resolve(): each for each in map(Workdir, paths)}.values())
    if not workdirs:
        raise UserError("name a run with --workdir=DIR, or several with DIR1,DIR2")
    for workdir in workdirs:
        workdir.read_config()  # So that a directory without a run is refused, not made.
    is_one = len(workdirs) == 1
    for name, (default, _) in ONE_RUN_FLAGS.items():
        if not is_one and getattr(args, name) != default:
            raise UserError(f"--{name} is for the report of one run: name one --workdir")
    default_file = workdirs[0].path / "report" / ("index.html" if is_one else COMPARISON)
    file = pathlib.Path(args.out) if args.out else default_file
    prepare_file(file)  # Before the work is done.
    if not is_one:
        return create_comparison_page([RunRecord.read(each) for each in workdirs]), file
    material = gather(
        workdirs[0],
        checkpoint=args.checkpoint,
        data=EvaluationData(args.dataset, args.data_dir, args.split),
        image=args.image,
        max_examples=args.max_examples,
    )
    for reason in material.missing:
        tell(reason)
    return create_run_page(material), file


def main() -> None:
    """The command."""
    args = _parse_arguments()
    logging.set_verbosity(logging.FATAL)  # Libraries talking; errors are raised.
    use_compilation_cache()
    keep_freed_memory()
    with (
        exit_on_run_error(),
        out_of_memory_hint("if a run holds the device, set JAX_PLATFORMS=cpu"),
    ):
        if args.max_examples < 0:
            raise UserError(f"--max_examples is {args.max_examples} but must be 0 or more")
        page, file = create_page(args)
        page.write(file)
        print(printable(file))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m googlenet_flax.report", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add(
        "--workdir",
        required=True,
        help="directory of a run; several, DIR1,DIR2, to compare",
    )
    add("--out", default="", help="HTML file; default: DIR/report/index.html")
    for name, (default, text) in ONE_RUN_FLAGS.items():
        add(f"--{name}", type=type(default), default=default, help=text)
    return parser.parse_args()


if __name__ == "__main__":
    main()
