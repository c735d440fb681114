"""Answers in a model's own words: against all texts tried one by one, a greedy loop, and a run of the command."""

import json
import math

import pytest
import torch
import yaml

from configs.schema import parse, task_file
from console.errors import InputError
from data.miniworld import ensure
from evaluation.answering import AnswerSearch, answer_questions, generate_answers
from models import load_task_model
from models.common.decoding import decoder_logits
from tasks.vqa import VQA, VQAConfig
from tests.conftest import REFERENCE
from tests.training.small_finetuning import placed

SEP, PAD, DEC, WORDS = 3, 0, 200, 202  # of the reference BLIP: [DEC] and [ENC] are the last two


class Numbers:
    """A tokenizer whose words are numbers."""

    sep, pad, cls = SEP, PAD, 2

    def text(self, ids):
        return " ".join(str(i) for i in ids if i not in (PAD, SEP))

    def encode(self, text, sep, limit):
        return [self.cls, *(int(word) for word in text.split()), *([SEP] if sep else [])]

    def pieces(self, text):
        return [SEP if word == "[SEP]" else int(word) for word in text.replace("[SEP]", " [SEP]").split()]

    def pad_batch(self, rows):
        longest = max(map(len, rows))
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
        return ids, (ids != PAD).long()


@pytest.fixture(scope="module")
def blip():
    """Outputs sharpened, so that the likeliest answers are far apart."""
    weights = REFERENCE / "vectors" / "blip" / "weights.safetensors"
    model = load_task_model("blip", "vqa", config=REFERENCE / "blip.yaml", weights=weights)
    with torch.no_grad():
        model.text_decoder.cls.predictions.decoder.bias.normal_(std=2.0, generator=torch.Generator().manual_seed(0))
        model.text_decoder.cls.predictions.decoder.bias[SEP] = 2.0
    return model


@pytest.fixture(scope="module")
def batch():
    """Three questions of different lengths."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 200, (3, 6), generator=generator)
    atts = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]])
    image = torch.randn(3, 3, 32, 32, generator=generator)
    return {
        "image": image,
        "question_ids": ids * atts,
        "question_atts": atts,
        "question_id": [7, 4, 9],
    }


def log_probabilities(model, batch, row, texts):
    """Of the word after each text [n][t], for one question, without beams, padding or other questions."""
    length = int(batch["question_atts"][row].sum())
    ids, atts = batch["question_ids"][row : row + 1, :length], batch["question_atts"][row : row + 1, :length]
    states = model.question_states(batch["image"][row : row + 1], ids, atts)
    texts = torch.tensor(texts)
    n = len(texts)
    logits = decoder_logits(
        model.text_decoder, texts, torch.ones_like(texts), states.expand(n, -1, -1), atts.expand(n, -1)
    )
    return logits[:, -1].log_softmax(-1)


@torch.no_grad()
def best_by_trying_all(model, batch, row, search):
    """Every text of at most two words: log-probability over the length, [DEC] counted, the end mark not."""
    scores = {}
    first = log_probabilities(model, batch, row, [[DEC]])[0]
    words = [word for word in range(WORDS) if word != SEP]
    second = log_probabilities(model, batch, row, [[DEC, word] for word in words])
    if search.min_length <= 1:
        scores[()] = first[SEP].item()
    for word, after in zip(words, second, strict=True):
        if search.min_length <= 2:
            scores[(word,)] = (first[word] + after[SEP]).item() / 2
        for other in words:
            scores[word, other] = (first[word] + after[other]).item() / 3
    return max(scores, key=scores.get)


@pytest.mark.parametrize("min_length", [1, 2, 3])
def test_wide_beams_find_the_likeliest_answer(blip, batch, min_length):
    search = AnswerSearch(beams=WORDS, max_length=3, min_length=min_length)
    found = generate_answers(blip, [batch], Numbers(), search)
    assert list(found) == [7, 4, 9]
    for row, number in enumerate((7, 4, 9)):
        best = best_by_trying_all(blip, batch, row, search)
        assert found[number] == " ".join(map(str, best))
    lengths = {len(answer.split()) for answer in found.values()}
    assert min(lengths) >= min_length - 1


@torch.no_grad()
def test_one_beam_is_greedy(blip, batch):
    """A loop over the likeliest next words; the end is not allowed before six ids."""
    found = generate_answers(blip, [batch], Numbers(), AnswerSearch(beams=1, max_length=8, min_length=6))
    for row, number in enumerate((7, 4, 9)):
        text = [DEC]
        while len(text) < 8:
            words = log_probabilities(blip, batch, row, [text])[0]
            if len(text) < 6:
                words[SEP] = -math.inf
            word = int(words.argmax())
            if word == SEP:
                break
            text.append(word)
        assert found[number] == " ".join(map(str, text[1:]))


def test_the_published_settings():
    search = parse(VQAConfig, yaml.safe_load(task_file("blip", "vqa").read_text()), "file").search
    assert (search.beams, search.max_length, search.min_length) == (3, 10, 1)
    changed = yaml.safe_load(task_file("blip", "vqa").read_text()) | {"search": {"beams": 5}, "inference": "generate"}
    assert parse(VQAConfig, changed, "file").search == AnswerSearch(5, 10, 1)


def test_questions_in_other_batches_and_the_list(blip, batch):
    """Alone or together, the answers are the same; and the list is still ranked as its parts say."""
    search = AnswerSearch(max_length=6)
    together = generate_answers(blip, [batch], Numbers(), search)
    alone = [{name: tensor[i : i + 1] for name, tensor in batch.items()} for i in range(3)]
    assert generate_answers(blip, alone, Numbers(), search) == together
    answers = [str(word) for word in range(10, 30)]
    ranked = answer_questions(blip, [batch], Numbers(), answers, len(answers))
    for row, number in enumerate((7, 4, 9)):
        losses = []
        for answer in answers:
            word = int(answer)
            first, second = (log_probabilities(blip, batch, row, [text])[0].double() for text in ([DEC], [DEC, word]))
            losses.append(-0.9 * (first[word] + second[SEP]).item() - 0.1 * (first.mean() + second.mean()).item())
        assert ranked[number] == answers[losses.index(min(losses))]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return ensure("vqa", tmp_path_factory.mktemp("world"), workers=1, show=False, scale=0.008)


def settings_of(model, world, **changes):
    return placed(yaml.safe_load(task_file(model, "vqa").read_text()), world) | {"batch_size": 8} | changes


def test_a_run_that_writes_its_answers(world, run, tmp_path):
    """No list is needed then."""
    (tmp_path / "vqa.yaml").write_text(
        yaml.safe_dump(settings_of("blip-mini", world, inference="generate", answers="no.json"))
    )
    command = ["vqa.py", "--model", "blip-mini", "--config", tmp_path / "vqa.yaml", "--output_dir", tmp_path / "out"]
    done = run(*command, "--accelerator", "cpu", "--dense", "--debug")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out_debug" / "result" / "test_vqa_result_epoch_last.json").read_text())
    assert rows and all(isinstance(row["answer"], str) for row in rows)


def test_refusals(world):
    with pytest.raises(InputError, match=r"unknown inference 'generat' \(did you mean 'generate'\?\)"):
        parse(VQAConfig, settings_of("blip-mini", world, inference="generat"), "file")
    config = parse(VQAConfig, settings_of("xvlm-mini", world, inference="generate"), "file")
    with pytest.raises(InputError, match="this model only ranks answers"):
        VQA(config, load_task_model("xvlm-mini", "vqa"), None, None)
