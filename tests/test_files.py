import os

import pytest

from googlenet_flax.runtime.errors import UserError
from googlenet_flax.runtime.files import file_path, replace_file, replacing


def test_a_file_is_made_and_replaced(tmp_path):
    path = tmp_path / ("é" * 127)  # A name may have 255 bytes.
    for content in (b"first", b"", b"\x00third"):
        replace_file(path, content)
        assert [file.read_bytes() for file in tmp_path.iterdir()] == [content]
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_writers_in_one_folder_do_not_meet(tmp_path):
    """Writes two files at once, as processes of two hosts with the same number do."""
    with replacing(tmp_path / "a") as first, replacing(tmp_path / "b") as second:
        first.write(b"first")
        second.write(b"second")
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert contents == {"a": b"first", "b": b"second"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_alone(tmp_path, monkeypatch, call):
    def fail(*_):
        assert len(list(tmp_path.iterdir())) == 2  # The new file is beside the old one.
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    if call == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(type(path), "replace", fail)
    with pytest.raises(UserError, match="No space left"):
        replace_file(path, b"new")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_what_cannot_be_replaced_is_an_error(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "nowhere" / "file"):
        with pytest.raises(UserError):
            replace_file(path, b"new")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_the_home_directory_and_links(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert file_path("~/file") == tmp_path / "file"
    (tmp_path / "link").symlink_to("file")
    replace_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == b"new"
