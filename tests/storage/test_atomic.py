"""Files appear whole or not at all, whatever goes wrong while they are written."""

import errno
import os
import resource
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from console.errors import InputError
from storage.atomic import atomic_path, check_writable, no_empty_folder, remove_parts, write_json, write_text
from storage.space import on_disk


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def file_size_limit(limit):
    """A real limit of the system on what this process may write to one file: writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def nobodys_folder():
    """A folder that this process may look into but not write to, for root as well."""
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer) / "locked"
        folder.mkdir()
        Path(outer).chmod(0o755)
        folder.chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)


def test_a_file_appears_only_when_complete(tmp_path):
    target = tmp_path / "deep" / "a.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert temporary.parent == target.parent  # a rename works only within one file system
    assert names(target.parent) == ["a.txt"]
    assert target.read_text() == "new"


def test_a_folder_appears_whole(tmp_path):
    with atomic_path(tmp_path / "out") as temporary:
        temporary.mkdir()
        (temporary / "inside").write_text("x")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["inside"]


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("is_folder", [False, True])
def test_failure_leaves_the_old_file_and_nothing_else(error, is_folder, tmp_path):
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(type(error)), atomic_path(target) as temporary:
        if is_folder:
            temporary.mkdir()
            (temporary / "b").write_text("half")
        else:
            temporary.write_text("half")
        raise error
    assert names(tmp_path) == ["a"]
    assert target.read_text() == "old"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota is used up"),
        (errno.EROFS, "file system is read-only"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_what_the_system_says_becomes_a_sentence(code, reason, tmp_path, monkeypatch):
    """The file system refuses the last step, when all bytes are written."""

    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match=reason) as caught:
        write_text(tmp_path / "a.txt", "content")
    assert str(tmp_path / "a.txt") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_real_limit_in_the_middle_of_a_file(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with file_size_limit(10_000), pytest.raises(InputError, match=r"cannot write .*a\.txt: the file exceeds"):
        write_text(tmp_path / "a.txt", "x" * 1_000_000)
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_without_permission():
    with nobodys_folder() as folder:
        with pytest.raises(InputError, match="permission is denied"):
            write_text(folder / "a.txt", "x")
        with pytest.raises(InputError, match="permission is denied"):
            check_writable(folder)
        with pytest.raises(InputError, match="permission is denied"):
            check_writable(folder / "below")
        assert names(folder) == []


def test_things_in_the_way(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"is a file, not a folder|the path already exists"):
        write_text(tmp_path / "file" / "a.txt", "x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("x")
    with pytest.raises(InputError, match="it is a folder"):
        write_text(tmp_path / "folder", "x")
    with pytest.raises(InputError, match="name is too long"):
        write_text(tmp_path / ("a" * 300), "x")
    assert names(tmp_path) == ["file", "folder"]
    assert names(tmp_path / "folder") == ["inside"]


def test_check_writable_creates_an_empty_folder(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write to"):
        check_writable(tmp_path / "file")


def refused(folder, *files):
    with pytest.raises(InputError, match="no good"), no_empty_folder(folder):
        check_writable(folder)
        for file in files:
            (folder / file).write_text("x")
        raise InputError("no good")


def test_a_refusal_leaves_no_new_empty_folder(tmp_path):
    refused(tmp_path / "a" / "b" / "c")
    assert names(tmp_path) == []
    (tmp_path / "there").mkdir()
    refused(tmp_path / "there")
    refused(tmp_path / "there" / "a")
    assert names(tmp_path) == ["there"]
    assert names(tmp_path / "there") == []
    refused(tmp_path / "new" / "a", "log")
    assert names(tmp_path / "new" / "a") == ["log"]
    with no_empty_folder(tmp_path / "fine"):
        check_writable(tmp_path / "fine")
    assert names(tmp_path) == ["fine", "new", "there"]


def test_json_is_readable_text(tmp_path):
    write_json(tmp_path / "a.json", {"ü": [1, 2.5, None]})
    assert (tmp_path / "a.json").read_bytes().decode("utf-8") == '{\n "ü": [\n  1,\n  2.5,\n  null\n ]\n}\n'


def test_only_leftovers_of_killed_writers_go(tmp_path):
    for name in ("a[1].pt", ".a[1].pt.0123abcd.part", ".a[1].pt.part", ".b.pt.0123abcd.part", ".a1.pt.0123abcd.part"):
        (tmp_path / name).write_text("x")
    remove_parts(tmp_path / "a[1].pt")
    assert names(tmp_path) == [".a1.pt.0123abcd.part", ".a[1].pt.part", ".b.pt.0123abcd.part", "a[1].pt"]
    remove_parts(tmp_path / "nowhere" / "a.pt")


def test_parts_are_named_as_the_cleaner_expects(tmp_path):
    with atomic_path(tmp_path / "a.pt") as temporary:
        temporary.write_text("x")
        remove_parts(tmp_path / "a.pt")
        assert not temporary.exists()
        temporary.write_text("y")


def test_arrays_on_disk(tmp_path):
    assert on_disk(np.arange(6)[::2], tmp_path).tolist() == [0, 2, 4]
    with file_size_limit(100), pytest.raises(InputError, match="cannot write weights to"):
        on_disk(np.ones(1000), tmp_path)
