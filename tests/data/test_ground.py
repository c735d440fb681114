"""The ground under transparent pixels is that of the configuration, wherever images are read."""

import dataclasses
import json

import pytest
from PIL import Image

from console.errors import InputError
from data.captioning import ImagesToCaption
from data.classification import ImagesToClassify
from data.labelled import LabelledImages, LabelledSet
from data.questions import QuestionRecords, QuestionsToAnswer
from data.retrieval import Gallery
from data.sources import Files, Pairs, RegionRecords
from data.tokenizer import load_tokenizer
from models.base import ImageShape
from training.snapshot import refuse_another_run

SHAPE = ImageShape(8, 4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
NAME = "COCO_val2014_000000000042.png"
RECORD = {
    "image": f"class/{NAME}",
    "caption": ["a hole"],
    "question": "what is it",
    "question_id": 1,
    "answer": "a hole",
    "elems": [{"caption": "a hole", "bb": [0, 0, 2, 2]}],
}

READ = {
    "pairs": lambda files: Pairs(files).read(0)[0],
    "regions": lambda files: RegionRecords(files).read(0)[0],
    "class folders": lambda files: LabelledImages(files).read(0)[0],
    "table": lambda files: LabelledSet(files, []).open().read(0)[0],
    "questions": lambda files: QuestionRecords(files, True).read(0)[0],
}
EVALUATED = {
    "gallery": lambda files: Gallery(files, SHAPE, 10)[0],
    "to caption": lambda files: ImagesToCaption(files, SHAPE)[0][0],
    "to answer": lambda files: QuestionsToAnswer(files, SHAPE, load_tokenizer("weights/mini-vocab.txt"))[0][1],
    "to classify": lambda files: ImagesToClassify(LabelledSet(files), SHAPE)[0][0],
}


def made(tmp_path, kind, ground):
    (tmp_path / "class").mkdir(exist_ok=True)
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "class" / NAME)
    (tmp_path / "records.json").write_text(json.dumps([RECORD]))
    (tmp_path / "table.csv").write_text(f"\ufefffilename,split,class\nclass/{NAME},test,0\n", encoding="utf-8")
    what = {"annotations": ["records.json"]}
    if kind in ("class folders", "to classify"):
        what = {"folder": "."}
    if kind == "table":  # as spreadsheets write it, with a byte order mark
        what = {"annotations": ["table.csv"], "image_roots": {"all": ""}}
    return Files(root=str(tmp_path), ground=ground, **what)


@pytest.mark.parametrize(("ground", "red"), [("", 255), ("#200000", 32)])
@pytest.mark.parametrize("kind", [*READ, *EVALUATED])
def test_every_reader_asks_the_configuration(kind, ground, red, tmp_path):
    files = made(tmp_path, kind, ground)
    if kind in READ:
        assert READ[kind](files).getpixel((4, 4))[0] == red
    else:
        assert EVALUATED[kind](files)[0, 4, 4].item() == pytest.approx(red / 255, abs=1e-6)


def test_runs_from_before_there_was_a_choice():
    now = dataclasses.asdict(Files(annotations=["a.json"]))
    before = {key: value for key, value in now.items() if key != "ground"}
    refuse_another_run("snapshot", {"files": before}, {"files": now})
    with pytest.raises(InputError, match=r"files\.ground was not given, now it is 'black'"):
        refuse_another_run("snapshot", {"files": before}, {"files": now | {"ground": "black"}})
