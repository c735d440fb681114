"""Fetch a file over HTTP or from Google Drive with gdown, which keeps what has come and asks only for the rest.

An unfinished file is `<name>????????.part` in the same folder. Its version is not recorded: of a file that changed at
its source between two attempts, only the checksum of the archive, or one known beforehand, says that it is damaged.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import gdown
import requests
from gdown.exceptions import DownloadError, FileURLRetrievalError

from console.errors import InputError, explain_os_error
from console.progress import transfer_bar

RETRIES = 3  # after a connection broke, a few seconds apart; the next call resumes as well
TIMEOUT = 60.0  # seconds without a byte

REFUSALS = {
    401: "the server does not hand it out: the link may have been withdrawn",
    403: "the server does not hand it out: the link may have been withdrawn",
    404: "there is nothing at this address any more: the file has moved",
    410: "there is nothing at this address any more: the file has moved",
    429: "the server is busy: try again later",
    503: "the server is busy: try again later",
}


def fetch(address: str, path: Path, title: str, room: Callable[[int, int], None] = lambda missing, size: None) -> None:
    """Fetch `address` to `path`, resuming what an earlier call left.

    room(missing, size): called as bytes come, where the server has said how many there are in all; raises to stop.
    Raises InputError for every failure of network, server and disk; what has come stays for the next call.
    """
    with transfer_bar(title) as show:

        def progress(done: int, size: int | None) -> None:
            if size is not None:
                room(size - done, size)
            show(done, size)

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            options = {"quiet": True, "use_cookies": False, "resume": True, "timeout": TIMEOUT, "retries": RETRIES}
            gdown.download(address, str(path), progress=progress, **options)
            os.umask(umask := os.umask(0))
            path.chmod(0o666 & ~umask)  # gdown lets nobody else read its files
            with path.open("rb") as file:
                start = file.read(64).lstrip().lower()
        except (requests.RequestException, DownloadError, FileURLRetrievalError) as error:
            raise InputError(f"cannot fetch {address}: {_reason(address, error)}") from error
        except OSError as error:
            raise explain_os_error(error, f"write {path}") from error
    if start.startswith((b"<!doctype html", b"<html")):
        path.unlink()
        raise InputError(f"cannot fetch {address}: the answer is a web page (a login or a notice), not the file")


def unfinished(path: Path) -> list[Path]:
    """What calls of `fetch` that were interrupted left of `path`."""
    return list(path.parent.glob(f"{path.name}????????.part"))


def _reason(address: str, error: Exception) -> str:
    """Why it did not come, for somebody who wants a file."""
    host, cause = urlsplit(address).hostname, error.__cause__ or error
    if isinstance(error, FileURLRetrievalError):
        return "Google Drive shows a page instead: too many people fetched the file today, or it is no longer public"
    if isinstance(cause, requests.HTTPError):
        code = cause.response.status_code
        return f"{REFUSALS.get(code, cause.response.reason)} ({code})"
    if isinstance(cause, requests.exceptions.SSLError):
        return f"the connection to {host} cannot be trusted ({cause})"
    if isinstance(cause, requests.Timeout):
        return f"{host} does not answer"
    if isinstance(cause, requests.ConnectionError):
        return f"there is no connection to {host} (is this machine offline?)"
    return str(error).partition("\n")[0].rstrip(".")
