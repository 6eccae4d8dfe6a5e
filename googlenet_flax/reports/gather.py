"""Collection of everything that the report page of a run shows."""

from typing import Any

import jax
import numpy as np

from googlenet_flax.config import Config
from googlenet_flax.data import Split
from googlenet_flax.data.decode import printable
from googlenet_flax.data.image_set import Batch
from googlenet_flax.reports.answers import collect_answers, confident_mistakes
from googlenet_flax.reports.look_inside import look_inside, shown_pixels
from googlenet_flax.reports.record import RunRecord
from googlenet_flax.reports.run_page import Material, Tested
from googlenet_flax.runs.checkpoint_evaluation import evaluation_config, load_eval_split
from googlenet_flax.runs.prediction import read_batches
from googlenet_flax.runs.predictor import Predictor, devices_for
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime.command import name_flags
from googlenet_flax.runtime.environment import on_the_cpu
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.runtime.files import file_path
from googlenet_flax.runtime.streams import tell

MISTAKES = 12  # Number of mistakes to show.


def gather(
    workdir: Workdir,
    *,
    checkpoint: str = "best",
    image: str = "",
    max_examples: int = 0,
    **data: Any,
) -> Material:
    """Collects everything that the report page of a run shows.

    For each part that is not available, `missing` says why. The arguments are the flags of
    the command; `data` are the keyword arguments of `evaluation_config`.

    Raises:
      UserError: The run or the checkpoint of that step does not exist, or the picture
        cannot be read.
    """
    record = RunRecord.read(workdir)
    missing = []
    if not record.rows:
        is_run = record.config is not None
        reason = "the run has no metrics yet" if is_run else "these weights were imported"
        missing.append(f"There are no curves: {reason}.")
    try:
        predictor = Predictor.load(workdir, checkpoint, devices_for(workdir)[:1])
    except UserError as error:
        if checkpoint not in ("best", "latest"):
            raise
        missing.append(f"Predictions and weights are not shown: {error}.")
        return Material(record, missing)
    description, tested, picture = predictor.description, None, None
    if image:
        _, errors, batch = next(read_batches(predictor, [file_path(image)], batch_size=1))
        if errors[0]:
            raise UserError(f"--image={printable(image)} cannot be read: {errors[0]}")
        picture = printable(image), batch
    try:
        config = evaluation_config(record.config, **data)
        examples = load_eval_split(config, description, may_prepare=False)
        tested = _test(predictor, examples, config, max_examples)
        picture = picture or _first_picture(examples, tested)
    except UserError as error:
        reason = name_flags(str(error))
        missing.append(f"Predictions for a data set are not shown: {reason}.")
    if picture is None:
        missing.append("No picture is shown: name a picture with --image=FILE.")
        return Material(record, missing, predictor, tested)
    with on_the_cpu():  # For a GPU, compiling this for one picture would take minutes.
        model, variables = description.create_model(), jax.device_get(predictor.variables)
        view = look_inside(model, description.preprocess, variables, *picture)
    return Material(record, missing, predictor, tested, view)


def _test(predictor: Predictor, split: Split, config: Config, max_examples: int) -> Tested:
    """Runs the network over a split, and finds its most confident mistakes."""
    examples, labels, answers = collect_answers(
        predictor, split, batch_size=config.batch_size, max_examples=max_examples
    )
    for path, reason in split.unreadable.items():
        tell(f"skipped {path}: {reason}")
    rows = confident_mistakes(answers["main"], MISTAKES)
    names = [split.name(example) for example in examples[rows].tolist()]
    pictures = np.zeros((0, 1, 1, 3), np.uint8)
    if len(rows):
        batch = next(iter(split.batches([examples[rows]])))
        pictures = shown_pixels(predictor.description.preprocess, batch)
    words = f"{config.dataset!r}, split {config.eval_split!r}"
    return Tested(words, len(split), examples, labels, answers, rows, names, pictures)


def _first_picture(split: Split, tested: Tested) -> tuple[str, Batch]:
    """Reads the first example that was tested; also returns its name."""
    example = tested.examples[:1]
    name = f"{split.name(example.item())} of {tested.split}"
    return name, next(iter(split.batches([example])))
