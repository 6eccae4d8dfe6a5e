"""Orbax checkpoints of a run: asynchronous, the three latest and the best one kept."""

import pathlib
from collections.abc import Sequence
from typing import Any, Self

import jax

from googlenet_flax.description import ModelDescription
from googlenet_flax.errors import UserError
from googlenet_flax.train_step import TrainState, replicated_like

KEEP_LATEST = 3
KEEP_BEST = 1
BEST_METRIC = "accuracy"

# Two items, so that evaluation and prediction read the weights without the optimizer.
VARIABLES = "variables"  # {"params", "batch_stats"} as Flax takes them
PROGRESS = "progress"  # {"step", "opt_state"}


class Checkpoints:
    """The checkpoints in one directory, named by the number of updates done.

    Use it as a context manager: leaving it waits for the last save.
    """

    def __init__(self, directory: pathlib.Path):
        from orbax.checkpoint import v1 as ocp  # noqa: PLC0415 - slow

        policies: Any = ocp.training.preservation_policies  # Typed for v0 inside.
        save_policies: Any = ocp.training.save_decision_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[BEST_METRIC],
            n=KEEP_BEST,
            keep_checkpoints_without_metrics=False,
        )
        self._checkpointer = ocp.training.Checkpointer(
            str(directory.absolute()),  # Orbax refuses a relative path.
            # When to save is the training loop's business: every call saves.
            save_decision_policy=save_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(KEEP_LATEST), best]
            ),
        )
        self._pending_save: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """Updates done in the newest checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def best_step(self) -> int | None:
        """Updates done in the checkpoint of the best evaluation; the latest of equals."""
        scored = [
            (checkpoint.metrics[BEST_METRIC], checkpoint.step)
            for checkpoint in self._checkpointer.checkpoints
            if isinstance(checkpoint.metrics, dict)
        ]
        return max(scored)[1] if scored else None

    def was_evaluated(self, step: int) -> bool:
        """Whether the checkpoint at `step` carries an evaluation."""
        return any(
            checkpoint.step == step and bool(checkpoint.metrics)
            for checkpoint in self._checkpointer.checkpoints
        )

    def resolve(self, name: str) -> int:
        """The step that `best`, `latest` or a number means.

        Raises:
          UserError: There is no such checkpoint.
        """
        steps = [checkpoint.step for checkpoint in self._checkpointer.checkpoints]
        directory = self._checkpointer.directory
        if not steps:
            raise UserError(f"no checkpoint in {directory}: train first")
        if name == "latest":
            return steps[-1]
        if name == "best":
            if len(steps) == 1:
                return steps[0]  # Imported weights were never evaluated.
            if self.best_step is None:
                raise UserError(
                    f"no checkpoint in {directory} has been evaluated: "
                    "use --checkpoint=latest"
                )
            return self.best_step
        if not name.isdecimal() or int(name) not in steps:
            raise UserError(
                f"no checkpoint {name!r} in {directory}: use best, latest or one of "
                f"{', '.join(map(str, steps))}"
            )
        return int(name)

    def save(
        self,
        state: TrainState,
        *,
        description: ModelDescription,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts writing `state` under its own step, replacing what is there.

        Returns once the state is copied, so it may be donated to the next step. An error
        of the write before this one is raised here.

        Args:
          state: Replicated over the devices.
          description: Kept beside it.
          metrics: Of an evaluation of this very state, if there was one.
        """
        self.wait()
        self._pending_save = self._checkpointer.save_checkpointables_async(
            int(state.step),
            _to_items(state),
            metrics=None if metrics is None else dict(metrics),
            custom_metadata=description.to_json(),
            overwrite=True,
        )

    def save_variables(
        self, variables: dict[str, Any], *, description: ModelDescription
    ) -> None:
        """Writes parameters and statistics that were not trained here, as step 0."""
        self._checkpointer.save_checkpointables(
            0,
            {VARIABLES: variables},
            custom_metadata=description.to_json(),
            overwrite=True,
        )

    def wait(self) -> None:
        """Waits for the last save; its error, if any, is raised here."""
        if self._pending_save is not None:
            pending, self._pending_save = self._pending_save, None
            pending.result()

    def restore(
        self, step: int, state_like: TrainState, devices: Sequence[jax.Device]
    ) -> TrainState:
        """The state at `step`, replicated over `devices`.

        Args:
          step: Of an existing checkpoint.
          state_like: Shapes and types to expect, as from `jax.eval_shape`.
          devices: May be others than those it was saved from.

        Raises:
          UserError: The checkpoint holds other leaves, shapes or types.
        """
        items = self._load(step, _to_items(state_like), devices)
        return TrainState(
            step=items[PROGRESS]["step"],
            params=items[VARIABLES]["params"],
            batch_stats=items[VARIABLES].get("batch_stats", {}),
            opt_state=items[PROGRESS]["opt_state"],
        )

    def restore_variables(
        self, step: int, variables_like: dict[str, Any], devices: Sequence[jax.Device]
    ) -> dict[str, Any]:
        """Parameters and statistics alone; arguments and errors as in `restore`."""
        return self._load(step, {VARIABLES: variables_like}, devices)[VARIABLES]

    def describe(self, step: int) -> ModelDescription:
        """The description saved with the checkpoint at `step`."""
        metadata = self._checkpointer.checkpointables_metadata(step)
        if not isinstance(metadata.custom_metadata, dict):
            raise UserError(f"checkpoint {step} says nothing of its network: use another")
        return ModelDescription.from_json(metadata.custom_metadata)

    def _load(
        self, step: int, items_like: dict[str, Any], devices: Sequence[jax.Device]
    ) -> dict[str, Any]:
        self._check_leaves(step, items_like)
        return self._checkpointer.load_checkpointables(
            step, replicated_like(items_like, devices)
        )

    def _check_leaves(self, step: int, items_like: dict[str, Any]) -> None:
        """Orbax casts types silently and reports shapes obscurely; this says it plainly."""
        saved_items = self._checkpointer.checkpointables_metadata(step).metadata
        for item, expected_tree in items_like.items():
            saved, expected = _leaves(saved_items[item]), _leaves(expected_tree)
            for path in sorted(saved.keys() | expected.keys()):
                if saved.get(path) != expected.get(path):
                    raise UserError(
                        f"checkpoint {step} does not fit this network: {path} is "
                        f"{saved.get(path, 'absent')} there and "
                        f"{expected.get(path, 'absent')} here; variant, classes, "
                        "image_size and width_multiplier must be those of its training"
                    )


def _to_items(state: TrainState) -> dict[str, Any]:
    progress = {"step": state.step, "opt_state": state.opt_state}
    return {VARIABLES: state.variables, PROGRESS: progress}


def _leaves(tree: Any) -> dict[str, str]:
    """Path to "dtype[shape]" of every leaf."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{leaf.dtype}{list(leaf.shape)}"
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
