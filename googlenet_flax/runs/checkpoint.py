"""Orbax checkpoints of a run: asynchronous, sealed, the three latest and the best one kept.

Orbax writes a step whole or not at all, but reads a flipped bit without a word, takes any
folder with a number for the newest step and then refuses to save older ones. So every
checkpoint carries a label (`runs/label.py`), and only what fits its label counts.
Nor does Orbax delete whole or not at all, so what is superseded is renamed first.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import jax
import numpy as np

from googlenet_flax.runs.label import (
    Label,
    check_shapes,
    label_leaves,
    name_first,
    named_leaves,
)
from googlenet_flax.runtime import distributed
from googlenet_flax.runtime.errors import NotFiniteError, UserError, writing
from googlenet_flax.training.description import DataDescription, ModelDescription
from googlenet_flax.training.sharding import replicated_like, replicated_sharding
from googlenet_flax.training.state import TrainState

KEEP_LATEST = 3
BEST_METRICS = ("averaged_accuracy", "accuracy")  # The first that there is.
ASIDE = ".damaged"
DROPPED = ".dropped"  # Superseded, and about to be deleted.
UNREADABLE = "it cannot be read"

# Two items, so that evaluation and prediction read the weights without the optimizer.
VARIABLES = "variables"  # {"params", "batch_stats"} as Flax takes them
PROGRESS = "progress"  # {"step", "opt_state"}
AVERAGES = "averages"  # As the variables; only where weights are averaged.


class DamagedCheckpointError(UserError):
    """A checkpoint is not what was saved."""

    def __init__(self, path: pathlib.Path, reason: str):
        super().__init__(
            f"checkpoint {path.name} in {path.parent} is damaged: {reason}; name another "
            "one, by its step"
        )
        self.reason = " ".join(reason.split())


class Checkpoints:
    """The checkpoints in one directory, named by the number of updates done.

    Reading changes nothing there. To save, use it as a context manager: leaving it waits
    for the last save. Processes that train together all call it alike, on a directory that
    all of them see; Orbax writes each leaf once, and the first one renames and deletes.
    """

    def __init__(self, directory: pathlib.Path):
        self.directory = directory.absolute()  # Orbax refuses a relative path.
        self._checkpointer: Any = None  # Made by the first save.
        self._pending_save: tuple[int, Label, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        finally:
            if self._checkpointer is not None:
                with contextlib.suppress(Exception):  # It repeats what `wait` has raised.
                    self._checkpointer.close()

    @cached_property
    def _labels(self) -> dict[int, Label]:
        """Of every step whose label can be read, from the oldest to the newest."""
        return dict(sorted(self._scan.labels.items()))

    @cached_property
    def _scan(self) -> "_Scan":
        return _scan(self.directory)

    def _forget_scan(self) -> None:
        self.__dict__.pop("_scan", None)
        self.__dict__.pop("_labels", None)

    @property
    def damaged(self) -> Mapping[int, str]:
        """Steps that cannot be read, as far as was tried, and what is wrong with each."""
        return self._scan.damaged

    @property
    def strays(self) -> Sequence[str]:
        """Other files and folders that lie here, such as what a killed save left."""
        return self._scan.strays

    @property
    def latest_step(self) -> int | None:
        """Updates done in the newest checkpoint."""
        return max(self._labels, default=None)

    @property
    def best_step(self) -> int | None:
        """Updates done in the checkpoint of the best evaluation; the latest of equals."""
        scored = [
            (best_metric(label.metrics), step)
            for step, label in self._labels.items()
            if label.metrics is not None
        ]
        return max(scored)[1] if scored else None

    def resolve(self, name: str) -> int:
        """The step that `best`, `latest` or a number means.

        Raises:
          UserError: There is no such checkpoint.
        """
        steps = list(self._labels)
        if name.isdecimal() and int(name) in self.damaged:
            step = int(name)
            raise DamagedCheckpointError(self._path(step), self.damaged[step])
        if not steps and self.damaged:
            raise UserError(
                f"no checkpoint in {self.directory} can be read: {self.name_damaged()}"
            )
        if not steps:
            raise UserError(f"no checkpoint in {self.directory}: train first")
        if name == "latest":
            return steps[-1]
        if name == "best":
            if len(steps) == 1:
                return steps[0]  # Imported weights were never evaluated.
            if self.best_step is None:
                raise UserError(
                    f"no checkpoint in {self.directory} has been evaluated: "
                    "use --checkpoint=latest"
                )
            return self.best_step
        if not name.isdecimal() or int(name) not in steps:
            raise UserError(
                f"no checkpoint {name!r} in {self.directory}: use best, latest or one of "
                f"{', '.join(map(str, steps))}"
            )
        return int(name)

    def describe(self, step: int) -> ModelDescription:
        """The description saved with the checkpoint at `step`."""
        return self._labels[step].description

    def describe_data(self, step: int) -> DataDescription | None:
        """The data saved with the checkpoint at `step`; None where it has none."""
        return self._labels[step].data

    def evaluation(self, step: int) -> Mapping[str, float] | None:
        """The metrics of the evaluation saved with the checkpoint at `step`, if any."""
        return self._labels[step].metrics if step in self._labels else None

    def name_damaged(self) -> str:
        """The damaged steps and what is wrong with each, in one line."""
        return "; ".join(f"{step}: {reason}" for step, reason in self.damaged.items())

    def set_damaged_aside(self) -> list[pathlib.Path]:
        """Renames what is damaged, so that its steps can be saved again; deletes nothing.

        Returns:
          The new names, in the first process.
        """
        moved = []
        for path in map(self._path, self.damaged if distributed.is_first() else ()):
            target = path.with_name(path.name + ASIDE)
            number = 1
            while target.exists():
                number += 1
                target = path.with_name(f"{path.name}{ASIDE}-{number}")
            moved.append(path.rename(target))
        distributed.wait_for_all()
        self._forget_scan()
        return moved

    def save(
        self,
        state: TrainState,
        *,
        description: ModelDescription,
        data: DataDescription | None = None,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts writing `state` under its own step, replacing what is there.

        Returns once the state is copied, so it may be donated to the next step. An error
        of the write before this one is raised here.

        Args:
          state: Replicated over the devices.
          description: The network, saved beside the state.
          data: The examples, saved beside the state.
          metrics: Of an evaluation of this very state, if there was one.

        Raises:
          NotFiniteError: A leaf is NaN or infinite; nothing is written.
          UserError: The write before this one failed.
        """
        self.wait()
        step, items = int(state.step), _to_items(state)
        label = Label(description, metrics, label_leaves(items), data)
        _check_finite(items, step)
        self._start_save(step, items, label)

    def save_variables(
        self, variables: dict[str, Any], *, description: ModelDescription
    ) -> None:
        """Writes parameters and statistics that were not trained here, as step 0."""
        items = {VARIABLES: variables}
        self._start_save(0, items, Label(description, None, label_leaves(items)))
        self.wait()

    def _start_save(self, step: int, items: dict[str, Any], label: Label) -> None:
        if self._checkpointer is None:
            with distributed.together():
                if distributed.is_first():
                    _prepare(self.directory)
            self._checkpointer = _create_checkpointer(self.directory)
        if distributed.first_says(self._path(step).exists()):
            if distributed.is_first():
                _drop(self._path(step))
            distributed.wait_for_all()
            self._forget_scan()
            self._checkpointer.reload()
        try:
            pending = self._checkpointer.save_checkpointables_async(
                step,
                distributed.to_global(items, replicated_sharding(jax.devices())),
                metrics=None if label.metrics is None else dict(label.metrics),
                custom_metadata=label.to_json(),
            )
        except Exception as error:
            raise _cannot_save(self._path(step), error) from error
        if pending is None:
            raise UserError(
                f"checkpoint {step} was not saved in {self.directory}: a newer one "
                "appeared there; move it away and run the same command"
            )
        self._pending_save = step, label, pending

    def wait(self) -> None:
        """Waits for the last save, and drops what it supersedes.

        Raises:
          UserError: It failed; the checkpoints before it are whole.
        """
        if self._pending_save is None:
            return
        (step, label, pending), self._pending_save = self._pending_save, None
        try:
            pending.result()
        except Exception as error:
            self._forget_scan()
            raise _cannot_save(self._path(step), error) from error
        self._scan.labels[step] = label
        self.__dict__.pop("_labels", None)
        kept = {*list(self._labels)[-KEEP_LATEST:], self.best_step}
        for superseded in self._labels.keys() - kept:
            if distributed.is_first():
                _drop(self._path(superseded))
            del self._scan.labels[superseded], self._labels[superseded]

    def restore_newest(
        self, state_like: TrainState, devices: Sequence[jax.Device]
    ) -> TrainState | None:
        """The newest state that is what was saved; arguments and errors as in `restore`.

        Returns:
          None if there is none; `damaged` names what was tried and found unsound.
        """
        for step in reversed(self._labels):
            try:
                return self.restore(step, state_like, devices)
            except DamagedCheckpointError as error:
                self._scan.damaged[step] = error.reason
        return None

    def restore(
        self, step: int, state_like: TrainState, devices: Sequence[jax.Device]
    ) -> TrainState:
        """The state at `step`, replicated over `devices`.

        Args:
          step: Of an existing checkpoint.
          state_like: Shapes and types to expect, as from `jax.eval_shape`.
          devices: May be others than those it was saved from.

        Raises:
          UserError: The checkpoint holds other leaves, shapes or types, or is damaged.
        """
        items = self._load(step, _to_items(state_like), devices)
        return TrainState(
            step=items[PROGRESS]["step"],
            params=items[VARIABLES]["params"],
            batch_stats=items[VARIABLES].get("batch_stats", {}),
            opt_state=items[PROGRESS]["opt_state"],
            averages=items.get(AVERAGES, {}),
        )

    def restore_variables(
        self,
        step: int,
        variables_like: dict[str, Any],
        devices: Sequence[jax.Device],
        *,
        raw: bool = False,
    ) -> dict[str, Any]:
        """Parameters and statistics alone; arguments and errors as in `restore`.

        They are the averages where there are any, unless `raw` asks for the latest ones.
        """
        item = AVERAGES if self.has_averages(step) and not raw else VARIABLES
        return self._load(step, {item: variables_like}, devices)[item]

    def has_averages(self, step: int) -> bool:
        """Whether averaged weights were saved at `step`."""
        return self._has_item(step, AVERAGES)

    @property
    def hold_training(self) -> bool:
        """Whether a run may have saved them: an import leaves step 0, without optimizer."""
        return bool(self.damaged) or any(
            step > 0 or self._has_item(step, PROGRESS) for step in self._labels
        )

    def _has_item(self, step: int, item: str) -> bool:
        return any(path.startswith(f"{item}/") for path in self._labels[step].leaves)

    def _load(
        self, step: int, items_like: dict[str, Any], devices: Sequence[jax.Device]
    ) -> dict[str, Any]:
        from orbax.checkpoint import v1 as ocp  # noqa: PLC0415 - slow

        saved = {
            path: leaf
            for path, leaf in self._labels[step].leaves.items()
            if path.partition("/")[0] in items_like
        }
        check_shapes(step, saved, items_like)
        path, everywhere = self._path(step), distributed.all_devices(devices)
        try:
            items = distributed.to_local(
                ocp.load_checkpointables(
                    str(path), replicated_like(items_like, everywhere)
                ),
                replicated_sharding(everywhere),
            )
        except Exception as error:  # Whatever Orbax makes of a broken file.
            raise DamagedCheckpointError(path, f"{UNREADABLE} ({_cause(error)})") from error
        loaded = label_leaves(items)
        changed = [name for name, leaf in saved.items() if loaded[name] != leaf]
        if changed:
            reason = f"{name_first(changed)} changed since the save"
            raise DamagedCheckpointError(path, reason)
        return items

    def _path(self, step: int) -> pathlib.Path:
        return self.directory / str(step)


@dataclasses.dataclass(frozen=True)
class _Scan:
    """What lies in a directory."""

    labels: dict[int, Label]
    damaged: dict[int, str]
    strays: list[str]


def _scan(directory: pathlib.Path) -> _Scan:
    scan = _Scan({}, {}, [])
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if path.name.endswith(DROPPED):
            continue
        if not path.name.isdecimal() or path.name != str(int(path.name)):
            scan.strays.append(path.name)
            continue
        try:
            scan.labels[int(path.name)] = _read_label(path)
        except ValueError as error:
            if path.exists():  # Otherwise the run has just dropped it.
                scan.damaged[int(path.name)] = str(error)
    return scan


def _read_label(path: pathlib.Path) -> Label:
    """The label of a checkpoint.

    Raises:
      ValueError: It has none that can be read.
    """
    from orbax.checkpoint import v1 as ocp  # noqa: PLC0415 - slow

    if not path.is_dir():
        raise ValueError("it is a file")
    try:
        fields: Any = ocp.checkpointables_metadata(str(path)).custom_metadata
    except Exception as error:  # Whatever Orbax makes of a broken file.
        raise ValueError(f"{UNREADABLE} ({_cause(error)})") from error
    return Label.from_json(fields or {})


def _prepare(directory: pathlib.Path) -> None:
    """Finds out whether it can be written, and finishes the deletions of a killed run."""
    with writing(directory):  # Orbax's threads would wait for ten minutes.
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    for path in directory.glob(f"*{DROPPED}"):
        shutil.rmtree(path, ignore_errors=True)


def _create_checkpointer(directory: pathlib.Path) -> Any:
    from orbax.checkpoint import v1 as ocp  # noqa: PLC0415 - slow

    save_policies: Any = ocp.training.save_decision_policies  # Typed for v0 inside.
    return ocp.training.Checkpointer(
        str(directory),
        # When to save is the training loop's business: every call saves.
        save_decision_policy=save_policies.FixedIntervalPolicy(1),
    )


def _drop(path: pathlib.Path) -> None:
    """Deletes a checkpoint; a process killed meanwhile leaves none that looks damaged."""
    target = path.with_name(path.name + DROPPED)
    shutil.rmtree(target, ignore_errors=True)
    path.rename(target)
    shutil.rmtree(target, ignore_errors=True)


def _cannot_save(path: pathlib.Path, error: Exception) -> UserError:
    return UserError(
        f"checkpoint {path} cannot be written ({_cause(error)}): the checkpoints before it "
        "are whole; mend that and run the same command, which goes on from the newest"
    )


def _cause(error: BaseException) -> str:
    """The part of an error of Orbax, tensorstore or the system that a person needs."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))  # As tensorstore puts it.
    if code:
        return os.strerror(int(code[1]))
    return " ".join(str(error).split())[:200] or type(error).__name__


def _to_items(state: TrainState) -> dict[str, Any]:
    progress = {"step": state.step, "opt_state": state.opt_state}
    items = {VARIABLES: state.variables, PROGRESS: progress}
    return {**items, AVERAGES: state.averages} if state.averages else items


def best_metric(metrics: Mapping[str, float]) -> float:
    """What the best checkpoint has most of: accuracy, of averaged weights if there are."""
    return next(metrics[name] for name in BEST_METRICS if name in metrics)


def _check_finite(items: Any, step: int) -> None:
    for path, leaf in named_leaves(jax.device_get(items)):
        if not np.isfinite(leaf).all():
            raise NotFiniteError(
                f"{path} is not finite after step {step}: lower --config.learning_rate; "
                "the last checkpoint was saved before this step"
            )
