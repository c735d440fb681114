"""Training pairs for retrieval: texts and image numbers by hand, errors, and the mini world's file."""

import json

import pytest
import torch
from PIL import Image

from console.errors import InputError
from data.batches import Side
from data.miniworld import ensure
from data.randomness import seeded
from data.readers import make_reader
from data.sources import Files
from data.tokenizer import Tokenizer, load_tokenizer
from data.transforms import Augmentation
from models.base import ImageShape
from tests.data.configured import configured

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog", "on", "grass"]
PAD, CLS, SEP, A, RED, DOG, ON, GRASS = 0, 2, 3, 5, 6, 7, 8, 9
SHAPE = ImageShape(16, 4)
STILL = Augmentation(crop=[1.0, 1.0], flip=0.0, ops=0)
IDS = ["coco_9", "coco_4", "coco_9", "coco_30", "coco_4"]
CAPTIONS = ["A red dog!", "dog", "a red dog on grass", "grass", "a dog"]


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return Tokenizer(tmp_path / "vocab.txt")


def reader(root, tokenizer, records, **options):
    (root / "images").mkdir(exist_ok=True)
    for record in records:
        Image.new("RGB", (8, 8)).save(root / "images" / record["image"])
    (root / "train.json").write_text(json.dumps(records))
    files = Files(root=str(root), annotations=["train.json"], image_roots={"coco": "images"})
    return make_reader(configured("retrieval_pairs", files, augmentation=STILL, **options), SHAPE, tokenizer)


def batch_of(made, *indices):
    with seeded(0) as rng:
        return made.collate([made.sample(i, rng) for i in indices], len(indices), rng)


RECORDS = [{"image": f"{i}.png", "image_id": i, "caption": c} for i, c in zip(IDS, CAPTIONS, strict=True)]


def test_a_batch_by_hand(tmp_path, tokenizer):
    batch = batch_of(reader(tmp_path, tokenizer, RECORDS), 3, 0, 2, 4)
    assert batch["idx"].tolist() == [2, 0, 0, 1] and batch["idx"].dtype == torch.int64
    assert batch["text_ids"].tolist() == [
        [CLS, GRASS, PAD, PAD, PAD, PAD],
        [CLS, A, RED, DOG, PAD, PAD],
        [CLS, A, RED, DOG, ON, GRASS],
        [CLS, A, DOG, PAD, PAD, PAD],
    ]
    assert batch["text_atts"].sum(dim=1).tolist() == [2, 4, 6, 3]
    assert batch["image"].shape == (4, 3, 16, 16)


def test_limits_and_end_mark(tmp_path, tokenizer):
    assert batch_of(reader(tmp_path, tokenizer, RECORDS, sep=True), 1)["text_ids"].tolist() == [[CLS, DOG, SEP]]
    cut = batch_of(reader(tmp_path, tokenizer, RECORDS, sep=True, max_tokens=4), 2, 1)
    assert cut["text_ids"].tolist() == [[CLS, A, RED, SEP], [CLS, DOG, SEP, PAD]]
    assert batch_of(reader(tmp_path, tokenizer, RECORDS, max_words=2), 2)["text_ids"].tolist() == [[CLS, A, RED]]


def test_numbers_as_image_ids(tmp_path, tokenizer):
    made = reader(tmp_path, tokenizer, [RECORDS[0] | {"image_id": i} for i in (7, 7, 5, 7, 5)])
    assert batch_of(made, 0, 1, 2, 3, 4)["idx"].tolist() == [0, 0, 1, 0, 1]


@pytest.mark.parametrize("broken", [{"image_id": None}, {"image_id": ["coco_9"]}])
def test_records_without_an_image_id(tmp_path, tokenizer, broken):
    with pytest.raises(InputError, match=r"coco_4\.png: its record has no usable 'image_id'"):
        reader(tmp_path, tokenizer, [RECORDS[0], RECORDS[1] | broken])


def test_a_broken_image_is_replaced(tmp_path, tokenizer):
    made = reader(tmp_path, tokenizer, RECORDS)
    (tmp_path / "images/coco_30.png").unlink()
    side = Side("pairs", made, 3, seed=0)
    loaded = [side[t] for t in range(side.batches)]
    assert sum(len(one.used) for one in loaded) == 5 and not any(3 in one.used for one in loaded)
    assert any("coco_30.png (missing)" in name for one in loaded for name in one.failed)


def test_the_mini_worlds_file(tmp_path):
    """Captions and numbers of every record of an epoch, each once."""
    ensure("itr", tmp_path, workers=1, show=False, scale=0.01)
    name, tokenizer = "data/finetune/itr/coco_train.json", load_tokenizer("weights/mini-vocab.txt")
    records = json.loads((tmp_path / name).read_text())
    files = Files(root=str(tmp_path), annotations=[name], image_roots={"coco": "images/coco"})
    made = make_reader(configured("retrieval_pairs", files, max_words=30), SHAPE, tokenizer)
    side = Side("pairs", made, 30, seed=0)
    order = list(dict.fromkeys(record["image_id"] for record in records))
    used = []
    for t in range(side.batches):
        loaded = side[t]
        used += loaded.used
        for ids, number, index in zip(loaded.batch["text_ids"], loaded.batch["idx"], loaded.used, strict=True):
            assert tokenizer.text(ids.tolist()) == records[index]["caption"]
            assert order[number] == records[index]["image_id"]
    assert sorted(used) == list(range(len(records)))
