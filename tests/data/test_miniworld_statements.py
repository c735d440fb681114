"""Statements of the mini world: true and false as their words say, balanced, and at chance for who sees no picture."""

import itertools
from collections import Counter

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from data.miniworld import ensure, vocabulary
from data.miniworld.parts import SPLITS, scaled, scene_for, text_draws
from data.miniworld.records import STATEMENTS
from data.miniworld.statements import PAIRS, SCENES, draw_statements
from data.miniworld.words import NUMBER_WORDS
from data.records import read_json_list
from tests.data.test_miniworld_words import LEXICON


def sets(split, count):
    """(scenes, statements) of the first sets of a split."""
    for first in range(0, count * SCENES, SCENES):
        scenes = [scene_for(split, first + number) for number in range(SCENES)]
        yield scenes, draw_statements(text_draws(split, first, 0), scenes, STATEMENTS)


def holds(text, left, right):
    """By the words alone: which side, how many, and every adjective and noun."""
    words = text.split()
    things = left.things + right.things
    if "left" in words or "right" in words:
        things = (left if "left" in words else right).things
    looks = [LEXICON[word] for word in words if word in LEXICON]
    count = sum(all(getattr(thing, name) == value for name, value in looks) for thing in things)
    number = [NUMBER_WORDS.index(word) for word in words if word in NUMBER_WORDS]
    return count == number[0] if number else count >= 1


def test_statements_by_brute_force():
    seen, exchanged, counted = Counter(), 0, Counter()
    for scenes, statements in sets("nlvr_train", 250):
        assert len({statement.text for statement in statements}) == len(statements)
        for statement in statements:
            verdicts = [holds(statement.text, scenes[left], scenes[right]) for left, right in PAIRS]
            assert verdicts[statement.true_of] and not verdicts[statement.false_of], statement.text
            seen[statement.kind] += 1
            exchanged += {statement.true_of, statement.false_of} in ({0, 1}, {2, 3})
            counted.update(word for word in statement.text.split() if word in NUMBER_WORDS)
    assert seen.total() > 250 * STATEMENTS * 0.97 and min(seen.values()) > 0.3 * seen.total()
    assert 0.4 < exchanged / seen["side"] < 0.7, "in many the same two pictures are exchanged"
    assert set(counted) == set(NUMBER_WORDS[1:])


def test_their_words_are_in_the_vocabulary():
    said = {word for _, statements in sets("nlvr_test", 200) for one in statements for word in one.text.split()}
    assert said <= set(vocabulary())
    assert {"left", "right", "there", "are", "picture", "scene"} <= said


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return ensure("nlvr", tmp_path_factory.mktemp("world"), workers=1, show=False, scale=0.1)


def test_files(world):
    """Every sentence once with each label; the pictures are those that its identifier says."""
    sentences = {}
    for split in ("train", "dev", "test"):
        records = read_json_list(world / f"data/finetune/nlvr/nlvr_{split}.json")
        assert scaled(f"nlvr_{split}", 0.1) % SCENES == 0
        labels, numbers = {}, {}
        for record in records:
            assert set(record) == {"images", "sentence", "label", "identifier", "kind"}
            assert all((world / "images/nlvr2" / image).is_file() for image in record["images"])
            _, number, pair, sentence = record["identifier"].split("-")
            scenes = [scene_for(f"nlvr_{split}", SCENES * int(number) + side) for side in PAIRS[int(pair)]]
            paths = [SPLITS[f"nlvr_{split}"].path(SCENES * int(number) + side) for side in PAIRS[int(pair)]]
            assert [f"images/nlvr2/{image}" for image in record["images"]] == paths
            assert holds(record["sentence"], *scenes) == (record["label"] == "True")
            labels.setdefault((number, sentence), []).append(record["label"])
            numbers.setdefault(pair, []).append(record["label"])
        assert all(sorted(both) == ["False", "True"] for both in labels.values())
        for given in numbers.values():  # nor does the pair give it away
            assert 0.3 < given.count("True") / len(given) < 0.7
        sentences[split] = [record["identifier"] for record in records]
        assert len(set(sentences[split])) == len(records)
    assert sum(map(len, sentences.values())) > 2000


def bag(records, features):
    words = [set(record["sentence"].split()) for record in records]
    pairs = [{" ".join(pair) for pair in itertools.combinations(sorted(said), 2)} for said in words]
    return np.array([[f in said or f in of for f in features] for said, of in zip(words, pairs, strict=True)], float)


@pytest.mark.parametrize("pairs", [False, True])
def test_the_statement_alone_is_at_chance(pairs, world):
    """Logistic regression of its words, and of pairs of words, on statements that it did not see."""
    train, test = (read_json_list(world / f"data/finetune/nlvr/nlvr_{split}.json") for split in ("train", "test"))
    known = Counter(word for record in train for word in set(record["sentence"].split()))
    features = [word for word, _ in known.most_common()]
    if pairs:
        features += [" ".join(sorted(pair)) for pair in itertools.combinations(features[:25], 2)]
    label = [[record["label"] == "True" for record in records] for records in (train, test)]
    judge = LogisticRegression(max_iter=500).fit(bag(train, features), label[0])
    accuracy = (judge.predict(bag(test, features)) == label[1]).mean()
    assert abs(accuracy - 0.5) < 0.05
    assert (judge.predict(bag(train, features)) == label[0]).mean() < 0.55
