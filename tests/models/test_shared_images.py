"""Several questions of one image: seen once, it must count as if it had been given with each of them."""

import pytest
import torch

from models import load_task_model
from tests.conftest import REFERENCE

SEP = 3


def texts(rows, longest, generator):
    ids = torch.randint(5, 200, (rows, longest), generator=generator)
    ids[:, -1] = SEP
    return ids, torch.ones_like(ids)


def small(family, task):
    config, weights = REFERENCE / f"{family}.yaml", REFERENCE / "vectors" / family / "weights.safetensors"
    model = load_task_model(family, task, config=config, weights=weights).double().eval()
    generator = torch.Generator().manual_seed(0)
    side = model.image_shape.image_size
    return model, torch.randn(2, 3, side, side, generator=generator, dtype=torch.float64), generator


def learnt(model, batch):
    """Loss and gradients."""
    model.zero_grad()
    (loss,) = model(batch).values()
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["xvlm", "blip"])
def test_captions(family):
    model, image, generator = small(family, "captioning")
    ids, atts = texts(3, 8, generator)
    said = {"text_ids": ids, "text_atts": atts}
    of = torch.tensor([1, 0, 1])
    shared = learnt(model, {"image": image, "image_of": of} | said)
    torch.testing.assert_close(shared, learnt(model, {"image": image[of]} | said))
    assert learnt(model, {"image": image, "image_of": 1 - of} | said)[0] != shared[0]


@pytest.mark.parametrize("family", ["xvlm", "blip"])
def test_questions(family):
    model, image, generator = small(family, "vqa")
    question_ids, question_atts = texts(3, 6, generator)
    answer_ids, answer_atts = texts(4, 3, generator)
    asked = {"question_ids": question_ids, "question_atts": question_atts}
    answered = {
        "answer_ids": answer_ids,
        "answer_atts": answer_atts,
        "answer_weights": torch.tensor([0.7, 0.3, 1.0, 1.0]),
        "answer_counts": torch.tensor([2, 1, 1]),
    }
    of = torch.tensor([1, 0, 1])
    shared, repeated = {"image": image, "image_of": of} | asked, {"image": image[of]} | asked
    found = learnt(model, shared | answered)
    torch.testing.assert_close(found, learnt(model, repeated | answered))
    assert learnt(model, shared | answered | {"image_of": 1 - of})[0] != found[0]
    with torch.no_grad():
        best = [model.rank(batch, answer_ids, answer_atts, 4) for batch in (shared, repeated)]
    assert torch.equal(*best)
