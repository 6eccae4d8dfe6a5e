"""The directory of a run: its paths, its lock, its config and the record of its starts."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import time
from collections.abc import Mapping
from typing import Any, Self

from googlenet_flax.config import RESUMABLE_FIELDS, Config
from googlenet_flax.runtime.errors import UserError, WorkdirInUseError, writing
from googlenet_flax.runtime.files import replace_file

IMPORTED_FROM = "imported_from"  # Field of config.json in workdirs of imported weights.

# Fields that must not change if a schedule spans the whole run.
LENGTH_FIELDS = frozenset({"num_epochs", "max_steps"})


class Workdir:
    """Paths of a run, and a lock against a second process that trains there.

    Raises:
      UserError: The path cannot name a directory.
    """

    def __init__(self, path: str | os.PathLike[str]):
        if not os.fspath(path):
            raise UserError("workdir is empty: name a directory with --workdir=DIR")
        try:
            self.path = pathlib.Path(path).expanduser().absolute()
            os.fspath(self.path).encode()
        except RuntimeError as error:
            raise UserError(
                f"workdir {os.fspath(path)!r} names no directory ({error}): choose another "
                "with --workdir=DIR"
            ) from error
        except UnicodeEncodeError as error:
            raise UserError(
                f"this locale cannot encode workdir {os.fspath(path)!r}: set PYTHONUTF8=1"
            ) from error
        self.config_file = self.path / "config.json"
        self.starts_file = self.path / "starts.jsonl"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.profile = self.path / "profile"
        self.wandb = self.path / "wandb"
        self._lock_path = self.path / ".lock"

    @property
    def owner(self) -> str:
        """The process that holds the lock or held it last; "" if unknown."""
        try:
            return self._lock_path.read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def __enter__(self) -> Self:
        """Creates the directory and takes the lock.

        Raises:
          UserError: The directory cannot be created, read or written.
          WorkdirInUseError: Another process holds the lock.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock_file = stack.enter_context(self._lock_path.open("a+"))
                os.listdir(self.path)
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock_file.truncate(0)
                line = f"process {os.getpid()} on {socket.gethostname()}\n"
                # Unbuffered, so that `close` has nothing left to write.
                os.write(lock_file.fileno(), line.encode())
                os.fsync(lock_file.fileno())  # Other hosts read the owner, too.
            except BlockingIOError as error:
                owner = self.owner or "another process"
                raise WorkdirInUseError(
                    f"workdir {str(self.path)!r} is in use by {owner}: wait for it or "
                    "choose another with --workdir=DIR"
                ) from error
            except OSError as error:
                raise UserError(
                    f"workdir {str(self.path)!r} cannot be used ({error.strerror}): "
                    "choose another with --workdir=DIR"
                ) from error
            self._lock_file = lock_file  # The kernel frees the lock when the process dies.
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock_file.close()

    def read_config(self, flag: str = "--workdir") -> dict[str, Any]:
        """Reads the config of the run, with tuples instead of the lists of JSON.

        `flag` is the flag that error messages advise to set.

        Raises:
          UserError: There is no run here, or its config is missing or unreadable.
        """
        try:
            config = json.loads(self.config_file.read_text(encoding="utf-8")).items()
        except (OSError, ValueError, AttributeError) as error:
            is_missing = isinstance(error, FileNotFoundError)
            problem = "is missing" if is_missing else "cannot be read"
            names: list[str] = []
            with contextlib.suppress(OSError):
                names = os.listdir(self.checkpoints)
            if any(map(str.isdecimal, names)):
                raise UserError(
                    f"{self.config_file} {problem}, but the checkpoints of the run are "
                    "there: restore it, or start the command that made them with another "
                    f"--workdir, stop it and copy {self.config_file.name} from there"
                ) from error
            raise UserError(
                f"no run in {str(self.path)!r} ({self.config_file.name} {problem}): name "
                f"the workdir of a run or an import with {flag}=DIR"
            ) from error
        return {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in config
        }

    def load_config(self) -> Config | None:
        """Loads the config as `read_config` does; returns None for imported weights."""
        saved = self.read_config()
        return None if IMPORTED_FROM in saved else Config.of_run(saved)

    def write_config(self, fields: Mapping[str, Any]) -> None:
        """Writes the fields of the config as `replace_file` does."""
        content = (json.dumps(dict(fields), indent=2) + "\n").encode()
        replace_file(self.config_file, content)

    def write_start(self, facts: Mapping[str, Any]) -> None:
        """Adds a record of a start of the run, with the time and the given facts.

        A last record that a crash cut short is removed. If the file cannot be written, it
        raises a `UserError`.
        """
        record = json.dumps({"time": time.time(), **facts}) + "\n"
        with writing(self.starts_file):
            self.starts_file.touch()
            *before, _ = self.starts_file.read_bytes().split(b"\n")
        replace_file(self.starts_file, b"\n".join([*before, record.encode()]))

    def read_starts(self) -> list[dict[str, Any]]:
        """Reads the records of `write_start`, without those that cannot be read."""
        try:
            lines = self.starts_file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return []
        starts = []
        for line in lines:
            with contextlib.suppress(ValueError):  # A crash cut the line short.
                starts.append(json.loads(line))
        return starts

    def check_resumable(self, config: Config) -> list[str]:
        """Checks that a run may continue under a config.

        Returns a phrase for each field that has changed and may change.

        Raises:
          UserError: Fields that define the run have changed, and the message names both
            values of each; or the workdir holds imported weights.
        """
        saved = self.load_config()
        if saved is None:
            raise UserError(
                f"workdir {str(self.path)!r} holds imported weights: train in another "
                f"--workdir with --config.init_from={self.path}"
            )
        resumable = RESUMABLE_FIELDS
        if config.schedule == "staircase" and config.final_aux_fraction == 1:
            resumable |= LENGTH_FIELDS
        before, now = saved.to_dict(), config.to_dict()
        changes = {
            name: f"{name} was {before[name]!r} and is now {now[name]!r}"
            for name in now
            if before[name] != now[name]
        }
        refused = [line for name, line in changes.items() if name not in resumable]
        if refused:
            why = ""
            if LENGTH_FIELDS & changes.keys() - resumable:
                why = (
                    " (the length may change only with staircase and final_aux_fraction=1; "
                    f"--config.init_from={self.path} begins with these weights)"
                )
            raise UserError(
                f"workdir {str(self.path)!r} holds a run of another config: "
                f"{'; '.join(refused)}{why}. Restore these values or choose another "
                "--workdir"
            )
        return list(changes.values())
