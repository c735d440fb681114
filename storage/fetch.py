"""Download a file over HTTP or from Google Drive with gdown, which can resume.

An unfinished file is `<name>????????.part` in the same folder. If the file changes at its source between two attempts,
only a checksum detects the damage.
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

RETRIES = 3  # retries after a broken connection, a few seconds apart; a later call can resume, too
TIMEOUT = 60.0  # seconds without data

REFUSALS = {
    401: "the server denies access: the link may have been withdrawn",
    403: "the server denies access: the link may have been withdrawn",
    404: "this address no longer exists: the file has moved",
    410: "this address no longer exists: the file has moved",
    429: "the server is busy: try again later",
    503: "the server is busy: try again later",
}


def fetch(address: str, path: Path, title: str, room: Callable[[int, int], None] = lambda missing, size: None) -> None:
    """Download `address` to `path`; resumes an earlier call.

    room(missing, size): called during the download if the server announces the size; may raise to stop it.
    Raises InputError for every failure of network, server and disk; the partial file is kept for the next call.
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
            path.chmod(0o666 & ~umask)  # gdown writes files that only the owner can read
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
    """Partial files of interrupted calls of `fetch`."""
    return list(path.parent.glob(f"{path.name}????????.part"))


def _reason(address: str, error: Exception) -> str:
    """The reason of a failed download, in words."""
    host, cause = urlsplit(address).hostname, error.__cause__ or error
    if isinstance(error, FileURLRetrievalError):
        return "Google Drive shows a page instead: too many people fetched the file today, or it is no longer public"
    if isinstance(cause, requests.HTTPError):
        code = cause.response.status_code
        return f"{REFUSALS.get(code, cause.response.reason)} ({code})"
    if isinstance(cause, requests.exceptions.SSLError):
        return f"the certificate of {host} is not valid ({cause})"
    if isinstance(cause, requests.Timeout):
        return f"{host} does not answer"
    if isinstance(cause, requests.ConnectionError):
        return f"there is no connection to {host} (is this machine offline?)"
    return str(error).partition("\n")[0].rstrip(".")
