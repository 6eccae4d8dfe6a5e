"""Training from a config: builds everything, and owns the only loop."""

import dataclasses
import gc
import math
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any, Literal, NoReturn

import jax
import numpy as np
import optax

from googlenet_flax import distributed
from googlenet_flax import schedule as schedules
from googlenet_flax.checkpoint import Checkpoints
from googlenet_flax.config import validate
from googlenet_flax.cpu_memory import give_large_steps_back
from googlenet_flax.data import PictureOptions, Split, load_split
from googlenet_flax.data.augment import Augment
from googlenet_flax.data.preprocess import Preprocess
from googlenet_flax.data.sampler import OwnRows, TrainingOrder
from googlenet_flax.description import ModelDescription
from googlenet_flax.distributed import tell_once
from googlenet_flax.environment import describe_environment
from googlenet_flax.errors import (
    NotFiniteError,
    StoppedBySignal,
    UserError,
    out_of_memory_hint,
)
from googlenet_flax.evaluate import (
    EvalStep,
    create_eval_step,
    evaluate_split,
    format_metrics,
)
from googlenet_flax.metrics_writer import MetricsWriter, read_rows
from googlenet_flax.progress import Progress
from googlenet_flax.step_profile import StepProfile
from googlenet_flax.stop_request import StopRequest, StopRequested, stop_on_signal
from googlenet_flax.train_step import (
    AXIS_NAME,
    Averaging,
    Batch,
    Metrics,
    Params,
    TrainState,
    check_batch_divides,
    create_optimizer,
    create_state,
    parallel_train_step,
    replicate,
    replicated_like,
    split_over_devices,
    train_step,
    with_partners,
)
from googlenet_flax.wandb_mirror import WandbMirror
from googlenet_flax.warm_start import warm_start
from googlenet_flax.workdir import Workdir

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]

MAX_NAMED = 5  # Of the unreadable pictures, in one line.


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All that a run needs and that no step changes."""

    config: Mapping[str, Any]
    devices: list[jax.Device]  # Of this process.
    train_set: Split
    eval_set: Split
    description: ModelDescription
    epoch_steps: int
    total_steps: int
    schedule: optax.Schedule
    create_state: Callable[[], TrainState]
    stage_ends: Sequence[int]  # Steps at which the size of the images changes.
    train_steps: Sequence[TrainStep]  # One more, for the stages between them.
    eval_step: EvalStep

    def train_step(self, step: int) -> TrainStep:
        """What makes the update after `step` updates."""
        return self.train_steps[schedules.stage_of(step, self.stage_ends)]

    def batches(self, start_step: int) -> Generator[Batch, None, None]:
        """What each update after `start_step` updates learns from, `[D, B/D, ...]`.

        Of several processes each gets its rows of the global batch.
        """
        order = TrainingOrder(
            seed=self.config["seed"],
            start_step=start_step,
            stop_step=self.total_steps,
            num_examples=len(self.train_set),
            batch_size=self.config["batch_size"],
        )
        own = OwnRows(order, self.own_rows, with_previous=self.mixes)
        for batch in self.train_set.batches(own):
            yield split_over_devices(self._complete(batch), len(self.devices))

    @property
    def own_rows(self) -> slice:
        """Of a global batch, those that this process steps on."""
        return distributed.own_rows(self.config["batch_size"])

    @property
    def mixes(self) -> bool:
        """Whether each example is mixed with the one before it."""
        return self.config["mixup_alpha"] > 0

    def _complete(self, batch: Batch) -> Batch:
        """What the step takes of what the split gives."""
        # What stands in for a picture that cannot be read is trained on.
        rest = {name: batch[name] for name in batch if name != "readable"}
        if not self.mixes:
            return rest
        # The first row was read for the second one only.
        return {name: values[1:] for name, values in with_partners(rest).items()}

    def compile_train_step(self, state_like: TrainState, step: int) -> Any:
        """Compiles the step ahead of its first call, which finds it ready; returns it.

        Args:
          state_like: Shapes and types, as from `jax.eval_shape`.
          step: Updates done before that call.
        """
        examples = [np.zeros(1, np.int64)]  # One is enough to tell the shape of a batch.
        example = self._complete(next(iter(self.train_set.batches(examples))))
        shards = len(self.devices), self.config["batch_size"] // len(self.devices)
        batch_like = {
            name: jax.ShapeDtypeStruct((*shards, *values.shape[1:]), values.dtype)
            for name, values in example.items()
        }
        jitted: Any = self.train_step(step)
        return jitted.lower(replicated_like(state_like, self.devices), batch_like).compile()

    def evaluate(
        self, state: TrainState, before_batch: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Metrics of the whole `eval_split`; arguments as in `evaluate_split`.

        Those of averaged weights begin with `averaged_`.
        """

        def evaluate(variables: Params) -> dict[str, float]:
            return evaluate_split(
                self.eval_step,
                variables,
                self.eval_set,
                batch_size=self.config["batch_size"],
                num_devices=len(self.devices),
                before_batch=before_batch,
            )

        metrics = evaluate(state.variables)
        if state.averages:
            averaged = evaluate(state.averages)
            metrics |= {f"averaged_{name}": value for name, value in averaged.items()}
        return metrics

    def learning_rate(self, step: int) -> float:
        """Of the update after `step` updates."""
        rate = jax.jit(self.schedule)  # Otherwise each stair would be compiled anew.
        return float(np.asarray(rate(step)))

    def is_due(self, every_steps: int, step: int) -> bool:
        """Whether something that happens every so many steps, and at the end, is due."""
        return step == self.total_steps or (every_steps > 0 and step % every_steps == 0)

    def is_eval_due(self, step: int) -> bool:
        """Whether `step` ends an epoch that is evaluated, or the run."""
        return self.is_due(self.config["eval_every_epochs"] * self.epoch_steps, step)


def create_experiment(config: Mapping[str, Any], devices: list[jax.Device]) -> Experiment:
    """Loads the data and builds the experiment on them.

    Of several processes the first one prepares what is missing.

    Raises:
      UserError: The data cannot be read or do not fit the config.
    """
    load = partial(_load_splits, config, devices)
    with distributed.together():
        own_sets = load(may_prepare=True) if distributed.is_first() else None
    with distributed.together():
        train_set, eval_set = own_sets or load(may_prepare=False)
        return build_experiment(config, devices, train_set, eval_set)


def _load_splits(
    config: Mapping[str, Any], devices: list[jax.Device], *, may_prepare: bool
) -> tuple[Split, Split]:
    """What is trained and what is evaluated on."""
    _check_batch(config, devices)  # Before all is read.
    names = config["train_split"], config["eval_split"]
    train_set, eval_set = (
        load_config_split(config, name, may_prepare=may_prepare) for name in names
    )
    return train_set, eval_set


def build_experiment(
    config: Mapping[str, Any],
    devices: list[jax.Device],
    train_set: Split,
    eval_set: Split,
) -> Experiment:
    """Builds the network and its steps; nothing is compiled yet.

    Raises:
      UserError: The devices cannot share a batch, or `train_set` does not fill one.
    """
    _check_batch(config, devices)
    epoch_steps = schedules.steps_per_epoch(len(train_set), config["batch_size"])
    total_steps = schedules.total_steps(
        num_epochs=config["num_epochs"],
        max_steps=config["max_steps"],
        epoch_steps=epoch_steps,
    )
    schedule = _create_schedule(config, epoch_steps, total_steps)
    averaging = _create_averaging(config, epoch_steps)
    tx = create_optimizer(
        schedule,
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
        head_only=config["trainable"] == "head",
    )
    description = _describe(config, train_set)
    return Experiment(
        config=config,
        devices=devices,
        train_set=train_set,
        eval_set=eval_set,
        description=description,
        epoch_steps=epoch_steps,
        total_steps=total_steps,
        schedule=schedule,
        create_state=partial(
            create_state,
            description.create_model(),
            tx,
            jax.random.key(config["seed"], impl="threefry2x32"),
            image_size=config["image_size"],
            averaging=averaging,
        ),
        stage_ends=[epochs * epoch_steps for epochs in config["early_image_size_epochs"]],
        train_steps=_create_train_steps(
            config,
            devices,
            description,
            tx=tx,
            averaging=averaging,
            epoch_steps=epoch_steps,
            total_steps=total_steps,
        ),
        eval_step=create_eval_step(
            description, aux_weight=config["aux_weight"], devices=devices
        ),
    )


def _create_averaging(config: Mapping[str, Any], epoch_steps: int) -> Averaging | None:
    if config["averaging"] == "none":
        return None
    return Averaging(
        kind=config["averaging"],
        decay=config["ema_decay"],
        start_step=config["average_from_epoch"] * epoch_steps,
    )


def _create_train_steps(
    config: Mapping[str, Any],
    devices: list[jax.Device],
    description: ModelDescription,
    *,
    tx: optax.GradientTransformation,
    averaging: Averaging | None,
    epoch_steps: int,
    total_steps: int,
) -> list[TrainStep]:
    """One for each size of the images, from the earliest."""
    freeze_norm = config["trainable"] == "head"
    step = partial(
        train_step,
        model=description.create_model(axis_name=AXIS_NAME, freeze_norm=freeze_norm),
        tx=tx,
        augment=Augment(
            **{field.name: config[field.name] for field in dataclasses.fields(Augment)}
        ),
        seed=config["seed"],
        aux_weight=_aux_weight(config, total_steps),
        axis_name=AXIS_NAME,
        epoch_steps=epoch_steps,
        label_smoothing=config["label_smoothing"],
        mixup_alpha=config["mixup_alpha"],
        averaging=averaging,
        accumulation_steps=config["accumulation_steps"],
    )
    sizes = *config["early_image_sizes"], config["image_size"]
    looks = [dataclasses.replace(description.preprocess, image_size=px) for px in sizes]
    everywhere = distributed.all_devices(devices)
    return [
        parallel_train_step(partial(step, preprocess=look), everywhere) for look in looks
    ]


def _check_batch(config: Mapping[str, Any], devices: list[jax.Device]) -> None:
    num_devices = len(distributed.all_devices(devices))
    check_batch_divides(config["batch_size"], num_devices, config["accumulation_steps"])


def _create_schedule(
    config: Mapping[str, Any], epoch_steps: int, total_steps: int
) -> optax.Schedule:
    warmup_steps = round(config["warmup_epochs"] * epoch_steps)
    if config["schedule"] == "staircase":
        falling = schedules.staircase_decay(
            learning_rate=config["learning_rate"],
            decay_rate=config["decay_rate"],
            decay_every_epochs=config["decay_every_epochs"],
            decay_offset_epochs=config["decay_offset_epochs"],
            epoch_steps=epoch_steps,
        )
    else:
        decays = {"cosine": schedules.cosine_decay, "linear": schedules.linear_decay}
        falling = decays[config["schedule"]](
            learning_rate=config["learning_rate"],
            final_fraction=config["final_rate_fraction"],
            steps=total_steps - warmup_steps,
        )
    return schedules.with_warmup(falling, warmup_steps)


def _aux_weight(
    config: Mapping[str, Any], total_steps: int
) -> float | Callable[[Any], Any]:
    if config["final_aux_fraction"] == 1:
        return config["aux_weight"]
    return schedules.linear_decay(
        learning_rate=config["aux_weight"],
        final_fraction=config["final_aux_fraction"],
        steps=total_steps,
    )


def load_config_split(
    config: Mapping[str, Any], split: str, *, may_prepare: bool = True
) -> Split:
    """A split of the data that a config names; arguments as in `data.load_split`."""
    return load_split(
        config["dataset"],
        split,
        data_dir=config["data_dir"],
        may_prepare=may_prepare,
        pictures=PictureOptions(
            storage_size=config["storage_size"],
            eval_fraction=config["eval_fraction"],
            on_bad_image=config["on_bad_image"],
            decode_workers=config["decode_workers"],
        ),
    )


def _describe(config: Mapping[str, Any], train_set: Split) -> ModelDescription:
    """What the checkpoints of a run say of its network."""
    return ModelDescription(
        variant=config["variant"],
        width_multiplier=config["width_multiplier"],
        dtype=config["dtype"],
        class_names=train_set.class_names,
        preprocess=Preprocess(
            storage_size=train_set.storage_size,
            image_size=config["image_size"],
            crop_fraction=config["crop_fraction"],
            input_scale=config["input_scale"],
            input_mean=config["input_mean"],
            input_std=config["input_std"],
            channel_order=config["channel_order"],
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Run:
    """One start of an experiment: where its numbers, states and words go."""

    experiment: Experiment
    checkpoints: Checkpoints
    writer: MetricsWriter | None  # Of several processes, the first one's.
    progress: Progress
    stop: StopRequest
    profile: StepProfile
    mirror: WandbMirror | None
    unchecked: list[tuple[int, Metrics]] = dataclasses.field(default_factory=list)

    def train(self, state: TrainState, start_step: int, *, was_evaluated: bool) -> None:
        """The loop."""
        experiment = self.experiment
        self.stop.wait_for_loop = True
        if start_step and experiment.is_eval_due(start_step) and not was_evaluated:
            self.evaluate_and_save(state, start_step)  # It stopped just before.
        with closing(experiment.batches(start_step)) as batches:
            for step, batch in enumerate(batches, start_step + 1):
                self.profile.before(step)
                state, device_metrics = experiment.train_step(step - 1)(state, batch)
                self.profile.after(step, state)
                if step == start_step + 1:
                    jax.block_until_ready(state)
                    self.progress.restart_clock(step)  # The first one is slow.
                self.progress.advance()
                self.unchecked.append((step, device_metrics))
                self.after_step(state, step)

    def after_step(self, state: TrainState, step: int) -> None:
        """Logs, evaluates, saves and stops, as is due."""
        experiment, config = self.experiment, self.experiment.config
        is_log_due = experiment.is_due(config["log_every_steps"], step)
        is_save_due = experiment.is_due(config["checkpoint_every_steps"], step)
        is_eval_due = experiment.is_eval_due(step)
        stopping = self.stop.is_due()
        if is_log_due or is_save_due or is_eval_due or stopping:
            metrics = self.check_finite()
            if is_log_due:
                self.log(metrics, step)
        if stopping:
            self.save_and_stop(state, step)
        if is_eval_due:
            self.evaluate_and_save(state, step)
        elif is_save_due:
            self.save(state)

    def check_finite(self) -> dict[str, float]:
        """The metrics of the last step, after a look at the losses of all since the last.

        Raises:
          NotFiniteError: Names the first step with a loss that is NaN or infinite.
        """
        losses = jax.device_get([_first_shard(m["loss"]) for _, m in self.unchecked])
        for (step, device_metrics), loss in zip(self.unchecked, losses, strict=True):
            if not math.isfinite(loss.item()):
                raise _not_finite(_to_floats(device_metrics), step)
        _, last = self.unchecked[-1]
        self.unchecked.clear()
        return _to_floats(last)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Writes and shows one training row."""
        rate = self.progress.images_per_second(step)
        row = {**metrics, "learning_rate": self.experiment.learning_rate(step - 1)}
        if rate is not None:
            row["images_per_second"] = rate
        self.write(row, step, "train")
        self.progress.report(step, loss=metrics["loss"], images_per_second=rate)

    def evaluate_and_save(self, state: TrainState, step: int) -> None:
        """Evaluates, writes and shows one row, and saves the state with it."""
        started = time.monotonic()
        try:
            metrics = self.experiment.evaluate(state, before_batch=self.stop.check)
        except StopRequested:
            self.save_and_stop(state, step)
        if not math.isfinite(metrics["loss"]):
            raise _not_finite(metrics, step)
        seconds = time.monotonic() - started
        self.write({**metrics, "eval_seconds": seconds}, step, "eval")
        epoch = step // self.experiment.epoch_steps
        self.progress.say(f"epoch {epoch}, step {step}: eval {format_metrics(metrics)}")
        self.say_unreadable()
        self.save(state, metrics)
        self.progress.restart_clock(step)

    def say_unreadable(self) -> None:
        """Names the pictures that were skipped so far, if there are any."""
        unreadable = {
            **self.experiment.train_set.unreadable,
            **self.experiment.eval_set.unreadable,
        }
        if unreadable:
            named = [f"{path} ({reason})" for path, reason in unreadable.items()]
            more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
            self.progress.say(
                f"unreadable pictures skipped so far: {len(named)}: "
                f"{', '.join(named[:MAX_NAMED])}{more}"
            )

    def save(self, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Starts writing a checkpoint."""
        description = self.experiment.description
        self.checkpoints.save(state, description=description, metrics=metrics)

    def save_and_stop(self, state: TrainState, step: int) -> NoReturn:
        """Saves, waits for the write, and ends the run."""
        self.save(state)
        self.checkpoints.wait()
        number = self.stop.signal_number
        assert number is not None
        raise StoppedBySignal(
            f"stopped by {signal.Signals(number).name} after step {step}; the state is "
            "saved: run the same command to go on",
            signal_number=number,
        )

    def write(
        self, metrics: dict[str, float], step: int, split: Literal["train", "eval"]
    ) -> None:
        """Writes one row to disk, and to W&B where it is wanted."""
        if self.writer is None:
            return
        epoch = step // self.experiment.epoch_steps
        row = self.writer.write(metrics, step=step, epoch=epoch, split=split)
        if self.mirror is not None:
            self.mirror.write(row)


def train_and_evaluate(config: Mapping[str, Any], workdir: str) -> dict[str, float]:
    """Trains to the end, from scratch or from where the run in `workdir` stopped.

    Args:
      config: The fields of `googlenet_flax.config.FIELDS`.
      workdir: Directory of the run; made if it is missing.

    Returns:
      The row of the last evaluation in `metrics.jsonl`; empty if there was none.

    Raises:
      UserError: Config, data or workdir that the user can mend.
      WorkdirInUseError: Another process trains there.
      NotFiniteError: A loss became NaN or infinite.
      StoppedBySignal: After SIGTERM or SIGINT; the state is saved.
    """
    config = dict(config)
    validate(config)
    with ExitStack() as stack:
        stack.enter_context(
            out_of_memory_hint(
                f"lower --config.batch_size (now {config['batch_size']}) or "
                f"--config.image_size (now {config['image_size']})"
            )
        )
        run_dir = _open_workdir(stack, workdir, config)
        stop = stack.enter_context(stop_on_signal())
        checkpoints = stack.enter_context(Checkpoints(run_dir.checkpoints))
        with distributed.together():
            if checkpoints.latest_step is not None:
                changes = run_dir.check_resumable(config)
                if changes:
                    tell_once(f"the config of this run has changed: {'; '.join(changes)}")
        experiment = create_experiment(config, jax.local_devices())
        with distributed.together():
            state = _restore(experiment, checkpoints)
        start_step = 0 if state is None else int(state.step)
        was_evaluated = checkpoints.was_evaluated(start_step)
        with distributed.together():
            run = _create_run(
                stack,
                run_dir,
                experiment,
                checkpoints,
                stop,
                start_step=start_step,
                was_evaluated=was_evaluated,
            )
        is_finished = start_step >= experiment.total_steps and was_evaluated
        with distributed.together():
            state = _start(experiment, state, run.progress, is_finished=is_finished)
        run.train(state, start_step, was_evaluated=was_evaluated)
        checkpoints.wait()
        best_step = checkpoints.best_step
        run.progress.say(f"Done. Results: {run_dir.path}; best step {best_step}")
    rows = read_rows(run_dir.metrics_file)
    return next((row for row in reversed(rows) if row["split"] == "eval"), {})


def _open_workdir(stack: ExitStack, path: str, config: Mapping[str, Any]) -> Workdir:
    """The directory of the run, owned by the first process and seen by all."""
    with distributed.together():
        if config["distributed"] and not jax.distributed.is_initialized():
            raise UserError(
                "config.distributed is True but this process has joined no others: use "
                "`python -m googlenet_flax.main`, or googlenet_flax.distributed.joined"
            )
        run_dir = Workdir(path)
        if distributed.is_first():
            stack.enter_context(run_dir)
    distributed.check_same(
        {"the owner of the workdir": run_dir.owner},
        f"{run_dir.path} must be one directory that all processes see",
    )
    distributed.check_same(config, "start all processes with the same config")
    return run_dir


def _create_run(
    stack: ExitStack,
    run_dir: Workdir,
    experiment: Experiment,
    checkpoints: Checkpoints,
    stop: StopRequest,
    *,
    start_step: int,
    was_evaluated: bool,
) -> _Run:
    """Opens what the run writes to; `stack` closes it."""
    config, is_first = experiment.config, distributed.is_first()
    progress = Progress(
        total_steps=experiment.total_steps,
        start_step=start_step,
        batch_size=config["batch_size"],
        is_shown=is_first,
    )
    profile = StepProfile(run_dir.profile, config["profile_steps"] if is_first else ())
    writer = mirror = None
    if is_first:
        _record_start(run_dir, experiment, start_step)
        writer = stack.enter_context(
            MetricsWriter(
                run_dir.metrics_file,
                run_dir.tensorboard,
                resume_step=start_step,
                was_evaluated=was_evaluated,
            )
        )
        if config["wandb_project"]:
            mirror = WandbMirror(config["wandb_project"], run_dir.wandb, config)
            stack.enter_context(mirror)
    return _Run(
        experiment,
        checkpoints,
        writer,
        stack.enter_context(progress),
        stop,
        stack.enter_context(profile),
        mirror,
    )


def _record_start(run_dir: Workdir, experiment: Experiment, start_step: int) -> None:
    """Leaves in the workdir what it is that starts."""
    devices = distributed.all_devices(experiment.devices)
    run_dir.write_config(experiment.config)
    run_dir.write_start(
        {
            "step": start_step,
            "epoch_steps": experiment.epoch_steps,
            "total_steps": experiment.total_steps,
            "environment": describe_environment(devices),
        }
    )


def _restore(experiment: Experiment, checkpoints: Checkpoints) -> TrainState | None:
    """The newest saved state; None if nothing was ever saved.

    Raises:
      UserError: Checkpoints lie there and none of them can be read.
    """
    distributed.check_same(
        {"the newest checkpoint": checkpoints.latest_step},
        f"{checkpoints.directory} must be one directory that all processes see",
    )
    state_like = jax.eval_shape(experiment.create_state)
    state = checkpoints.restore_newest(state_like, experiment.devices)
    if checkpoints.strays:
        tell_once(f"left alone in {checkpoints.directory}: {', '.join(checkpoints.strays)}")
    if checkpoints.damaged:
        damaged = checkpoints.name_damaged()
        if state is None and not experiment.config["restart"]:
            raise UserError(
                f"no checkpoint in {checkpoints.directory} can be read ({damaged}): bring "
                "one back, or set --config.restart=True to start over and keep them aside"
            )
        aside = ", ".join(path.name for path in checkpoints.set_damaged_aside())
        tell_once(
            f"damaged checkpoints in {checkpoints.directory}: {damaged}; kept as {aside}"
        )
    return state


def _start(
    experiment: Experiment,
    state: TrainState | None,
    progress: Progress,
    *,
    is_finished: bool,
) -> TrainState:
    """The state to begin with, and the step compiled; says what runs.

    Compiling has a thread of its own: a fresh state is made meanwhile, and a signal is
    heard. With other weights, something may have to be said that should not wait for it.
    Only one process alone can compile a `pmap` before its first call.
    """
    is_alone = distributed.num_processes() == 1
    from_scratch = state is None and not experiment.config["init_from"]
    with _garbage_kept(), ThreadPoolExecutor(max_workers=1) as pool:
        compiling = []
        if from_scratch and is_alone:
            state_like = jax.eval_shape(experiment.create_state)
            compiling.append(pool.submit(experiment.compile_train_step, state_like, 0))
        state, origin = _first_state(experiment, state)
        if is_finished:
            origin = "finished before; nothing left to do"
        progress.say(_summary(experiment, state, origin))
        if is_alone and not from_scratch and not is_finished:
            state_like = jax.eval_shape(lambda: state)
            step = int(state.step)
            compiling.append(pool.submit(experiment.compile_train_step, state_like, step))
        for future in compiling:
            give_large_steps_back(future.result())
    return state


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """For tracing, a fifth of which went into looking through objects that stay."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _first_state(
    experiment: Experiment, restored: TrainState | None
) -> tuple[TrainState, str]:
    """The restored state or a fresh one, in the same place; and where it is from."""
    if restored is not None:
        return restored, f"resuming after step {int(restored.step)}"
    state = fresh_state(experiment)
    init_from = experiment.config["init_from"]
    if not init_from:
        return state, "from scratch"
    return warm_start(state, Workdir(init_from), experiment.description, experiment.devices)


def fresh_state(experiment: Experiment) -> TrainState:
    """Random weights, on all devices."""
    # Most of a start would go into optimising the random generators of some sixty
    # kernels, which run once.
    create = jax.jit(
        experiment.create_state, compiler_options={"xla_backend_optimization_level": 0}
    )
    return replicate(create(), experiment.devices)


def _summary(experiment: Experiment, state: TrainState, origin: str) -> str:
    """What runs, for the person who started it."""
    config, devices = experiment.config, distributed.all_devices(experiment.devices)
    processes = distributed.num_processes()
    shared = f" in {processes} processes" if processes > 1 else ""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    classes = len(experiment.description.class_names)
    trained = "" if config["trainable"] == "all" else ", only the classifiers are trained"
    return (
        f"GoogLeNet {config['variant']!r}: {parameters:,} parameters, {classes} classes, "
        f"{config['image_size']} px, {config['dtype']}{trained}\n"
        f"{config['dataset']}: {len(experiment.train_set):,} images to train on "
        f"({config['train_split']}), {len(experiment.eval_set):,} to evaluate on "
        f"({config['eval_split']})\n"
        f"{experiment.total_steps:,} steps of {config['batch_size']} images, "
        f"{experiment.epoch_steps:,} an epoch, on {len(devices)} x "
        f"{devices[0].device_kind}{shared}: {origin}"
    )


def _to_floats(metrics: Metrics) -> dict[str, float]:
    """The metrics of a sharded step."""
    values = jax.device_get({name: _first_shard(value) for name, value in metrics.items()})
    return {name: float(value.item()) for name, value in values.items()}


def _first_shard(values: jax.Array) -> jax.Array:
    """Of what is the same on every device."""
    return values.addressable_data(0)


def _not_finite(metrics: Mapping[str, float], step: int) -> NotFiniteError:
    bad = [
        f"{name} is {value}"
        for name, value in metrics.items()
        if name.endswith("loss") and not math.isfinite(value)
    ]
    return NotFiniteError(
        f"{', '.join(bad)} at step {step}: lower --config.learning_rate; the last "
        "checkpoint was saved before this step"
    )
