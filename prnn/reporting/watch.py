"""A page about runs in progress, served to this machine's browsers alone.

The page asks for itself again every few seconds (``browser/page.js``), and takes from a newer one what has changed.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from prnn.errors import UserError
from prnn.reporting import page
from prnn.reporting.runs import directories, load_again, load_paths
from prnn.terminal import visible
from prnn.training.observe import run_state
from prnn.training.run_files import CONFIG, METRICS, SUMMARY

HOST, SECONDS = "127.0.0.1", 3.0
_FILES = (METRICS, SUMMARY, CONFIG)


class Source:
    """The page about the runs of these names as they are now: only runs whose files have changed are read again.

    ``seconds``: how often a browser asks for it. Raises ``UserError`` where there is no such run.
    """

    def __init__(self, names: Iterable[str], seconds: float = SECONDS) -> None:
        self.seconds = seconds
        paths = directories(names)
        self._seen = [_signature(path) for path in paths]  # before they are read, which may take seconds
        self.runs = load_paths(paths)
        self._page: tuple[bytes, str] | None = None
        self._lock = threading.Lock()

    def page(self) -> tuple[bytes, str]:
        """The page, and the ETag of its content. Raises ``OSError`` and ``UserError`` for a run that cannot be read."""
        with self._lock:
            for index, run in enumerate(self.runs):
                signature = _signature(run.path)
                if signature != self._seen[index]:
                    self.runs[index], self._page = load_again(run), None
                    self._seen[index] = signature
            if self._page is None:
                content = page.render(self.runs, self.seconds).encode()
                self._page = content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            return self._page


def _signature(path: Path) -> list[Any]:
    """What changes when a run records something, or ends."""
    found: list[Any] = [run_state.read(path)]
    for name in _FILES:
        try:
            status = (path / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_size))
    return found


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 30  # of a connection that says nothing, seconds

    def do_GET(self) -> None:
        name, _, port = self.headers.get("Host", "").partition(":")
        if name.lower() not in (HOST, "localhost") or (port or "80") != str(self.server.server_port):
            # The name of another site that resolves to this machine, whose scripts would read the page.
            self._answer(HTTPStatus.FORBIDDEN, b"this page is for this machine's browsers alone")
        elif self.path.partition("?")[0] != "/":
            self._answer(HTTPStatus.NOT_FOUND, b"there is only one page: /")
        else:
            self._page()

    do_HEAD = do_GET

    def _page(self) -> None:
        try:
            content, tag = self.server.source.page()
        except (OSError, UserError) as error:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, visible(f"the runs cannot be read: {error}").encode())
            return
        same = self.headers.get("If-None-Match") == tag
        headers = {"ETag": tag, "Content-Security-Policy": page.policy(watched=True)}
        self._answer(HTTPStatus.NOT_MODIFIED if same else HTTPStatus.OK, b"" if same else content, "html", headers)

    def _answer(
        self, status: HTTPStatus, content: bytes, kind: str = "plain", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        fixed = {
            "Content-Type": f"text/{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Cache-Control": "no-cache",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }
        for name, value in (fixed | (headers or {})).items():
            if status != HTTPStatus.NOT_MODIFIED or name != "Content-Length":
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def version_string(self) -> str:
        return "prnn"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not printed."""


class Server(ThreadingHTTPServer):
    """Serves the page at ``url`` until it is shut down.

    Raises ``UserError`` for a port that is taken.
    """

    daemon_threads = True

    def __init__(self, source: Source, port: int = 0) -> None:
        self.source = source
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise UserError(
                f"port={port} cannot be used ({error.strerror}): give another, or leave it out for a free one."
            ) from None

    def server_bind(self) -> None:
        """``HTTPServer``'s own looks the address up in the DNS, which may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no error."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def serve(names: Iterable[str], port: int, ready: Callable[[str], object]) -> None:
    """Serve the page about these runs until Ctrl-C; ``ready`` is given its URL. Raises ``UserError``."""
    with Server(Source(names), port) as server:
        ready(server.url)
        server.serve_forever()
