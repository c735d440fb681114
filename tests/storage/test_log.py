"""The log of JSON lines."""

import json

import pytest

from console.errors import InputError
from storage.log import append_json_line, keep_json_lines
from tests.storage.test_atomic import file_size_limit


def test_lines_are_appended(tmp_path):
    path = tmp_path / "deep" / "log.jsonl"
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "note": "two\nlines"}]
    for row in rows:
        append_json_line(path, row)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_a_log_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write"):
        append_json_line(tmp_path / "file" / "log.jsonl", {})
    with file_size_limit(100), pytest.raises(InputError, match="cannot write"):
        append_json_line(tmp_path / "log.jsonl", {"text": "x" * 1000})


def test_lines_after_a_snapshot_go(tmp_path):
    path = tmp_path / "log.jsonl"
    keep_json_lines(path, lambda line: True)
    assert not path.exists()
    for step in range(5):
        append_json_line(path, {"step": step})
    with path.open("a") as file:
        file.write('{"step": 1, "lo')  # killed while writing
    append_json_line(path, {"step": 2, "note": "after it"})
    keep_json_lines(path, lambda line: line["step"] <= 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 2]
    keep_json_lines(tmp_path / "other" / "log.jsonl", lambda line: line["step"] <= 1, path)
    assert (tmp_path / "other" / "log.jsonl").read_text().splitlines() == path.read_text().splitlines()[:2]
