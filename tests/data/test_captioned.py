"""Pairs as people keep them: the same samples give the same batches in each form."""

import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from console.errors import InputError
from data.calibration import CalibrationBatches, make_manifest
from data.images import ImageError
from data.readers import make_reader
from data.sources import Files, Pairs
from data.tokenizer import load_tokenizer
from data.transforms import Augmentation
from models.base import ImageShape
from storage.hashing import hash_file
from tests.data.configured import configured

CAPTIONS = ["a red circle", ["a blue cross", "a cross on grass"], "two dotted discs"]
FORMS = ("pairs", "llava", "folder", "shard", "saved", "parquet")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three pictures in a folder, and what the forms have beside them: form -> Files."""
    root = tmp_path_factory.mktemp("forms")
    pictures = root / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    names = [f"{index}.png" for index in range(3)]
    for name, caption in zip(names, CAPTIONS, strict=True):
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(pictures / name)
        lines = caption if isinstance(caption, list) else [caption]
        (pictures / name).with_suffix(".txt").write_text("\n".join(lines) + "\n")
    records = [{"image": name, "caption": caption} for name, caption in zip(names, CAPTIONS, strict=True)]
    (root / "pairs.json").write_text(json.dumps(records))
    talks = [{"id": "0", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "no image"}]}]
    for record in records:
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}]
        said = record["caption"] if isinstance(record["caption"], list) else [record["caption"]]
        for answer in said:
            turns += [{"from": "gpt", "value": answer}, {"from": "human", "value": "And?"}]
        talks.append({"id": record["image"], "image": record["image"], "conversations": turns})
    (root / "llava.json").write_text(json.dumps(talks))
    with tarfile.open(root / "pairs.tar", "w") as tar:
        for record in records:
            text = root / record["image"].replace("png", "json")
            text.write_text(json.dumps({"caption": record["caption"]}))
            tar.add(pictures / record["image"], record["image"])
            tar.add(text, text.name)
    roots = {"image_roots": {"own": str(pictures)}}
    return {
        "pairs": Files(annotations=[str(root / "pairs.json")], **roots),
        "llava": Files(annotations=[str(root / "llava.json")], **roots),
        "folder": Files(folder=str(pictures)),
        "shard": Files(shards=[str(root / "pairs.tar")]),
        "saved": Files(saved=[str(root / "saved")]),
        "parquet": Files(saved=[str(root / "rows.parquet")]),
    }


@pytest.fixture(scope="module")
def saved(made, tmp_path_factory):
    """The two forms of the datasets library, where it is installed."""
    datasets = pytest.importorskip("datasets")
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")  # where it unpacks parquet files
    source = Pairs(made["folder"])
    rows = [{"text": said if isinstance(said, list) else [said]} for said in map(source.known, range(3))]
    rows = [row | {"image": source.name(index), "id": index} for index, row in enumerate(rows)]
    whole = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    whole.save_to_disk(made["saved"].saved[0])
    whole.to_parquet(made["parquet"].saved[0])
    return datasets


def batches(files, **options):
    plain = Augmentation(crop=[0.5, 1.0], flip=0.5, ops=1)
    config = configured("pairs", files, augmentation=plain, max_tokens=10)
    reader = make_reader(config, ImageShape(16, 8), load_tokenizer("weights/mini-vocab.txt"))
    return CalibrationBatches({"general": reader}, batch_size=3, seed=3, **options)


@pytest.mark.parametrize("form", FORMS[1:])
def test_the_same_tensors(form, made, request):
    if form in ("saved", "parquet"):
        request.getfixturevalue("saved")
    expected, found = batches(made["pairs"]), batches(made[form])
    found.check_files(1)
    expected, found = next(iter(expected))["general"], next(iter(found))["general"]
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_manifest_says_what_was_read(made, saved):
    for form in ("llava", "folder", "saved"):
        data = batches(made[form])
        side = make_manifest(data, 1, 3, [])["sides"]["general"]
        assert side["records"] == 3
        assert all(one["sha256"] == hash_file(one["path"]) for one in side["files"])
        assert bool(side["files"]) == (form != "folder")
        assert bool(side.get("listing")) == (form == "folder")
    assert Pairs(made["llava"]).left_out == ["1 conversation without an image"]


def test_a_picture_without_a_text_is_named(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    with pytest.raises(InputError, match="no picture with a text file of its name"):
        Pairs(Files(folder=str(tmp_path)))
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("\n \n")
    (tmp_path / "d.txt").write_text("of d.jfif")
    found = Pairs(Files(folder=str(tmp_path)))
    assert len(found) == 1
    assert found.left_out == [
        f"{tmp_path}: 2 pictures without a text (first: b.png)",
        f"{tmp_path}: 1 text without a picture (first: d.txt)",
    ]
    (tmp_path / "a.txt").write_bytes(b"\xff\xff")
    with pytest.raises(InputError, match=r"a.txt is not UTF-8 text"):
        Pairs(Files(folder=str(tmp_path)))
    with pytest.raises(InputError, match="there is no folder"):
        Pairs(Files(folder=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"image": 3, "caption": "a"}, "record 1 has an unusable 'image'"),
        ({"image": "a.jpg", "conversations": [{"from": "human", "value": "?"}]}, "record 1 has a conversation without"),
        ({"image": "a.jpg", "conversations": "talk"}, "record 1 has a conversation without an answer"),
        ({"image": "a.jpg", "conversations": [{"from": ["gpt"], "value": "y"}]}, "a conversation without an answer"),
        ({"conversations": [{"from": "gpt", "value": "yes"}]}, "has no record with an image"),
        ({"image": ["a.jpg", "b.jpg"], "conversations": [{"from": "gpt", "value": "y"}]}, "has an unusable 'image'"),
    ],
)
def test_bad_conversations(record, sentence, tmp_path):
    without_image = {"conversations": [{"from": "gpt", "value": "yes"}]}
    (tmp_path / "talk.json").write_text(json.dumps([without_image, record]))
    with pytest.raises(InputError, match=sentence):
        Pairs(Files(annotations=[str(tmp_path / "talk.json")]))


def test_bad_saved_sets(made, saved, tmp_path):
    def refused(place, sentence):
        with pytest.raises(InputError, match=sentence):
            Pairs(Files(saved=[str(place)]))

    def save(rows, name):
        saved.Dataset.from_list(rows).save_to_disk(tmp_path / name)
        return tmp_path / name

    refused(tmp_path / "nowhere", "is not a data set that the datasets library can read")
    refused(save([{"text": "a"}], "words"), "has no column of images .*, but text: rename")
    refused(save([{"image": 3, "text": "a"}], "numbers"), "has no images in its column 'image'")
    refused(save([{"image": {"bytes": b"", "path": ""}, "label": 1}], "labels"), "has no column of captions")
    whole = saved.load_from_disk(made["saved"].saved[0])
    whole.select([]).save_to_disk(tmp_path / "nothing")
    refused(tmp_path / "nothing", "has no rows: the data set is empty")
    whole.map(lambda row: {"image": None}, features=whole.features).save_to_disk(tmp_path / "blank")
    with pytest.raises(ImageError, match=r"blank: row 1 \(no image\)"):
        Pairs(Files(saved=[str(tmp_path / "blank")])).read(1)
    splits = saved.DatasetDict({"train": saved.load_from_disk(made["saved"].saved[0])})
    splits.save_to_disk(tmp_path / "splits")
    refused(tmp_path / "splits", r"has several splits \(train\): name the folder of one of them")
    assert len(Pairs(Files(saved=[str(tmp_path / "splits" / "train")]))) == 3
