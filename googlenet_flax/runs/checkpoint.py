"""Asynchronous Orbax checkpoints of a run, of which the three latest and the best are kept.

Orbax writes a step completely or not at all, but does not detect a flipped bit. It takes
any folder with a number for the newest step, and then refuses to save older ones. So every
checkpoint has a label (`runs/label.py`), and a checkpoint that differs from its label is
damaged. Orbax can also leave a partly deleted step, so a superseded one is renamed before
it is deleted.
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
BEST_METRICS = ("averaged_accuracy", "accuracy")  # The first one present decides.
ASIDE = ".damaged"  # Suffix of damaged checkpoints that were renamed.
DROPPED = ".dropped"  # Suffix of superseded checkpoints, about to be deleted.
UNREADABLE = "it cannot be read"

# The items of a checkpoint. Evaluation and prediction read only the weights.
VARIABLES = "variables"  # {"params", "batch_stats"} in the form that Flax takes.
PROGRESS = "progress"  # {"step", "opt_state"}.
AVERAGES = "averages"  # Same form as the variables; only with averaging.


class DamagedCheckpointError(UserError):
    """The contents of a checkpoint differ from what was saved."""

    def __init__(self, path: pathlib.Path, reason: str):
        super().__init__(
            f"checkpoint {path.name} in {path.parent} is damaged: {reason}; name another "
            "one, by its step"
        )
        self.reason = " ".join(reason.split())


class Checkpoints:
    """The checkpoints in one directory, named by the number of updates done.

    Reading does not change the directory. Saving needs the object as a context manager,
    whose exit waits for the last save. Processes that train together must all make the same
    calls, on a shared directory: Orbax writes each leaf once, and the first process renames
    and deletes.
    """

    def __init__(self, directory: pathlib.Path):
        self.directory = directory.absolute()  # Orbax refuses a relative path.
        self._checkpointer: Any = None  # Created by the first save.
        self._pending_save: tuple[int, Label, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        finally:
            if self._checkpointer is not None:
                with contextlib.suppress(Exception):  # Closing repeats the error of `wait`.
                    self._checkpointer.close()

    @property
    def _labels(self) -> dict[int, Label]:
        """The labels that can be read, by step, from the oldest to the newest."""
        return dict(sorted(self._scan.labels.items()))

    @cached_property
    def _scan(self) -> "_Scan":
        return _scan(self.directory)

    def _forget_scan(self) -> None:
        self.__dict__.pop("_scan", None)

    @property
    def damaged(self) -> Mapping[int, str]:
        """Steps that are known to be damaged, with the reason for each."""
        return self._scan.damaged

    @property
    def strays(self) -> Sequence[str]:
        """Names of other files and folders here, such as leftovers of a killed save."""
        return self._scan.strays

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None if there is none."""
        return max(self._labels, default=None)

    @property
    def best_step(self) -> int | None:
        """The step of the best evaluation, the latest of equals; None if there is none."""
        scored = [
            (best_metric(label.metrics), step)
            for step, label in self._labels.items()
            if label.metrics is not None
        ]
        return max(scored)[1] if scored else None

    def resolve(self, name: str) -> int:
        """Returns the step that `best`, `latest` or a number refers to.

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
        """Returns the description of the network saved at `step`."""
        return self._labels[step].description

    def describe_data(self, step: int) -> DataDescription | None:
        """Returns the description of the data saved at `step`, or None."""
        return self._labels[step].data

    def evaluation(self, step: int) -> Mapping[str, float] | None:
        """Returns the metrics of the evaluation saved at `step`, or None."""
        return self._labels[step].metrics if step in self._labels else None

    def name_damaged(self) -> str:
        """Lists the damaged steps and the reason for each in one line."""
        return "; ".join(f"{step}: {reason}" for step, reason in self.damaged.items())

    def set_damaged_aside(self) -> list[pathlib.Path]:
        """Renames damaged checkpoints, so that their steps can be saved again.

        Returns:
          The new paths in the first process, and nothing in the others.
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
        """Starts to write `state` under its own step, and replaces an existing checkpoint.

        Returns once the state is copied, so that it may be donated to the next step. Waits
        for the previous save, and raises its error.

        Args:
          state: The state, replicated over the devices.
          description: Description of the network.
          data: Description of the examples.
          metrics: Metrics of an evaluation of this state, if there was one.

        Raises:
          NotFiniteError: A leaf is NaN or infinite; nothing is written.
          UserError: The previous save failed.
        """
        self.wait()
        step, items = int(state.step), _to_items(state)
        label = Label(description, metrics, label_leaves(items), data)
        _check_finite(items, step)
        self._start_save(step, items, label)

    def save_variables(
        self, variables: dict[str, Any], *, description: ModelDescription
    ) -> None:
        """Writes imported parameters and statistics as step 0, and waits for the write."""
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
        """Waits for the last save, and deletes the checkpoints that it supersedes.

        Raises:
          UserError: The save failed; earlier checkpoints are not affected.
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
        kept = {*list(self._labels)[-KEEP_LATEST:], self.best_step}
        for superseded in self._labels.keys() - kept:
            if distributed.is_first():
                _drop(self._path(superseded))
            del self._scan.labels[superseded]

    def restore_newest(
        self, state_like: TrainState, devices: Sequence[jax.Device]
    ) -> TrainState | None:
        """Restores the newest checkpoint that is not damaged; see `restore`.

        Returns:
          The state, or None if there is none. Checkpoints that were found to be damaged are
          added to `damaged`.
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
        """Restores the state at `step`, replicated over `devices`.

        Args:
          step: Step of an existing checkpoint.
          state_like: Expected shapes and types, as `jax.eval_shape` returns them.
          devices: Devices to restore to; they may differ from those of the save.

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
        """Restores parameters and statistics alone; see `restore`.

        Returns the averages if there are any, unless `raw` asks for the latest weights.
        """
        item = AVERAGES if self.has_averages(step) and not raw else VARIABLES
        return self._load(step, {item: variables_like}, devices)[item]

    def has_averages(self, step: int) -> bool:
        """Returns true if averaged weights were saved at `step`."""
        return self._has_item(step, AVERAGES)

    @property
    def hold_training(self) -> bool:
        """True if a run may have saved these; an import saves step 0 without optimizer."""
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
        except Exception as error:  # Orbax raises many types for a broken file.
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
    """The checkpoints and other files in a directory."""

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
            if path.exists():  # Otherwise a running training has just deleted it.
                scan.damaged[int(path.name)] = str(error)
    return scan


def _read_label(path: pathlib.Path) -> Label:
    """Reads the label of a checkpoint.

    Raises:
      ValueError: The label is missing or damaged.
    """
    from orbax.checkpoint import v1 as ocp  # noqa: PLC0415 - slow

    if not path.is_dir():
        raise ValueError("it is a file")
    try:
        fields: Any = ocp.checkpointables_metadata(str(path)).custom_metadata
    except Exception as error:  # Orbax raises many types for a broken file.
        raise ValueError(f"{UNREADABLE} ({_cause(error)})") from error
    return Label.from_json(fields or {})


def _prepare(directory: pathlib.Path) -> None:
    """Checks that a directory is writable, and finishes the deletions of a killed run."""
    with writing(directory):  # Orbax would report an error only after ten minutes.
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    for path in directory.glob(f"*{DROPPED}"):
        shutil.rmtree(path, ignore_errors=True)


def _create_checkpointer(directory: pathlib.Path) -> Any:
    from orbax.checkpoint import v1 as ocp  # noqa: PLC0415 - slow

    save_policies: Any = ocp.training.save_decision_policies  # Its types are those of v0.
    return ocp.training.Checkpointer(
        str(directory),
        # The training loop decides when to save, so every call saves.
        save_decision_policy=save_policies.FixedIntervalPolicy(1),
    )


def _drop(path: pathlib.Path) -> None:
    """Renames a checkpoint before deleting it, so that a kill leaves no damaged one."""
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
    """Returns the cause of an error of Orbax, tensorstore or the system in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))  # The format of tensorstore.
    if code:
        return os.strerror(int(code[1]))
    return " ".join(str(error).split())[:200] or type(error).__name__


def _to_items(state: TrainState) -> dict[str, Any]:
    progress = {"step": state.step, "opt_state": state.opt_state}
    items = {VARIABLES: state.variables, PROGRESS: progress}
    return {**items, AVERAGES: state.averages} if state.averages else items


def best_metric(metrics: Mapping[str, float]) -> float:
    """Returns the accuracy that ranks checkpoints, of averaged weights if present."""
    return next(metrics[name] for name in BEST_METRICS if name in metrics)


def _check_finite(items: Any, step: int) -> None:
    for path, leaf in named_leaves(jax.device_get(items)):
        if not np.isfinite(leaf).all():
            raise NotFiniteError(
                f"{path} is not finite after step {step}: lower --config.learning_rate; "
                "the last checkpoint was saved before this step"
            )
