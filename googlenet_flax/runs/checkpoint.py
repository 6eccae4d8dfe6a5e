"""Asynchronous Orbax checkpoints of a run, of which the three latest and the best are kept.

Orbax writes a checkpoint completely or not at all, but does not detect a flipped bit. So
every checkpoint has a manifest (`runs/manifest.py`), and a checkpoint that differs from its
manifest is damaged. Before training continues, a damaged checkpoint is renamed, so that its
step can be saved again. A superseded checkpoint is renamed before it is deleted, so that a
kill leaves no damaged one.
"""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import jax
import numpy as np

from googlenet_flax.runs.manifest import (
    Manifest,
    check_shapes,
    describe_leaves,
    name_first,
    named_leaves,
)
from googlenet_flax.runtime import distributed
from googlenet_flax.runtime.errors import (
    RESUME,
    NotFiniteError,
    RunError,
    UserError,
    writing,
)
from googlenet_flax.training.description import DataDescription, ModelDescription
from googlenet_flax.training.sharding import replicated_like, replicated_sharding
from googlenet_flax.training.state import TrainState

KEEP_LATEST = 3
LOAD_ATTEMPTS = 3
ASIDE = ".damaged"  # Suffix of damaged checkpoints that were renamed.
DROPPED = ".dropped"  # Suffix of superseded checkpoints, about to be deleted.
REPLACED = ".replaced"  # Suffix of a checkpoint whose step is being saved again.

Loaded = TypeVar("Loaded")

# The items of a checkpoint. Evaluation and prediction read only the weights.
VARIABLES = "variables"  # {"params", "batch_stats"} in the form that Flax takes.
PROGRESS = "progress"  # {"step", "opt_state"}.
AVERAGES = "averages"  # Same form as the variables; only with averaging.


class DamagedCheckpointError(UserError):
    """The contents of a checkpoint differ from what was saved."""

    def __init__(self, path: pathlib.Path, reason: str):
        super().__init__(
            f"checkpoint {path.name} in {path.parent} is damaged: {reason}; move it "
            "away, or name another step where the command has --checkpoint"
        )
        self.path, self.reason = path, reason


def retried(load: Callable[..., Loaded]) -> Callable[..., Loaded]:
    """Repeats a function that reads a checkpoint, if a run deletes that one meanwhile."""

    @functools.wraps(load)
    def load_again(*args: Any, **kwargs: Any) -> Loaded:
        for _ in range(LOAD_ATTEMPTS - 1):
            try:
                return load(*args, **kwargs)
            except DamagedCheckpointError as error:
                if error.path.exists():
                    raise
        return load(*args, **kwargs)

    return load_again


class Checkpoints:
    """The checkpoints in one directory, named by the number of updates done.

    Reading does not change the directory. Saving needs the object as a context manager,
    whose exit waits for the last save. Processes that train together must all make the same
    calls, on a shared directory: Orbax writes each leaf once, and the first process renames
    and deletes.
    """

    def __init__(self, directory: pathlib.Path):
        self.directory = directory.absolute()  # Orbax refuses a relative path.
        self._pending_save: tuple[int, Manifest, Any] | None = None
        self._scan()

    def _scan(self) -> None:
        """Finds the checkpoints and the other files; raises a `UserError` if it cannot."""
        try:
            self._read_manifests()
        except OSError as error:
            raise UserError(
                f"{error.filename or self.directory} cannot be read ({error.strerror}): "
                "fix that and run the same command again"
            ) from error

    def _read_manifests(self) -> None:
        """Reads all manifests, and finds damaged checkpoints and other files."""
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):  # There are no checkpoints yet.
            names = os.listdir(self.directory)
        manifests: dict[int, Manifest] = {}
        self.damaged: dict[int, str] = {}  # Reasons by step.
        self.strays: list[str] = []  # Names of other files, such as those of a killed save.
        for name in sorted(names):
            path = self.directory / name
            if name.isdecimal() and name == str(int(name)):
                try:
                    manifests[int(name)] = _read_manifest(path)
                except ValueError as error:
                    with contextlib.suppress(FileNotFoundError):  # A run has deleted it.
                        os.stat(path)
                        self.damaged[int(name)] = str(error)
            elif not name.endswith((DROPPED, REPLACED)):
                self.strays.append(name)
        self.manifests = dict(sorted(manifests.items()))  # From the oldest to the newest.

    def __enter__(self) -> Self:
        """Brings back a checkpoint whose replacement was never completed."""
        replaced = self.directory.glob(f"*{REPLACED}")
        with distributed.together():
            for old in replaced if distributed.is_first() else ():
                path = self.directory / old.stem
                if path.exists():
                    _drop(old)
                else:
                    with writing(path):
                        old.rename(path)
        self._scan()
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        """Completes the pending save, unless a process that takes part in it is lost."""
        if distributed.num_processes() > 1 and distributed.reports_a_lost_process(error):
            return  # The save would wait for that process.
        self.wait()

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None if there is none."""
        return max(self.manifests, default=None)

    @property
    def best_step(self) -> int | None:
        """The step of the best evaluation, the latest of equals; None if there is none."""
        scores = {
            step: manifest.metrics[best_name(manifest.metrics)]
            for step, manifest in self.manifests.items()
            if manifest.metrics is not None
        }
        known = [step for step in scores if not math.isnan(scores[step])]
        return max(known, key=lambda step: (scores[step], step), default=None)

    def resolve(self, name: str) -> int:
        """Returns the step that `best`, `latest` or a number refers to.

        Raises:
          UserError: There is no such checkpoint, or it is damaged.
        """
        step = int(name) if name.isdecimal() else -1
        if step in self.damaged:
            raise DamagedCheckpointError(self._path(step), self.damaged[step])
        if not self.manifests:
            damaged = self.describe_damaged()
            problem = f" can be read: {damaged}" if damaged else ": train first"
            raise UserError(f"no checkpoint in {self.directory}{problem}")
        # A single checkpoint is the best one even if it was not evaluated, as in an import.
        if name == "latest" or (name == "best" and len(self.manifests) == 1):
            return max(self.manifests)
        if name == "best":
            if self.best_step is None:
                raise UserError(
                    f"no checkpoint in {self.directory} has been evaluated: "
                    "use --checkpoint=latest"
                )
            return self.best_step
        if step not in self.manifests:
            raise UserError(
                f"no checkpoint {name!r} in {self.directory}: use best, latest or one of "
                f"{', '.join(map(str, self.manifests))}"
            )
        return step

    def _items(self, step: int) -> set[str]:
        return {path.partition("/")[0] for path in self.manifests[step].leaves}

    @property
    def hold_training(self) -> bool:
        """True if a run may have saved the checkpoints, or False for those of an import.

        An import saves only step 0, without the state of an optimizer.
        """
        return bool(self.damaged) or any(
            step > 0 or PROGRESS in self._items(step) for step in self.manifests
        )

    def describe_damaged(self) -> str:
        """Lists the damaged steps and the reason for each in one line."""
        return "; ".join(f"{step}: {reason}" for step, reason in self.damaged.items())

    def set_damaged_aside(self) -> list[pathlib.Path]:
        """Renames damaged checkpoints, so that their steps can be saved again.

        Returns the new paths in the first process, and nothing in the others.

        Raises:
          UserError: A checkpoint cannot be renamed.
        """
        moved = []
        with distributed.together():
            for path in map(self._path, self.damaged if distributed.is_first() else ()):
                target, number = path.with_name(path.name + ASIDE), 1
                while target.exists():
                    number += 1
                    target = path.with_name(f"{path.name}{ASIDE}-{number}")
                # The user may have deleted it since.
                with writing(path), contextlib.suppress(FileNotFoundError):
                    moved.append(path.rename(target))
        self._scan()
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

        No checkpoint may be of a later step than `state`.

        It first waits for the previous save, and raises its error. It returns once the
        state is copied, so that the state may be donated to the next step. The state is
        replicated over the devices; `metrics` are those of its evaluation, if there was
        one.

        Raises:
          NotFiniteError: A leaf is NaN or infinite; nothing is written.
          UserError: The previous save failed, or this one cannot start.
        """
        self.wait()
        step, items = int(state.step), _to_items(state)
        manifest = Manifest(description, metrics, describe_leaves(items), data)
        for path, leaf in named_leaves(jax.device_get(items)):
            if not np.isfinite(leaf).all():
                raise NotFiniteError(
                    f"{path} is not finite after step {step}: lower "
                    "--config.learning_rate; the last checkpoint was saved before this step"
                )
        self._start_save(step, items, manifest)

    def save_variables(
        self, variables: dict[str, Any], *, description: ModelDescription
    ) -> None:
        """Saves imported parameters and statistics as step 0; see `save` and `wait`."""
        items = {VARIABLES: variables}
        self._start_save(0, items, Manifest(description, None, describe_leaves(items)))
        self.wait()

    def _start_save(self, step: int, items: dict[str, Any], manifest: Manifest) -> None:
        from orbax.checkpoint import v1 as ocp  # noqa: PLC0415 - slow

        path = self._path(step)
        with distributed.together():
            if distributed.is_first():
                _prepare(self.directory)
                if step in self.manifests:
                    _rename(path, REPLACED)
        self.manifests.pop(step, None)
        with _saving(path):
            pending = ocp.save_checkpointables_async(
                str(path),
                distributed.to_global(items, replicated_sharding(jax.devices())),
                custom_metadata=manifest.to_json(),
            )
        self._pending_save = step, manifest, pending

    def wait(self) -> None:
        """Waits for the last save, and deletes the checkpoints that it supersedes.

        Raises:
          UserError: The save failed; earlier checkpoints are not affected.
        """
        if self._pending_save is None:
            return
        (step, manifest, pending), self._pending_save = self._pending_save, None
        try:
            with _saving(self._path(step)):
                pending.result()
        except KeyboardInterrupt:
            self._pending_save = step, manifest, pending  # The exit waits for it.
            raise
        self.manifests[step] = manifest  # Stays sorted, as no older step is saved.
        if distributed.is_first():
            _drop(self.directory / f"{step}{REPLACED}")
        kept = {*list(self.manifests)[-KEEP_LATEST:], self.best_step}
        for superseded in self.manifests.keys() - kept:
            if distributed.is_first():
                _drop(self._path(superseded))
            del self.manifests[superseded]

    def restore_newest(
        self, state_like: TrainState, devices: Sequence[jax.Device]
    ) -> TrainState | None:
        """Restores the newest checkpoint that is not damaged; see `restore`.

        Returns:
          The state, or None if there is none. Damaged checkpoints are added to `damaged`.

        Raises:
          UserError: A checkpoint holds other leaves, shapes or types.
          RunError: Some processes can read a checkpoint and others cannot.
        """
        for step in reversed(self.manifests):
            state, reason = None, ""
            try:
                state = self.restore(step, state_like, devices)
            except DamagedCheckpointError as error:
                reason = error.reason
            reasons = distributed.exchange(reason)
            if not any(reasons):
                return state
            if not all(reasons):
                number, reason = next(found for found in enumerate(reasons) if found[1])
                raise RunError(
                    f"process {number} cannot use checkpoint {step} in {self.directory} "
                    f"({reason}), but other processes can: check the file system of its "
                    "machine, and start all processes again"
                ).shared()
            self.damaged[step] = reason
        return None

    def restore(
        self, step: int, state_like: TrainState, devices: Sequence[jax.Device]
    ) -> TrainState:
        """Restores the state at `step`, replicated over `devices`.

        `devices` may differ from those of the run that saved it. `state_like` holds the
        expected shapes and types, as `jax.eval_shape` returns them.

        Raises:
          UserError: The checkpoint holds other leaves, shapes or types, or is damaged.
        """
        items = self._load(step, _to_items(state_like), devices)
        averages = items.get(AVERAGES, {})
        return dataclasses.replace(
            state_like, **items[PROGRESS], **items[VARIABLES], averages=averages
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
        item = AVERAGES if AVERAGES in self._items(step) and not raw else VARIABLES
        return self._load(step, {item: variables_like}, devices)[item]

    def _load(
        self, step: int, items_like: dict[str, Any], devices: Sequence[jax.Device]
    ) -> dict[str, Any]:
        from orbax.checkpoint import v1 as ocp  # noqa: PLC0415 - slow

        saved = {
            path: leaf
            for path, leaf in self.manifests[step].leaves.items()
            if path.partition("/")[0] in items_like
        }
        check_shapes(step, saved, items_like)
        path, number = self._path(step), jax.process_index()
        # Each process reads alone: in a common load, the others would wait for minutes for
        # one that cannot read.
        alone = ocp.Context()
        alone.multiprocessing.primary_host = number
        alone.multiprocessing.active_processes = {number}
        try:
            with alone:
                like = replicated_like(items_like, devices)
                items = ocp.load_checkpointables(str(path), like)
        except Exception as error:  # Orbax raises many types for a broken file.
            reason = f"it cannot be read ({_cause(error)})"
            raise DamagedCheckpointError(path, reason) from error
        loaded = describe_leaves(items)
        changed = [name for name, leaf in saved.items() if loaded[name] != leaf]
        if changed:
            reason = f"{name_first(changed)} changed since the save"
            raise DamagedCheckpointError(path, reason)
        return items

    def _path(self, step: int) -> pathlib.Path:
        return self.directory / str(step)


def _read_manifest(path: pathlib.Path) -> Manifest:
    """Reads a manifest; raises a `ValueError` if it is missing or damaged."""
    from orbax.checkpoint import v1 as ocp  # noqa: PLC0415 - slow

    if not path.is_dir():
        raise ValueError("it is a file")
    try:
        fields: Any = ocp.checkpointables_metadata(str(path)).custom_metadata
    except Exception as error:  # Orbax raises many types for a broken file.
        raise ValueError(f"it cannot be read ({_cause(error)})") from error
    return Manifest.from_json(fields or {})


def _prepare(directory: pathlib.Path) -> None:
    """Makes a directory ready for a save, and finishes the deletions of a killed run."""
    with writing(directory):  # Orbax's threads would wait five minutes for its folder.
        directory.mkdir(parents=True, exist_ok=True)
        os.rmdir(tempfile.mkdtemp(dir=directory))
    for path in directory.glob(f"*{DROPPED}"):
        shutil.rmtree(path, ignore_errors=True)


def _drop(path: pathlib.Path) -> None:
    """Renames a checkpoint and then deletes it, so that a kill leaves no damaged one."""
    shutil.rmtree(_rename(path, DROPPED), ignore_errors=True)


def _rename(path: pathlib.Path, suffix: str) -> pathlib.Path:
    """Appends a suffix to the name of a checkpoint, if it exists; returns the new path."""
    target = path.with_name(path.name + suffix)
    shutil.rmtree(target, ignore_errors=True)
    with writing(path), contextlib.suppress(FileNotFoundError):
        path.rename(target)
    return target


@contextlib.contextmanager
def _saving(path: pathlib.Path) -> Iterator[None]:
    """Turns an error of a save into a `UserError`, unless another process was lost."""
    try:
        yield
    except Exception as error:
        if distributed.num_processes() > 1 and distributed.reports_a_lost_process(error):
            raise
        raise UserError(
            f"checkpoint {path} cannot be written ({_cause(error)}): {RESUME}"
        ) from error


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


def best_name(metrics: Mapping[str, float]) -> str:
    """Returns the name of the metric that ranks checkpoints."""
    return "averaged_accuracy" if "averaged_accuracy" in metrics else "accuracy"
