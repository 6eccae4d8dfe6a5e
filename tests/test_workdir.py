import contextlib
import dataclasses
import json
import pathlib
import signal
import subprocess
import sys

import pytest
from helpers.configs import named_config

from googlenet_flax.config import FIELDS, RENAMED, RESUMABLE_FIELDS, Config
from googlenet_flax.runs.workdir import LENGTH_FIELDS, Workdir
from googlenet_flax.runtime.errors import UserError, WorkdirInUseError

CONFIG = named_config("digits")

OWNER_PROGRAM = """
import sys
from googlenet_flax.runs.workdir import Workdir
with Workdir(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def owner_process(path):
    """Another process that holds the lock until its stdin is closed."""
    command = [sys.executable, "-c", OWNER_PROGRAM, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


def error_of(path) -> str:
    with pytest.raises(UserError) as caught, Workdir(path):
        pass
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    assert "--workdir" in message
    return message


@pytest.mark.parametrize(
    "name", ["run", "a/b/c", "two words", "größe-数", "a'b\"c", "..run"]
)
def test_makes_the_directory(tmp_path, name):
    with Workdir(tmp_path / name) as workdir:
        assert workdir.path == tmp_path / name
        assert workdir.path.is_dir()
        workdir.write_config(CONFIG)
    with Workdir(str(tmp_path / name)) as workdir:  # It may be there already.
        assert workdir.read_config() == CONFIG


def test_everything_lies_in_the_directory(tmp_path):
    workdir = Workdir(tmp_path)
    for path in (
        workdir.config_file,
        workdir.metrics_file,
        workdir.checkpoints,
        workdir.tensorboard,
    ):
        assert path.parent == tmp_path


def test_relative_path_stays_where_the_run_began(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Workdir("runs/1") as workdir:
        monkeypatch.chdir("/")
        workdir.write_config(CONFIG)
    assert (tmp_path / "runs" / "1" / "config.json").exists()


def test_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Workdir("~/runs").path == tmp_path / "runs"


def test_tilde_of_nobody_is_a_user_error():
    assert "~no-such-user/runs" in error_of("~no-such-user/runs")


def test_symlink_to_a_directory(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with Workdir(tmp_path / "link") as workdir:
        workdir.write_config(CONFIG)
        with pytest.raises(WorkdirInUseError), Workdir(tmp_path / "disk"):
            pass
    assert (tmp_path / "disk" / "config.json").exists()


def test_dangling_symlink_is_a_user_error(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "unplugged")
    assert str(tmp_path / "link") in error_of(tmp_path / "link")


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_file_in_the_way_is_a_user_error(tmp_path, name):
    (tmp_path / "file").write_text("precious")
    assert str(tmp_path / name) in error_of(tmp_path / name)
    assert (tmp_path / "file").read_text() == "precious"


def test_no_permission_is_a_user_error(tmp_path, monkeypatch):
    def mkdir(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "mkdir", mkdir)
    message = error_of(tmp_path / "run")
    assert str(tmp_path / "run") in message
    assert "Permission denied" in message


@pytest.mark.parametrize("end", ["exit", "SIGKILL"])
def test_one_process_at_a_time(tmp_path, end):
    with owner_process(tmp_path) as owner:
        for _ in range(2):  # The first refusal must not spoil the name in the file.
            with pytest.raises(WorkdirInUseError) as caught, Workdir(tmp_path):
                pass
            assert caught.value.exit_code == 3
            assert f"process {owner.pid} " in str(caught.value)
            assert str(tmp_path) in str(caught.value)
            assert "\n" not in str(caught.value)
        if end == "exit":
            owner.stdin.close()
            assert owner.wait(timeout=20) == 0
        else:
            owner.send_signal(signal.SIGKILL)
            assert owner.wait(timeout=20) == -signal.SIGKILL
        with Workdir(tmp_path) as workdir:
            owners = (workdir.path / ".lock").read_text().splitlines()
    assert len(owners) == 1
    assert f"process {owner.pid} " not in owners[0]


def test_lock_is_freed_when_the_run_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), Workdir(tmp_path):
        raise ZeroDivisionError
    with Workdir(tmp_path):
        pass


def test_config_round_trip(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write_config({"old": 1})
    workdir.write_config(CONFIG)
    assert workdir.read_config() == CONFIG
    assert workdir.read_config()["input_mean"] == (0.0, 0.0, 0.0)
    assert list(tmp_path.iterdir()) == [workdir.config_file]


def test_config_file_is_plain_json(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write_config({"mean": (0.5, 1.0), "split": "train"})
    text = workdir.config_file.read_text()
    assert json.loads(text) == {"mean": [0.5, 1.0], "split": "train"}


def test_failed_write_leaves_the_old_config(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write_config(CONFIG)
    with pytest.raises(TypeError):
        workdir.write_config({"seed": object()})
    assert workdir.read_config() == CONFIG


@pytest.mark.parametrize("content", [None, "", '{"seed": ', "\udcff", "[]", "null", "3"])
def test_no_config_is_a_user_error(tmp_path, content):
    workdir = Workdir(tmp_path / "not a run")
    workdir.path.mkdir()
    if content is not None:
        workdir.config_file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError) as caught:
        workdir.read_config()
    assert str(workdir.path) in str(caught.value)
    assert "--workdir" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "is missing"), ('{"seed": ', "cannot be read"), ("[]", "cannot be read")],
)
def test_a_lost_config_beside_checkpoints_is_not_called_no_run(tmp_path, content, problem):
    workdir = Workdir(tmp_path)
    workdir.checkpoints.mkdir()
    if content is not None:
        workdir.config_file.write_text(content)
    with pytest.raises(
        UserError, match=rf"no run in .*\(config.json {problem}\)"
    ) as caught:
        workdir.read_config("--config.init_from")
    assert "--config.init_from=DIR" in str(caught.value)
    (workdir.checkpoints / "10").mkdir()
    with pytest.raises(UserError) as caught:
        workdir.read_config()
    assert f"{workdir.config_file} {problem}, but the checkpoints" in str(caught.value)
    assert "copy config.json from there" in str(caught.value)
    assert "no run" not in str(caught.value)


# Each field may take another value in it, also those that depend on each other.
FULL = Config.of(
    {
        **CONFIG,
        **{"init_from": "a run", "progressive_image_sizes": (96, 128)},
        **{"progressive_image_size_epochs": (1, 2)},
    }
)
CHANGEABLE = RESUMABLE_FIELDS | LENGTH_FIELDS
CANDIDATES = (
    *("torchvision", "bfloat16", "skip", "BGR", "random", "head", "linear", "ema"),
    *(True, ("cubic",), (0.5, 0.5, 0.5), (96, 160), (3, 4), 0.5, 1, 2, 128, "other"),
)


def changed(name: str, config: Config = FULL) -> Config:
    """The config with another valid value of one field."""
    for value in CANDIDATES:
        with contextlib.suppress(UserError):
            other = dataclasses.replace(config, **{name: value})
            if other != config:
                return other
    raise AssertionError(name)


@pytest.mark.parametrize("name", sorted(CHANGEABLE))
def test_resumed_run_may_change(tmp_path, name):
    workdir = Workdir(tmp_path)
    workdir.write_config(FULL.to_dict())
    assert workdir.check_resumable(FULL) == []
    assert len(workdir.check_resumable(changed(name))) == 1


@pytest.mark.parametrize("name", sorted(set(FIELDS) - CHANGEABLE))
def test_resumed_run_must_not_change(tmp_path, name):
    workdir = Workdir(tmp_path)
    workdir.write_config(FULL.to_dict())
    config = changed(name)
    with pytest.raises(UserError) as caught:
        workdir.check_resumable(config)
    message = str(caught.value)
    was, now = getattr(FULL, name), getattr(config, name)
    assert f"{name} was {was!r} and is now {now!r}" in message
    assert message.count(" was ") == 1


def test_every_change_is_named_with_both_values(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write_config({**CONFIG, "batch_size": 256, "variant": "seed"})
    config = Config.of({**CONFIG, "batch_size": 128, "variant": "bn"})
    with pytest.raises(UserError) as caught:
        workdir.check_resumable(config)
    assert "batch_size was 256 and is now 128" in str(caught.value)
    assert "variant was 'seed' and is now 'bn'" in str(caught.value)


def test_runs_of_older_versions_go_on(tmp_path):
    workdir = Workdir(tmp_path)
    former = {new: old for old, new in RENAMED.items()}
    saved = {former.get(name, name): value for name, value in FULL.to_dict().items()}
    del saved["mixup_alpha"]  # A field that has been added since.
    workdir.write_config({**saved, "a_field_of_old": 3})
    assert workdir.check_resumable(FULL) == []
    with pytest.raises(UserError, match=r"color_jitter was 0\.0"):
        workdir.check_resumable(changed("color_jitter"))


STRETCHED = [
    {"schedule": "cosine"},
    {"schedule": "linear"},
    {"final_aux_fraction": 0.0},
    {"schedule": "cosine", "final_aux_fraction": 0.5},
]


@pytest.mark.parametrize("fields", STRETCHED, ids=str)
@pytest.mark.parametrize("name", sorted(LENGTH_FIELDS))
def test_a_run_that_something_is_stretched_over_keeps_its_length(tmp_path, name, fields):
    workdir = Workdir(tmp_path)
    config = dataclasses.replace(FULL, **fields)
    workdir.write_config(config.to_dict())
    for other in sorted(RESUMABLE_FIELDS):
        workdir.check_resumable(changed(other, config))
    longer = changed(name, config)
    with pytest.raises(UserError) as caught:
        workdir.check_resumable(longer)
    was, now = getattr(config, name), getattr(longer, name)
    assert f"{name} was {was!r} and is now {now!r}" in str(caught.value)
