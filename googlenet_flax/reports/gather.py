"""Gathering of the contents of a report, and writing of its page."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from googlenet_flax.data import Split
from googlenet_flax.data.decode import BadImageError, decode_image, printable
from googlenet_flax.reports.answers import collect_answers, confident_mistakes
from googlenet_flax.reports.comparison_page import create_comparison_page
from googlenet_flax.reports.look_inside import look_inside, shown_pixels
from googlenet_flax.reports.page import prepare_file
from googlenet_flax.reports.record import RunRecord
from googlenet_flax.reports.run_page import (
    Inside,
    Material,
    Network,
    Tested,
    create_run_page,
)
from googlenet_flax.runs.checkpoint import DamagedCheckpointError
from googlenet_flax.runs.checkpoint_evaluation import EvaluationData
from googlenet_flax.runs.predictor import Predictor
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.runtime.streams import tell

# A run that is still going may delete a checkpoint that is being read. Then another one is
# the best.
LOAD_ATTEMPTS = 3
MISTAKES = 12  # Number of mistakes to show.
COMPARISON = "comparison.html"

Picture = tuple[np.ndarray, tuple[int, int] | None, str]  # Pixels, extent, description.


def gather(
    workdir: Workdir,
    *,
    checkpoint: str,
    data: EvaluationData,
    image: str = "",
    max_examples: int = 0,
) -> Material:
    """Gathers the contents of the page of a run.

    Contents that are not available have a reason in `missing` instead.

    Args:
      workdir: Workdir of the run.
      checkpoint: `best`, `latest` or a step.
      data: Data to test on.
      image: Picture file for the look inside; "" takes the first example that was tested.
      max_examples: Largest number of examples to test with; 0 takes all of the split.

    Raises:
      UserError: The run or the checkpoint of that step does not exist, or the picture
        cannot be read.
    """
    record = RunRecord.read(workdir)
    missing = []
    if not record.rows:
        imported = "these weights were imported"
        reason = imported if record.is_imported else "the run has no metrics yet"
        missing.append(f"There are no curves: {reason}.")
    try:
        predictor = _load_predictor(workdir, checkpoint)
    except UserError as error:
        if checkpoint not in ("best", "latest"):
            raise
        missing.append(f"Predictions and weights are not shown: {error}.")
        return Material(record, missing=missing)
    network, tested = _network(predictor, record), None
    picture = _read_picture(image, predictor) if image else None
    try:
        data = data.complete(record.config)
        split = data.load(predictor.description, may_prepare=False)
        tested = _test(predictor, split, data, max_examples)
        picture = picture or _first_picture(split, tested)
    except UserError as error:
        missing.append(f"Predictions for a data set are not shown: {error}.")
    if picture is None:
        missing.append("No picture is shown: name a picture with --image=FILE.")
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
    if record.config is None:
        weights = "weights as imported"
    elif record.config.averaging == "none":
        weights = "weights as trained"
    else:
        weights = f"averaged weights, {record.config.averaging}"
    conv1 = predictor.variables["params"]["conv1"]["conv"]["kernel"]
    return Network(
        predictor.checkpoint_step,
        predictor.description,
        weights,
        np.asarray(conv1, np.float32),
    )


def _test(
    predictor: Predictor, split: Split, data: EvaluationData, max_examples: int
) -> Tested:
    """Runs the network over a split, and finds its most confident mistakes."""
    answers = collect_answers(
        predictor, split, batch_size=data.batch_size, max_examples=max_examples
    )
    main = answers.classifiers["main"]
    rows = confident_mistakes(main, answers.labels, MISTAKES)
    pictures = np.zeros((0, 1, 1, 3), np.uint8)
    if len(rows):
        batch = next(iter(split.batches([answers.examples[rows]])))
        pictures = shown_pixels(
            predictor.description.preprocess, batch["image"], batch.get("extent")
        )
    name = f"{data.dataset!r}, split {data.split!r}"
    return Tested(answers, name, len(split), rows, pictures)


def _read_picture(image: str, predictor: Predictor) -> Picture:
    """Reads a picture file.

    Raises:
      UserError: The file cannot be read.
    """
    name = printable(image)
    try:
        return *decode_image(image, predictor.description.preprocess.storage_size), name
    except BadImageError as error:
        raise UserError(f"--image={name} cannot be read: {error}") from error


def _first_picture(split: Split, tested: Tested) -> Picture:
    """Reads the first example that was tested."""
    example = tested.answers.examples[:1]
    batch = next(iter(split.batches([example])))
    extent = tuple(batch["extent"][0].tolist()) if "extent" in batch else None
    return batch["image"][0], extent, f"example {example[0]} of {tested.split}"


def find_runs(names: str) -> list[Workdir]:
    """Returns the workdirs that "DIR1,DIR2" names, each once.

    Raises:
      UserError: No workdir is named, or a workdir holds no run.
    """
    paths = [path for path in names.split(",") if path]
    workdirs = list({each.path.resolve(): each for each in map(Workdir, paths)}.values())
    if not workdirs:
        raise UserError("name a run with --workdir=DIR, or several with DIR1,DIR2")
    for workdir in workdirs:
        workdir.read_config()  # Refuses a directory without a run.
    return workdirs


def write_report(workdirs: Sequence[Workdir], out: str, **options: Any) -> pathlib.Path:
    """Writes the page of one run, or the page that compares several.

    Args:
      workdirs: Workdirs of the runs.
      out: The HTML file; "" for one in the folder `report` of the first run.
      **options: Arguments of `gather`, for the page of one run.

    Returns:
      The file.

    Raises:
      UserError: `gather` raises it, or the file cannot be written.
    """
    is_one = len(workdirs) == 1
    default_file = workdirs[0].path / "report" / ("index.html" if is_one else COMPARISON)
    file = pathlib.Path(out) if out else default_file
    prepare_file(file)  # Finds errors before the work is done.
    if is_one:
        material = gather(workdirs[0], **options)
        for reason in material.missing:
            tell(reason)
        page = create_run_page(material)
    else:
        page = create_comparison_page([RunRecord.read(each) for each in workdirs])
    page.write(file)
    return file
