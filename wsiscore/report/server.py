"""A server of one slide for the viewer, on this machine's loopback address only."""

from __future__ import annotations

import logging
import re
import secrets
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from wsiscore.report.pyramid import Pyramid

__all__ = ["SlideServer"]

_LOOPBACK = "127.0.0.1"
_TILE = re.compile(r"tile/(\d{1,2})/(\d{1,7})/(\d{1,7})\.jpg", re.ASCII)
_IDLE_S = 30  # after which a connection is closed

_log = logging.getLogger("wsiscore")


class SlideServer(ThreadingHTTPServer):
    """Serves a page and the tiles of one slide; nothing it is asked for becomes a path on the disk.

    Its address holds a random word, which other users of the machine do not know, and a request under another name of
    the machine is refused, as a page elsewhere would make it whose name was bound to the loopback address.

    Parameters
    ----------
    page
        The HTML page.
    pyramid
        The tiles.
    port
        Where to listen; 0 for a free port.

    Raises
    ------
    OSError
        If the port is in use or forbidden.
    """

    daemon_threads = True

    def __init__(self, page: bytes, pyramid: Pyramid, port: int = 0) -> None:
        super().__init__((_LOOPBACK, port), _Handler)
        self.page, self.pyramid = page, pyramid
        self.word = secrets.token_urlsafe(16)
        port = self.server_address[1]
        self.hosts = {f"{name}:{port}" for name in (_LOOPBACK, "localhost")}

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{_LOOPBACK}:{self.server_address[1]}/{self.word}/"

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """Return the type and content of what a path asks for; None if there is no such thing."""
        word, _, wanted = path.removeprefix("/").partition("/")
        if not secrets.compare_digest(word.encode("utf-8", "replace"), self.word.encode()):
            return None
        if wanted == "" and path.endswith("/"):
            return "text/html; charset=utf-8", self.page
        if (found := _TILE.fullmatch(wanted)) is None:
            return None
        level, col, row = map(int, found.groups())
        if level >= len(self.pyramid.level_mpp):
            return None
        cols, rows = self.pyramid.size(level)
        return ("image/jpeg", self.pyramid.jpeg((level, col, row))) if col < cols and row < rows else None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong in answering; a browser that went away is nothing."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            _log.warning("could not answer the browser: %s", error)


class _Handler(BaseHTTPRequestHandler):
    server: SlideServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "wsiscore", ""
    timeout = _IDLE_S

    def do_GET(self) -> None:
        """Answer with the page or a tile."""
        if self.headers.get_all("Host") not in [[host] for host in self.server.hosts]:
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"This address is served to this machine's browser only.\n")
        elif (found := self.server.answer(self.path)) is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"There is no such thing here.\n")
        else:
            self._send(HTTPStatus.OK, *found)

    def do_HEAD(self) -> None:
        """Answer as to GET, without the content."""
        self.do_GET()

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "private, max-age=3600" if kind == "image/jpeg" else "no-store")
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Log nothing: each tile is a request."""
