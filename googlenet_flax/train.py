"""Training from a config: the start of a run, and the loop over its steps."""

import dataclasses
import gc
import math
import os
import runpy
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from typing import Any, Literal, NoReturn

import jax

from googlenet_flax.config import Config, ConfigLike
from googlenet_flax.runs.checkpoint import Checkpoints
from googlenet_flax.runs.manifest import name_first
from googlenet_flax.runs.metrics import MetricsWriter, read_rows
from googlenet_flax.runs.profile import StepProfile
from googlenet_flax.runs.wandb_mirror import WandbMirror
from googlenet_flax.runs.warm_start import warm_start
from googlenet_flax.runs.workdir import Workdir
from googlenet_flax.runtime import distributed
from googlenet_flax.runtime.distributed import tell_once
from googlenet_flax.runtime.environment import describe_environment, local_devices
from googlenet_flax.runtime.errors import (
    NotFiniteError,
    StoppedBySignal,
    UserError,
    out_of_memory_hint,
)
from googlenet_flax.runtime.memory import describe_shortage, give_large_steps_back
from googlenet_flax.runtime.progress import Progress, clock
from googlenet_flax.runtime.signals import StopRequest, StopRequested, stop_on_signal
from googlenet_flax.training.description import class_changes
from googlenet_flax.training.evaluation import format_metrics
from googlenet_flax.training.experiment import Experiment, create_experiment
from googlenet_flax.training.loss_watch import ChanceWatch, LossWatch, not_finite
from googlenet_flax.training.state import Batch, Metrics, TrainState


def train_and_evaluate(
    config: ConfigLike, workdir: str | os.PathLike[str]
) -> dict[str, Any]:
    """Trains and evaluates a run; a run that exists in `workdir` is resumed.

    Args:
      config: A config, or a mapping of its fields, such as a `ConfigDict`.
      workdir: Directory of the run; created if it is missing.

    Returns:
      The row of the last evaluation in `metrics.jsonl`, with its `step`, `epoch` and
      `split`; empty if there was none.

    Raises:
      UserError: The config, the data or the workdir have an error that the user can fix.
      WorkdirInUseError: Another process trains in `workdir`.
      NotFiniteError: A loss became NaN or infinite.
      StoppedBySignal: The run received a signal such as SIGTERM, and saved its state.
        Before the first step there is nothing to save: the signal ends the process at
        once, or raises this error if it arrives while a single process loads the data.
      KeyboardInterrupt: A notebook's cell was interrupted before the first step, or twice.
    """
    config = Config.of(config)
    with ExitStack() as stack:
        stack.push(_wait_for_all)  # Runs last, when the first process has closed its files.
        stack.enter_context(
            out_of_memory_hint(
                f"{_smaller_step(config)}, on a GPU or TPU raise "
                "--config.accumulation_steps, or end other programs that use the device"
            )
        )
        run_dir = _open_workdir(stack, workdir, config)
        stop = stack.enter_context(stop_on_signal())
        checkpoints = stack.enter_context(Checkpoints(run_dir.checkpoints))
        _check_config(run_dir, checkpoints, config)
        devices = local_devices()
        with stop.cleaning_up():
            experiment = create_experiment(config, devices)
        _check_data(run_dir, experiment, checkpoints)
        restored = _restore(experiment, checkpoints)
        run = _Run(stack, run_dir, experiment, checkpoints, stop=stop, restored=restored)
        run.train(run.start(restored))
        checkpoints.wait()
        best_step = checkpoints.best_step
        run.progress.say(f"Done. Results: {run_dir.path}; best step {best_step}")
    rows = read_rows(run_dir.metrics_file)
    return next((row for row in reversed(rows) if row["split"] == "eval"), {})


def _smaller_step(config: Config) -> str:
    """Says how to make a step that needs less memory."""
    return (
        f"lower --config.batch_size (now {config.batch_size}) or --config.image_size (now "
        f"{config.image_size})"
    )


def _wait_for_all(kind: type[BaseException] | None, *_: object) -> None:
    """Waits for the other processes, because a process that ends early ends them too."""
    if kind is None or issubclass(kind, StoppedBySignal | NotFiniteError):
        distributed.exchange(None)


def _open_workdir(
    stack: ExitStack, path: str | os.PathLike[str], config: Config
) -> Workdir:
    """Opens the directory of the run, which the first process locks for all."""
    distributed.check_devices()
    with distributed.together():
        if config.distributed and not jax.distributed.is_initialized():
            raise UserError(
                "config.distributed is True but this process has joined no others: use "
                "`python -m googlenet_flax.main`, or runtime.distributed.joined"
            )
        run_dir = Workdir(path)
        if distributed.is_first():
            stack.enter_context(run_dir)
    distributed.check_same(
        {
            "the path of the workdir": str(run_dir.path.absolute()),
            "the owner of the workdir": run_dir.owner,
        },
        f"{run_dir.path} must be one directory that all processes see at the same path",
    )
    distributed.check_same(
        describe_environment(), "install the same versions for all processes"
    )
    distributed.check_same(config.to_dict(), "start all processes with the same config")
    return run_dir


@distributed.together()
def _check_config(run_dir: Workdir, checkpoints: Checkpoints, config: Config) -> None:
    """Checks that a run may continue under `config`, and reports changed fields.

    A run that has lost its checkpoints is refused, because starting over would delete its
    metrics.
    """
    distributed.check_same(
        {"checkpoints": list(checkpoints.manifests), "damaged": list(checkpoints.damaged)},
        f"{checkpoints.directory} must be one directory that all processes see",
    )
    if checkpoints.latest_step is not None:
        if changes := run_dir.check_resumable(config):
            tell_once(f"the config of this run has changed: {'; '.join(changes)}")
    elif not checkpoints.damaged and not config.restart:
        rows = read_rows(run_dir.metrics_file)
        # A killed run can have two evaluations and no checkpoint. A third evaluation begins
        # only after the checkpoint of the first is complete.
        if sum(row["split"] == "eval" for row in rows) > 2:
            raise UserError(
                f"{run_dir.metrics_file} belongs to a run whose checkpoints are gone: "
                f"restore {checkpoints.directory}, choose another --workdir, or set "
                "--config.restart=True to start over and delete the metrics"
            )


def _check_data(run_dir: Workdir, experiment: Experiment, checkpoints: Checkpoints) -> None:
    """Checks that the data are the same in all processes, and as in earlier starts."""
    with distributed.together():
        data, class_names = experiment.data_description, experiment.description.class_names
    distributed.check_same(
        {"the data": dataclasses.asdict(data), "the classes": list(class_names)},
        "all processes must read the same data",
    )
    step = checkpoints.latest_step
    if step is None:
        return
    manifest = checkpoints.manifests[step]
    changes = class_changes(manifest.description.class_names, class_names)
    changes += [] if manifest.data is None else data.changes_since(manifest.data)
    with distributed.together():
        if changes:
            raise UserError(
                f"workdir {str(run_dir.path)!r} holds a run on other data: "
                f"{'; '.join(changes)}. Restore the data, or train in another --workdir, "
                f"from these weights with --config.init_from={run_dir.path}"
            )


@distributed.together()
def _restore(experiment: Experiment, checkpoints: Checkpoints) -> TrainState | None:
    """Restores the newest checkpoint, and renames damaged ones; None if there is none."""
    state = checkpoints.restore_newest(experiment.state_like, experiment.devices)
    if checkpoints.strays:
        tell_once(
            f"ignored files in {checkpoints.directory} that are not checkpoints: "
            f"{', '.join(checkpoints.strays)}"
        )
    if checkpoints.damaged:
        damaged = checkpoints.describe_damaged()
        if state is None and not experiment.config.restart:
            raise UserError(
                f"no checkpoint in {checkpoints.directory} can be read ({damaged}): "
                "restore one from a backup, or set --config.restart=True to start over and "
                "rename the damaged ones"
            )
        aside = ", ".join(path.name for path in checkpoints.set_damaged_aside())
        tell_once(
            f"damaged checkpoints in {checkpoints.directory}: {damaged}; kept as {aside}"
        )
    return state


class _Run:
    """One start of an experiment, with the objects that save and report progress.

    `stack` closes them. `restored` is the state to continue from, if there is one.
    """

    @distributed.together()
    def __init__(
        self,
        stack: ExitStack,
        run_dir: Workdir,
        experiment: Experiment,
        checkpoints: Checkpoints,
        *,
        stop: StopRequest,
        restored: TrainState | None,
    ):
        self.experiment, self.checkpoints, self.stop = experiment, checkpoints, stop
        self.start_step = 0  # Number of updates before this start.
        # Metrics saved with the restored state, if there are any.
        self.evaluation: Mapping[str, float] | None = None
        if restored is not None:
            self.start_step = int(restored.step)
            self.evaluation = checkpoints.manifests[self.start_step].metrics
        config, is_first = experiment.config, distributed.is_first()
        self.losses = LossWatch()
        self.chance = ChanceWatch(
            config,
            num_classes=len(experiment.description.class_names),
            epoch_steps=experiment.epoch_steps,
        )
        self.writer: MetricsWriter | None = None  # None except in the first process.
        if is_first:
            self._open_metrics(stack, run_dir)
        progress = Progress(
            total_steps=experiment.total_steps,
            start_step=self.start_step,
            batch_size=config.batch_size,
        )
        self.progress = stack.enter_context(progress)
        profile = StepProfile(run_dir.profile, config.profile_steps if is_first else ())
        self.profile = stack.enter_context(profile)

    def _open_metrics(self, stack: ExitStack, run_dir: Workdir) -> None:
        """Writes config and start of the run, and opens its metrics."""
        experiment, step, evaluation = self.experiment, self.start_step, self.evaluation
        run_dir.write_config(experiment.config.to_dict())
        devices = distributed.all_devices(experiment.devices)
        run_dir.write_start(
            {
                "step": step,
                "epoch_steps": experiment.epoch_steps,
                "total_steps": experiment.total_steps,
                "environment": describe_environment(devices),
            }
        )
        writer = MetricsWriter(
            run_dir.metrics_file,
            run_dir.tensorboard,
            resume_step=step,
            was_evaluated=evaluation is not None,
        )
        self.writer = stack.enter_context(writer)
        if experiment.config.wandb_project:
            mirror = WandbMirror(run_dir.wandb, experiment.config)
            writer.mirror = stack.enter_context(mirror).write
        rows = read_rows(run_dir.metrics_file)
        for row in rows:
            if row["split"] == "train":
                self.chance.add(row["step"], row)  # The earlier start has reported it.
        is_lost = all((row["step"], row["split"]) != (step, "eval") for row in rows)
        if evaluation and is_lost:
            self.write(evaluation, step, "eval")
            tell_once(
                f"{run_dir.metrics_file} had lost the evaluation after step {step}; it is "
                "written again from the checkpoint"
            )

    @distributed.together()
    def start(self, restored: TrainState | None) -> TrainState:
        """Returns the first state, after printing a summary and compiling the step.

        The state is `restored`, or else random or taken from `config.init_from`. A thread
        compiles the step while the main thread creates the state and handles signals. With
        several processes, the first call of the step compiles it instead, because a single
        process cannot compile a `pmap` over the devices of all processes.
        """
        experiment, step = self.experiment, self.start_step
        config, state, origin = experiment.config, restored, "from scratch"
        is_finished = step >= experiment.total_steps and self.evaluation is not None
        if is_finished:
            origin = "finished before; nothing left to do"
        elif state is not None:
            origin = f"resuming after step {step}"
        elif config.init_from:
            fresh, source = experiment.fresh_state(), Workdir(config.init_from)
            description, devices = experiment.description, experiment.devices
            last_layers_only = config.trainable == "head"
            state, origin = warm_start(
                fresh, source, description, devices, last_layers_only=last_layers_only
            )
        self.progress.say(_summary(experiment, origin))
        compiling = None
        gc.disable()  # Garbage collection would take a fifth of the tracing time.
        try:
            with ThreadPoolExecutor(max_workers=1) as pool:
                if distributed.num_processes() == 1 and not is_finished:
                    compiling = pool.submit(self.compile, step)
                if state is None:
                    state = experiment.fresh_state()
                if compiling is not None:
                    compiling.result()
        finally:
            gc.enable()
        return state

    def compile(self, step: int) -> None:
        """Compiles the update after `step` updates, and warns if the memory is too small.

        If the update needs much memory, freed memory returns to the system from now on.
        """
        with clock("compiling the training step"):
            compiled = self.experiment.compile_train_step(step)
        give_large_steps_back(compiled)
        config, devices = self.experiment.config, self.experiment.devices
        shortage = describe_shortage(compiled, len(devices))
        if shortage and devices[0].platform == "cpu":
            advice = _smaller_step(config)
            tell_once(f"{shortage}, so the system may end this run: {advice}")

    def train(self, state: TrainState) -> None:
        """Makes all updates after `start_step`; logs, evaluates and saves when due."""
        step, experiment = self.start_step, self.experiment
        if step and experiment.is_eval_due(step) and self.evaluation is None:
            # The last start was stopped before it evaluated this step.
            self.stop.wait_for_loop = True
            self.evaluate_and_save(state, step)
        try:
            with closing(experiment.batches(step)) as batches:
                for batch in self.stop.interruptible(batches):
                    self.stop.wait_for_loop = True  # From now on the state must be saved.
                    state, metrics = self.update(state, batch, step)
                    step += 1
                    self.losses.add(step, metrics)
                    self.after_step(state, step)
        except StopRequested:  # The run was stopped while it waited for a batch.
            self.losses.check()
            self.save_and_stop(state, step)

    def update(
        self, state: TrainState, batch: Batch, step: int
    ) -> tuple[TrainState, Metrics]:
        """Makes the update after `step` updates; the first of each size compiles first."""
        experiment = self.experiment
        is_new_size = step in experiment.stage_ends and step > self.start_step
        if is_new_size and distributed.num_processes() == 1:
            self.stop.call(partial(self.compile, step))
        self.profile.before(step + 1, state)
        is_first_call = is_new_size or step == self.start_step
        # Several processes compile at the first call.
        with clock("compiling the training step") if is_first_call else nullcontext():
            state, metrics = experiment.train_step_at(step)(state, batch, experiment.seed)
        self.profile.after(step + 1, state)
        if is_first_call:
            jax.block_until_ready(state)
            self.progress.restart_clock(step + 1)
        self.progress.advance()
        return state, metrics

    def after_step(self, state: TrainState, step: int) -> None:
        """Logs, evaluates, saves and stops if due after `step` updates."""
        experiment, config = self.experiment, self.experiment.config
        is_log_due = experiment.is_due(config.log_every_steps, step)
        is_save_due = experiment.is_due(config.checkpoint_every_steps, step)
        is_eval_due = experiment.is_eval_due(step)
        stopping = self.stop.is_due()
        if is_log_due or is_save_due or is_eval_due or stopping:
            metrics = self.losses.check()
            if is_log_due:
                self.log(metrics, step)
        if stopping:
            self.save_and_stop(state, step)
        if is_eval_due:
            self.evaluate_and_save(state, step)
        elif is_save_due:
            self.save(state)
            self.progress.restart_clock(step)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Writes and shows a row of training metrics."""
        rate = self.progress.images_per_second(step)
        row = {**metrics, "learning_rate": self.experiment.learning_rate(step - 1)}
        if rate is not None:
            row["images_per_second"] = rate
        self.write(row, step, "train")
        self.progress.report(step, loss=metrics["loss"], images_per_second=rate)
        if warning := self.chance.add(step, metrics):
            self.progress.say(warning)

    def evaluate_and_save(self, state: TrainState, step: int) -> None:
        """Evaluates, writes and shows a row of metrics, and saves the state with them."""
        started = time.monotonic()
        try:
            metrics = self.experiment.evaluate(state, watch=self.stop.checked)
        except StopRequested:
            self.save_and_stop(state, step)
        if not math.isfinite(metrics["loss"]):
            raise not_finite(metrics, step)
        seconds = time.monotonic() - started
        self.write({**metrics, "eval_seconds": seconds}, step, "eval")
        epoch = step // self.experiment.epoch_steps
        self.progress.say(f"epoch {epoch}, step {step}: eval {format_metrics(metrics)}")
        self.say_unreadable()
        self.save(state, metrics)
        self.progress.restart_clock(step)

    def say_unreadable(self) -> None:
        """Reports the unreadable pictures that were skipped so far, if any."""
        experiment = self.experiment
        unreadable: dict[str, str] = {}
        for found in distributed.exchange(
            experiment.train_set.unreadable | experiment.eval_set.unreadable
        ):
            unreadable |= found
        if unreadable:
            named = [f"{path} ({reason})" for path, reason in unreadable.items()]
            self.progress.say(
                f"unreadable pictures skipped so far: {len(named)}: {name_first(named, 5)}"
            )

    def save(self, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Starts to write a checkpoint."""
        self.checkpoints.save(
            state,
            description=self.experiment.description,
            data=self.experiment.data_description,
            metrics=metrics,
        )

    def save_and_stop(self, state: TrainState, step: int) -> NoReturn:
        """Saves the state if it is not saved yet, and ends the run."""
        self.checkpoints.wait()
        if self.checkpoints.latest_step != step:
            self.save(state)
            self.checkpoints.wait()
        number = self.stop.signal_number
        assert number is not None
        when = f"after step {step}; the state is saved: run the same command to continue"
        raise StoppedBySignal(number, when)

    def write(
        self, metrics: Mapping[str, float], step: int, split: Literal["train", "eval"]
    ) -> None:
        """Writes a row, in the first process."""
        if self.writer is not None:
            epoch = step // self.experiment.epoch_steps
            self.writer.write(metrics, step=step, epoch=epoch, split=split)


def _summary(experiment: Experiment, origin: str) -> str:
    """Describes network, data and length of the run for the user."""
    config, devices = experiment.config, distributed.all_devices(experiment.devices)
    processes = distributed.num_processes()
    shared = f" in {processes} processes" if processes > 1 else ""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(experiment.state_like.params))
    classes = len(experiment.description.class_names)
    last_layers = ", only the last layer of each classifier is trained"
    trained = "" if config.trainable == "all" else last_layers
    sizes = [size for size, _ in experiment.stages]
    tested = "" if config.image_size in sizes else f" (tested at {config.image_size} px)"
    return (
        f"GoogLeNet {config.variant!r}: {parameters:,} parameters, {classes} classes, "
        f"{', '.join(map(str, sizes))} px{tested}, {config.dtype}{trained}\n"
        f"{config.dataset}: {len(experiment.train_set):,} images to train on "
        f"({config.train_split}), {len(experiment.eval_set):,} to evaluate on "
        f"({config.eval_split})\n"
        f"{experiment.total_steps:,} steps of {config.batch_size} images, "
        f"{experiment.epoch_steps:,} an epoch, on {len(devices)} x "
        f"{devices[0].device_kind}{shared}: {origin}"
    )


if __name__ == "__main__":  # The module of the command `train` is `main`.
    runpy.run_module("googlenet_flax.main", run_name="__main__", alter_sys=True)
