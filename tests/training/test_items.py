"""What each task says of single test items, against the numbers that the same evaluation gives."""

import shutil
from types import SimpleNamespace

import pytest

from data.miniworld import scene_for
from evaluation.items import Items
from evaluation.truthfulness import load_scenes
from tasks import captioning
from tasks.captioning import Captioning
from tasks.image_classification import Classification
from tasks.vqa import VQA

ALONE = SimpleNamespace(global_rank=0, world_size=1, is_global_zero=True, broadcast=lambda value: value)
LOOK = SimpleNamespace(fabric=ALONE, split="test", epoch=1, batches=lambda data, size: None)


def made(task, **fields):
    """A task that was never opened."""
    blank = task.__new__(task)
    for name, value in fields.items():
        setattr(blank, name, value)
    return blank


def test_classes():
    task = made(Classification, _found={0: (1, 1), 1: (0, 1), 2: (0, 0), 3: (1, 0)})
    assert task.items() == {"items": Items([0, 1, 2, 3], [0, 1, 2, 3], {"top1": [1.0, 0.0, 1.0, 0.0]})}


def test_answers():
    truth = [{"question_id": n, "answer": ["red"] * red + ["blue"] * (10 - red)} for n, red in ((72, 10), (70, 2))]
    data = {"test": SimpleNamespace(pictures=lambda: {70: 1, 71: 2, 72: 1})}
    task = made(VQA, _given={70: "red", 72: "red"}, _truth={"test": truth}, _data=data)
    assert task.items() == {"items": Items([72, 70], [1, 1], {"overall": [1.0, pytest.approx(0.6)]})}
    assert made(VQA, _given={70: "red"}, _truth={"val": truth}).items() == {}


@pytest.fixture
def captioned(world, tmp_path, monkeypatch):
    """A captioning task of three pictures for which these captions are written."""
    monkeypatch.setattr(shutil, "which", lambda name: None)  # Java would only cost time here
    references = {300001: ["a blue star", "a star"], 300002: ["a red circle", "a white heart"], 300003: ["a ring"]}
    numbers = list(references)

    def task(captions, skip=False, scenes=True):
        written = dict(zip(numbers, captions, strict=True))
        monkeypatch.setattr(captioning, "generate_captions", lambda *arguments: written)
        return made(
            Captioning, _config=SimpleNamespace(eval_batch=2, prompt="", search=None, leave_out=[]),
            _tokenizer=None, _skip=skip, _folder=tmp_path, _data={"test": None},
            _references={"test": references},
            _scenes={"test": load_scenes(world, numbers)} if scenes else {},
        )  # fmt: skip

    return task


def test_captions(captioned):
    task = captioned(["a blue star", "a red circle and a green ring", ""])
    metrics = task.evaluate(None, LOOK)
    (group,) = task.items().values()
    assert group.ids == group.pictures == [300001, 300002, 300003]
    assert list(group.scores) == ["CIDEr", "true", "present"]
    for metric, scores in group.scores.items():
        assert 100 * sum(scores) / 3 == pytest.approx(metrics[metric])
    first, second, third = group.scores["CIDEr"]
    assert first > second > third == 0  # as written by people; two things too many; nothing
    for i, text in enumerate(("a blue star", "a red circle and a green ring")):
        shapes = {(thing.colour, thing.shape) for thing in scene_for("itr_test", i).things}
        wanted = {(4, 4)} if i == 0 else {(0, 0), (3, 5)}
        assert group.scores["true"][i] == float(wanted <= shapes), text


def test_captions_without_a_scene_or_without_scores(captioned):
    task = captioned(["a blue star", "a red circle", "a ring"], scenes=False)
    metrics = task.evaluate(None, LOOK)
    (group,) = task.items().values()
    assert list(group.scores) == ["CIDEr"]
    assert 100 * sum(group.scores["CIDEr"]) / 3 == pytest.approx(metrics["CIDEr"])
    unscored = captioned(["a blue star", "a red circle", "a ring"], skip=True)
    assert unscored.evaluate(None, LOOK) == {}
    assert unscored.items() == {}
