"""Fetching from a server on this machine: whole, interrupted, refused, and through Google Drive's page."""

from __future__ import annotations

import random
import resource
import stat

import pytest
import requests

from console.errors import InputError
from storage.fetch import fetch, unfinished
from tests.serving import closed_port, serving

BODY = random.Random(0).randbytes(2_000_000)
CHUNK = 512 * 1024  # what has come of a chunk when the connection breaks is lost


@pytest.fixture
def site(monkeypatch):
    with serving(monkeypatch) as site:
        site.files["/a.bin"] = BODY
        yield site


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "a.bin"


def ranges(site):
    return [headers.get("Range") for _, headers in site.requests]


def only(target):
    return [path.name for path in target.parent.iterdir()] == [target.name]


def cut_off(site, target, after):
    """A first call that ends with `after` bytes, as no attempt brings more."""
    site.cuts += [after, 0, 0, 0]
    with pytest.raises(InputError, match=rf"cannot fetch {site.address}/a.bin: Download is incomplete: received"):
        fetch(f"{site.address}/a.bin", target, "a")
    assert not site.cuts
    assert not target.exists()
    (part,) = unfinished(target)
    assert part.read_bytes() == BODY[: after // CHUNK * CHUNK]
    site.requests.clear()


def test_a_fresh_file(site, target):
    fetch(f"{site.address}/a.bin", target, "a")
    assert target.read_bytes() == BODY
    assert ranges(site) == [None]
    assert only(target)
    (target.parent / "other").touch()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE((target.parent / "other").stat().st_mode)


def test_an_empty_file(site, target):
    site.files["/a.bin"] = b""
    fetch(f"{site.address}/a.bin", target, "a")
    assert target.read_bytes() == b""


def test_a_broken_connection_is_resumed(site, target):
    site.tags["/a.bin"] = '"one"'
    site.cuts = [CHUNK + 10, CHUNK + 20]
    fetch(f"{site.address}/a.bin", target, "a")
    assert target.read_bytes() == BODY
    assert ranges(site) == [None, f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]
    assert site.requests[1][1]["If-Range"] == '"one"'
    assert only(target)


def test_a_later_call_resumes(site, target):
    cut_off(site, target, 2 * CHUNK + 10)
    fetch(f"{site.address}/a.bin", target, "a")
    assert target.read_bytes() == BODY
    assert ranges(site)[-1] == f"bytes={2 * CHUNK}-"
    assert only(target)


def test_a_server_that_cannot_resume(site, target):
    cut_off(site, target, CHUNK)
    site.ranges = False
    with pytest.raises(InputError, match="Server did not honor the requested byte range"):
        fetch(f"{site.address}/a.bin", target, "a")
    unfinished(target)[0].unlink()
    fetch(f"{site.address}/a.bin", target, "a")
    assert target.read_bytes() == BODY


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, r"address no longer exists: the file has moved \(404\)"),
        (410, r"the file has moved \(410\)"),
        (403, r"denies access: .*withdrawn \(403\)"),
        (503, r"busy: try again later \(503\)"),
        (500, r"Internal Server Error \(500\)"),
    ],
)
def test_refusals(site, target, status, words):
    site.statuses["/a.bin"] = status
    with pytest.raises(InputError, match=rf"cannot fetch {site.address}/a.bin: .*{words}"):
        fetch(f"{site.address}/a.bin", target, "a")
    assert not list(target.parent.iterdir())


def test_a_refusal_leaves_what_has_come(site, target):
    cut_off(site, target, CHUNK)
    site.statuses["/a.bin"] = 404
    with pytest.raises(InputError, match="moved"):
        fetch(f"{site.address}/a.bin", target, "a")
    del site.statuses["/a.bin"]
    fetch(f"{site.address}/a.bin", target, "a")
    assert target.read_bytes() == BODY


def test_a_refused_connection(site, target):
    with pytest.raises(InputError, match=r"no connection to 127\.0\.0\.1 .is this machine offline"):
        fetch(f"http://127.0.0.1:{closed_port()}/a.bin", target, "a")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (requests.ConnectionError("Max retries exceeded"), "there is no connection to example.org .is this machine"),
        (requests.Timeout("timed out"), "example.org does not answer"),
        (requests.exceptions.SSLError("certificate has expired"), r"is not valid \(certificate has expired\)"),
    ],
)
def test_no_connection(site, target, monkeypatch, error, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(requests.Session, "get", fail)
    with pytest.raises(InputError, match=rf"cannot fetch http://example.org/a: .*{words}"):
        fetch("http://example.org/a", target, "a")


def test_a_web_page_is_not_the_file(site, target):
    site.pages["/a.bin"] = "\n<HTML>Please log in to the hotel's network</html>"
    with pytest.raises(InputError, match=r"a web page \(a login or a notice\), not the file"):
        fetch(f"{site.address}/a.bin", target, "a")
    assert not list(target.parent.iterdir())


def test_room_is_asked_for_while_bytes_come(site, target):
    def full(missing, size):
        raise InputError(f"no room for {missing} of {size}")

    with pytest.raises(InputError, match=f"no room for {2_000_000 - CHUNK} of 2000000"):
        fetch(f"{site.address}/a.bin", target, "a", full)
    assert not target.exists()


def test_a_disk_that_takes_no_more(site, target):
    """The limit on the size of files stands for the end of the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK + 1000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*a\.bin: the file exceeds the size limit"):
            fetch(f"{site.address}/a.bin", target, "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    fetch(f"{site.address}/a.bin", target, "a")
    assert target.read_bytes() == BODY


class TestDrive:
    """Its address leads to this machine's server here."""

    ADDRESS = "https://drive.google.com/file/d/1-Xy/view"

    @pytest.fixture(autouse=True)
    def drive(self, site, monkeypatch):
        get = requests.Session.get
        monkeypatch.setattr(
            requests.Session,
            "get",
            lambda self, url, **options: get(self, url.replace("https://drive.google.com", site.address), **options),
        )

    def test_its_question_is_answered(self, site, target):
        site.pages["/uc?id=1-Xy"] = (
            f'<form id="download-form" action="{site.address}/a.bin">'
            '<input type="hidden" name="confirm" value="t"></form>'
        )
        site.cuts = [10_000, CHUNK]
        fetch(self.ADDRESS, target, "a")
        assert target.read_bytes() == BODY
        assert [path for path, _ in site.requests] == ["/uc?id=1-Xy", "/a.bin?confirm=t", "/a.bin?confirm=t"]

    @pytest.mark.parametrize(
        "page", ["<p>Sorry, too many users have viewed this file recently.</p>", '<a href="/ServiceLogin">Sign in</a>']
    )
    def test_a_page_without_a_download(self, site, target, page):
        site.pages["/uc?id=1-Xy"] = page
        with pytest.raises(InputError, match="too many people fetched the file today, or it is no longer public"):
            fetch(self.ADDRESS, target, "a")
        assert not target.exists()
