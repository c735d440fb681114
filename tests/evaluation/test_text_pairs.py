"""Captions of one picture in two files: which are compared, and what counts as found."""

import json

import pytest
import torch

from console.errors import InputError
from data.sources import Files
from data.tokenizer import load_tokenizer
from evaluation.text_pairs import TextPairs, TextPairSettings
from models.tasks import TextEmbedder


class Words(TextEmbedder):
    """A text is the number of each of its words."""

    positions = 16

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def embed_text(self, ids, atts):
        return self.scale * torch.zeros(len(ids), 200).scatter_add_(1, ids, atts.float())


def settings(folder, one, other):
    for name, captions in (("one", one), ("other", other)):
        records = [{"image": f"{i}.png", "caption": caption} for i, caption in captions.items()]
        (folder / f"{name}.json").write_text(json.dumps(records))
    files = {name: Files(annotations=[f"{name}.json"], root=str(folder)) for name in ("one", "other")}
    return TextPairSettings(**files)


ONE = {0: "a red circle", 1: ["a blue square"], 2: "a green star", 3: "a red circle", 4: "a small star"}
OTHER = {1: "the square is blue", 0: "the circle is red", 2: "the square is small", 3: "the red one"}


def test_both_directions(tmp_path):
    """Image 4 has one caption, and 3 has that of 0: both are left out. Of image 2 each caption is like another one."""
    tokenizer = load_tokenizer("weights/mini-vocab.txt")
    pairs = TextPairs(settings(tmp_path, ONE, OTHER), tokenizer)
    assert pairs.pairs == [
        ("a red circle", "the circle is red"),
        ("a blue square", "the square is blue"),
        ("a green star", "the square is small"),
    ]
    assert pairs.left_out == 2
    assert pairs.right(Words()).tolist()[:2] == [1, 1]
    assert pairs.right(Words()).tolist()[2] < 1


def test_files_of_other_images(tmp_path):
    with pytest.raises(InputError, match="have 1 captions of the same images"):
        TextPairs(settings(tmp_path, ONE, {0: "the circle"}), load_tokenizer("weights/mini-vocab.txt"))
    with pytest.raises(InputError, match=r"the caption of .*0\.png has no word"):
        TextPairs(settings(tmp_path, {0: "..."}, OTHER), load_tokenizer("weights/mini-vocab.txt"))
