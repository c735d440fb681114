"""Text preprocessing: the caption and question rules of X-VLM's data sets, which MULTIFLOW uses for both VLMs."""

from __future__ import annotations

import random
import re

_DELETED = re.compile(r"[,.'!?\"()*#:;~]")
_BLANKED = re.compile(r"[.!\"()*#:;~]")
_WHITESPACE = re.compile(r"\s{2,}")


class TextError(Exception):
    """A caption of which preprocessing leaves nothing; the message names its record."""


def _clean(text: str) -> str:
    text = _DELETED.sub("", text.lower())
    return text.replace("-", " ").replace("/", " ").replace("<person>", "person")


def pre_caption(caption: str, max_words: int) -> str:
    """Lower-case, delete punctuation, collapse white space, keep the first `max_words` words.

    Raises ValueError when nothing is left: the caller knows which record it was.
    """
    caption = _WHITESPACE.sub(" ", _clean(caption)).rstrip("\n").strip(" ")
    words = caption.split(" ")
    if len(words) > max_words:
        caption = " ".join(words[:max_words])
    if not caption:
        raise ValueError("the caption is empty after preprocessing")
    return caption


def pre_question(question: str, max_words: int) -> str:
    """As captions, but trailing spaces only are stripped and inner ones kept; the first `max_words` words."""
    question = _clean(question).rstrip(" ")
    words = question.split(" ")
    return " ".join(words[:max_words]) if len(words) > max_words else question


def pre_statement(sentence: str, max_words: int) -> str:
    """NLVR2's rule: lower-case, some punctuation becomes blanks (commas and hyphens stay), the first `max_words` words.

    Raises ValueError when nothing is left, as `pre_caption` does.
    """
    sentence = _WHITESPACE.sub(" ", _BLANKED.sub(" ", sentence.lower())).rstrip("\n").strip(" ")
    sentence = " ".join(sentence.split(" ")[:max_words])
    if not sentence:
        raise ValueError("the statement is empty after preprocessing")
    return sentence


def one_text(caption: str | list[str], name: str, max_words: int, rng: random.Random) -> str:
    """One caption of a list, drawn uniformly, after preprocessing; TextError when nothing is left of it."""
    text = rng.choice(caption) if isinstance(caption, list) else caption
    try:
        return pre_caption(text, max_words)
    except ValueError as error:
        raise TextError(f"{name} (the caption {text!r} has no word)") from error
