"""Matching many texts with one image is matching each with a copy of it."""

import pytest
import torch

from models import load_model


@pytest.mark.parametrize("name", ["xvlm-mini", "blip-mini"])
def test_one_image_serves_all_texts(name: str) -> None:
    model = load_model(name).eval()
    batch = model.example(6)["general"]
    with torch.no_grad():
        image, feature = model.image_entry(batch["image"])
        text, text_feature = model.text_entry(batch["text_ids"], batch["text_atts"])
        found = []
        for i in range(2):
            similarity = text_feature @ feature[i]
            one = model.match(text, batch["text_atts"], image[i : i + 1], similarity)
            copies = model.match(text, batch["text_atts"], image[i : i + 1].expand(6, -1, -1), similarity)
            torch.testing.assert_close(one, copies, rtol=1e-4, atol=1e-4)
            found.append(one)
    assert not torch.allclose(found[0], found[1], atol=1e-2), "the image is looked at"
