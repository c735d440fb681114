"""VQA accuracy against cases solved by hand and against the ten subsets written out; the file for EvalAI."""

import json
from collections import Counter
from itertools import combinations

import pytest

from console.errors import InputError
from data.miniworld import ensure
from evaluation.vqa import (
    answer_accuracy,
    normalise,
    question_accuracies,
    read_truth,
    vqa_accuracy,
    write_answers,
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes!", "yes"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("TEN", "10"),
        ("eleven", "eleven"),
        ("The red car.", "red car"),
        ("an apple on a table", "apple on table"),
        ("another", "another"),
        ("dont", "don't"),
        ("its", "its"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("y'alld've", "y'all'd've"),
        ("twas", "'twas"),
        ("somebody'd", "somebodyd"),  # as the official list has it
        ("girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("100,978", "100978"),
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("1,000 red-hot", "1000 redhot"),  # a comma between digits: all signs become nothing
        ("blue/green", "blue green"),
        ("well-known - yes", "wellknown yes"),  # the sign stands beside a space somewhere
        ("3.5", "3.5"),
        ("3.", "3"),
        ("a.m.", "am"),
        ("v .5", "v .5"),
        ("[one] {two}", "1 2"),
        ("#1 & $5", "#1 & $5"),
        ("the", ""),
    ],
)
def test_normalised_by_hand(answer, expected):
    assert normalise(answer) == expected


@pytest.mark.parametrize(("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_known_accuracies(matches, expected):
    people = ["yes"] * matches + ["no"] * (10 - matches)
    assert answer_accuracy("yes", people) == pytest.approx(expected)


def by_subsets(answer, people):
    """The definition, written out."""
    subsets = list(combinations(people, len(people) - 1))
    return sum(min(1, subset.count(answer) / 3) for subset in subsets) / len(subsets)


def test_accuracy_is_the_mean_over_the_subsets():
    for right in range(1, 10):
        for wrong in range(0, 10 - right):
            people = ["cat"] * right + ["dog"] * wrong + [f"bird {i}" for i in range(10 - right - wrong)]
            for answer in ("cat", "dog", "cow"):
                assert answer_accuracy(answer, people) == pytest.approx(by_subsets(answer, people))


def test_normalised_only_where_people_differ():
    assert answer_accuracy("Two.", ["2", "two", "a two", "TWO"] + ["dog"] * 6) == 1
    assert answer_accuracy("Yes!", ["yes"] * 9 + ["no"]) == 1
    assert answer_accuracy("Yes!", ["yes"] * 10) == 0  # as officially: perhaps it is written so in the image
    assert answer_accuracy("the end", ["the end"] * 10) == 1
    assert answer_accuracy(" yes\n", ["yes"] * 9 + ["yes\t"]) == 1


TRUTH = [
    {"question_id": 1, "answer": ["yes"] * 8 + ["no"] * 2, "question_type": "existence"},
    {"question_id": 2, "answer": ["no"] * 10, "question_type": "existence"},
    {"question_id": 3, "answer": ["red"] * 7 + ["2", "two", "dark red"], "question_type": "colour"},
    {"question_id": 4, "answer": ["at home"] * 10},
]
ANSWERS = {3: "2", 1: "no", 4: "at home", 2: "yes"}


def without(*questions):
    return {question: answer for question, answer in ANSWERS.items() if question not in questions}


def test_by_kind_and_overall():
    # 0.6 and 0 of existence, 0.6 of colour, 1 of no kind
    found = vqa_accuracy(ANSWERS, TRUTH)
    assert found == {"overall": 55.0, "by_kind": {"colour": 60.0, "existence": 30.0}}
    with pytest.raises(InputError, match="1 of 4 questions is not answered"):
        vqa_accuracy(without(2), TRUTH)


def test_answers_in_the_order_of_the_questions(tmp_path):
    path = tmp_path / "result" / "answers.json"
    write_answers(path, ANSWERS, [1, 2, 3, 4])
    written = json.loads(path.read_text())
    assert written == [{"question_id": i, "answer": a} for i, a in ((1, "no"), (2, "yes"), (3, "2"), (4, "at home"))]


@pytest.mark.parametrize(
    ("answers", "asked", "message"),
    [
        (without(4), [1, 2, 3, 4], r"1 of 4 questions is not answered \(the first is 4\)"),
        (ANSWERS, [1, 2, 3], r"1 answer is to questions that were not asked \(the first is 4\)"),
    ],
)
def test_answers_that_do_not_fit_the_questions(answers, asked, message, tmp_path):
    with pytest.raises(InputError, match=message):
        write_answers(tmp_path / "answers.json", answers, asked)
    assert not list(tmp_path.iterdir())


def test_the_file_for_evalai_byte_for_byte(tmp_path):
    write_answers(tmp_path / "a.json", {3: "2"}, [3])
    assert (tmp_path / "a.json").read_bytes() == b'[\n {\n  "question_id": 3,\n  "answer": "2"\n }\n]\n'


def test_question_ids_that_are_texts(tmp_path):
    """01827492 and 1827492 are two questions, in the order of the file."""
    ids = ["201640614", "01827492", "1827492", "0"]
    truth = [record | {"question_id": i} for i, record in zip(ids, TRUTH, strict=True)]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    assert read_truth(path) == truth
    answers = {ids[question - 1]: answer for question, answer in ANSWERS.items()}
    assert vqa_accuracy(answers, truth) == vqa_accuracy(ANSWERS, TRUTH)
    assert list(question_accuracies(answers, truth)) == ids
    write_answers(tmp_path / "a.json", answers, ids)
    assert [row["question_id"] for row in json.loads((tmp_path / "a.json").read_text())] == ids
    with pytest.raises(InputError, match="the questions have ids such as '201640614', and the answers such as 3"):
        vqa_accuracy(ANSWERS, truth)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question_id": 1}, "record 1 has no field 'answer'"),
        ({"question_id": 1, "answer": "yes"}, "record 1 has an unusable 'answer'"),
        ({"question_id": "7", "answer": ["yes"] * 10}, "the id 7 is a number and '7' a text"),
        ({"question_id": 1.5, "answer": ["yes"] * 10}, "record 1 has an unusable 'question_id'"),
        ({"question_id": 7, "answer": ["yes"] * 10}, "7 is there twice"),
    ],
)
def test_truth_that_cannot_be_used(record, message, tmp_path):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps([{"question_id": 7, "answer": ["no"] * 10}, record]))
    with pytest.raises(InputError, match=message):
        read_truth(path)


def test_the_mini_worlds_truth(tmp_path):
    """The most frequent answer is right nearly always, as ten people mostly agree; another one is not."""
    ensure("vqa", tmp_path, workers=1, show=False, scale=0.02)
    truth = read_truth(tmp_path / "truth" / "vqa_test_answers.json")
    best = [Counter(record["answer"]).most_common(1)[0][0] for record in truth]
    answers = {r["question_id"]: a for r, a in zip(truth, best, strict=True)}
    found = vqa_accuracy(dict(reversed(answers.items())), truth)
    doubtful = {r["question_id"]: r["answer"][0] for r in truth}  # one person's
    single = question_accuracies(doubtful, truth)
    assert single == {r["question_id"]: pytest.approx(by_subsets(r["answer"][0], r["answer"])) for r in truth}
    assert 100 * sum(single.values()) / len(single) == pytest.approx(
        vqa_accuracy(doubtful, truth)["overall"], abs=0.0051
    )
    assert len(set(single.values())) > 1
    expected = 100 * sum(by_subsets(a, r["answer"]) for r, a in zip(truth, best, strict=True)) / len(truth)
    assert found["overall"] == pytest.approx(expected, abs=0.005) and expected == 100
    assert found["by_kind"].keys() == {record["question_type"] for record in truth}
    assert vqa_accuracy(dict.fromkeys(answers, "no idea"), truth)["overall"] == 0
