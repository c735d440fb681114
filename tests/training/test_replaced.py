"""Training images that are missing or broken: how many may be, and what is said."""

import io

import pytest
from rich.console import Console

from console.errors import InputError
from training import replaced
from training.replaced import Replaced, missing_images


class Files:
    """Samples of which each other one has no file of its own, as those of shards."""

    def __init__(self, files):
        self._files = files

    def __len__(self):
        return 2 * len(self._files)

    def file(self, index):
        return str(self._files[index // 2]) if index % 2 else None


@pytest.fixture
def images(tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(40)]
    for file in files:
        file.touch()
    return files


def test_some_may_be_missing(images):
    assert missing_images(Files(images)) == ""
    assert missing_images(Files([])) == ""
    images[3].unlink()
    told = missing_images(Files(images))
    assert told == f"1 of 40 training images is missing (first: {images[3]}); another takes its place"
    images[4].unlink()
    told = missing_images(Files(images))
    assert told.startswith("2 of 40 training images are missing (first: ")
    assert str(images[3]) in told
    images[5].unlink()
    with pytest.raises(InputError, match="3 of 40 training images are missing, more than 5%"):
        missing_images(Files(images))


def test_the_first_are_named_and_all_are_counted(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(replaced, "console", Console(file=file, width=200))
    found = Replaced()
    assert found.summary() == ""
    for names in (["a.png"], [], ["a.png", "b.png"], ["c.png", "d.png"]):
        found.note(names)
    assert [line.rpartition(" ")[2] for line in file.getvalue().splitlines()] == ["a.png", "b.png", "c.png"]
    assert found.summary().startswith("4 training images could not be read")
