"""Evaluates a run, or the mean of several.

python -m googlenet_flax.evaluate --workdir=DIR [--crops=N] [--ensemble=DIR1,DIR2]
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from googlenet_flax.data import PictureOptions, Split, load_split
from googlenet_flax.data.image_set import Batch
from googlenet_flax.model.googlenet import GoogLeNetOutput
from googlenet_flax.preprocessing.crops import CROP_NUMBERS
from googlenet_flax.runs.checkpoint_evaluation import EvaluationData, evaluate_checkpoints
from googlenet_flax.runs.predictor import Predictor, mean_log_probabilities
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime import distributed
from googlenet_flax.runtime.command import argument_parser, running
from googlenet_flax.runtime.errors import UserError
from googlenet_flax.training.description import ModelDescription
from googlenet_flax.training.evaluation import format_metrics
from googlenet_flax.training.step import (
    Metrics,
    eval_step,
    example_metrics,
    parallel_eval_step,
    split_over_devices,
)

DEFAULT_BATCH_SIZE = 32  # Where neither the user nor the run says one.

EvalStep = Callable[[dict, Batch], Metrics]
Watch = Callable[[Iterator[Batch]], Iterator[Batch]]


def create_eval_step(
    description: ModelDescription, *, aux_weight: float, devices: list[jax.Device]
) -> EvalStep:
    """The evaluation step of a described network, sharded over `devices`."""
    step = partial(
        eval_step,
        model=description.create_model(),
        preprocess=description.preprocess,
        aux_weight=aux_weight,
    )
    return parallel_eval_step(step, devices)


def evaluate_split(
    parallel_step: EvalStep,
    variables: dict,
    split: Split,
    *,
    batch_size: int,
    num_devices: int,
    watch: Watch = iter,
) -> dict[str, float]:
    """Means over the split of everything `example_metrics` names.

    Args:
      parallel_step: Made by `create_eval_step`.
      variables: `{"params", "batch_stats"}`, replicated.
      split: Every readable example counts once.
      batch_size: At most this many examples at a time, rounded up to the devices; over
        all processes, of which each reads and evaluates its share.
      num_devices: Of the step, in this process.
      watch: Passes the batches on one by one; what it raises ends the evaluation.
    """

    def sums(batch: Batch) -> dict[str, np.ndarray]:
        device_sums = parallel_step(variables, split_over_devices(batch, num_devices))
        return jax.device_get(device_sums)

    return _mean_metrics(
        sums, split, batch_size=batch_size, num_devices=num_devices, watch=watch
    )


def evaluate_averaged(
    predictors: Sequence[Predictor],
    num_crops: int,
    split: Split,
    *,
    aux_weight: float,
    batch_size: int,
) -> dict[str, float]:
    """The same means for softmax averaged over networks and crops (section 7)."""

    def sums(batch: Batch) -> dict[str, np.ndarray]:
        # Logarithms of probabilities are logits with that very softmax.
        logits = jax.tree.map(
            jnp.asarray, mean_log_probabilities(predictors, batch, num_crops)
        )
        output = GoogLeNetOutput(logits["main"], logits.get("aux_4a"), logits.get("aux_4d"))
        labels = jnp.asarray(batch["label"])
        metrics = example_metrics(output, labels, aux_weight=aux_weight)
        sums = {name: np.asarray(v)[batch["mask"]] for name, v in metrics.items()}
        return {**sums, "count": np.asarray(np.sum(batch["mask"]))}

    num_devices = len(predictors[0].devices)
    return _mean_metrics(sums, split, batch_size=batch_size, num_devices=num_devices)


def _mean_metrics(
    batch_sums: Callable[[Batch], dict[str, np.ndarray]],
    split: Split,
    *,
    batch_size: int,
    num_devices: int,
    watch: Watch = iter,
) -> dict[str, float]:
    """Adds up what `batch_sums` returns for each batch, and divides by the count."""
    num_devices *= distributed.num_processes()
    batch_size = -(-batch_size // num_devices) * num_devices
    rows = distributed.own_rows(batch_size)
    sums: collections.defaultdict[str, float] = collections.defaultdict(float)
    for batch in watch(padded_batches(split, np.arange(len(split)), batch_size, rows)):
        sums["expected"] += int(np.sum(batch["mask"]))
        for name, values in batch_sums(batch).items():
            sums[name] += float(np.sum(values, dtype=np.float64))
    totals = distributed.sum_over_all(sums)
    count, expected = totals.pop("count"), totals.pop("expected")
    if count != expected:
        raise AssertionError(f"evaluated {count} examples of {expected}")
    return {name: value / count for name, value in totals.items()}


def padded_batches(
    split: Split, examples: np.ndarray, batch_size: int, rows: slice = slice(None)
) -> Iterator[Batch]:
    """Batches of these examples, the last filled up; `mask` is true where one counts.

    Args:
      split: To read from.
      examples: Numbers in the split, int `[N]`, at least one.
      batch_size: Of every batch.
      rows: Of each batch, to read.
    """
    starts = range(0, len(examples), batch_size)
    positions = [np.arange(start, start + batch_size)[rows] for start in starts]
    masks = [places < len(examples) for places in positions]
    indices = [
        examples[np.where(mask, places, 0)]
        for mask, places in zip(masks, positions, strict=True)
    ]
    batches = zip(split.batches(indices), masks, strict=True)
    hidden = None if distributed.is_first() else True  # None: where it is no terminal.
    bar = tqdm.tqdm(batches, "evaluating", len(starts), leave=False, disable=hidden)
    for batch, mask in bar:
        readable = batch.pop("readable", True)
        yield {**batch, "mask": mask & readable}


def format_metrics(metrics: dict[str, float]) -> str:
    """One line for a person: loss, accuracies of the main classifier and of the heads.

    Metrics of averaged weights, which begin with `averaged_`, follow.
    """
    prefix = "averaged_"
    averaged = {
        name.removeprefix(prefix): value
        for name, value in metrics.items()
        if name.startswith(prefix)
    }
    more = f"; averaged weights: {format_metrics(averaged)}" if averaged else ""
    heads = ", ".join(
        f"{head} {metrics[f'{head}_accuracy']:.2%}"
        for head in ("aux_4a", "aux_4d")
        if f"{head}_accuracy" in metrics
    )
    return (
        f"loss {metrics['loss']:.4f}, accuracy {metrics['accuracy']:.2%}, "
        f"top-5 {metrics['top5']:.2%} ({heads}){more}"
    )


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """What to evaluate on; an empty or zero field takes what the run was trained with."""

    dataset: str = ""
    data_dir: str = ""
    split: str = ""
    eval_fraction: float = 0.0
    batch_size: int = 0

    def load(
        self,
        config: Mapping[str, Any],
        description: ModelDescription,
        *,
        may_prepare: bool = True,
    ) -> Split:
        """The split.

        Args:
          config: Of the run.
          description: Of its network.
          may_prepare: As in `data.load_split`.

        Raises:
          UserError: No such data, or of other classes than the network knows.
        """
        dataset = self.dataset or config.get("dataset")
        if not dataset:
            raise UserError(
                "these weights were imported and know no data: name --dataset (and "
                "--data_dir)"
            )
        same = dataset == config.get("dataset")
        split = load_split(
            dataset,
            self.split or (config["eval_split"] if same else "test"),
            data_dir=self.data_dir or (config.get("data_dir", "") if same else ""),
            may_prepare=may_prepare,
            pictures=PictureOptions(
                storage_size=description.preprocess.storage_size,
                eval_fraction=self.eval_fraction or config.get("eval_fraction", 0.0),
                on_bad_image=config.get("on_bad_image", "skip"),
                decode_workers=config.get("decode_workers", 0),
                class_names=description.class_names,
            ),
        )
        known = len(description.class_names)
        if len(split.class_names) != known:
            raise UserError(
                f"{dataset} has {len(split.class_names)} classes and the network {known}: "
                "choose the data set it was trained on"
            )
        return split


def evaluate_checkpoints(
    workdirs: Sequence[Workdir],
    *,
    checkpoint: str,
    data: EvaluationData,
    num_crops: int = 1,
    raw: bool = False,
) -> dict[str, float]:
    """Evaluates a run, or the mean of several, with the preprocessing saved in each.

    Args:
      workdirs: Of the runs; the first names data and batch size where `data` does not.
      checkpoint: `"best"`, `"latest"` or a step.
      data: What to evaluate on.
      num_crops: Of each picture, as in `data.crops.evaluation_crops`.
      raw: Take the latest weights, also where the run averaged them.

    Returns:
      The metrics, and `step` of the first checkpoint.

    Raises:
      UserError: No such run, checkpoint or data, or runs that know other classes.
    """
    devices = jax.local_devices()
    predictors = [
        Predictor.load(workdir, checkpoint, devices, raw=raw) for workdir in workdirs
    ]
    first, config = predictors[0], workdirs[0].read_config()
    for workdir, predictor in zip(workdirs, predictors, strict=True):
        if predictor.description.class_names != first.description.class_names:
            raise UserError(
                f"{workdirs[0].path} and {workdir.path} know other classes: an ensemble "
                "needs the same ones in the same order"
            )
    split = data.load(config, first.description)
    aux_weight = config.get("aux_weight", 0.0)  # Imported weights were not trained here.
    batch_size = data.batch_size or config.get("batch_size", DEFAULT_BATCH_SIZE)
    if len(predictors) == num_crops == 1:
        metrics = evaluate_split(
            create_eval_step(first.description, aux_weight=aux_weight, devices=devices),
            first.variables,
            split,
            batch_size=batch_size,
            num_devices=len(devices),
        )
    else:
        metrics = evaluate_averaged(
            predictors,
            num_crops,
            split,
            aux_weight=aux_weight,
            batch_size=batch_size,
        )
    for path, reason in split.unreadable.items():
        print(f"googlenet_flax: skipped {path}: {reason}", file=sys.stderr)
    return {"step": first.checkpoint_step, **metrics}


def main() -> None:
    """Runs the command."""
    args = _parse_arguments()
    with running():
        paths = [path for path in (args.workdir, *args.ensemble.split(",")) if path]
        if not paths:
            raise UserError("name a run with --workdir=DIR or --ensemble=DIR1,DIR2")
        if args.batch_size < 0:
            raise UserError(f"--batch_size is {args.batch_size} but must be 1 or more")
        workdirs = {workdir.path.resolve(): workdir for workdir in map(Workdir, paths)}
        metrics = evaluate_checkpoints(
            list(workdirs.values()),
            checkpoint=args.checkpoint,
            data=EvaluationData(
                args.dataset, args.data_dir, args.split, args.eval_fraction, args.batch_size
            ),
            num_crops=args.crops,
            raw=args.raw_weights,
        )
        if args.json:
            print(json.dumps(metrics))
        else:
            print(f"checkpoint {metrics['step']}: {format_metrics(metrics)}")


def _parse_arguments() -> argparse.Namespace:
    parser = argument_parser("evaluate", __doc__)
    add = parser.add_argument
    add("--workdir", default="", help="directory of the run")
    add("--ensemble", default="", help="more runs, DIR1,DIR2, to average with")
    add("--checkpoint", default="best", help="best, latest or a step")
    add("--crops", type=int, default=1, choices=CROP_NUMBERS, help="views of each picture")
    add("--raw_weights", action="store_true", help="not the averaged ones")
    add("--dataset", default="", help="default: the run's")
    add("--data_dir", default="", help="folder of the data; default: the run's")
    add("--split", default="", help="TFDS split; default: the run's eval_split")
    add("--eval_fraction", type=float, help="of one folder; default: the run's")
    add("--batch_size", type=int, default=0, help="default: the run's")
    add("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


if __name__ == "__main__":
    main()
