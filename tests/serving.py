"""A web server on this machine that behaves well or badly, as told; and no way to any other."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import gdown  # noqa: F401, its waits are cut short below


@dataclass
class Site:
    """What the server has, by path, and how it behaves.

    tags, dates: ETag, and seconds since 1970 for Last-Modified. statuses: errors. pages: HTML. moved: redirections.
    ranges: whether Range is understood. cuts: after how many bytes to close the connection, one a request.
    requests: (path, headers) of what was asked for.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    dates: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        site: Site = self.server.site
        site.requests.append((self.path, dict(self.headers)))
        path = urlsplit(self.path).path
        if path in site.statuses:
            self.send_error(site.statuses[path])
        elif path in site.moved:
            self.answer(302, {"Location": site.moved[path]}, b"")
        elif self.path in site.pages:
            self.answer(200, {"Content-Type": "text/html; charset=utf-8"}, site.pages[self.path].encode())
        elif path in site.files:
            self.file(site, path, site.files[path])
        else:
            self.send_error(404)

    def file(self, site: Site, path: str, body: bytes) -> None:
        name = path.rpartition("/")[2]
        headers = {"Content-Type": "application/octet-stream", "Content-Disposition": f'attachment; filename="{name}"'}
        if path in site.tags:
            headers["ETag"] = site.tags[path]
        if path in site.dates:
            headers["Last-Modified"] = formatdate(site.dates[path], usegmt=True)
        validators = (headers.get("ETag"), headers.get("Last-Modified"))
        wanted = re.fullmatch(r"bytes=([0-9]+)-", self.headers.get("Range", ""))
        if not wanted or not site.ranges or self.headers.get("If-Range", validators[0]) not in validators:
            self.answer(200, headers, body)
        elif (start := int(wanted[1])) >= len(body):
            self.answer(416, {**headers, "Content-Range": f"bytes */{len(body)}"}, b"")
        else:
            content_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
            self.answer(206, {**headers, "Content-Range": content_range}, body[start:])

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        cuts = self.server.site.cuts
        sent = body[: cuts.pop(0)] if cuts else body  # before the client can ask for more, in another thread
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def serving(monkeypatch) -> Iterator[Site]:
    """A running server; connections to other machines fail the test."""
    connect = socket.socket.connect

    def nearby(self, address):
        assert address[0] == "127.0.0.1", f"a test wanted to reach {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", nearby)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(sys.modules["gdown.download"], "_wait_or_cancel", lambda seconds, cancel: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = site = Site(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def closed_port() -> int:
    """A port of this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
