"""Fetch a file over HTTP so that an interruption costs nothing: what came is kept, and only the rest is asked for.

RFC 9110, sections 13.1.5 (If-Range) and 14 (Range). Bytes gather in `<name>.part`; `<name>.part.json` says which
version of the file they belong to, and the finished file is renamed. Nothing but the standard library.
"""

from __future__ import annotations

import dataclasses
import errno
import http.client
import json
import os
import re
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPCookieProcessor, HTTPRedirectHandler, OpenerDirector, Request, build_opener

from console.errors import InputError, explain_os_error
from console.progress import TransferBar, transfer_bar
from storage.atomic import write_json

CHUNK = 1 << 16
PAGE = 1 << 20  # no confirmation page is longer
TIMEOUT = 60.0  # seconds without a byte
PATIENCE = 3  # attempts in a row that bring the file no further
PAUSE = 2.0  # seconds before the next attempt, doubled each time

Confirm = Callable[[str, str], str]
"""(a web page, its address) -> the address of the file behind it (storage/drive.py)."""

Room = Callable[[int, int], None]


@dataclass(frozen=True)
class Version:
    """Which version of a file a server has; size in bytes. What it did not say is None."""

    url: str
    etag: str | None = None
    modified: str | None = None
    size: int | None = None

    @property
    def validator(self) -> str | None:
        """What If-Range may name: a weak tag says no more than that two versions look alike."""
        strong = self.etag and not self.etag.startswith("W/")
        return self.etag if strong else self.modified

    def fits(self, other: Version) -> bool:
        """Whether nothing known of both differs."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return all(a == b for a, b in pairs if a is not None and b is not None)


class _CutOff(Exception):
    """The connection broke; another attempt may bring the rest."""


def fetch(
    url: str,
    path: Path,
    title: str = "",
    room: Room = lambda missing, size: None,
    confirm: Confirm | None = None,
) -> Version:
    """Fetch `url` to `path`, going on from a partial file; returns which version of it came.

    room(missing, size): called before a byte is written, where it is known how many are missing of how many; raises
    to stop. confirm: finds the file's address where the server answers with a web page first.
    Raises InputError for every failure of network, server and disk; what has come stays for the next call.
    """
    part = path.with_name(f"{path.name}.part")
    most, stalls = -1, 0
    opener = build_opener(HTTPCookieProcessor(), _Redirects())
    with transfer_bar(title or path.name) as bar:
        while True:
            try:
                version = _attempt(opener, url, part, room, confirm, bar)
                break
            except _CutOff as cut:
                done = part.stat().st_size if part.exists() else 0
                most, stalls = max(most, done), 0 if done > most else stalls + 1
                if stalls >= PATIENCE:
                    raise InputError(f"cannot fetch {url}: the connection was cut off after {done:,} bytes") from cut
                time.sleep(PAUSE * 2**stalls)
    try:
        part.replace(path)
    except OSError as error:
        raise explain_os_error(error, f"write {path}") from error
    _note(part).unlink(missing_ok=True)
    return version


def _attempt(
    opener: OpenerDirector, url: str, part: Path, room: Room, confirm: Confirm | None, bar: TransferBar
) -> Version:
    """Ask once for what is missing, and append it; all of it, where the server has no ranges or another version."""
    known = _known(part, url)
    done = part.stat().st_size if known else 0
    with _open(opener, url, known, done, confirm) as response:
        version = _version(response, url)
        if response.status == HTTPStatus.OK:
            known, done = None, 0
        elif known and known.fits(version) and _first(response) == done:
            if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # nothing is missing
                return known
        elif known:
            _note(part).unlink()
            return _attempt(opener, url, part, room, confirm, bar)
        else:
            raise InputError(f"cannot fetch {url}: the server answers {response.status} to a plain request")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            if not known:
                part.unlink(missing_ok=True)
                write_json(_note(part), dataclasses.asdict(version))
            if version.size is not None:
                room(version.size - done, version.size)
            bar.begin(done, version.size)
            with part.open("ab") as file:
                while chunk := _read(response, CHUNK):
                    file.write(chunk)
                    done += len(chunk)
                    bar.advance(len(chunk))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise explain_os_error(error, f"write {part}") from error
    if version.size is not None and done < version.size:
        raise _CutOff
    return version


def _open(opener: OpenerDirector, url: str, known: Version | None, done: int, confirm: Confirm | None) -> Any:
    """The server's answer (200, 206 or 416) to a request from byte `done` on; InputError for any other."""
    headers = {"User-Agent": "vlm-pruning", "Accept-Encoding": "identity"}
    if known and done:
        headers["Range"] = f"bytes={done}-"
        if known.validator:
            headers["If-Range"] = known.validator
    try:
        response = opener.open(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and "Range" in headers:
            return error
        error.close()
        raise InputError(f"cannot fetch {url}: {_refusal(error.code, error.reason)}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, ConnectionResetError):
            raise _CutOff from error
        raise InputError(f"cannot fetch {url}: {_trouble(url, reason)}") from error
    if response.headers.get_content_type() == "text/html":
        with response:
            if confirm is None:
                raise InputError(f"cannot fetch {url}: the answer is a web page (a login or a notice), not the file")
            target = confirm(_read(response, PAGE).decode(errors="replace"), response.url)
        return _open(opener, target, known, done, None)
    return response


def _read(response: Any, size: int) -> bytes:
    """The next bytes, b"" at the end or where the connection closed."""
    try:
        return response.read(size)
    except (OSError, http.client.HTTPException) as error:
        raise _CutOff from error


def _version(response: Any, url: str) -> Version:
    """What the answer says of the whole file."""
    if response.status == HTTPStatus.OK:
        size = response.headers.get("Content-Length", "")
    else:
        size = response.headers.get("Content-Range", "").rpartition("/")[2]
    return Version(
        url,
        response.headers.get("ETag"),
        response.headers.get("Last-Modified"),
        int(size) if re.fullmatch(r"[0-9]+", size) else None,
    )


RANGE = re.compile(r"bytes (?:([0-9]+)-[0-9]+/(?:[0-9]+|\*)|\*/([0-9]+))")


def _first(response: Any) -> int | None:
    """The byte at which the answer begins: its first, or the file's end where nothing is left to send."""
    found = RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return int(found[1] or found[2]) if found else None


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _known(part: Path, url: str) -> Version | None:
    """The version that a partial file belongs to; None where there is none, or too little is known to go on."""
    try:
        version = Version(**json.loads(_note(part).read_text(encoding="utf-8")))
        usable = part.stat().st_size > 0
    except (OSError, ValueError, TypeError):
        return None
    return version if usable and version.url == url and (version.validator or version.size is not None) else None


class _Redirects(HTTPRedirectHandler):
    """Follows redirections, but not from an encrypted address to a plain one."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise InputError(f"cannot fetch {req.full_url}: it leads on to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refusal(code: int, words: str) -> str:
    """What an HTTP status means for somebody who wants a file."""
    if code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return f"there is nothing at this address any more ({code}): the file has moved"
    if code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"the server does not hand it out ({code}): the link may have been withdrawn"
    if code in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        return f"the server is busy ({code}): try again later"
    return f"the server answers {code} {words}"


def _trouble(url: str, reason: Any) -> str:
    """Why no connection came about."""
    host = urlsplit(url).hostname
    if isinstance(reason, socket.gaierror):
        return f"the name {host} is not found (is this machine offline?)"
    if isinstance(reason, ConnectionRefusedError):
        return f"{host} refuses the connection"
    if isinstance(reason, TimeoutError):
        return f"{host} does not answer"
    if isinstance(reason, ssl.SSLError):
        return f"the connection to {host} cannot be trusted ({reason})"
    if isinstance(reason, OSError) and reason.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN):
        return f"there is no route to {host} (is this machine offline?)"
    return f"the connection to {host} failed ({reason})"
