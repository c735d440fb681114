"""Statements about two images: both formats, texts by hand, who may change sides, mirroring, errors."""

import json
import random

import pytest
import torch
from PIL import Image

from console.errors import InputError
from data.batches import Side
from data.evaluation_batches import check_files, evaluation_batches
from data.image_pairs import ImagePairs, Statements, StatementsToJudge, exchange_sides, may_swap, sentence_of
from data.images import ImageError
from data.readers import make_reader
from data.sources import Files
from data.text import pre_statement
from data.tokenizer import Tokenizer
from data.transforms import Augmentation
from models.base import ImageShape
from tests.data.configured import configured
from training.replaced import missing_images

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "left", "right", "dog", "is", "brown", "two", "-", "hand"]
CLS, SEP, THE, LEFT, RIGHT, DOG, IS, BROWN, TWO = 2, 3, 5, 6, 7, 8, 9, 10, 11
SHAPE = ImageShape(16, 4, mean=(0.0,) * 3, std=(1.0,) * 3)
STILL = Augmentation(crop=[1.0, 1.0], flip=0.0, ops=0)
MIRROR = Augmentation(crop=[1.0, 1.0], flip=1.0, ops=0)
ROOT = {"nlvr2": "images/nlvr2"}

PLAIN = {"images": ["dev/a.png", "dev/b.png"], "sentence": "Two dogs; brown.", "label": "True"}
SIDED = {"images": ["dev/a.png", "dev/b.png"], "sentence": "The left dog is brown", "label": "False"}
ORIGINAL = {"identifier": "dev-850-0-3", "sentence": "The dog is brown", "label": "False", "left_url": "", "synset": ""}


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return Tokenizer(tmp_path / "vocab.txt")


def draw(path, colour):
    """A picture whose left half is of the colour and whose right half is white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (32, 32), colour)
    picture.paste((255, 255, 255), (16, 0, 32, 32))
    picture.save(path)


def write(root, records, name="nlvr_dev.json", lines=False):
    """The records, and the red left picture and the blue right one of the first."""
    (root / name).write_text("\n".join(map(json.dumps, records)) + "\n" if lines else json.dumps(records))
    for file, colour in (("a", "red"), ("b", "blue")):
        draw(root / f"images/nlvr2/dev/{file}.png", colour)
    return Files(root=str(root), annotations=[name], image_roots=ROOT)


def reader(files, tokenizer, **options):
    options = {"augmentation": STILL, "sep": True} | options
    return make_reader(configured("statements", files, **options), SHAPE, tokenizer)


class Always:
    """Draws that exchange a pair wherever that may be."""

    def random(self):
        return 0.0


class Never:
    def random(self):
        return 0.99


def colours(images):
    """Of the two left halves: red or blue; white where an image is mirrored."""
    names = {(1, 0, 0): "red", (0, 0, 1): "blue", (1, 1, 1): "white"}
    return [names[tuple(image[:, 8, 2].round().int().tolist())] for image in images]


def test_blips_format(tmp_path):
    pairs = ImagePairs(write(tmp_path, [PLAIN, SIDED]))
    root = f"{tmp_path}/images/nlvr2/dev"
    assert [pairs.known(i).label for i in range(2)] == [1, 0]
    assert pairs.known(0).images == pairs.file(0) == (f"{root}/a.png", f"{root}/b.png")
    assert pairs.known(0).identifier is None
    assert pairs.name(0) == f"{root}/a.png and {root}/b.png"
    (left, right), known = pairs.read(1)
    assert (left.getpixel((0, 0)), right.getpixel((0, 0))) == ((255, 0, 0), (0, 0, 255))
    assert known.sentence == SIDED["sentence"]


@pytest.mark.parametrize("folder", ["", "dev", "images/train/40", "train/40"])
@pytest.mark.parametrize("lines", [True, False])
def test_the_original_format(folder, lines, tmp_path):
    """JSON lines, or a list; images in one folder, by split, or in numbered folders as those of the training set."""
    records = [ORIGINAL | {"directory": 40}, ORIGINAL | {"directory": 40, "identifier": "dev-850-1-3", "label": "True"}]
    for record in records:
        stem = record["identifier"].rpartition("-")[0]
        for number, colour in enumerate(("red", "blue")):
            draw(tmp_path / "images/nlvr2" / folder / f"{stem}-img{number}.png", colour)
    pairs = ImagePairs(write(tmp_path, records, "dev.json", lines))
    assert [pairs.known(i).label for i in range(2)] == [0, 1]
    assert [pairs.known(i).identifier for i in range(2)] == ["dev-850-0-3", "dev-850-1-3"]
    below = tmp_path / "images/nlvr2" / folder
    assert pairs.file(1) == tuple(str(below / f"dev-850-1-img{number}.png") for number in range(2))
    assert pairs.read(0)[0][1].getpixel((0, 0)) == (0, 0, 255)
    assert missing_images(pairs) == ""


def test_a_batch_by_hand(tmp_path, tokenizer):
    made = reader(write(tmp_path, [PLAIN, SIDED]), tokenizer)
    batch = made.collate([made.sample(0, Never()), made.sample(1, Never())], 2, Never())
    assert list(batch) == ["image", "text_ids", "text_atts", "label"]
    assert batch["image"].shape == (2, 2, 3, 16, 16) and batch["image"].dtype == torch.float32
    assert [colours(images) for images in batch["image"]] == [["red", "blue"]] * 2
    assert batch["text_ids"].tolist() == [[CLS, TWO, 1, BROWN, SEP, 0, 0], [CLS, THE, LEFT, DOG, IS, BROWN, SEP]]
    assert batch["text_atts"].tolist() == [[1] * 5 + [0] * 2, [1] * 7]
    assert batch["label"].tolist() == [1, 0] and batch["label"].dtype == torch.int64


def test_statements_about_one_pair_together(tmp_path, tokenizer):
    """Their pair changes sides only where none of them names one."""
    other = PLAIN | {"images": ["dev/b.png", "dev/a.png"]}
    files = write(tmp_path, [PLAIN, other, SIDED, PLAIN, PLAIN])
    made = reader(files, tokenizer, most_of_pair=2, augmentation=MIRROR)
    assert len(made.source) == 3
    batch = made.collate([made.sample(i, Always()) for i in range(3)], 3, Always())
    assert [colours(images) for images in batch["image"]] == [["red", "blue"], ["white"] * 2, ["white"] * 2]
    assert batch["image_of"].tolist() == [0, 0, 1, 2, 2]
    assert batch["label"].tolist() == [1, 0, 1, 1, 1] and len(batch["text_ids"]) == 5
    still = reader(files, tokenizer, most_of_pair=2)
    assert colours(still.sample(1, Always())[0]) == ["red", "blue"], "blue, red exchanged"
    with pytest.raises(InputError, match="most_of_pair must be at least 1, not 0"):
        reader(files, tokenizer, most_of_pair=0)


def test_statements_as_they_are_read():
    assert pre_statement('The "dog" (left), is #1: well-fed;  OK?! ~', 40) == "the dog left , is 1 well-fed ok?"
    assert pre_statement("There's a dog.\n", 40) == "there's a dog"
    assert pre_statement("a b c d", 3) == "a b c"
    with pytest.raises(ValueError, match="empty"):
        pre_statement(" .:;", 40)


@pytest.mark.parametrize(
    "sentence",
    [
        "The left dog is brown",
        "In the image on the left, a dog is brown.",
        "A left-hand dog",
        "The LEFTMOST dog",
        "the dog to the right",
        "a dog on the right.",
    ],
)
def test_a_named_side_prevents_swap_and_mirror(sentence, tmp_path, tokenizer):
    files = write(tmp_path, [PLAIN | {"sentence": sentence}])
    images, said = reader(files, tokenizer, augmentation=MIRROR).sample(0, Always())
    assert colours(images) == ["red", "blue"]
    assert said == reader(files, tokenizer).sample(0, Never())[1]


def test_other_pairs_may_be_swapped_and_mirrored(tmp_path, tokenizer):
    files = write(tmp_path, [PLAIN])
    assert colours(reader(files, tokenizer).sample(0, Always())[0]) == ["blue", "red"]
    assert colours(reader(files, tokenizer).sample(0, Never())[0]) == ["red", "blue"]
    assert colours(reader(files, tokenizer, augmentation=MIRROR).sample(0, Never())[0]) == ["white", "white"]
    assert colours(reader(files, tokenizer, swap="never").sample(0, Always())[0]) == ["red", "blue"]
    changed = [colours(reader(files, tokenizer).sample(0, random.Random(seed))[0]) for seed in range(200)]
    assert 70 < changed.count(["blue", "red"]) < 130


def test_as_published(tmp_path, tokenizer):
    """Every pair changes sides, and words are exchanged where they stand between blanks: `left,` stays, wrongly."""
    said = ["the left dog", "the left, a dog", "a left-hand dog", "the right dog is left"]
    files = write(tmp_path, [PLAIN | {"sentence": sentence} for sentence in said])
    made = reader(files, tokenizer, swap="published", augmentation=MIRROR)
    for index, sentence in enumerate(["the right dog", "the left, a dog", "a left-hand dog", "the left dog is right"]):
        images, found = made.sample(index, Always())
        assert colours(images) == ["white", "white"], "mirrored, whatever is said"
        assert found == [(tokenizer.encode(sentence, True, None), 1)]
        assert exchange_sides(said[index]) == sentence
        assert made.sample(index, Never())[1] == [(tokenizer.encode(said[index], True, None), 1)]
    exchanged, _ = reader(files, tokenizer, swap="published").sample(1, Always())
    assert colours(exchanged) == ["blue", "red"]
    assert [may_swap(rule, sided) for rule in ("neutral", "published", "never") for sided in (False, True)] == [
        True, False, True, True, False, False
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"unknown swap 'publishd' \(did you mean 'published'\?\): choose one of"):
        reader(files, tokenizer, swap="publishd")


def test_evaluation_never_changes_sides(tmp_path, tokenizer):
    files = write(tmp_path, [PLAIN, SIDED, PLAIN])
    for swap in ("neutral", "published"):
        data = StatementsToJudge(
            files, SHAPE, tokenizer, Statements.Config(reader="statements", swap=swap, files=files)
        )
        batches = list(evaluation_batches(data, 2))
        assert [batch["number"] for batch in batches] == [[0, 1], [2]]
        assert [colours(images) for batch in batches for images in batch["image"]] == [["red", "blue"]] * 2
        assert [batch["image_of"].tolist() for batch in batches] == [[0, 0], [0]], "a pair is seen once a batch"
        assert [label for batch in batches for label in batch["label"].tolist()] == [1, 0, 1]
    assert not data.identified and data.file(0)[1].endswith("dev/b.png")


def test_sentences_of_identifiers():
    assert sentence_of("dev-850-0-3") == sentence_of("dev-850-2-3") == "dev-850-3" != sentence_of("dev-85-0-3")


def test_epochs_are_a_function_of_the_seed(tmp_path, tokenizer):
    made = reader(write(tmp_path, [PLAIN] * 6), tokenizer, augmentation=Augmentation(crop=[0.5, 1.0], flip=0.5, ops=0))
    one, two = (Side("train", made, 3, seed=1)[1].batch["image"] for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, Side("train", made, 3, seed=2)[1].batch["image"])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"label": "true"}, "record 1 has an unusable 'label': 'true'"),
        ({"label": 1}, "record 1 has an unusable 'label': '1'"),
        ({"images": ["dev/a.png"]}, "record 1 has an unusable 'images'"),
        ({"images": None}, "record 1 has an unusable 'images'"),
        ({"sentence": " "}, "record 1 has an unusable 'sentence'"),
    ],
)
def test_bad_records(record, message, tmp_path):
    with pytest.raises(InputError, match=message):
        ImagePairs(write(tmp_path, [PLAIN, PLAIN | record]))


def test_bad_files(tmp_path, tokenizer):
    for records, message in (
        ([ORIGINAL | {"identifier": "dev-850"}], "record 0 has an unusable 'identifier': 'dev-850'"),
        ([PLAIN, ORIGINAL], "record 1 has no field 'images', as others have"),
        ([{"sentence": "a dog", "label": "True"}], "record 0 has no field 'identifier'"),
    ):
        with pytest.raises(InputError, match=message):
            ImagePairs(write(tmp_path, records, lines=True))
    (tmp_path / "nlvr_dev.json").write_text(json.dumps(ORIGINAL) + "\n{broken\n")
    with pytest.raises(InputError, match=r"nlvr_dev\.json is not valid JSON \(line 2\)"):
        ImagePairs(Files(root=str(tmp_path), annotations=["nlvr_dev.json"]))
    with pytest.raises(InputError, match="no file of statements is given"):
        ImagePairs(Files())
    files = write(tmp_path, [PLAIN | {"identifier": "dev-1-0-0"}, PLAIN])
    config = Statements.Config(reader="statements", files=files)
    with pytest.raises(InputError, match="some records have no identifier"):
        StatementsToJudge(files, SHAPE, tokenizer, config)
    files = write(tmp_path, [PLAIN | {"sentence": ".;"}])
    with pytest.raises(InputError, match="one has no word"):
        StatementsToJudge(files, SHAPE, tokenizer, config)[0]


def test_a_missing_image_of_either_side(tmp_path, tokenizer):
    files = write(tmp_path, [PLAIN, SIDED])
    (tmp_path / "images/nlvr2/dev/b.png").unlink()
    data = StatementsToJudge(files, SHAPE, tokenizer, Statements.Config(reader="statements", files=files))
    with pytest.raises(InputError, match=r"1 of 4 evaluation images is missing \(first: .*b\.png\)"):
        check_files(data)
    with pytest.raises(InputError, match=r"1 of 2 training images is missing"):
        missing_images(data.source)
    with pytest.raises(ImageError):
        reader(files, tokenizer).sample(0, Never())
    with pytest.raises(InputError, match="an evaluation needs all its images"):
        data[0]
