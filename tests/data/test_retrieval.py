"""The gallery of a retrieval evaluation: which captions are of which image, whatever the layout of its file."""

import json

import pytest

from console.errors import InputError
from data.retrieval import Gallery
from data.sources import Files
from models.base import ImageShape

RECORDS = [
    {"image": "val/b.jpg", "caption": ["a tray of food", "food"]},
    {"image": "val/a.jpg", "caption": "a cat"},
    {"image": "val/c.jpg", "caption": ["two dogs", "dogs", "dogs in snow"]},
]


def gallery(tmp_path, records, limit=None):
    path = tmp_path / "gallery.json"
    path.write_text(json.dumps(records))
    return Gallery(Files(annotations=[str(path)], image_roots={"coco": "images"}), ImageShape(32, 8), 30, limit)


def one_caption_a_record(order):
    """The training layout, its records in some order of (image, caption)."""
    rows = [(record["image"], text) for record in RECORDS for text in [record["caption"]]]
    rows = [(image, text) for image, said in rows for text in ([said] if isinstance(said, str) else said)]
    return [{"image": rows[i][0], "caption": rows[i][1], "image_id": rows[i][0]} for i in order]


def content(found):
    return found.images, found.texts, found.image_of_text, found.texts_of_image


def test_a_record_an_image(tmp_path):
    assert content(gallery(tmp_path, RECORDS)) == (
        ["images/val/b.jpg", "images/val/a.jpg", "images/val/c.jpg"],
        ["a tray of food", "food", "a cat", "two dogs", "dogs", "dogs in snow"],
        [0, 0, 1, 2, 2, 2],
        [[0, 1], [2], [3, 4, 5]],
    )


@pytest.mark.parametrize("limit", [None, 1, 2, 3, 4])
def test_a_record_a_caption_is_the_same_gallery(tmp_path, limit):
    """Also where the captions of an image do not stand together; the limit counts images, with all their captions."""
    wanted = content(gallery(tmp_path, RECORDS, limit))
    assert content(gallery(tmp_path, one_caption_a_record(range(6)), limit)) == wanted
    assert content(gallery(tmp_path, one_caption_a_record([0, 2, 3, 1, 4, 5]), limit)) == wanted


def test_a_path_with_its_root_is_the_same_image(tmp_path):
    records = [{"image": "a.jpg", "caption": "a cat"}, {"image": "images/a.jpg", "caption": ["the cat"]}]
    assert content(gallery(tmp_path, records)) == (["images/a.jpg"], ["a cat", "the cat"], [0, 0], [[0, 1]])


def test_a_caption_without_a_word(tmp_path):
    records = [*RECORDS, {"image": "d.jpg", "caption": ["a bird", "..."]}]
    assert len(gallery(tmp_path, records, limit=3)) == 3
    with pytest.raises(InputError, match=r"a caption of images/d\.jpg has no word"):
        gallery(tmp_path, records)


@pytest.mark.parametrize(
    "changes", [{"annotations": ["a.json", "b.json"]}, {"folder": "pictures"}, {"annotations": []}]
)
def test_one_file_is_read_and_no_other_is_left_out(changes):
    files = Files(**({"annotations": ["a.json"]} | changes))
    with pytest.raises(InputError, match="read from one annotation file, and the configuration has"):
        Gallery(files, ImageShape(32, 8), 30)
