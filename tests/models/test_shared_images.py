"""Several questions of one image: seen once, it must count as if it had been given with each of them."""

import pytest
import torch

from models.tasks import load_task_model
from tests.conftest import REFERENCE

SEP = 3


def texts(rows, longest, generator):
    ids = torch.randint(5, 200, (rows, longest), generator=generator)
    ids[:, -1] = SEP
    return ids, torch.ones_like(ids)


@pytest.mark.parametrize("family", ["xvlm", "blip"])
def test_loss_gradients_and_answers(family):
    config, weights = REFERENCE / f"{family}.yaml", REFERENCE / "vectors" / family / "weights.safetensors"
    model = load_task_model(family, "vqa", config=config, weights=weights).double().eval()
    generator = torch.Generator().manual_seed(0)
    side = model.image_shape.image_size
    image = torch.randn(2, 3, side, side, generator=generator, dtype=torch.float64)
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
    losses, gradients, best = [], [], []
    for images in ({"image": image, "image_of": of}, {"image": image[of]}):
        model.zero_grad()
        loss = model(images | asked | answered)["vqa"]
        loss.backward()
        losses.append(loss.detach())
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        with torch.no_grad():
            best.append(model.rank(images | asked, answer_ids, answer_atts, 4))
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert torch.equal(best[0], best[1])
    other = model({"image": image, "image_of": 1 - of} | asked | answered)["vqa"]
    assert abs(other.item() - losses[0].item()) > 1e-6
