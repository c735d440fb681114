"""Text rules, tokenizer and MLM masking."""

import random

import pytest

from console.errors import InputError
from data.masking import IGNORED, Masking, mask_tokens
from data.text import pre_caption, pre_question
from data.tokenizer import Tokenizer, load_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "boat", "##s", "##man", "on", "the", "lake", "yes"]


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return Tokenizer(tmp_path / "vocab.txt")


@pytest.mark.parametrize(
    ("raw", "words", "expected"),
    [
        ("A red-boat, on   the LAKE!\n", 40, "a red boat on the lake"),
        ("<person>'s hat; (blue/green)", 40, "persons hat blue green"),
        ("one two three four", 3, "one two three"),
        ('say "hi" #1: *wow* ~', 40, "say hi 1 wow"),
    ],
)
def test_caption_rule(raw, words, expected):
    assert pre_caption(raw, words) == expected


def test_empty_caption_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        pre_caption(" ?! ", 40)


def test_question_rule_keeps_inner_spaces():
    assert pre_question("What  colour is it?  ", 30) == "what  colour is it"
    assert pre_question("a b c d", 2) == "a b"


def test_special_tokens_and_limits(tokenizer):
    assert tokenizer.encode("a red boat", sep=False, limit=40) == [2, 5, 6, 7]
    assert tokenizer.encode("a red boat", sep=True, limit=40) == [2, 5, 6, 7, 3]
    assert tokenizer.encode("a red boat", sep=True, limit=4) == [2, 5, 6, 3]
    assert tokenizer.encode("a red boat", sep=False, limit=3) == [2, 5, 6]
    assert tokenizer.encode("yes[SEP]", sep=False, limit=None) == [2, 13, 3]
    assert tokenizer.pieces("boatsman") == [7, 8, 9]
    assert tokenizer.text([2, 5, 6, 7, 8, 3]) == "a red boats"


def test_padding(tokenizer):
    ids, atts = tokenizer.pad_batch([[2, 5], [2, 5, 6, 7]], length=5)
    assert ids.tolist() == [[2, 5, 0, 0, 0], [2, 5, 6, 7, 0]]
    assert atts.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]


def test_agrees_with_transformers(tokenizer, tmp_path):
    from transformers import BertTokenizer

    other = BertTokenizer(str(tmp_path / "vocab.txt"))
    for text in ("a red boat", "boatsman on the lake", "unknown words here", "Red  BOATS, yes!"):
        assert tokenizer.encode(text, sep=True, limit=None) == other(text)["input_ids"]


MARKS = [
    "men",
    "s",
    "'",
    "t",
    "don",
    "can",
    "i",
    "m",
    "ve",
    "re",
    "they",
    ".",
    "?",
    "!",
    ",",
    ":",
    "-",
    "/",
    "10",
    "30",
    "3",
    "5",
    "o",
    "clock",
    "(",
    ")",
    '"',
    "&",
    "$",
    "%",
]


@pytest.fixture
def with_marks(tmp_path):
    (tmp_path / "marks.txt").write_text("\n".join(WORDS + MARKS))
    return tmp_path / "marks.txt"


@pytest.mark.parametrize(
    "text", ["men's boat", "i don't", "they've 5", "i'm on", "they're 10", "5 o'clock", "can't, i!", "yes.", "the, a?"]
)
def test_decoding_gives_the_text_again(text, with_marks):
    tokenizer = Tokenizer(with_marks)
    assert tokenizer.text(tokenizer.encode(text, sep=True, limit=None)) == text


def test_decoding_as_the_published_code_does(with_marks):
    """transformers' slow BERT tokenizer, which X-VLM and BLIP decode with, on random pieces."""
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    tokenizer, other = Tokenizer(with_marks), BertTokenizerLegacy(str(with_marks))
    rng = random.Random(0)
    for _ in range(2000):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(1, 12))]
        assert tokenizer.text(ids) == other.decode(ids, skip_special_tokens=True)


def test_decoding_the_mini_world_needs_no_cleanup():
    tokenizer = load_tokenizer("weights/mini-vocab.txt")
    assert not any(mark in word for word in tokenizer.words for mark in ".?!,'")
    ids = [i for i in range(len(tokenizer)) if not tokenizer.words[i].startswith(("[", "##"))]
    assert tokenizer.text(ids) == " ".join(tokenizer.words[i] for i in ids)


def test_missing_vocabulary_says_where_it_belongs():
    with pytest.raises(InputError, match=r"weights/bert-base-nowhere/vocab\.txt"):
        load_tokenizer("bert-base-nowhere")


def test_masking_keeps_its_promises(tokenizer):
    """Budget, [CLS] never hidden, originals where they were, whole words, padding."""
    masking = Masking()
    tokens = [2, 5, 6, 7, 8, 9, 10, 11, 12, 5, 6, 7, 8, 13, 10, 11, 12]
    budget = min(8, max(1, round(0.25 * len(tokens))))
    kinds = {"mask": 0, "same": 0, "other": 0}
    split_words = 0
    for seed in range(2000):
        hidden, positions, originals = mask_tokens(tokens, tokenizer, masking, random.Random(seed))
        chosen = [p for p, original in zip(positions, originals, strict=True) if original != IGNORED]
        assert len(positions) == len(originals) == 8
        assert positions[len(chosen) :] == [0] * (8 - len(chosen))
        assert 1 <= len(chosen) <= budget
        assert len(set(chosen)) == len(chosen)
        assert 0 not in chosen
        for position, original in zip(chosen, originals, strict=False):
            assert tokens[position] == original
            kinds["mask" if hidden[position] == 4 else "same" if hidden[position] == original else "other"] += 1
        assert all(hidden[i] == tokens[i] for i in range(len(tokens)) if i not in chosen)
        split_words += any((p in chosen) != (p + 1 in chosen) for p in (3, 4)) and len(chosen) < budget
    total = sum(kinds.values())
    assert kinds["mask"] / total == pytest.approx(0.8, abs=0.02)
    assert kinds["other"] / total == pytest.approx(0.1 * 12 / 14, abs=0.02)  # a draw may give the same word or [MASK]
    assert split_words == 0  # below the budget, nothing was dropped: words are hidden whole


def test_masking_is_a_function_of_the_seed(tokenizer):
    tokens = [2, 5, 6, 7, 8, 9, 10]
    draws = [mask_tokens(tokens, tokenizer, Masking(), random.Random(3)) for _ in range(2)]
    assert draws[0] == draws[1]
