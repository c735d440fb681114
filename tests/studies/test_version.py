"""What a result says of the code that made it."""

import subprocess

import pytest

from studies import version


def git(folder, *arguments):
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@y", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(autouse=True)
def not_remembered():
    version.commit.cache_clear()
    yield
    version.commit.cache_clear()


def test_changed_code_but_not_results_is_reported(tmp_path, monkeypatch):
    for name in ("code.py", "results/made.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("first\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(version, "REPOSITORY", tmp_path)
    head = git(tmp_path, "rev-parse", "HEAD")
    assert version.commit() == head
    version.commit.cache_clear()
    (tmp_path / "results/made.json").write_text("second\n")
    (tmp_path / "new.txt").write_text("new\n")
    assert version.commit() == head
    version.commit.cache_clear()
    (tmp_path / "code.py").write_text("second\n")
    assert version.commit() == f"{head}+changes"


def test_no_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(version, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert version.commit() is None
