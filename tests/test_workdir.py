import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import socket

import pytest
from helpers.configs import named_config

from googlenet_flax.config import FIELDS, RENAMED, RESUMABLE_FIELDS, Config
from googlenet_flax.runs.workdir import LENGTH_FIELDS, Workdir
from googlenet_flax.runtime.errors import UserError, WorkdirInUseError

CONFIG = named_config("digits")


@pytest.mark.parametrize("name", ["a/b/c", "größe-数", "a'b\"c", "..run"])
def test_makes_the_directory(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with Workdir(name) as workdir:
        monkeypatch.chdir("/")  # A relative path keeps its meaning.
        workdir.write_config(CONFIG)
    with Workdir(str(tmp_path / name)) as workdir:  # The folder may exist already.
        assert workdir.read_config() == CONFIG


def test_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Workdir("~/runs").path == tmp_path / "runs"


def test_one_owner_at_a_time_also_through_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    words = f"in use by process {os.getpid()} on {socket.gethostname()}: wait"
    for _ in range(2):  # The second owner replaces the name of the first.
        with Workdir(tmp_path / "link"):
            for _ in range(2):  # A refusal must not spoil the name in the file.
                with pytest.raises(WorkdirInUseError, match=words):
                    Workdir(tmp_path / "disk").__enter__()


def test_the_home_of_nobody_is_a_user_error():
    with pytest.raises(UserError, match=r"'~no-such-user/runs' names no .*--workdir"):
        Workdir("~no-such-user/runs")


def test_a_file_system_without_locks_is_a_user_error(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"cannot be used \(No locks available\)"):
        Workdir(tmp_path).__enter__()


def test_config_round_trip(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write_config({"old": 1})
    workdir.write_config(CONFIG)
    with pytest.raises(TypeError):  # A failed write leaves the old file.
        workdir.write_config({"seed": object()})
    assert workdir.read_config() == CONFIG
    assert workdir.read_config()["input_mean"] == (0.0, 0.0, 0.0)
    assert json.loads(workdir.config_file.read_text())["input_mean"] == [0.0, 0.0, 0.0]
    assert list(tmp_path.iterdir()) == [workdir.config_file]


def test_a_torn_record_of_a_start_spoils_no_other(tmp_path):
    workdir = Workdir(tmp_path)
    for step in range(3):
        workdir.write_start({"step": step})
        if step == 1:
            os.truncate(workdir.starts_file, workdir.starts_file.stat().st_size - 5)
    assert [start["step"] for start in workdir.read_starts()] == [0, 2]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "is missing"),
        *((text, "cannot be read") for text in ("", '{"seed": ', "\udcff", "[]", "3")),
    ],
)
def test_an_unreadable_config_is_a_user_error(tmp_path, content, problem):
    workdir = Workdir(tmp_path)
    workdir.checkpoints.mkdir()
    if content is not None:
        workdir.config_file.write_bytes(content.encode(errors="surrogateescape"))
    words = rf"no run in .*\(config.json {problem}\).* --config.init_from=DIR"
    with pytest.raises(UserError, match=words):
        workdir.read_config("--config.init_from")
    (workdir.checkpoints / "10").mkdir()
    words = rf"config.json {problem}, but the checkpoints .* copy config.json from there"
    with pytest.raises(UserError, match=words):
        workdir.read_config()


# Each field can have another value in this config, also those that depend on others.
DEPENDENT = {"progressive_image_sizes": (96, 128), "progressive_image_size_epochs": (1, 2)}
FULL = Config.of({**CONFIG, "init_from": "a run", **DEPENDENT})
CHANGEABLE = {
    *("data_dir", "on_bad_image", "decode_workers", "distributed", "restart"),
    *("log_every_steps", "eval_every_epochs", "checkpoint_every_steps", "profile_steps"),
    *("wandb_project", "num_epochs", "max_steps"),
}
CANDIDATES = (
    *("torchvision", "bfloat16", "skip", "BGR", "random", "head", "linear", "ema"),
    *(True, ("cubic",), (0.5, 0.5, 0.5), (96, 160), (3, 4), 0.5, 1, 2, 128, "other"),
)


def changed(name: str, config: Config = FULL) -> Config:
    """Returns a config with another valid value of one field."""
    for value in CANDIDATES:
        with contextlib.suppress(UserError):
            other = dataclasses.replace(config, **{name: value})
            if other != config:
                return other
    raise AssertionError(name)


@pytest.fixture
def workdir(tmp_path):
    """Returns the workdir of a run with the config `FULL`."""
    workdir = Workdir(tmp_path)
    workdir.write_config(FULL.to_dict())
    return workdir


def assert_refused(workdir, config, *names):
    """Checks that a resumed run is refused because of these fields alone."""
    was = Config.of(workdir.read_config())
    with pytest.raises(UserError) as caught:
        workdir.check_resumable(config)
    for name in names:
        change = f"{name} was {getattr(was, name)!r} and is now {getattr(config, name)!r}"
        assert change in str(caught.value)
    assert str(caught.value).count(" was ") == len(names)


def test_resumed_run_may_change(workdir):
    assert workdir.check_resumable(FULL) == []
    assert CHANGEABLE == RESUMABLE_FIELDS | LENGTH_FIELDS
    for name in CHANGEABLE:
        assert len(workdir.check_resumable(changed(name))) == 1


def test_resumed_run_must_not_change(workdir):
    for name in sorted(set(FIELDS) - CHANGEABLE - {"input_channels"}):
        assert_refused(workdir, changed(name), name)
    gray = {"input_channels": 1, "input_mean": (0.5,), "input_std": (0.5,)}
    assert_refused(workdir, dataclasses.replace(FULL, **gray), *gray)
    both = changed("batch_size", changed("variant"))
    assert_refused(workdir, both, "batch_size", "variant")


def test_runs_of_older_versions_go_on(workdir):
    former = {new: old for old, new in RENAMED.items()}
    saved = {former.get(name, name): value for name, value in FULL.to_dict().items()}
    del saved["mixup_alpha"]  # Newer versions have a further field.
    workdir.write_config({**saved, "a_field_of_old": 3})
    assert workdir.check_resumable(FULL) == []
    with pytest.raises(UserError, match=r"color_jitter was 0\.0"):
        workdir.check_resumable(changed("color_jitter"))


@pytest.mark.parametrize(
    "fields",
    [{"schedule": "cosine"}, {"schedule": "linear"}, {"final_aux_fraction": 0.0}],
    ids=str,
)
def test_a_run_that_something_is_stretched_over_keeps_its_length(workdir, fields):
    config = dataclasses.replace(FULL, **fields)
    workdir.write_config(config.to_dict())
    for name in RESUMABLE_FIELDS:
        workdir.check_resumable(changed(name, config))
    for name in LENGTH_FIELDS:
        assert_refused(workdir, changed(name, config), name)
