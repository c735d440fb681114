"""Caption losses, beam search and answer ranking against plain loops, exhaustive search and transformers."""

import itertools
import math

import pytest
import torch
from torch import nn

from models.common import answer_ranking
from models.common.answer_ranking import best_answers, first_word_probabilities, full_losses, pick, weighted_answer_loss
from models.common.beam_search import SearchSettings, beam_search
from models.common.decoding import IGNORED, caption_labels, mean_token_loss, xvlm_smoothing

END, PAD = 0, 1


@pytest.fixture
def logits():
    return torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels():
    ids = torch.tensor([[2, 3, 4, 5, 6, 0], [2, 3, 6, 0, 1, 1]])
    return caption_labels(ids, (ids != PAD).long(), prompt=2)


def test_labels(labels):
    i = IGNORED
    assert labels.tolist() == [[i, i, 4, 5, 6, 0], [i, i, 6, 0, i, i]]


def test_xvlm_smoothing_by_hand(logits, labels):
    """Mass 0.9 on the label and 0.1 / V on each other word; position t predicts label t + 1."""
    v, total, counted = 7, 0.0, 0
    for b, t in itertools.product(range(2), range(5)):
        label = labels[b, t + 1].item()
        if label != IGNORED:
            words = [x - math.log(sum(math.exp(y) for y in logits[b, t].tolist())) for x in logits[b, t].tolist()]
            total -= sum((0.9 if word == label else 0.1 / v) * value for word, value in enumerate(words))
            counted += 1
    found = mean_token_loss(logits, labels, 0.1, xvlm_smoothing)
    assert found.item() == pytest.approx(total / counted, rel=1e-5)
    # the library's rule has 0.1 / V more on the label
    library = nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, v), labels[:, 1:].reshape(-1), ignore_index=IGNORED, label_smoothing=0.1
    )
    assert mean_token_loss(logits, labels, 0.1).item() == pytest.approx(library.item(), rel=1e-6)
    assert library.item() > found.item()


def test_no_label_at_all_is_no_loss(logits):
    assert mean_token_loss(logits, torch.full((2, 6), IGNORED), 0.1).item() == 0


class Table(nn.Module):
    """The next word depends on the last two."""

    def __init__(self, v, seed):
        super().__init__()
        self.table = 2 * torch.randn(v, v, v, generator=torch.Generator().manual_seed(seed))

    def forward(self, ids, origin=None):
        return self.table[ids[:, -2], ids[:, -1]]


def exhaustive(model, prompt, settings, v):
    """The best finished text by trying all of them, scores over the total length."""
    best, found = -math.inf, None

    def visit(ids, score):
        nonlocal best, found
        if len(ids) == settings.max_length:
            if score / len(ids) > best:
                best, found = score / len(ids), ids
            return
        words = model(torch.tensor([ids]))[0].log_softmax(-1).tolist()
        for word in range(v):
            if word == END:
                if len(ids) >= settings.min_length and (score + words[word]) / len(ids) > best:
                    best, found = (score + words[word]) / len(ids), ids
            else:
                visit([*ids, word], score + words[word])

    visit(prompt, 0.0)
    return found


@pytest.mark.parametrize("seed", range(8))
def test_wide_beams_find_the_best_text(seed):
    v = 4
    model = Table(v, seed)
    settings = SearchSettings(beams=4**4, max_length=6, min_length=4)
    prompts = torch.tensor([[2, 3], [3, 3]])
    found = beam_search(model, prompts, END, PAD, settings)
    for i, prompt in enumerate(prompts.tolist()):
        best = exhaustive(model, prompt, settings, v)
        assert found[i, : len(best)].tolist() == best


@pytest.mark.parametrize("seed", range(5))
def test_the_library_finds_the_same(seed):
    """transformers' search with its own rules, on a model that ends its texts at different lengths."""
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=30,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        is_decoder=True,
        initializer_range=0.5,
    )
    model = BertLMHeadModel(config).eval()
    model.cls.predictions.bias.data[END] = 5
    prompt = torch.randint(2, 30, (16, 2))
    expected = model.generate(
        prompt,
        num_beams=3,
        max_length=14,
        min_length=3,
        do_sample=False,
        eos_token_id=END,
        pad_token_id=PAD,
        early_stopping=False,
    )
    settings = SearchSettings(beams=3, max_length=14, min_length=3, count_prompt=False)
    found = beam_search(lambda ids, origin: model(ids).logits[:, -1], prompt, END, PAD, settings)
    for mine, theirs in zip(found.tolist(), expected.tolist(), strict=True):
        assert [x for x in mine if x != PAD] == [x for x in theirs if x not in (PAD, END)]


def test_rows_do_not_influence_each_other():
    model = Table(9, 3)
    prompts = torch.randint(2, 9, (5, 2), generator=torch.Generator().manual_seed(1))
    settings = SearchSettings(beams=3, max_length=9, min_length=4)
    together = beam_search(model, prompts, END, PAD, settings)
    for i in range(5):
        alone = beam_search(model, prompts[i : i + 1], END, PAD, settings)[0]
        assert [x for x in together[i].tolist() if x != PAD] == [x for x in alone.tolist() if x != PAD]


def test_ranking_by_hand():
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]])
    probabilities = first_word_probabilities(logits, torch.tensor([2, 1, 1, 3]))
    scale = sum(math.exp(x) for x in (0, 2, 1, -1))
    assert probabilities[0].tolist() == pytest.approx([math.exp(x) / scale for x in (1, 2, 2, -1)])
    first, numbers = best_answers(probabilities, 3)
    assert numbers.tolist() == [[1, 2, 0]]  # equal first words by the order of the list
    losses = torch.tensor([[3.0, 0.5, 0.1]])
    assert pick(first.log() - losses, numbers).tolist() == [2]
    weighted = weighted_answer_loss(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.5, 0.5, 1.0]), questions=2)
    assert weighted.item() == pytest.approx((0.5 + 1.0 + 4.0) / 2)


@pytest.mark.parametrize("at_once", [1, 6, 8, 1000])
def test_answers_are_scored_in_whole_questions(at_once, monkeypatch):
    """Five questions of three candidates each; a made-up loss that tells answer and question apart."""
    monkeypatch.setattr(answer_ranking, "AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    ids, numbers = torch.arange(7)[:, None].expand(7, 2), torch.randint(0, 7, (5, 3), generator=generator)
    states, atts = torch.arange(5.0)[:, None, None].expand(5, 4, 2), torch.ones(5, 4)
    passes = []

    def losses(ids, atts, states, states_atts):
        passes.append(len(ids))
        return ids[:, 0] + 10 * states[:, 0, 0]

    found = full_losses(losses, ids, torch.ones(7, 2), numbers, states, atts)
    assert torch.equal(found, numbers + 10 * torch.arange(5.0)[:, None])
    assert max(passes) <= max(at_once, 3)
