"""Captions by beam search: tokens read once and remembered must give what reading every text anew gives."""

import pytest
import torch

from evaluation.generation import generate_captions
from models import load_task_model
from models.common.beam_search import SearchSettings, beam_search
from tests.conftest import REFERENCE

SEP, PAD = 3, 0


class Numbers:
    """A tokenizer whose words are numbers."""

    sep, pad = SEP, PAD

    def encode(self, text, sep, limit):
        return [2, *(int(word) for word in text.split())]

    def text(self, ids):
        return " ".join(str(i) for i in ids if i not in (PAD, SEP))


@pytest.mark.parametrize("family", ["xvlm", "blip"])
@torch.no_grad()
def test_remembered_and_read_anew(family):
    weights = REFERENCE / "vectors" / family / "weights.safetensors"
    model = load_task_model(family, "captioning", config=REFERENCE / f"{family}.yaml", weights=weights).double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.text_decoder.parameters():  # texts that depend on images, and beams that change places
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    side = model.image_shape.image_size
    image = 3 * torch.randn(5, 3, side, side, generator=generator, dtype=torch.float64)
    settings = SearchSettings(beams=4, max_length=14, min_length=6)
    batch = {"image": image, "image_id": list(range(5))}
    written = generate_captions(model, [batch], Numbers(), "7 8", settings)
    states = model.image_states(image).repeat_interleave(settings.beams, dim=0)
    moved = []

    def read_anew(ids, origin):
        moved.append(origin is not None and origin.tolist() != sorted(origin.tolist()))
        return model.caption_logits(ids, torch.ones_like(ids), states)[:, -1]

    start = model.caption_start(torch.tensor([[2, 7, 8]] * 5))
    expected = beam_search(read_anew, start, SEP, PAD, settings)[:, 3:]
    assert written == {i: Numbers().text(ids) for i, ids in enumerate(expected.tolist())}
    assert any(moved) and len(set(written.values())) > 1
