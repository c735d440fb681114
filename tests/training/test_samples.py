"""What each task shows of itself: records of cases made by hand, without a model."""

import json
from types import SimpleNamespace

import pytest
import torch

from console.errors import InputError
from data.miniworld.scene import Scene, Thing
from data.transforms import CLIP_MEAN, CLIP_STD, to_normalised, to_picture
from evaluation.contact_sheet import Line, Part, Sample, Shown
from evaluation.recall import Candidates
from evaluation.truthfulness import details
from models.base import ImageShape
from tasks.captioning import Captioning
from tasks.image_classification import Classification
from tasks.retrieval import Found, Retrieval
from tasks.vqa import VQA, judged
from training import samples
from training.samples import draw_samples

SHAPE = ImageShape(4, 2)


def grey(i):
    """Image i is of grey value 10 i, as a model gets it."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return ((10 * i / 255) - mean).expand(3, 4, 4) / std


def made(task, **fields):
    """A task that was never opened, with what its `samples` needs."""
    blank = task.__new__(task)
    for name, value in ({"_shape": SHAPE} | fields).items():
        setattr(blank, name, value)
    return blank


class Data:
    """Five images and what tasks ask of their data."""

    question_ids, image_ids = [70, 71, 72, 73, 74], [70, 71, 72, 73, 74]
    source = SimpleNamespace(classes=["rose", "tulip"], record=lambda i: {"question": f"What is {i}?"})

    def __len__(self):
        return 5

    def __getitem__(self, i):
        return grey(i), self.image_ids[i]


def lines(sample):
    return [(line.style, line.text) for line in sample.lines]


def values(sample):
    return [int(shown.image[0, 0, 0]) for shown in sample.images]


@pytest.mark.parametrize("shape", [SHAPE, ImageShape(4, 2, (0.5, 0.4, 0.3), (0.2, 0.5, 1.0))])
def test_normalised_and_back(shape):
    from PIL import Image

    pixels = torch.arange(48, dtype=torch.uint8).mul(5).view(4, 4, 3).numpy()
    assert (to_picture(to_normalised(shape)(Image.fromarray(pixels)), shape) == pixels).all()


def test_classification():
    task = made(Classification, _data={"test": Data()}, _found={0: (1, 1), 1: (0, 1), 2: (0, 0), 3: (1, 0), 4: (1, 1)})
    (part,) = task.samples()
    assert part.heading.startswith("5 of 5")
    assert [values(sample) for sample in part.samples] == [[0], [10], [20], [30], [40]]
    assert lines(part.samples[0]) == [("strong", "predicted: tulip"), ("right", "right"), ("plain", "true: tulip")]
    assert lines(part.samples[1]) == [("strong", "predicted: rose"), ("wrong", "wrong"), ("plain", "true: tulip")]


class Questions(Data):
    """The same with the image file before the image."""

    def __getitem__(self, i):
        return f"{i}.png", grey(i), [], self.question_ids[i]


def test_answers():
    given = dict.fromkeys(Data.question_ids, "red")
    truth = [
        {"question_id": 70 + i, "answer": ["red"] * red + ["blue"] * (10 - red)} for i, red in enumerate((10, 2, 0))
    ]
    (part,) = made(VQA, _data={"test": Questions()}, _given=given, _truth={"test": truth}).samples()
    asked = [("plain", "What is 0?"), ("strong", "answer: red")]
    assert lines(part.samples[0]) == [*asked, ("right", "right"), ("faint", "people: red\u00a0100\u00a0%")]
    # 2 of 10 say so: leaving one of them out 1 of 3, else 2 of 3
    assert lines(part.samples[1])[2:] == [
        ("partly", "partly right, 60 %"),
        ("faint", "people: blue\u00a080\u00a0%, red\u00a020\u00a0%"),
    ]
    assert lines(part.samples[2])[2:] == [("wrong", "wrong"), ("faint", "people: blue\u00a0100\u00a0%")]
    assert len(part.samples[3].lines) == 2  # nobody knows
    assert (
        judged("a", [*"aaaabbcde"])[1].text
        == "people: a\u00a044\u00a0%, b\u00a022\u00a0%, c\u00a011\u00a0%, d\u00a011\u00a0%"
    )


def test_captions():
    def thing(shape, colour, x, y):
        return Thing(shape, colour, 0, 0, x, y, 7.0, 4, (0, 0, 0), 0)

    scene = Scene(2, (0, 0, 0), 0, 0, (thing(0, 0, 10.0, 12.0), thing(4, 4, 50.0, 30.0)))
    written = dict(
        zip(Data.image_ids, ["a red circle and a blue star", "three red circles", "", "a", "b"], strict=True)
    )
    task = made(
        Captioning,
        _data={"test": Data()},
        _written=written,
        _references={"test": {number: ["r"] for number in written}},
    )
    task._scenes = {"test": {70: scene, 71: scene}}
    (part,) = task.samples()
    assert lines(part.samples[0]) == [
        ("strong", "a red circle and a blue star"),
        ("right", "wholly true"),
        ("plain", "there: red circle, blue star"),
        ("faint", "reference: r"),
    ]
    assert lines(part.samples[1])[1:4] == [
        ("wrong", "not wholly true"),
        ("plain", "there: red circle"),
        ("plain", "not there: red circle × 2"),
    ]
    assert lines(part.samples[2]) == [("strong", "(no word)"), ("faint", "reference: r")]
    assert details("a blue star left of a red circle", scene).not_there == []


def test_retrieval():
    """Images of two texts each; some are found first, some later, some were not among those re-ranked."""

    class Gallery(Data):
        texts, image_of_text = [f"text {j}" for j in range(6)], [0, 0, 1, 1, 2, 2]
        texts_of_image = ((0, 1), (2, 3), (4, 5))

        def __getitem__(self, i):
            return grey(i)

    def row(*scores):
        """None where a candidate was not re-ranked; similarity falls with the number."""
        reranked = torch.tensor([[score is not None for score in scores]])
        known = torch.tensor([[float(score or 0) for score in scores]])
        return Found.of(Candidates(-torch.arange(len(scores)).float()[None], known, reranked), 0)

    by_image = {
        0: row(1, 3, 2, None, None, 0),
        1: row(5, 1, 2, 3, None, None),
        2: row(5, 1, 2, 3, None, None),
    }
    by_text = {
        0: row(3, 2, 1, 0, None),
        2: row(3, 2, 1, 0, None),
        4: row(3, 2, None, 1, 0),
        5: row(3, 2, 0.5, 1, 0.9),
        3: row(None, None, None, 1, -200),
    }
    task = made(Retrieval, _galleries={"test": Gallery()}, _rows=(by_image, by_text))
    images, texts = task.samples()
    assert lines(images.samples[0]) == [("strong", "text 1"), ("right", "right")]
    assert lines(images.samples[1])[1:] == [("wrong", "wrong"), ("faint", "its own, place 2: text 3")]
    assert lines(images.samples[2])[2] == ("faint", "its own, not re-ranked: text 4")
    assert [lines(sample)[1] for sample in texts.samples] == [
        ("right", "right"),
        ("wrong", "wrong, its own: place 2"),
        ("wrong", "wrong, its own: not re-ranked"),
        ("wrong", "wrong, its own: place 5"),
        ("wrong", "wrong, its own: not re-ranked"),
    ]
    # of few that were re-ranked, those behind them stand by similarity, and no place is claimed for them
    assert [shown.label for shown in texts.samples[4].images] == [
        "place 1", "place 2", "not re-ranked", "not re-ranked, its own",
    ]  # fmt: skip
    assert [values(sample) for sample in texts.samples] == [
        [0, 10, 20, 30],
        [0, 10, 20, 30],
        [0, 10, 30, 40, 20],
        [0, 10, 30, 40, 20],
        [30, 40, 0, 10],
    ]
    assert [[shown.frame for shown in sample.images] for sample in texts.samples] == [
        ["right", "", "", ""],
        ["", "right", "", ""],
        ["", "", "", "", "wrong"],
        ["", "", "", "", "wrong"],
        ["", "", "", "right"],
    ]


def test_a_picture_that_cannot_be_drawn_ends_nothing(tmp_path, monkeypatch, capsys):
    part = Part("h", [Sample([Shown(to_picture(grey(1), SHAPE))], [Line("right", "right")])])
    task = SimpleNamespace(samples=lambda: [part])
    draw_samples(SimpleNamespace(samples=list), tmp_path / "none.png", "a task without samples")
    draw_samples(task, tmp_path / "samples.png", "title")
    assert [path.name for path in tmp_path.iterdir()] == ["samples.png"]

    def full(*_):
        raise InputError("cannot write samples.png: the disk is full")

    monkeypatch.setattr(samples, "draw_contact_sheet", full)
    draw_samples(task, tmp_path / "more.png", "title")
    assert "the disk is full); the results are not affected" in capsys.readouterr().err


def test_a_debug_run_leaves_its_samples(run, tmp_path):
    """A dense run of two steps on a small world, whose picture comes after its results."""
    import yaml
    from PIL import Image

    from data.miniworld import ensure
    from tests.training.small_finetuning import flowers

    world = ensure("flowers102", tmp_path / "world", workers=1, show=False, scale=0.02)
    settings = flowers(world)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings | {"batch_size": 8}))
    command = ["image_classification.py", "--model", "dino-mini", "--config", config, "--dense", "--debug"]
    done = run(*command, "--output_dir", tmp_path / "out", "--accelerator", "cpu", "--pretraining_weights", "random")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out_debug"
    assert done.stderr.index("results.json") < done.stderr.index("samples.png")
    assert json.loads((out / "results.json").read_text())["metrics"]
    with Image.open(out / "samples.png") as picture:
        assert picture.width == 1920 and picture.height > 4 * 288  # twelve images in four lines
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 500
