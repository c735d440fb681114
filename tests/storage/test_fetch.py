"""Fetching from a server on this machine: whole, interrupted, changed in between, refused."""

from __future__ import annotations

import errno
import json
import random
import resource
import socket
import ssl
from urllib.error import URLError
from urllib.request import Request

import pytest

from console.errors import InputError
from storage import fetch as fetching
from storage.fetch import fetch
from tests.serving import closed_port, serving

BODY = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)


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


def cut_off(site, target, after):
    """A first call that ends with `after` bytes."""
    site.cuts += [after, *[0 if site.ranges else after] * 3]  # three attempts bring nothing more
    with pytest.raises(InputError, match=f"the connection was cut off after {after:,} bytes"):
        fetch(f"{site.address}/a.bin", target)
    assert not site.cuts
    assert target.with_name("a.bin.part").read_bytes() == site.files["/a.bin"][:after]
    assert not target.exists()
    site.requests.clear()


def only(target):
    return [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_fresh_file(site, target):
    site.tags["/a.bin"] = '"one"'
    version = fetch(f"{site.address}/a.bin", target)
    assert target.read_bytes() == BODY
    assert (version.size, version.etag) == (300_000, '"one"')
    assert ranges(site) == [None]
    assert only(target)


def test_an_empty_file(site, target):
    site.files["/a.bin"] = b""
    assert fetch(f"{site.address}/a.bin", target).size == 0
    assert target.read_bytes() == b""


def test_a_cut_connection_is_taken_up_again_in_the_same_call(site, target):
    site.tags["/a.bin"] = '"one"'
    site.cuts = [100_000, 50_000]
    fetch(f"{site.address}/a.bin", target)
    assert target.read_bytes() == BODY
    assert ranges(site) == [None, "bytes=100000-", "bytes=150000-"]
    assert site.requests[1][1]["If-Range"] == '"one"'
    assert only(target)


def test_an_interruption_keeps_what_has_come(site, target, monkeypatch):
    chunks = []

    def stop(response, size, read=fetching._read):
        if len(chunks) == 2:
            raise KeyboardInterrupt
        chunks.append(read(response, size))
        return chunks[-1]

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "_read", stop)
        with pytest.raises(KeyboardInterrupt):
            fetch(f"{site.address}/a.bin", target)
    fetch(f"{site.address}/a.bin", target)
    assert target.read_bytes() == BODY
    assert ranges(site) == [None, f"bytes={len(b''.join(chunks))}-"]


@pytest.mark.parametrize("said", ["tags", "dates", "nothing"])
def test_a_later_call_goes_on(site, target, said):
    if said != "nothing":
        getattr(site, said)["/a.bin"] = {"tags": '"one"', "dates": 1_700_000_000}[said]
    cut_off(site, target, 123_456)
    fetch(f"{site.address}/a.bin", target)
    assert target.read_bytes() == BODY
    assert ranges(site) == ["bytes=123456-"]
    expected = {"tags": '"one"', "dates": "Tue, 14 Nov 2023 22:13:20 GMT", "nothing": None}[said]
    assert site.requests[0][1].get("If-Range") == expected
    assert only(target)


def test_a_weak_tag_is_no_condition(site, target):
    site.tags["/a.bin"] = 'W/"one"'
    site.dates["/a.bin"] = 1_700_000_000
    cut_off(site, target, 1000)
    fetch(f"{site.address}/a.bin", target)
    assert site.requests[0][1]["If-Range"] == "Tue, 14 Nov 2023 22:13:20 GMT"
    assert target.read_bytes() == BODY


def test_a_server_without_ranges_begins_anew(site, target):
    site.ranges = False
    cut_off(site, target, 1000)
    fetch(f"{site.address}/a.bin", target)
    assert target.read_bytes() == BODY
    assert ranges(site) == ["bytes=1000-"]


@pytest.mark.parametrize("said", ["tags", "dates"])
def test_a_changed_file_begins_anew(site, target, said):
    said = getattr(site, said)
    said["/a.bin"] = '"one"' if said is site.tags else 1_700_000_000
    cut_off(site, target, 1000)
    said["/a.bin"] = '"two"' if said is site.tags else 1_700_000_001
    site.files["/a.bin"] = OTHER
    assert fetch(f"{site.address}/a.bin", target).size == 300_000
    assert target.read_bytes() == OTHER


def test_a_changed_size_begins_anew_though_the_server_says_nothing_else(site, target):
    cut_off(site, target, 1000)
    site.files["/a.bin"] = OTHER[:-1]
    fetch(f"{site.address}/a.bin", target)
    assert target.read_bytes() == OTHER[:-1]
    assert ranges(site) == ["bytes=1000-", None]


def test_a_changed_tag_is_seen_though_the_server_ignores_conditions(site, target, monkeypatch):
    """Some servers send the range all the same."""
    site.tags["/a.bin"] = '"one"'
    cut_off(site, target, 1000)
    site.tags["/a.bin"], site.files["/a.bin"] = '"two"', OTHER
    monkeypatch.setattr(fetching.Version, "validator", None)
    fetch(f"{site.address}/a.bin", target)
    assert target.read_bytes() == OTHER
    assert ranges(site) == ["bytes=1000-", None]


def test_all_was_there_but_the_name(site, target):
    """Killed between the last byte and the renaming."""
    site.tags["/a.bin"] = '"one"'
    cut_off(site, target, 1000)
    target.with_name("a.bin.part").write_bytes(BODY)
    fetch(f"{site.address}/a.bin", target)
    assert target.read_bytes() == BODY
    assert ranges(site) == ["bytes=300000-"]


@pytest.mark.parametrize("note", ["", "{", "[]", '{"url": "http://elsewhere/a.bin", "size": 300000}'])
def test_a_part_of_something_else_is_not_gone_on_with(site, target, note):
    target.parent.mkdir()
    target.with_name("a.bin.part").write_bytes(b"something else")
    if note:
        target.with_name("a.bin.part.json").write_text(note)
    fetch(f"{site.address}/a.bin", target)
    assert target.read_bytes() == BODY
    assert ranges(site) == [None]


def test_the_version_is_noted_beside_the_part(site, target):
    site.tags["/a.bin"] = '"one"'
    cut_off(site, target, 1000)
    noted = json.loads(target.with_name("a.bin.part.json").read_text())
    assert noted == {"url": f"{site.address}/a.bin", "etag": '"one"', "modified": None, "size": 300_000}


def test_redirections_keep_the_range(site, target):
    site.moved["/old"] = f"{site.address}/a.bin"
    site.cuts = [0, 1000]  # an empty answer is a redirection's
    fetch(f"{site.address}/old", target)
    assert target.read_bytes() == BODY
    assert ranges(site) == [None, None, "bytes=1000-", "bytes=1000-"]


def test_from_an_encrypted_address_to_a_plain_one_is_refused():
    handler = fetching._Redirects()
    request = Request("https://example.org/a")
    assert handler.redirect_request(request, None, 302, "", {}, "https://example.org/b").full_url.endswith("/b")
    with pytest.raises(InputError, match=r"http://example\.org/b, which is not encrypted"):
        handler.redirect_request(request, None, 302, "", {}, "http://example.org/b")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, r"nothing at this address any more \(404\): the file has moved"),
        (410, r"\(410\): the file has moved"),
        (403, r"does not hand it out \(403\)"),
        (503, r"busy \(503\): try again later"),
        (500, "answers 500 Internal Server Error"),
    ],
)
def test_refusals(site, target, status, words):
    site.statuses["/a.bin"] = status
    with pytest.raises(InputError, match=rf"cannot fetch {site.address}/a.bin: .*{words}"):
        fetch(f"{site.address}/a.bin", target)
    assert not target.parent.exists()


def test_a_refusal_leaves_the_part(site, target):
    cut_off(site, target, 1000)
    site.statuses["/a.bin"] = 404
    with pytest.raises(InputError, match="moved"):
        fetch(f"{site.address}/a.bin", target)
    del site.statuses["/a.bin"]
    fetch(f"{site.address}/a.bin", target)
    assert target.read_bytes() == BODY
    assert ranges(site) == ["bytes=1000-", "bytes=1000-"]


def test_a_refused_connection(site, target):
    with pytest.raises(InputError, match=r"127\.0\.0\.1 refuses the connection"):
        fetch(f"http://127.0.0.1:{closed_port()}/a.bin", target)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(-3, "Temporary failure in name resolution"), "the name example.org is not found .*offline"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "no route to example.org .is this machine offline"),
        (TimeoutError("timed out"), "example.org does not answer"),
        (ssl.SSLCertVerificationError(1, "certificate has expired"), "example.org cannot be trusted"),
        (OSError("Tunnel connection failed: 407"), r"failed \(Tunnel connection failed: 407\)"),
    ],
)
def test_no_connection(target, monkeypatch, error, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "create_connection", fail)
    with pytest.raises(InputError, match=rf"cannot fetch http://example.org/a: .*{words}") as raised:
        fetch("http://example.org/a", target)
    assert isinstance(raised.value.__cause__, URLError)


def test_a_web_page_is_not_the_file(site, target):
    site.pages["/a.bin"] = "<html>Please log in to the hotel's network</html>"
    with pytest.raises(InputError, match=r"a web page \(a login or a notice\), not the file"):
        fetch(f"{site.address}/a.bin", target)
    assert not target.exists()


def test_a_confirmation_page_is_followed_also_when_going_on(site, target):
    site.pages["/ask"] = "<html>sure?</html>"
    asked = []

    def confirm(page, address):
        asked.append((page, address))
        return f"{site.address}/a.bin"

    site.cuts = [10_000, 1000]
    fetch(f"{site.address}/ask", target, confirm=confirm)
    assert target.read_bytes() == BODY
    assert asked == [("<html>sure?</html>", f"{site.address}/ask")] * 2
    assert ranges(site) == [None, None, "bytes=1000-", "bytes=1000-"]
    site.pages["/a.bin"] = "again"
    with pytest.raises(InputError, match="web page"):
        fetch(f"{site.address}/ask", target, confirm=confirm)


def test_room_is_asked_for_before_anything_is_written(site, target):
    def full(missing, size):
        raise InputError(f"no room for {missing} of {size}")

    with pytest.raises(InputError, match="no room for 300000 of 300000"):
        fetch(f"{site.address}/a.bin", target, room=full)
    assert not target.with_name("a.bin.part").exists()
    cut_off(site, target, 1000)
    with pytest.raises(InputError, match="no room for 299000 of 300000"):
        fetch(f"{site.address}/a.bin", target, room=full)


def test_a_disk_that_takes_no_more(site, target):
    """The limit on the size of files stands for the end of the disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*a\.bin\.part: the file is larger than is allowed"):
            fetch(f"{site.address}/a.bin", target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    fetch(f"{site.address}/a.bin", target)
    assert target.read_bytes() == BODY
    assert ranges(site) == [None, "bytes=200000-"]
