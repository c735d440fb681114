"""A section of data is read by the Config of the reader that it names; options of another one are refused."""

import dataclasses
import json

import pytest

from configs.schema import parse
from console.errors import InputError
from data.calibration import CalibrationBatches
from data.readers import READERS, ReaderConfig, make_reader
from data.sources import Files
from data.tokenizer import load_tokenizer
from models.base import ImageShape
from tests.data.configured import configured

FILES = {"annotations": ["x.json"], "folder": "x"}


@pytest.mark.parametrize("name", READERS)
def test_all_options_are_read_again(name):
    """As runs write them."""
    own = {field.name for field in dataclasses.fields(READERS[name].Config)}
    section = {"reader": name} | ({"files": FILES} if "files" in own else {})
    config = parse(ReaderConfig, section, "some.yaml")
    assert type(config) is READERS[name].Config and dataclasses.asdict(config).keys() == own
    assert parse(ReaderConfig, dataclasses.asdict(config), "some.yaml") == config


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"reader": "captions", "double_sep": True}, "'captions' has no option 'double_sep': it is an option of 'ques"),
        ({"reader": "pairs", "max_tokns": 3}, r"'pairs' has no option 'max_tokns' \(did you mean 'max_tokens'\?\)$"),
        ({"reader": "dense_scenes", "splits": []}, "'dense_scenes' has no option 'splits': it is an option of 'class"),
        ({"reader": "caption"}, r"unknown reader 'caption' \(did you mean 'captions'\?\): choose one of mlm_pairs, "),
        ({"reader": 3}, "unknown reader '3'"),
        ({"files": FILES}, "the key 'reader' is missing: choose one of mlm_pairs, "),
        ({"reader": "captions"}, "the key 'files' is missing"),
        ({"reader": "captions", "files": {"annotation": []}}, r"files: unknown key 'annotation' \(did you mean 'annot"),
    ],
)
def test_refused(section, message):
    with pytest.raises(InputError, match=rf"^some\.yaml: .*{message}"):
        parse(ReaderConfig, section, "some.yaml")


def test_python_refuses_them_as_well():
    with pytest.raises(TypeError, match="double_sep"):
        configured("captions", double_sep=True)


def test_texts_need_no_images(tmp_path):
    records = [
        {"image": f"gone/{index}.jpg", "caption": caption} for index, caption in enumerate(("A circle.", "A red"))
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(records))
    files = Files(annotations=[str(tmp_path / "pairs.json")])
    config = parse(ReaderConfig, {"reader": "texts", "files": dataclasses.asdict(files), "max_tokens": 6}, "it")
    tokenizer = load_tokenizer("weights/mini-vocab.txt")
    batches = CalibrationBatches({"general": make_reader(config, ImageShape(0, 1), tokenizer)}, 2, seed=0)
    batches.check_files(1)
    batch = next(iter(batches))["general"]
    assert sorted(batch) == ["text_atts", "text_ids"]
    said = sorted(tokenizer.text(row[1:].tolist()) for row in batch["text_ids"])
    assert said == ["a circle", "a red"]
