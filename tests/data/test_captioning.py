"""Captions with their prompt, crops of the first stage, and COCO's image ids, against cases solved by hand."""

import json

import pytest
import torch
from PIL import Image

from console.errors import InputError
from data.batches import Side
from data.captioning import ImagesToCaption, crop_to_box, image_ids
from data.evaluation_batches import check_files, evaluation_batches
from data.miniworld import ensure
from data.randomness import seeded
from data.readers import make_reader
from data.regions import RegionError
from data.sources import Files
from data.tokenizer import Tokenizer, load_tokenizer
from data.transforms import Augmentation
from models.base import ImageShape
from tests.data.configured import configured

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of", "red", "blue", "dog", "on", "grass"]
PAD, CLS, SEP, A, PICTURE, OF, RED, BLUE, DOG, ON, GRASS = 0, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12
SHAPE = ImageShape(16, 4, mean=(0.0,) * 3, std=(1.0,) * 3)
STILL = Augmentation(crop=[1.0, 1.0], flip=0.0, ops=0)


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return Tokenizer(tmp_path / "vocab.txt")


def picture(path):
    """32 x 32 pixels: left half red, right half blue."""
    image = Image.new("RGB", (32, 32), (255, 0, 0))
    image.paste((0, 0, 255), (16, 0, 32, 32))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write(root, records, name="captions.json"):
    (root / name).write_text(json.dumps(records))
    for record in records:
        picture(root / "images" / record.get("dataset", "coco") / record["image"])
    return name


def reader(kind, root, tokenizer, *names, **options):
    files = Files(root=str(root), annotations=list(names), image_roots=options.pop("roots", {"coco": "images/coco"}))
    config = configured(kind, files, augmentation=STILL, **options)
    return make_reader(config, SHAPE, tokenizer)


def batch_of(made, *indices):
    with seeded(0) as rng:
        return made.collate([made.sample(i, rng) for i in indices], len(indices), rng)


def test_a_training_batch_by_hand(tmp_path, tokenizer):
    name = write(
        tmp_path,
        [
            {"image": "a.png", "image_id": "coco_1", "caption": "A red dog."},
            {"image": "b.png", "image_id": "coco_2", "caption": "a dog on blue grass"},
        ],
    )
    batch = batch_of(reader("captions", tmp_path, tokenizer, name), 0, 1)
    assert batch["text_ids"].tolist() == [
        [CLS, A, PICTURE, OF, A, RED, DOG, SEP, PAD, PAD],
        [CLS, A, PICTURE, OF, A, DOG, ON, BLUE, GRASS, SEP],
    ]
    assert batch["text_atts"].sum(dim=1).tolist() == [8, 10]
    assert batch["prompt_length"].tolist() == [4, 4] and batch["prompt_length"].dtype == torch.int64
    assert batch["image"].shape == (2, 3, 16, 16)


def test_captions_of_one_image_together(tmp_path, tokenizer):
    """At most two of an image, in the file's order."""
    said = [("a.png", "a red dog"), ("b.png", "blue grass"), ("a.png", "a dog"), ("a.png", "red")]
    name = write(tmp_path, [{"image": image, "caption": caption} for image, caption in said])
    made = reader("captions", tmp_path, tokenizer, name, most_of_image=2, prompt="")
    assert [made.source.name(i).rpartition("/")[2] for i in range(len(made.source))] == ["a.png", "b.png", "a.png"]
    batch = batch_of(made, 1, 0)
    assert batch["text_ids"].tolist() == [
        [CLS, BLUE, GRASS, SEP, PAD],
        [CLS, A, RED, DOG, SEP],
        [CLS, A, DOG, SEP, PAD],
    ]
    assert batch["image_of"].tolist() == [0, 1, 1] and batch["image"].shape == (2, 3, 16, 16)
    assert batch["prompt_length"].tolist() == [1, 1, 1]
    assert batch_of(made, 2)["text_ids"].tolist() == [[CLS, RED, SEP]]


def test_prompts_and_limits(tmp_path, tokenizer):
    name = write(tmp_path, [{"image": "a.png", "caption": "a dog on blue grass"}])
    without = batch_of(reader("captions", tmp_path, tokenizer, name, prompt=""), 0)
    assert without["text_ids"].tolist() == [[CLS, A, DOG, ON, BLUE, GRASS, SEP]] and without["prompt_length"] == 1
    other = batch_of(reader("captions", tmp_path, tokenizer, name, prompt="picture of", max_words=2), 0)
    assert other["text_ids"].tolist() == [[CLS, PICTURE, OF, A, DOG, SEP]] and other["prompt_length"] == 3
    cut = batch_of(reader("captions", tmp_path, tokenizer, name, max_tokens=7), 0)
    assert cut["text_ids"].tolist() == [[CLS, A, PICTURE, OF, A, DOG, SEP]]
    with pytest.raises(InputError, match="leaves no room for a caption in max_tokens 5"):
        reader("captions", tmp_path, tokenizer, name, max_tokens=5)


def test_the_first_stage_crops_to_the_caption(tmp_path, tokenizer):
    roots = {"coco": "images/coco", "vg": "images/vg"}
    dense = {"image": "1.png", "dataset": "vg", "caption": ["red", "blue"], "bb": [[0, 0, 16, 32], [16, 4, 16, 20]]}
    one = {"image": "2.png", "dataset": "vg", "caption": "blue dog", "bb": [18, 0, 4, 4]}
    whole = {"image": "3.png", "dataset": "coco", "caption": ["a dog", "a dog"]}
    names = [write(tmp_path, [dense, one], "vg.json"), write(tmp_path, [whole], "coco.json")]
    made = reader("first_stage_captions", tmp_path, tokenizer, *names, roots=roots, max_tokens=8)
    batch = batch_of(made, *[0] * 40, 1, 2)
    assert batch["text_ids"].shape == (42, 8)
    drawn = set()
    for image, ids in zip(batch["image"][:40], batch["text_ids"][:40].tolist(), strict=True):
        assert ids[0] == CLS and ids[2:] == [SEP, PAD, PAD, PAD, PAD, PAD]
        red = image[0].min() > 0.9 and image[2].max() < 0.1
        blue = image[2].min() > 0.9 and image[0].max() < 0.1
        assert {RED: red, BLUE: blue}[ids[1]]
        drawn.add(ids[1])
    assert drawn == {RED, BLUE}
    assert batch["image"][40, 2].min() > 0.9 and batch["text_ids"][40].tolist()[:4] == [CLS, BLUE, DOG, SEP]
    assert batch["image"][41, 0].max() > 0.9 and batch["image"][41, 2].max() > 0.9
    assert batch["text_ids"][41].tolist()[:4] == [CLS, A, DOG, SEP]


def test_crops_by_hand():
    image = Image.new("RGB", (20, 10))
    for box, size in (
        ([2, 3, 5, 4], (5, 4)),
        ([2.5, 0, 1.2, 1], (2, 1)),
        ([15, 5, 50, 50], (5, 5)),
        ([-3, 0, 4, 2], (1, 2)),
    ):
        assert crop_to_box(image, box).size == size
    for box in ([20, 0, 3, 3], [0, 10, 3, 3], [0, 0, 0, 3], [-5, 0, 5, 5]):
        with pytest.raises(RegionError, match="does not lie in its image of 20x10 pixels"):
            crop_to_box(image, box)


def test_an_impossible_box_is_replaced(tmp_path, tokenizer):
    boxed = {"dataset": "coco", "caption": ["red"]}
    name = write(tmp_path, [boxed | {"image": f"{i}.png", "bb": [[40 * (i == 1), 0, 8, 8]]} for i in range(4)])
    loaded = Side("captions", reader("first_stage_captions", tmp_path, tokenizer, name), 4, seed=0)[0]
    assert 1 not in loaded.used and len(loaded.failed) >= 1
    assert loaded.failed[0].endswith("1.png (box [40, 0, 8, 8] does not lie in its image of 32x32 pixels)")


@pytest.mark.parametrize("boxes", [[[0, 0, 4, 4]], [0, 0, 4, 4], [[0, 0, 4], [0, 0, 4, 4]], "all", 3])
def test_boxes_that_do_not_fit_the_captions(tmp_path, tokenizer, boxes):
    name = write(tmp_path, [{"image": "a.png", "caption": ["red", "blue"], "bb": boxes}])
    with pytest.raises(InputError, match=r"a\.png: its record must have one box"):
        reader("first_stage_captions", tmp_path, tokenizer, name)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("val2014/COCO_val2014_000000000042.jpg", 42),
        ("a_b/x_7.jpeg", 7),
        ("jpg_00012.png", 12),
        ("images_1/0043.g", 43),
        ("COCO_val2014_000000100000.JPG", 100000),
    ],
)
def test_names_that_end_in_a_number(name, number):
    assert image_ids([{"image": name}], "file") == [number]


@pytest.mark.parametrize(
    ("records", "ids"),
    [
        ([{"image": "nocaps/0013ea2087020901.jpg"}], ["0013ea2087020901"]),
        # digits by chance beside hexadecimal names
        ([{"image": "0013ea20.jpg"}, {"image": "01234567.jpg"}], ["0013ea20", "01234567"]),
        ([{"image": "COCO_val2014_12j.jpg"}, {"image": "x_-3.png"}], ["COCO_val2014_12j", "x_-3"]),
        ([{"image": "0013ea2087020901.jpg", "image_id": 0}, {"image": "a.jpg", "image_id": 4}], [0, 4]),
        ([{"image": "VizWiz_val_00000012.jpg", "image_id": 23443}], [23443]),
        ([{"image": "COCO_val2014_000000000042.jpg", "image_id": "coco_42"}], [42]),
    ],
)  # fmt: skip
def test_ids_of_other_names(records, ids):
    assert image_ids(records, "file") == ids


def test_an_image_id_that_some_records_lack():
    with pytest.raises(InputError, match=r"file: b\.jpg has no field 'image_id'"):
        image_ids([{"image": "a.jpg", "image_id": 1}, {"image": "b.jpg"}], "file")
    with pytest.raises(InputError, match=r"file: a\.jpg has an unusable 'image_id'"):
        image_ids([{"image": "a.jpg", "image_id": 1.5}], "file")


def test_evaluation_gives_every_image_once(tmp_path):
    name = write(tmp_path, [{"image": f"COCO_val2014_{number:012d}.png"} for number in (9, 4, 30)])
    files = Files(root=str(tmp_path), annotations=[name], image_roots={"coco": "images/coco"})
    data = ImagesToCaption(files, SHAPE)
    check_files(data)
    batches = list(evaluation_batches(data, 2))
    assert [batch["image_id"] for batch in batches] == [[9, 4], [30]]
    assert batches[1]["image"].shape == (1, 3, 16, 16)
    assert batches[0]["image"][1, 0, 8, 0] > 0.9 and batches[0]["image"][1, 2, 8, 15] > 0.9
    assert len(ImagesToCaption(files, SHAPE, limit=1)) == 1
    (tmp_path / data.file(0).removeprefix(f"{tmp_path}/")).unlink()
    with pytest.raises(InputError, match=r"1 of \d evaluation images is missing"):
        check_files(data)
    write(tmp_path, [{"image": "x_1.png"}, {"image": "y_01.png"}])
    with pytest.raises(InputError, match="1 is there twice"):
        ImagesToCaption(files, SHAPE)
    write(tmp_path, [{"image": "x.png", "image_id": 1}, {"image": "y.png", "image_id": "1"}])
    with pytest.raises(InputError, match="the id 1 is a number and '1' a text"):
        ImagesToCaption(files, SHAPE)


@pytest.mark.parametrize("workers", [0, 1])
def test_ids_that_are_texts_in_batches(tmp_path, workers):
    """Several records of one image, as the training layout has them, are one; the limit counts images."""
    images = ("00ff", "0012", "00ff", "a1", "0012")
    name = write(tmp_path, [{"image": f"{image}.png", "caption": "a dog"} for image in images])
    files = Files(root=str(tmp_path), annotations=[name], image_roots={"coco": "images/coco"})
    data = ImagesToCaption(files, SHAPE)
    assert [batch["image_id"] for batch in evaluation_batches(data, 2, num_workers=workers)] == [
        ["00ff", "0012"],
        ["a1"],
    ]
    assert ImagesToCaption(files, SHAPE, limit=2).image_ids == ["00ff", "0012"]


def test_the_mini_worlds_files(tmp_path):
    for part in ("ic", "calibration"):
        ensure(part, tmp_path, workers=1, show=False, scale=0.01)
    tokenizer = load_tokenizer("weights/mini-vocab.txt")
    made = reader("captions", tmp_path, tokenizer, "data/finetune/ic/coco_karpathy_train.json", max_tokens=32)
    records = json.loads((tmp_path / "data/finetune/ic/coco_karpathy_train.json").read_text())
    loaded = Side("captions", made, 6, seed=0)[0]
    for ids, index in zip(loaded.batch["text_ids"].tolist(), loaded.used, strict=True):
        assert tokenizer.text(ids) == f"a picture of {records[index]['caption']}"
    names = ["data/pretrain/cc3m_pretrain.json", "data/pretrain/vg_dense_gby_image.json"]
    roots = {"cc3m": "images/cc3m", "vg": "images/vg"}
    first = Side("first", reader("first_stage_captions", tmp_path, tokenizer, *names, roots=roots), 8, seed=0)
    assert len(first.reader.source) == sum(len(json.loads((tmp_path / name).read_text())) for name in names)
    loaded = [first[t] for t in range(3)]
    assert not any(one.failed for one in loaded) and loaded[0].batch["text_ids"].shape == (8, 40)
    for split in ("val", "test"):
        name = f"data/finetune/ic/coco_karpathy_{split}.json"
        data = ImagesToCaption(
            Files(root=str(tmp_path), annotations=[name], image_roots={"coco": "images/coco"}), SHAPE
        )
        truth = json.loads((tmp_path / name.replace(".json", "_gt.json")).read_text())
        assert data.image_ids == [image["id"] for image in truth["images"]]
