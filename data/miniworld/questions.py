"""Questions on scenes, with ten answers each and the answers balanced within each kind of question.

Balance is kept by counting: a question is asked only while its answer is not far ahead of the others of its
kind. Colour questions are balanced for each shape, shape questions for each colour, existence for the pairs
held out of pretraining and the rest, counts for each way of naming, so that a question's words do not give
its answer away either.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from itertools import combinations

from data.miniworld.draws import Draws
from data.miniworld.meaning import CLEAR, Phrase, related
from data.miniworld.scene import BACKGROUNDS, HELD_OUT, NAMES, Scene, Thing
from data.miniworld.words import ANSWERS, QUESTION_PHRASES, RELATIONS, article, describe

SLACK = 2  # an answer may be this far ahead of the rarest of its kind
DISAGREE = 0.2  # share of the questions on which one to three of the ten answers differ

# what somebody might take each colour and shape for
NEAR = {
    "colour": ((1,), (0, 2), (1, 6), (4, 2), (5, 3), (4, 0), (2,), (5, 4)),
    "shape": ((5, 7), (0,), (7, 1), (4, 1), (3,), (0, 6), (5, 0), (2, 0)),
}


@dataclass(frozen=True)
class Question:
    """A question in lower-case words, the answer the scene gives, and its kind (a key of `ANSWERS`)."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class _Candidate:
    """A question that could be asked; its answer is balanced against others of the same `context`."""

    things: tuple[str, ...]
    answer: str
    context: Hashable = None


Ask = Callable[[Draws, Scene], Iterator[_Candidate]]


class Asker:
    """Asks questions on one scene after another, keeping the answers balanced."""

    def __init__(self) -> None:
        self.asked: dict[tuple[str, Hashable], dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def ask(self, draws: Draws, scene: Scene, count: int) -> list[Question]:
        """Up to `count` different questions on a scene, of as many kinds as will do."""
        questions: list[Question] = []
        for kind in draws.shuffled(list(ANSWERS)) + draws.shuffled(list(ANSWERS)):
            if len(questions) == count:
                break
            candidate = self._fairest(draws, scene, kind)
            if candidate is None:
                continue
            text = draws.choice(QUESTION_PHRASES[kind]).format(*candidate.things)
            if text not in {other.text for other in questions}:
                self.asked[kind, candidate.context][candidate.answer] += 1
                questions.append(Question(text, candidate.answer, kind))
        return questions

    def _fairest(self, draws: Draws, scene: Scene, kind: str) -> _Candidate | None:
        """The candidate whose answer was given least, or None where all are too far ahead already."""
        candidates = draws.shuffled(list(_CANDIDATES[kind](draws, scene)))
        best, best_lead = None, SLACK
        for candidate in candidates:
            lead = self._lead(kind, candidate)
            if lead < best_lead:
                best, best_lead = candidate, lead
        return best

    def _lead(self, kind: str, candidate: _Candidate) -> int:
        """By how many questions an answer is ahead of the rarest one of its context."""
        asked = self.asked[kind, candidate.context]
        return asked[candidate.answer] - min(asked[answer] for answer in ANSWERS[kind])


def ten_answers(draws: Draws, question: Question) -> list[str]:
    """Ten people's answers: in one question of five, one to three of them are mistaken in the same way."""
    answers = [question.answer] * 10
    if draws.chance(DISAGREE):
        mistaken = draws.choice(_mistakes(question))
        for place in draws.sample(range(10), draws.integer(1, 3)):
            answers[place] = mistaken
    return answers


def _mistakes(question: Question) -> list[str]:
    answers = ANSWERS[question.kind]
    right = answers.index(question.answer)
    if question.kind == "count":
        return [other for number, other in enumerate(answers) if abs(number - right) == 1]
    if question.kind in NEAR:
        return [answers[near] for near in NEAR[question.kind][right]]
    return [other for other in answers if other != question.answer]


def _refer(draws: Draws, thing: Thing, scene: Scene, named: str, hidden: str | None) -> str | None:
    """A description that fits only `thing`: `named` and as few other attributes as will do, never `hidden`."""
    others = [name for name in NAMES if name not in (named, hidden) and name != "shape"]
    for size in range(len(others) + 1):
        for names in draws.shuffled(list(combinations(others, size))):
            said = {name: getattr(thing, name) for name in (named, *names)}
            phrase = Phrase(0, **said)
            if sum(phrase.fits(other) for other in scene.things) == 1:
                return describe(draws, **{"shape": None, **said})
    return None


def _count(draws: Draws, scene: Scene) -> Iterator[_Candidate]:
    """Shapes, colours, textures, and shapes of a colour; one of four asks for what need not be there."""
    for thing in scene.things:
        look = thing
        if draws.chance(0.25):
            look = Phrase(0, draws.integer(0, 7), draws.integer(0, 7), draws.integer(0, 3))
        for names in (("shape",), ("colour",), ("texture",), ("shape", "colour")):
            said = {name: getattr(look, name) for name in names}
            number = sum(Phrase(0, **said).fits(other) for other in scene.things)
            if str(number) in ANSWERS["count"]:
                words = describe(draws, **{"shape": None, **said}, plural=True)
                yield _Candidate((words,), str(number), names)


def _attribute(kind: str, named: str, context: str | None = None) -> Ask:
    """Ask for the colour, shape or texture of a thing that `named` and others tell apart.

    context: the attribute for each of whose values the answers are balanced.
    """

    def candidates(draws: Draws, scene: Scene) -> Iterator[_Candidate]:
        for thing in scene.things:
            words = _refer(draws, thing, scene, named, kind)
            if words:
                answer = NAMES[kind][getattr(thing, kind)]
                yield _Candidate((words,), answer, getattr(thing, context) if context else None)

    return candidates


def _existence(draws: Draws, scene: Scene) -> Iterator[_Candidate]:
    """Pairs that are there, and pairs that differ from one of those in the shape or in the colour."""
    present = {(thing.shape, thing.colour) for thing in scene.things}
    for thing in scene.things:
        pairs = {(thing.shape, thing.colour)}
        while len(pairs) < 4:
            other = draws.integer(0, 7)
            pairs.add((other, thing.colour) if draws.chance(0.5) else (thing.shape, other))
        held_out = [pair for pair in HELD_OUT if pair[0] == thing.shape or pair[1] == thing.colour]
        for pair in [*sorted(pairs), *held_out]:
            words = describe(draws, *pair)
            answer = "yes" if pair in present else "no"
            yield _Candidate((f"{article(words)} {words}",), answer, pair in HELD_OUT)


def _relation(draws: Draws, scene: Scene) -> Iterator[_Candidate]:
    for first in scene.things:
        for second in scene.things:
            clear = [r for r in range(4) if first is not second and related(first, r, second, CLEAR, dominant=True)]
            if clear:
                one = _refer(draws, first, scene, "shape", None)
                two = _refer(draws, second, scene, "shape", None)
                if one and two:
                    yield _Candidate((one, two), RELATIONS[clear[0]])


def _background(draws: Draws, scene: Scene) -> Iterator[_Candidate]:
    yield _Candidate((), BACKGROUNDS[scene.background])


_CANDIDATES: dict[str, Ask] = {
    "count": _count,
    "colour": _attribute("colour", "shape", context="shape"),
    "shape": _attribute("shape", "colour", context="colour"),
    "texture": _attribute("texture", "shape"),
    "existence": _existence,
    "relation": _relation,
    "background": _background,
}
