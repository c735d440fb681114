"""Questions and answers: which image belongs to which record, weights and tokens solved by hand, mirroring, errors."""

import json

import pytest
import torch
from PIL import Image

from console.errors import InputError
from data.batches import Side, Sides
from data.evaluation_batches import evaluation_batches
from data.images import ImageError
from data.miniworld import ensure
from data.questions import (
    QuestionRecords,
    QuestionsToAnswer,
    encode_answers,
    read_answer_list,
    says_left_or_right,
    weighted_answers,
)
from data.readers import make_reader
from data.sources import Files
from data.tokenizer import Tokenizer, load_tokenizer
from data.transforms import Augmentation
from models.base import ImageShape
from tests.data.configured import configured

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "it", "cat", "dog", "at", "home", "red", "colour"]
PAD, CLS, SEP, WHAT, IS, IT, CAT, DOG, AT, HOME = 0, 2, 3, 5, 6, 7, 8, 9, 10, 11
ROOTS = {"vqa": "images/coco", "vg": "images/vg"}
SHAPE = ImageShape(16, 4, mean=(0.0,) * 3, std=(1.0,) * 3)
STILL = Augmentation(crop=[1.0, 1.0], flip=0.0, ops=0)

COCO = {"question_id": 1, "question": "What is it?", "answer": ["cat"] * 7 + ["dog"] * 3, "image": "a.png"}
VG = {"question_id": 2, "question": "Is it at home?", "answer": "at home", "image": "image/107.png", "dataset": "vg"}


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return Tokenizer(tmp_path / "vocab.txt")


def write(root, records, name="questions.json"):
    """The records, and a picture for each: left half red, right half blue."""
    picture = Image.new("RGB", (32, 32), (255, 0, 0))
    picture.paste((0, 0, 255), (16, 0, 32, 32))
    (root / name).write_text(json.dumps(records))
    files = Files(root=str(root), annotations=[name], image_roots=ROOTS)
    for index in range(len(records)):
        path = QuestionRecords(files, answered=False).name(index)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(root / path)
    return files


def reader(files, tokenizer, **options):
    config = configured("questions", files, augmentation=options.pop("augmentation", STILL), **options)
    return make_reader(config, SHAPE, tokenizer)


def test_where_images_lie(tmp_path):
    records = [
        COCO | {"image": "val2014/a.png"},
        COCO | {"image": "val2014/a.png", "dataset": "vqa"},
        VG,
        COCO | {"image": "gqa/1.png", "dataset": "gqa"},
    ]
    (tmp_path / "q.json").write_text(json.dumps(records))
    names = ["images/coco/val2014/a.png", "images/coco/val2014/a.png", "images/vg/107.png", "gqa/1.png"]
    for root in ("", "/data"):
        source = QuestionRecords(Files(root=root, annotations=[str(tmp_path / "q.json")], image_roots=ROOTS), True)
        assert [source.name(i) for i in range(4)] == [f"{root}/{name}" if root else name for name in names]
    as_they_are = QuestionRecords(Files(annotations=[str(tmp_path / "q.json")]), True)
    assert as_they_are.name(2) == "image/107.png"


def test_weights_by_hand():
    assert weighted_answers(["cat", "dog", "cat", "", "dog", "cat"], 0.5) == (["cat", "dog", ""], [3 / 6, 2 / 6, 1 / 6])
    assert weighted_answers("at home", 0.2) == (["at home"], [0.2])


def test_a_batch_by_hand(tmp_path, tokenizer):
    made = reader(write(tmp_path, [COCO, VG]), tokenizer)
    batch = made.collate([made.sample(0, _Never()), made.sample(1, _Never())], 2, _Never())
    assert batch["image"].shape == (2, 3, 16, 16)
    assert batch["question_ids"].tolist() == [[CLS, WHAT, IS, IT, PAD], [CLS, IS, IT, AT, HOME]]
    assert batch["question_atts"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch["answer_ids"].tolist() == [[CLS, CAT, SEP, PAD], [CLS, DOG, SEP, PAD], [CLS, AT, HOME, SEP]]
    assert batch["answer_atts"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert torch.equal(batch["answer_weights"], torch.tensor([0.7, 0.3, 0.5]))
    assert batch["answer_counts"].tolist() == [2, 1] and batch["answer_counts"].dtype == torch.int64


def test_questions_of_one_image_together(tmp_path, tokenizer):
    """At most two of an image, in the file's order, wherever they stand in it."""
    other = {"answer": "dog", "question": "Is it at home?"}
    files = write(tmp_path, [COCO, VG, COCO | other, COCO])
    made = reader(files, tokenizer, most_of_image=2)
    assert [made.source.name(i).rpartition("/")[2] for i in range(len(made.source))] == ["a.png", "107.png", "a.png"]
    batch = made.collate([made.sample(0, _Never()), made.sample(1, _Never())], 2, _Never())
    assert batch["image"].shape == (2, 3, 16, 16)
    assert batch["image_of"].tolist() == [0, 0, 1]
    assert batch["question_ids"].tolist() == [[CLS, WHAT, IS, IT, PAD], *[[CLS, IS, IT, AT, HOME]] * 2]
    assert batch["answer_counts"].tolist() == [2, 1, 1]
    assert batch["answer_ids"][2].tolist() == [CLS, DOG, SEP, PAD]
    assert "image_of" not in reader(files, tokenizer).collate([made.sample(0, _Never())], 1, _Never())
    with pytest.raises(InputError, match="most_of_image must be at least 1, not 0"):
        reader(files, tokenizer, most_of_image=0)


def test_one_named_side_prevents_mirroring(tmp_path, tokenizer):
    files = write(tmp_path, [COCO, COCO | {"question": "what is left"}])
    made = reader(files, tokenizer, augmentation=Augmentation(crop=[1.0, 1.0], flip=1.0, ops=0), most_of_image=2)
    alone = reader(files, tokenizer, augmentation=Augmentation(crop=[1.0, 1.0], flip=1.0, ops=0))
    together, (first, second) = images(made), images(alone)
    assert torch.equal(together[0], second) and not torch.equal(together[0], first)


def images(made):
    """The images of all samples, every draw 0."""
    return torch.stack([made.sample(i, _Always())[0] for i in range(len(made.source))])


class _Always:
    """Draws that mirror wherever that may be."""

    def random(self):
        return 0.0


class _Never:
    """Draws that mirror nothing."""

    def random(self):
        return 1.0


def test_options_of_texts(tmp_path, tokenizer):
    files = write(tmp_path, [COCO])
    made = reader(files, tokenizer, sep=True, double_sep=True, max_words=2, single_answer_weight=0.2)
    _, [(question, answers, _)] = made.sample(0, _Never())
    assert question == [CLS, WHAT, IS, SEP]
    assert answers == [[CLS, CAT, SEP, SEP], [CLS, DOG, SEP, SEP]]
    assert reader(files, tokenizer, max_tokens=3).sample(0, _Never())[1][0][0] == [CLS, WHAT, IS]
    assert reader(files, tokenizer, max_tokens=3, sep=True).sample(0, _Never())[1][0][0] == [CLS, WHAT, SEP]
    with pytest.raises(InputError, match="single_answer_weight must be above 0"):
        reader(files, tokenizer, single_answer_weight=0.0)


def test_answers_match_an_end_mark_in_the_text(tokenizer):
    """The published code writes `[SEP]` behind the answer before it is cut into tokens."""
    for answer in ("cat", "at home", "At  HOME", "unheard", ""):
        assert encode_answers([answer], tokenizer) == [tokenizer.encode(f"{answer}[SEP]", False, None)]


@pytest.mark.parametrize(
    ("question", "answers", "mirrors"),
    [
        ("what is it", ["cat"] * 10, True),
        ("What is on the LEFT?", ["cat"] * 10, False),
        ("what is it", ["cat"] * 9 + ["right"], False),
        ("is it bright", ["cat"] * 10, False),
        ("what is it", "to the left", False),
    ],
)
def test_mirrored_unless_a_side_is_named(tmp_path, tokenizer, question, answers, mirrors):
    files = write(tmp_path, [COCO | {"question": question, "answer": answers}])
    made = reader(files, tokenizer, augmentation=Augmentation(crop=[1.0, 1.0], flip=0.5, ops=0))
    side = Side("questions", made, 1, seed=0)
    mirrored = sum(bool(side[t].batch["image"][0, 0, 0, 0] < 0.5) for t in range(100))
    assert 30 < mirrored < 70 if mirrors else mirrored == 0
    assert says_left_or_right([question, *([answers] if isinstance(answers, str) else answers)]) is not mirrors


def test_batches_are_numbered_and_images_replaced(tmp_path, tokenizer):
    records = [COCO | {"question_id": i, "image": f"{i}.png"} for i in range(5)] + [VG]
    files = write(tmp_path, records)

    def make():
        return Sides({"questions": reader(files, tokenizer, augmentation=Augmentation(crop=[0.5, 1.0]))}, 2, seed=3)

    first, again = make(), make()
    batches = [first[t, "questions"].batch for t in range(3)]
    for t in (2, 0):
        assert all(torch.equal(value, batches[t][name]) for name, value in again[t, "questions"].batch.items())
    assert not torch.equal(batches[0]["image"], first[3, "questions"].batch["image"])
    (tmp_path / "images/coco/3.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"3\.png \(broken"):
        reader(files, tokenizer).sample(3, _Never())
    loaded = [make()[t, "questions"] for t in range(3)]
    assert any("3.png" in name for one in loaded for name in one.failed)
    assert 3 not in [index for one in loaded for index in one.used]


def test_evaluation_asks_every_question_once(tmp_path, tokenizer):
    records = [{key: COCO[key] for key in ("question", "image")} | {"question_id": 70 - i} for i in range(5)]
    records[1]["question"] = "What is  it at home?"
    files = write(tmp_path, records)
    data = QuestionsToAnswer(files, SHAPE, tokenizer)
    assert data.question_ids == [70, 69, 68, 67, 66]
    batches = list(evaluation_batches(data, 2))
    assert [question for batch in batches for question in batch["question_id"]] == data.question_ids
    assert data.pictures() == dict.fromkeys(data.question_ids, 0)
    assert batches[0]["question_ids"].tolist() == [
        [CLS, WHAT, IS, IT, PAD, PAD],
        [CLS, WHAT, IS, IT, AT, HOME],
    ]
    assert batches[0]["question_atts"].sum(dim=1).tolist() == [4, 6]
    assert [batch["image_of"].tolist() for batch in batches] == [[0, 0], [0, 0], [0]]
    assert batches[0]["image"].shape == (1, 3, 16, 16)
    assert batches[2]["image"].shape == (1, 3, 16, 16) and batches[2]["image"][0, 0, 0, 0] > 0.9
    few = QuestionsToAnswer(files, SHAPE, tokenizer, sep=True, limit=2)
    assert len(few) == 2 and few[0][2] == [CLS, WHAT, IS, IT, SEP]
    (tmp_path / "images/coco/a.png").unlink()
    with pytest.raises(InputError, match=r"needs all its images, but one cannot be read: .*a\.png \(missing\)"):
        QuestionsToAnswer(files, SHAPE, tokenizer)[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_question_ids_that_are_texts(tmp_path, tokenizer, workers):
    """GQA's: 01827492 and 1827492 are two questions. Pictures are numbered as they first appear."""
    ids = ["201640614", "01827492", "1827492", "0"]
    images = ["b.png", "a.png", "b.png", "c.png"]
    asked = [COCO | {"question_id": i, "image": image} for i, image in zip(ids, images, strict=True)]
    files = write(tmp_path, asked)
    data = QuestionsToAnswer(files, SHAPE, tokenizer)
    batches = evaluation_batches(data, 3, num_workers=workers)
    assert [batch["question_id"] for batch in batches] == [ids[:3], ids[3:]]
    assert data.pictures() == dict(zip(ids, [0, 1, 0, 2], strict=True))
    asked[2]["question_id"] = 1827492
    with pytest.raises(InputError, match="the id 1827492 is a number and '201640614' a text"):
        QuestionsToAnswer(write(tmp_path, asked), SHAPE, tokenizer)


def test_long_questions_keep_fifty_words(tmp_path, tokenizer):
    files = write(tmp_path, [COCO | {"question": "cat " * 60}])
    assert len(QuestionsToAnswer(files, SHAPE, tokenizer)[0][2]) == 51
    assert len(reader(files, tokenizer, max_words=30).sample(0, _Never())[1][0][0]) == 31


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": 3}, "record 0 has an unusable 'question'"),
        ({"answer": []}, "record 0 has an unusable 'answer'"),
        ({"answer": [1]}, "record 0 has an unusable 'answer'"),
        ({"image": ""}, "record 0 has an unusable 'image'"),
        ({"dataset": "okvqa"}, "record 0 has dataset 'okvqa', but image_roots has vqa, vg"),
    ],
)
def test_broken_records(tmp_path, record, message):
    (tmp_path / "q.json").write_text(json.dumps([COCO | record]))
    with pytest.raises(InputError, match=message):
        QuestionRecords(Files(root=str(tmp_path), annotations=["q.json"], image_roots=ROOTS), answered=True)


def test_questions_that_cannot_be_told_apart(tmp_path, tokenizer):
    files = write(tmp_path, [COCO, COCO])
    with pytest.raises(InputError, match=r"questions\.json: 1 is there twice"):
        QuestionsToAnswer(files, SHAPE, tokenizer)
    files = write(tmp_path, [COCO | {"question_id": ""}])
    with pytest.raises(InputError, match="unusable 'question_id'"):
        QuestionsToAnswer(files, SHAPE, tokenizer)
    with pytest.raises(InputError, match="no file of questions"):
        QuestionRecords(Files(), answered=True)


def test_answer_lists(tmp_path):
    path = tmp_path / "answer_list.json"
    path.write_text('["yes", "no", "2"]')
    assert read_answer_list(path, 3) == ["yes", "no", "2"]
    for content, message in (
        ('["yes", "no"]', "has 2 answers, but k_test asks for the best 3"),
        ('["yes", "no", "2", "no"]', "'no' is there twice"),
        ('{"yes": 0}', "must be one list of answers"),
        ('["yes", 2, "no"]', "must be one list of answers"),
        ('["yes"', "is not valid JSON"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            read_answer_list(path, 3)
    with pytest.raises(InputError, match="cannot read the annotations"):
        read_answer_list(tmp_path / "nowhere.json", 3)


def test_the_mini_worlds_questions(tmp_path):
    """Both files are read together; questions, answers and weights come back from the tokens."""
    ensure("vqa", tmp_path, workers=1, show=False, scale=0.01)
    names = ["data/finetune/vqa/vqa_train.json", "data/finetune/vqa/vg_qa.json"]
    files = Files(root=str(tmp_path), annotations=names, image_roots=ROOTS)
    tokenizer = load_tokenizer("weights/mini-vocab.txt")
    made = reader(files, tokenizer, max_words=30)
    records = [record for name in names for record in json.loads((tmp_path / name).read_text())]
    assert len(made.source) == len(records)
    loaded = Side("questions", made, 8, seed=1)[0]
    answers = iter(zip(loaded.batch["answer_ids"], loaded.batch["answer_weights"], strict=True))
    for row, index in enumerate(loaded.used):
        record = records[index]
        assert tokenizer.text(loaded.batch["question_ids"][row].tolist()) == record["question"]
        for _ in range(loaded.batch["answer_counts"][row]):
            ids, weight = next(answers)
            said = tokenizer.text(ids.tolist())
            share = record["answer"].count(said) / 10 if isinstance(record["answer"], list) else 0.5
            assert weight.item() == pytest.approx(share) and share > 0
    assert next(answers, None) is None
    test = QuestionsToAnswer(
        Files(root=str(tmp_path), annotations=["data/finetune/vqa/vqa_test.json"], image_roots=ROOTS), SHAPE, tokenizer
    )
    given = [question for batch in evaluation_batches(test, 6) for question in batch["question_id"]]
    assert given == test.question_ids and len(set(test.question_ids)) == len(test)
    assert len(read_answer_list(tmp_path / "data/finetune/vqa/answer_list.json", 36)) == 36
