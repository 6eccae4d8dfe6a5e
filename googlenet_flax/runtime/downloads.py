"""Downloads of files with a known digest, which appear only once they are complete."""

import contextlib
import dataclasses
import functools
import pathlib
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

import pooch
import requests

from googlenet_flax.runtime.errors import UserError, writing
from googlenet_flax.runtime.streams import tell

CONNECT_SECONDS = 2.0  # Longest time to look up and reach a server.
SILENCE_SECONDS = 30.0  # Longest time that a server may send nothing.
LEFTOVER_SECONDS = 3600.0  # Age from which a temporary file is that of a killed download.
CHUNK_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file on the web, identified by its digest."""

    name: str
    url: str  # "" if no download address is known.
    sha256: str
    size_bytes: int = 0  # 0 if the exact size is not known.


def fetch(file: RemoteFile, folder: pathlib.Path) -> pathlib.Path:
    """Returns the path of a file in a folder, and downloads it if it is not there.

    A file of this name with another digest is replaced. The download goes to a temporary
    file, which is renamed once it is complete and its digest is right. The folder should
    hold nothing but downloads, because old temporary files in it are deleted.

    Raises:
      UserError: The file cannot be downloaded or written. Without a network, this takes
        `CONNECT_SECONDS`.
    """
    path = folder / file.name
    with writing(path, "fix that and run the same command again"):
        if path.is_file() and pooch.file_hash(path) == file.sha256:
            return path
        _delete_leftovers(folder)
        try:
            _check_connection(file.url)
            pooch.get_logger().setLevel("WARNING")  # It would announce the download too.
            download: Any = pooch.HTTPDownloader(
                progressbar=sys.stderr.isatty(),
                chunk_size=CHUNK_BYTES,
                timeout=(CONNECT_SECONDS, SILENCE_SECONDS),
                headers={"Accept-Encoding": "identity"},  # Content-Length is of the file.
                hooks={"response": functools.partial(_check_response, file)},
            )
            pooch.retrieve(file.url, file.sha256, file.name, folder, downloader=download)
        except (requests.RequestException, ValueError) as error:
            source = f" from {file.url}" if file.url else ""
            reason = str(error).partition(". ")[0]
            raise UserError(
                f"{file.name} cannot be downloaded{source} ({reason}): get it elsewhere "
                f"(SHA-256 {file.sha256}) and put it at {path}"
            ) from error
    return path


def _check_response(file: RemoteFile, response: requests.Response, **_: object) -> None:
    """Refuses a file of another size before it is read, and announces the right one."""
    if response.is_redirect or not response.ok:
        return
    size_bytes = int(response.headers.get("Content-Length", file.size_bytes))
    if file.size_bytes and size_bytes != file.size_bytes:
        raise ValueError(f"{size_bytes:,} bytes instead of {file.size_bytes:,}")
    size = f" ({size_bytes / 1e6:.1f} MB)" if size_bytes else ""
    tell(f"downloading {file.name}{size} from {file.url}")


def _check_connection(url: str) -> None:
    """Raises a `ValueError` unless the server, or a proxy in front of it, answers soon."""
    if not url:
        raise ValueError("no download address is known")
    proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    parts = urllib.parse.urlsplit(
        requests.utils.prepend_scheme_if_needed(proxy or url, "http")
    )
    address = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    answered = threading.Event()

    def connect(place: tuple[Any, ...]) -> None:
        with contextlib.suppress(OSError):
            socket.create_connection(place[:2], timeout=CONNECT_SECONDS).close()
            answered.set()

    def connect_to_all() -> None:
        with contextlib.suppress(OSError):
            found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
            # All at once, because a network may drop every packet to an IPv6 address.
            threads = [_start_thread(connect, place) for *_, place in found]
            for thread in threads:
                thread.join()

    # Runs in a thread, because the lookup of a host name has no timeout.
    _start_thread(connect_to_all).join(CONNECT_SECONDS)
    if not answered.is_set():
        raise ValueError(f"{parts.netloc} cannot be reached within {CONNECT_SECONDS:g} s")


def _start_thread(target: Callable[..., None], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread


def _delete_leftovers(folder: pathlib.Path) -> None:
    """Deletes temporary files of downloads whose process was killed."""
    for path in folder.glob("tmp????????"):  # The names that `tempfile` gives, for pooch.
        with contextlib.suppress(OSError):  # Another process may have deleted it.
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                path.unlink()
