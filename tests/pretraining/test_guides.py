"""The two losses that guide a small X-VLM's boxes: against the attention that really happens, and plain loops."""

import math

import pytest
import torch

from console.errors import InputError
from models import load_model
from models.xvlm.boxes import box_losses
from pretraining.guides import glance, grounding, guidance_loss, patch_box_loss, start_images
from pretraining.objectives import Guided
from tests.conftest import REFERENCE


def test_glance_is_the_first_fusion_attention(xvlm, xvlm_batches):
    """Queries and keys are caught while the fusion layers run; the softmax is done by hand."""
    batch = xvlm_batches[0]["region"]
    layer = xvlm.text_encoder.bert.encoder.layer[xvlm.config.text.fusion_layer]
    caught = {}
    hooks = [
        getattr(layer.crossattention.self, part).register_forward_hook(
            lambda m, i, out, part=part: caught.setdefault(part, out)
        )
        for part in ("query", "key")
    ]
    with torch.no_grad():
        _, _, full, text = xvlm.states(batch)
        xvlm.fusion_states(text, batch["text_atts"], full, torch.ones(full.shape[:2], dtype=torch.long))
        for hook in hooks:
            hook.remove()
        found = glance(xvlm, text, batch["text_atts"], full)
    n, heads, p = found.shape
    d = caught["query"].shape[-1] // heads
    for row in range(n):
        for h in range(heads):
            query = caught["query"][row, 0, h * d : (h + 1) * d]
            keys = caught["key"][row, :, h * d : (h + 1) * d]
            expected = torch.softmax(keys @ query / math.sqrt(d), dim=0)
            torch.testing.assert_close(found[row, h], expected, rtol=1e-5, atol=1e-6)
    assert p == full.shape[1]


def test_what_blip_knows_and_where_it_looks():
    """Against the image-grounded encoder itself, with queries and keys caught on the way."""
    weights = REFERENCE / "vectors" / "blip" / "weights.safetensors"
    blip = load_model("blip", config=REFERENCE / "blip.yaml", weights=weights)
    batch = blip.example(3)["general"]
    layer, caught = blip.text_encoder.encoder.layer[1], {}
    hooks = [
        getattr(layer.crossattention.self, part).register_forward_hook(
            lambda m, i, out, part=part: caught.setdefault(part, out)
        )
        for part in ("query", "key")
    ]
    with torch.no_grad():
        image = blip.visual_encoder(batch["image"])
        states = blip.grounded_states(batch["text_ids"], batch["text_atts"], image)
        for hook in hooks:
            hook.remove()
        knows, looks = grounding(blip, batch["text_ids"], batch["text_atts"], image)
    torch.testing.assert_close(knows, states[:, 0])
    heads, d = looks.shape[1], states.shape[-1] // looks.shape[1]
    for row in range(3):
        for h in range(heads):
            keys = caught["key"][row, :, h * d : (h + 1) * d]
            expected = torch.softmax(keys @ caught["query"][row, 0, h * d : (h + 1) * d] / math.sqrt(d), dim=0)
            torch.testing.assert_close(looks[row, h], expected, rtol=1e-5, atol=1e-6)


def test_guidance_loss_by_hand():
    attention = torch.tensor([[[0.5, 0.25, 0.25]], [[0.2, 0.0, 0.8]]])
    patches = torch.tensor([[1, 1, 1], [1, 0, 1]])  # CLS does not count as a part of the region
    assert guidance_loss(attention, patches).item() == pytest.approx(-(math.log(0.5) + math.log(0.8)) / 2)


def test_patch_box_loss_is_the_mean_over_patches():
    generator = torch.Generator().manual_seed(0)
    predicted = torch.rand(3, 5, 4, generator=generator) * 0.5 + 0.25
    target = torch.rand(3, 4, generator=generator) * 0.5 + 0.25
    patches = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 0, 1, 0], [1, 1, 1, 1, 1]])
    terms = []
    for region in range(3):
        for patch in range(1, 5):
            if patches[region, patch]:
                one = box_losses(predicted[region, patch : patch + 1], target[region : region + 1], torch.zeros(1))
                terms.append(float(one["bbox"] + one["giou"]))
    assert patch_box_loss(predicted, target, patches).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_pruners_do_not_see_guides(xvlm, xvlm_batches, hardest_negatives):
    batch = xvlm_batches[0]["region"]
    with torch.no_grad():
        plain = xvlm.losses(batch)
        guided = Guided(xvlm).losses(batch)
    assert set(guided) - set(plain) == {"glance", "patches"}
    for name, loss in plain.items():
        torch.testing.assert_close(guided[name], loss)


@torch.no_grad()
def test_a_clip_starts_from_an_xvlm_tower():
    """Its class token behind the projection; CLIP's has no bias."""
    xvlm, clip = load_model("xvlm-mini"), load_model("clip-mini", weights="random")
    start_images(clip, xvlm)
    image = torch.randn(3, 3, 64, 64)
    seen = xvlm.vision_tower()(image)[:, 0] @ xvlm.vision_proj.weight.t()
    feature = clip.module.get_image_features(pixel_values=image).pooler_output
    torch.testing.assert_close(feature, seen, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "other", "message"),
    [
        ("dino-mini", "xvlm-mini", "only an X-VLM can start a model, and only one with two towers"),
        ("clip-mini", "blip-mini", "only an X-VLM can start a model"),
        ("clip-mini", "xvlm", "X-VLM's image tower does not fit the model's"),
    ],
)
def test_starts_that_do_not_fit_are_refused(model, other, message):
    config = REFERENCE / "xvlm.yaml" if other == "xvlm" else None
    with pytest.raises(InputError, match=message):
        start_images(load_model(model, weights="random"), load_model(other, config=config, weights="random"))
