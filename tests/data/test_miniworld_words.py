"""The mini world in words: captions are true and readable, questions have right and balanced answers."""

from collections import Counter

import pytest

from data.miniworld.captions import draw_captions, draw_regions
from data.miniworld.checker import check_caption, parse_caption
from data.miniworld.meaning import Meaning, Phrase, holds, matched_mentions, related
from data.miniworld.paint import boxes
from data.miniworld.parts import SPLITS, scene_for, text_draws
from data.miniworld.questions import Asker, ten_answers
from data.miniworld.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES, Scene, Thing
from data.miniworld.words import (
    ANSWERS,
    COLOUR_WORDS,
    NOUN_WORDS,
    QUESTION_PHRASES,
    RELATIONS,
    SIZE_WORDS,
    TEXTURE_WORDS,
)

SCENES = 150


def captioned(split, scenes=SCENES):
    """(scene, its five captions) of a split."""
    for index in range(scenes):
        scene = scene_for(split, index)
        yield scene, draw_captions(text_draws(split, index, 0), scene, SPLITS[split].phrasing, 5)


@pytest.mark.parametrize("split", ["cc3m", "itr_test"])
def test_captions_are_true_readable_and_short(split):
    texts = []
    for scene, captions in captioned(split):
        for caption in captions:
            assert holds(caption.meaning, scene), caption.text
            parsed = parse_caption(caption.text)
            assert (parsed.meaning, parsed.unparsed) == (caption.meaning, ()), caption.text
            verdict = check_caption(caption.text, scene)
            assert verdict.true and verdict.present == verdict.mentioned
            assert len(caption.text.split()) <= 25
            assert caption.text == caption.text.lower()
            assert set(caption.text) <= set("abcdefghijklmnopqrstuvwxyz ")  # nothing for pre_caption to delete
            texts.append(caption.text)
    assert len(set(texts)) > 0.97 * len(texts)
    assert {bool(c.meaning.relations) for _, row in captioned(split, 20) for c in row} == {True, False}
    assert {bool(c.meaning.positions) for _, row in captioned(split, 20) for c in row} == {True, False}


def test_captions_of_other_scenes_are_mostly_false():
    rows = list(captioned("itr_test"))
    swapped = [
        check_caption(caption.text, rows[(index + 1) % SCENES][0]).true
        for index, (_, captions) in enumerate(rows)
        for caption in captions
    ]
    assert sum(swapped) < 0.02 * len(swapped)


def test_the_two_phrasings_differ():
    first = {word for _, row in captioned("cc3m", 80) for c in row for word in c.text.split()}
    second = {word for _, row in captioned("itr_train", 80) for c in row for word in c.text.split()}
    nouns = {singular for row in NOUN_WORDS for singular, _ in row}
    assert nouns <= first and nouns <= second
    assert {"top", "on"} & first and not {"top", "on"} & second
    assert {"upper", "against"} & second and not {"upper", "against"} & first


def thing(shape, colour, x, y, texture=0, size=0):
    return Thing(shape, colour, texture, size, x, y, 7.0, 4, (0, 0, 0), 0)


# two small plain red circles left, a large striped blue star right, on grass
SCENE = Scene(2, (0, 0, 0), 0, 0, (thing(0, 0, 10.0, 12.0), thing(0, 0, 12.0, 50.0), thing(4, 4, 50.0, 30.0, 1, 1)))


@pytest.mark.parametrize(
    ("text", "mentioned", "present", "true"),
    [
        ("two red circles and a blue star", 3, 3, True),
        ("two crimson discs with an azure sparkle on a lawn", 3, 3, True),
        ("a red circle", 1, 1, True),  # "a" claims one, not only one
        ("one red circle", 1, 1, False),  # a number claims exactly so many
        ("three red circles", 3, 2, False),
        ("a red circle and a red circle and a red circle", 3, 2, False),
        ("two red circles left of a blue star", 3, 3, True),
        ("a blue star left of a red circle", 2, 2, False),
        ("a red circle above a blue star", 2, 2, True),
        ("two red circles are above a blue star", 3, 3, False),  # only one of them is
        ("a red circle in the top left and a red circle in the bottom left", 2, 2, True),
        ("the upper right corner holds a red disc", 1, 1, False),
        ("a large striped blue star", 1, 1, True),
        ("a small striped blue star", 1, 0, False),
        ("a red circle at night", 1, 1, False),
        ("a green ring and a blue star", 2, 1, False),
        ("a red circle and", 1, 1, False),
        ("two red circle", 2, 2, False),
        ("a red blue star", 1, 1, False),
        ("a blue star of of [SEP]", 1, 1, False),
        ("left of a blue star", 1, 1, False),
        ("", 0, 0, False),
        ("the the left and", 0, 0, False),
    ],
)
def test_check_caption_by_hand(text, mentioned, present, true):
    verdict = check_caption(text, SCENE)
    assert (verdict.mentioned, verdict.present, verdict.true) == (mentioned, present, true)


def test_present_matches_each_thing_once():
    """`a circle` must leave the only red one to `a red circle`, in whatever order they are named."""
    scene = Scene(0, (0, 0, 0), 0, 0, (thing(0, 0, 10.0, 10.0), thing(0, 3, 40.0, 40.0)))
    phrases = (Phrase(0, 0), Phrase(0, 0, 0))
    for order in (phrases, phrases[::-1]):
        assert [there for _, there in matched_mentions(Meaning(order), scene)] == [True, True]
    assert holds(Meaning(phrases), scene) and not holds(Meaning((*phrases, Phrase(0, 0))), scene)


def test_region_phrases_fit_their_things():
    pairs = 0
    for index in range(SCENES):
        scene = scene_for("vg", index)
        found = boxes(scene)
        for region in draw_regions(text_draws("vg", index, 0), scene, found):
            x, y, w, h = region.box
            inside = [found[i] for i in region.things]
            assert x == min(b[0] for b in inside) and y == min(b[1] for b in inside)
            assert x + w == max(b[0] + b[2] for b in inside) and y + h == max(b[1] + b[3] for b in inside)
            text = " ".join(filter(None, (region.attributes, region.caption)))
            meaning = parse_caption(text).meaning
            if len(region.things) == len(meaning.phrases):  # else the things all look alike
                for phrase, thing_index in zip(meaning.phrases, region.things, strict=True):
                    fitting = [i for i, other in enumerate(scene.things) if phrase.fits(other)]
                    assert fitting == [thing_index], text
            pairs += len(region.things) == 2
    assert pairs > 20


# --- questions ---------------------------------------------------------------------------------------------

LEXICON = {
    **{word: ("shape", i) for i, row in enumerate(NOUN_WORDS) for pair in row for word in pair},
    **{word: ("colour", i) for i, row in enumerate(COLOUR_WORDS) for word in row},
    **{word: ("texture", i) for i, row in enumerate(TEXTURE_WORDS) for word in row},
    **{word: ("size", i) for i, row in enumerate(SIZE_WORDS) for word in row},
}


def brute_force(question, scene):
    """Answer from the words alone: filter the things by every adjective and noun of the question."""

    def select(words):
        said = [LEXICON[word] for word in words.split() if word in LEXICON]
        return [t for t in scene.things if all(getattr(t, name) == value for name, value in said)]

    words = question.text
    if question.kind == "background":
        return BACKGROUNDS[scene.background]
    if question.kind == "count":
        return str(len(select(words)))
    if question.kind == "existence":
        return "yes" if select(words) else "no"
    if question.kind == "relation":
        left, right = words.split(" relative to " if " relative to " in words else " compared with ")
        (one,), (two,) = select(left), select(right)
        across, down = one.x - two.x, one.y - two.y
        if abs(across) > abs(down):
            return "left" if across < 0 else "right"
        return "above" if down < 0 else "below"
    (only,) = select(words)
    names = {"colour": COLOURS, "shape": SHAPES, "texture": TEXTURES}[question.kind]
    return names[getattr(only, question.kind)]


def test_answers_are_right_by_brute_force():
    asker, seen = Asker(), Counter()
    for index in range(400):
        scene = scene_for("vqa_val", index)
        questions = asker.ask(text_draws("vqa_val", index, 0), scene, 6)
        assert len({question.text for question in questions}) == len(questions)
        for question in questions:
            assert question.answer == brute_force(question, scene), question
            assert question.answer in ANSWERS[question.kind]
            seen[question.kind] += 1
    assert set(seen) == set(ANSWERS) == set(QUESTION_PHRASES) and min(seen.values()) > 100
    assert sum(seen.values()) > 400 * 5


def test_answers_are_balanced_by_kind_and_words():
    asker, given = Asker(), {kind: Counter() for kind in ANSWERS}
    for index in range(500):
        for question in asker.ask(text_draws("vqa_test", index, 0), scene_for("vqa_test", index), 4):
            given[question.kind][question.answer] += 1
    for kind, answers in given.items():  # the best that a constant answer scores
        assert max(answers.values()) / answers.total() < 1 / len(ANSWERS[kind]) + 0.05, kind
    asker, by_noun = Asker(), {}
    for index in range(800):
        for question in asker.ask(text_draws("vqa_train", index, 0), scene_for("vqa_train", index), 4):
            if question.kind == "colour":
                shape = next(v for w in question.text.split() for k, v in [LEXICON.get(w, ("", 0))] if k == "shape")
                by_noun.setdefault(shape, Counter())[question.answer] += 1
    assert len(by_noun) == 8
    for answers in by_noun.values():  # held-out pairs are frequent, but a noun does not give its colour away
        assert max(answers.values()) < 0.3 * answers.total()


def test_people_disagree_a_little():
    asker, answers = Asker(), []
    for index in range(300):
        draws = text_draws("vqa_train", index, 0)
        for question in asker.ask(draws, scene_for("vqa_train", index), 4):
            ten = ten_answers(draws, question)
            assert len(ten) == 10 and set(ten) <= set(ANSWERS[question.kind])
            assert ten.count(question.answer) >= 7 and len(set(ten)) <= 2
            answers.append(ten)
    differing = sum(len(set(ten)) > 1 for ten in answers) / len(answers)
    assert 0.15 < differing < 0.25


@pytest.mark.parametrize("split", ["cc3m", "itr_test"])
def test_captions_can_find_their_pictures(split):
    """Text to image R@1 of a judge who knows the whole truth and guesses among the scenes of which a caption holds."""
    rows = list(captioned(split, 200))
    hits = [1 / sum(holds(caption.meaning, scene) for scene, _ in rows) for _, captions in rows for caption in captions]
    assert 0.93 < sum(hits) / len(hits) < 1


def test_relations_ask_for_the_greater_direction():
    low, high = thing(0, 0, 10.0, 50.0), thing(1, 1, 30.0, 10.0)
    assert related(high, 2, low, 7, dominant=True) and not related(high, 1, low, 7, dominant=True)
    assert related(high, 1, low, 7) and RELATIONS[1] == "right"
