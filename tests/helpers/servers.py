"""A web server in a thread that can send incomplete files, and a cut-off network."""

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator, Mapping

SLOW_SECONDS = 60


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers requests for `NAME?FAULT` with the file of that name and the fault."""

    def do_GET(self):
        self.server.requests.append(self.path)
        name, _, fault = self.path.rpartition("/")[2].partition("?")
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", f"/elsewhere/{name}")
            self.end_headers()
            return
        content = self.server.files.get(name)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        if fault != "undeclared":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = len(content) // 2
        self.wfile.write(content[:half])
        if fault == "slow":
            self.server.released.wait(SLOW_SECONDS)
        if fault != "cut":
            with contextlib.suppress(OSError):  # The client may have closed the connection.
                self.wfile.write(content[half:])

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    """Serves files by name from memory; `url(name) + "?cut"` sends half of one."""

    daemon_threads = True

    def __init__(self, files: Mapping[str, bytes]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.requests = dict(files), []
        self.released = threading.Event()  # Ends the wait of slow answers.

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


@contextlib.contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[Server]:
    """Runs a server of the given files."""
    with Server(files) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def cut_network(monkeypatch, seconds: int = 0) -> None:
    """Makes every connection and host lookup fail after some seconds."""

    def refuse(*args, **kwargs):
        time.sleep(seconds)
        raise OSError("Network is unreachable")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
