"""A copy of the metrics of a run at Weights & Biases (W&B)."""

import pathlib
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Self

from googlenet_flax.config import Config
from googlenet_flax.runs.metrics import tagged_metrics
from googlenet_flax.runtime.errors import UserError, optional_package, writing
from googlenet_flax.runtime.files import replace_file
from googlenet_flax.runtime.streams import tell


class WandbMirror:
    """Sender of metrics to one W&B run per workdir, which a resumed run continues.

    Rows that a killed run wrote after its last checkpoint are sent twice. If W&B fails
    during the run, the run goes on without it. The directory keeps the files of W&B and the
    id of the run.

    Raises:
      UserError: The package `wandb` is missing, the directory cannot be written, or W&B
        cannot start.
    """

    def __init__(self, directory: pathlib.Path, config: Config):
        with optional_package("wandb", "config.wandb_project", "wandb"):
            import wandb  # noqa: PLC0415
        with writing(directory):
            directory.mkdir(exist_ok=True)
            id_file = directory / "run_id"
            is_new = not id_file.exists()
            run_id = secrets.token_hex(8) if is_new else id_file.read_text(encoding="utf-8")
        try:
            self._run: Any = wandb.init(
                project=config.wandb_project,
                id=run_id,
                # A resumed run keeps the name that somebody may have given it at W&B.
                name=directory.parent.name if is_new else None,
                resume="allow",
                dir=str(directory),
                config={**config.to_dict(), "workdir": str(directory.parent)},
                settings=wandb.Settings(silent=True, console="off", save_code=False),
            )
        except Exception as error:  # Many types: no login, no network, a bad name.
            raise UserError(
                f"W&B cannot start ({error}): run `wandb login`, or set WANDB_MODE=offline"
            ) from error
        if is_new:
            replace_file(id_file, run_id.encode())
        self._run.define_metric("*", step_metric="step")
        if self._run.url:  # None if W&B is offline.
            tell(f"W&B shows this run at {self._run.url}")
        self._has_failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._try(lambda: self._run.finish(exit_code=0 if kind is None else 1))

    def write(self, row: Mapping[str, Any]) -> None:
        """Sends a row of `metrics.jsonl` under the names of TensorBoard."""
        position = {"step": row["step"], "epoch": row["epoch"]}
        self._try(lambda: self._run.log({**tagged_metrics(row), **position}))

    def _try(self, call: Callable[[], Any]) -> None:
        """Calls W&B unless it has failed before."""
        if self._has_failed:
            return
        try:
            call()
        except Exception as error:  # Many types, as when its process was killed.
            self._has_failed = True
            reason = " ".join(str(error).split())
            tell(
                f"W&B has failed and may lack metrics ({reason}): the run continues "
                "without it"
            )
