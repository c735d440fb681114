"""docs/data.md against the readers: every kind of batch has the fields, shapes and types that its table says."""

from __future__ import annotations

import re

import pytest
import torch

from data.batches import Sides
from data.masking import Masking
from data.miniworld import ensure
from data.readers import READERS, make_reader, option_names
from data.sources import Files
from data.tokenizer import load_tokenizer
from models.base import ImageShape
from models.library.hf_generative import Llava
from models.library.hf_processor import HFProcessor
from tests.conftest import REPOSITORY
from tests.data.configured import configured
from tests.models.generative import processor

SHAPE = ImageShape(image_size=64, patch_size=8)
SIZE, LENGTH, CROPS = 6, 20, 3
LETTERS = {"b": SIZE, "n": SIZE, "L": LENGTH, "m": Masking().most, "H": 64, "p": 65, "s": CROPS}

MEASURED = (
    ("t", "text_ids", 1), ("t", "question_ids", 1), ("a", "answer_ids", 0), ("u", "answer_ids", 1),
    ("k", "opposed_ids", 0), ("w", "input_ids", 1), ("h", "pixel_values", 2),
)  # fmt: skip
"""Letters that depend on the texts of a batch: the field and the axis that they are read from."""

PAIRS = {"annotations": ["data/pretrain/cc3m_pretrain.json"], "image_roots": {"cc3m": "images/cc3m"}}
CLASSES = {"folder": "data/imagenet/train"}
COCO = {"image_roots": {"coco": "images/coco"}}
FILES = {
    "texts": PAIRS,
    "mlm_pairs": PAIRS,
    "mlm_regions": {"annotations": ["data/pretrain/vg_regions.json"]},
    "pairs": PAIRS,
    "processed_pairs": PAIRS,
    "opposed_pairs": PAIRS,
    "labelled_images": CLASSES,
    "masked_texts": PAIRS,
    "dense_scenes": {},
    "multi_crops": CLASSES,
    "retrieval_pairs": {"annotations": ["data/finetune/itr/coco_train.json"]} | COCO,
    "captions": {"annotations": ["data/finetune/ic/coco_karpathy_train.json"]} | COCO,
    "first_stage_captions": PAIRS,
    "questions": {
        "annotations": ["data/finetune/vqa/vqa_train.json", "data/finetune/vqa/vg_qa.json"],
        "image_roots": {"vqa": "images/coco", "vg": "images/vg"},
    },
    "statements": {
        "annotations": ["data/finetune/nlvr/nlvr_train.json"],
        "image_roots": {"nlvr2": "images/nlvr2"},
    },
    "classification": CLASSES,
    "pictures": CLASSES,
}


def tables() -> dict[str, list[tuple[str, list[str], str]]]:
    """Reader -> (field, dimensions, dtype) of each row of its table."""
    found = {}
    for section in re.split(r"^### ", (REPOSITORY / "docs/data.md").read_text(), flags=re.MULTILINE)[1:]:
        name = re.match(r"`(\w+)`\n", section)
        rows = re.findall(r"^\| (\w+) \| \[([^\]]+)\] \| (\w+) \|", section, re.MULTILINE)
        if name:
            found[name[1]] = [(field, shape.split(", "), dtype) for field, shape, dtype in rows]
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A hundredth of the mini world."""
    root = tmp_path_factory.mktemp("world")
    for part in ("calibration", "imagenet", "ic", "vqa", "nlvr"):
        ensure(part, root, workers=1, show=False, scale=0.01)
    return root


def test_every_reader_has_a_table():
    assert tables().keys() == READERS.keys()


@pytest.mark.parametrize("name", READERS)
def test_batches_are_as_the_page_says(name, world):
    options = {"files": Files(root=str(world), **FILES[name]), "max_tokens": LENGTH, "small_crops": CROPS}
    own = option_names(READERS[name].Config)
    config = configured(name, **{key: value for key, value in options.items() if key in own})
    whole = HFProcessor(processor("Llava"), Llava.inputs) if name == "processed_pairs" else "weights/mini-vocab.txt"
    reader = make_reader(config, SHAPE, load_tokenizer(whole))
    batch = Sides({"side": reader}, SIZE, seed=0)[0, "side"].batch
    letters = dict(LETTERS)
    if name == "mlm_regions":
        letters["g"] = len(batch["image"])
        assert letters["g"] <= letters["n"]
    for letter, field, axis in MEASURED:
        if field in batch:
            letters[letter] = batch[field].shape[axis]
    assert letters.get("t", 0) <= LENGTH
    rows = tables()[name]
    assert list(batch) == [field for field, _, _ in rows]
    for field, dimensions, dtype in rows:
        expected = [int(eval(dimension.replace("/", "//"), {}, letters)) for dimension in dimensions]
        assert list(batch[field].shape) == expected, field
        assert batch[field].dtype == getattr(torch, dtype), field
