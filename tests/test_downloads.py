"""Downloads from servers that work, send wrong answers or do not answer."""

import concurrent.futures
import hashlib
import os
import random
import signal
import socket
import sys
import time

import pytest
from helpers.full_disks import file_size_limit
from helpers.processes import finish, start_python
from helpers.servers import serving

from googlenet_flax.runtime import downloads
from googlenet_flax.runtime.downloads import RemoteFile, fetch
from googlenet_flax.runtime.errors import UserError

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FAIL_SECONDS = 5


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def server():
    wrong = bytes(len(CONTENT))
    with serving({"w.bin": CONTENT, "wrong.bin": wrong, "short.bin": b"oops"}) as server:
        yield server


@pytest.fixture
def remote(server):
    """Describes a file of the server, which is stored here as `w.bin`."""

    def remote(name="w.bin", **fields):
        url = server.url(name)
        return RemoteFile(**{"name": "w.bin", "url": url, "sha256": SHA256, **fields})

    return remote


def refusal(file, folder):
    """Fetches a file that cannot be fetched; returns the line of the error."""
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        fetch(file, folder)
    assert time.monotonic() - started < FAIL_SECONDS
    line = str(error.value)
    for part in (file.url, file.sha256, str(folder / file.name)):
        assert part in line
    return line


@pytest.mark.parametrize("fault", ["", "?redirect", "?undeclared"])
@pytest.mark.parametrize("size_bytes", [0, len(CONTENT)])
def test_a_file_is_downloaded_once(server, remote, tmp_path, capfd, fault, size_bytes):
    file, folder = remote(f"w.bin{fault}", size_bytes=size_bytes), tmp_path / "a" / "b"
    path = fetch(file, folder)
    assert path.read_bytes() == CONTENT and list(folder.iterdir()) == [path]
    (line,) = capfd.readouterr().err.splitlines()
    assert f"downloading w.bin ({size_bytes / 1e6:.1f} MB)" in line or not size_bytes
    before = len(server.requests)
    assert fetch(file, folder) == path
    assert len(server.requests) == before and not capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("w.bin?cut", {}, "150000 bytes read, 150000 more expected"),
        ("w.bin?undeclared", {"sha256": "0" * 64}, f"but got {SHA256})"),
        ("wrong.bin", {"size_bytes": len(CONTENT)}, f"expected {SHA256} but got"),
        ("short.bin", {"size_bytes": len(CONTENT)}, "4 bytes instead of 300,000"),
        ("absent.bin", {}, "404"),
        ("absent.bin?redirect", {}, "404"),
    ],
)
@pytest.mark.parametrize("before", [None, b"another file"])
def test_what_is_not_the_file_is_refused(remote, tmp_path, name, fields, reason, before):
    path = tmp_path / "w.bin"
    if before:
        path.write_bytes(before)
    assert reason in refusal(remote(name, **fields), tmp_path)
    assert (path.read_bytes() if before else None) == before
    assert list(tmp_path.iterdir()) == [path] * bool(before)
    assert fetch(remote(), tmp_path).read_bytes() == CONTENT


def test_a_server_that_stops_sending(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "SILENCE_SECONDS", 0.2)
    assert "timed out" in refusal(remote("w.bin?slow"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_nobody_listens(remote, tmp_path):
    """Uses the port of a server that was closed."""
    with serving({}) as closed:
        url = closed.url("w.bin")
    assert "cannot be reached" in refusal(remote(url=url), tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="Linux drops the rest")
def test_only_the_last_address_answers(server, remote, tmp_path, monkeypatch):
    """Puts an address that answers nothing first, as that of IPv6 in many networks."""
    look_up = socket.getaddrinfo

    def look_up_both(host, *args, **kwargs):
        ports = [silent.getsockname()[1], server.server_port]
        found = [look_up("127.0.0.1", port, *args[1:], **kwargs)[0] for port in ports]
        return found if host == "weights.test" else look_up(host, *args, **kwargs)

    monkeypatch.setattr(downloads, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(socket, "getaddrinfo", look_up_both)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        with socket.create_connection(silent.getsockname()):  # It has room for one.
            file = remote(url="http://weights.test/w.bin")
            started = time.monotonic()
            assert fetch(file, tmp_path).read_bytes() == CONTENT
            assert time.monotonic() - started < downloads.SILENCE_SECONDS


def test_no_address_is_known(remote, tmp_path):
    assert "no download address is known" in refusal(remote(url=""), tmp_path)
    (tmp_path / "w.bin").write_bytes(CONTENT)  # The user has put the file there.
    assert fetch(remote(url=""), tmp_path) == tmp_path / "w.bin"


def test_a_proxy_is_asked(server, remote, tmp_path, monkeypatch):
    """Uses the server as a proxy for a host that does not exist."""
    monkeypatch.setenv("http_proxy", server.url("")[:-1])
    url = "http://weights.invalid/w.bin"
    assert fetch(remote(url=url), tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == url


def test_a_full_disk(remote, tmp_path):
    words = r"w.bin cannot be written \(File too large\)"
    with file_size_limit(len(CONTENT) // 2), pytest.raises(UserError, match=words):
        fetch(remote(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(remote, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"w.bin cannot be written \(Not a directory\)"):
        fetch(remote(), tmp_path / "file")


def test_several_at_once_and_leftovers(remote, tmp_path):
    """Checks that old files of killed downloads are deleted, and no others."""
    for name in ("tmp01234567", "tmpabcdefgh", "tmp.txt"):
        (tmp_path / name).write_bytes(b"half")
        if name != "tmpabcdefgh":
            os.utime(tmp_path / name, (1, 1))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        paths = list(pool.map(lambda _: fetch(remote(), tmp_path), range(4)))
    assert set(paths) == {tmp_path / "w.bin"}
    assert paths[0].read_bytes() == CONTENT
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["tmp.txt", "tmpabcdefgh", "w.bin"]


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_stopped(remote, tmp_path, number):
    """Checks that a stopped download leaves no file, and that the next one succeeds."""
    file = remote("w.bin?slow")
    program = (
        "import pathlib\n"
        "from googlenet_flax.runtime.downloads import RemoteFile, fetch\n"
        "from googlenet_flax.runtime.errors import exit_on_run_error\n"
        f"with exit_on_run_error(): fetch({file}, pathlib.Path({str(tmp_path)!r}))\n"
    )
    process = start_python("-c", program)
    while not any(path.stat().st_size for path in tmp_path.iterdir()):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    code, _, err = finish(process)
    if number == signal.SIGINT:
        assert code == 128 + number and err.splitlines()[-1].endswith("interrupted")
        assert not list(tmp_path.iterdir())
    else:
        assert code == -number
        (leftover,) = tmp_path.iterdir()
        os.utime(leftover, (1, 1))
    path = fetch(remote(), tmp_path)
    assert path.read_bytes() == CONTENT and list(tmp_path.iterdir()) == [path]
