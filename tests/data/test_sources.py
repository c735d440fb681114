"""Annotation files and shards: formats read, paths joined, errors named."""

import io
import json

import numpy as np
import pytest
import webdataset
from PIL import Image

from console.errors import InputError
from data.images import ImageError
from data.shards import index_shard
from data.sources import Files, Pairs, RegionRecords
from data.text import TextError


def save_image(path, level=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (level, level, level)).save(path)


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return str(path)


def test_roots_are_joined_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_image(tmp_path / "images/cc3m/0/1.png")
    save_image(tmp_path / "images/vg/2.png")
    path = write(
        tmp_path / "pairs.json",
        [
            {"image": "0/1.png", "caption": "one", "dataset": "cc3m"},
            {"image": "images/vg/2.png", "caption": ["two", "zwei"], "dataset": "vg"},
        ],
    )
    pairs = Pairs(Files(annotations=[path], image_roots={"cc3m": "images/cc3m", "vg": "images/vg"}))
    assert [pairs.read(i)[1] for i in range(2)] == ["one", ["two", "zwei"]]
    assert [pairs.name(i) for i in range(2)] == ["images/cc3m/0/1.png", "images/vg/2.png"]


def test_region_paths_carry_their_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_image(tmp_path / "images/vg/2.png")
    path = write(tmp_path / "r.json", [{"image": "images/vg/2.png", "elems": [{"caption": "a", "bb": [0, 0, 4, 4]}]}])
    image, record = RegionRecords(Files(annotations=[path])).read(0)
    assert image.size == (20, 16)
    assert record["elems"][0]["caption"] == "a"


def test_webdataset_shards_are_read_at_random(tmp_path):
    """Shards written by the webdataset library, with captions as text and as JSON."""
    for s in range(2):
        with webdataset.TarWriter(str(tmp_path / f"{s:05d}.tar")) as sink:
            for i in range(5):
                buffer = io.BytesIO()
                Image.fromarray(np.full((8, 8, 3), 10 * (5 * s + i), np.uint8)).save(buffer, "PNG")
                text = {"txt": f"caption {5 * s + i}"} if s else {"json": {"caption": f"caption {5 * s + i}"}}
                sink.write({"__key__": f"{s:03d}.dir/{i:06d}", "png": buffer.getvalue(), **text})
    pairs = Pairs(Files(shards=["{00000..00001}.tar"], root=str(tmp_path)))
    assert len(pairs) == 10
    for i in (7, 0, 9, 3):
        image, caption = pairs.read(i)
        assert caption == f"caption {i}"
        assert np.asarray(image)[0, 0, 0] == 10 * i
    assert pairs.name(7).endswith("00001.tar:001.dir/000002")


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"caption": null}', b'{"caption": [3]}'])
def test_a_shards_caption_that_is_none_is_named(content, tmp_path):
    """It is one of millions: another sample takes its place (data/batches.py)."""
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        sink.write({"__key__": "7", "png": b"", "json": content})
    (pair,), _ = index_shard(str(tmp_path / "a.tar"))
    with pytest.raises(TextError, match=r"a\.tar: 7\.json has no 'caption' that is a text"):
        pair.read()


def test_missing_shards_are_named(tmp_path):
    with pytest.raises(InputError, match=r"2 of 2 shards of .* are missing"):
        Pairs(Files(shards=[str(tmp_path / "{0..1}.tar")]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{]", "not valid JSON"),
        ("{}", "must be one list of records"),
        ("[]", "has no records"),
        ('[{"image": "a.png"}]', "record 0 has no field 'caption'"),
        ('[{"image": "a", "caption": "x", "dataset": "vg"}, {"image": 3}]', "record 1 has an unusable 'image'"),
        ('[{"image": "a.png", "caption": []}]', "record 0 has an unusable 'caption'"),
        ('[{"image": "a.png", "caption": "x", "dataset": "sbu"}]', "dataset 'sbu', but image_roots has cc3m, vg"),
        ('[{"image": "a.png", "caption": "x", "dataset": ["vg"]}]', r"dataset \['vg'\], but image_roots has cc3m, vg"),
    ],
)
def test_bad_annotation_files(content, message, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=message):
        Pairs(Files(annotations=[str(tmp_path / "a.json")], image_roots={"cc3m": "c", "vg": "v"}))


@pytest.mark.parametrize(
    ("box", "caption", "field"),
    [([1, 2, 3], "", "elems"), ([float("nan"), 0, 5, 5], None, "elems"), ([0, 0, 5, 5], 5, "caption")],
)
def test_bad_regions(box, caption, field, tmp_path):
    record = {"image": "a.png", "elems": [{"caption": "a", "bb": box}], "caption": caption}
    path = write(tmp_path / "r.json", [record])
    with pytest.raises(InputError, match=f"record 0 has an unusable '{field}'"):
        RegionRecords(Files(annotations=[path]))


def test_missing_image_is_an_image_error(tmp_path):
    path = write(tmp_path / "p.json", [{"image": str(tmp_path / "a.png"), "caption": "x"}])
    with pytest.raises(ImageError, match="missing"):
        Pairs(Files(annotations=[path])).read(0)
