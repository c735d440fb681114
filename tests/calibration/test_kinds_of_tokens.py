"""Text tokens and image tokens apart: against plain loops over tokens, on a generative model."""

from __future__ import annotations

import pytest
import torch

from calibration.hessians import InputHessians
from calibration.processes import Group
from calibration.statistics import InputNorms
from console.errors import InputError
from models.library.hf_generative import IMAGE, TEXT
from models.library.hf_models import wrap_hf
from pruners import prune
from pruners.tokens import TokenOptions
from tests.models.generative import small

LANGUAGE, VISION = "model.language_model.layers.1.mlp.up_proj.weight", "model.visual.blocks.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def qwen():
    """A model, batches, and what the two layers read: tokens [n, i] with their kinds [n]."""
    model = wrap_hf(small("Qwen2_5_VL"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        batches = [model.example(3)["general"] for _ in range(2)]
    return model, batches, {name: _read(model, batches, name) for name in (LANGUAGE, VISION)}


def _read(model, batches, name):
    seen = []
    layer = model.module.get_submodule(name.removesuffix(".weight"))
    handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().double()))
    with torch.no_grad():
        for batch in batches:
            model.observe(batch)
    handle.remove()
    if name == VISION:
        return torch.cat(seen), None
    kinds = [batch["attention_mask"] * torch.where(batch["input_ids"] == 98, IMAGE, TEXT) for batch in batches]
    return torch.cat([x.flatten(0, 1) for x in seen]), torch.cat([kind.flatten() for kind in kinds])


def gathered(statistic, qwen, share, change=lambda batch: batch):
    model, batches, _ = qwen
    layers = {name: layer for name, layer in model.prunable_layers().items() if name in (LANGUAGE, VISION)}
    made = statistic(model, layers if statistic is InputHessians else model.prunable_layers(), share=share)
    for batch in batches:
        made.update(change(batch))
        made.merge(Group(), [0])
    return made


def by_loops(tokens, kinds, share):
    """Second moments as if images were this share of all real tokens."""
    text, image = [x for x, k in zip(tokens, kinds, strict=True) if k == TEXT], []
    image = [x for x, k in zip(tokens, kinds, strict=True) if k == IMAGE]
    total = torch.zeros(tokens.shape[1], tokens.shape[1], dtype=torch.float64)
    for weight, ones in ((1 - share, text), (share, image)):
        for x in ones:
            total += weight / len(ones) * torch.outer(x, x)
    return total * (len(text) + len(image))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_either_kind_has_its_weight(qwen, share):
    tokens, kinds = qwen[2][LANGUAGE]
    assert {0, TEXT, IMAGE} == set(kinds.tolist())
    expected = by_loops(tokens, kinds, share)
    norm = gathered(InputNorms, qwen, share).norms(LANGUAGE)
    torch.testing.assert_close(norm.double(), expected.diagonal().div(6).sqrt(), rtol=1e-5, atol=1e-7)
    hessian = gathered(InputHessians, qwen, share).of(LANGUAGE).double()
    scale = expected.trace() / hessian.trace()  # of one kind alone: of as many tokens as it has
    torch.testing.assert_close(hessian * scale, expected, rtol=1e-4, atol=1e-5)


def test_the_share_of_images_counts_all_alike(qwen):
    kinds = qwen[2][LANGUAGE][1]
    share = float((kinds == IMAGE).sum() / (kinds != 0).sum())
    plain, weighted = (gathered(InputNorms, qwen, s).norms(LANGUAGE) for s in (None, share))
    torch.testing.assert_close(weighted, plain, rtol=1e-6, atol=0)


def test_layers_that_read_images_alone_stay(qwen):
    for statistic, found in ((InputNorms, "norms"), (InputHessians, "of")):
        plain, text = (getattr(gathered(statistic, qwen, share), found)(VISION) for share in (None, 0.0))
        assert torch.equal(plain, text)


@pytest.mark.parametrize("method", ["wanda", "multiflow", "sparsegpt"])
def test_masks_follow_the_kind(qwen, method):
    model, batches, _ = qwen
    text, image = (prune(model, batches, method, (0.5,), allocation="layer", tokens=t)[0.5] for t in ("text", "image"))
    differ = {name.partition(".layers")[0] for name in text if not torch.equal(text[name], image[name])}
    assert differ == {"model.language_model"}


def test_what_cannot_be_weighted(qwen, xvlm, xvlm_batches):
    with pytest.raises(InputError, match="no layer of this model reads both as one sequence: leave it out"):
        prune(xvlm, xvlm_batches, "wanda", (0.5,), tokens="text")
    for statistic, found in ((InputNorms, "norms"), (InputHessians, "of")):
        with pytest.raises(InputError, match="read no image token during calibration"):
            getattr(gathered(statistic, qwen, 0.5, _texts), found)(LANGUAGE)
    for bad in ("words", "1.5", "nan", -1):
        with pytest.raises(InputError, match="tokens must be all, text, image, atv, amia, or a share"):
            TokenOptions(bad)


def _texts(batch):
    """The same without an image."""
    long = batch["input_ids"] == 98
    ids, atts, kinds = (
        batch[name][:, long[0].sum() :] for name in ("input_ids", "attention_mask", "mm_token_type_ids")
    )
    return {"input_ids": ids, "attention_mask": atts, "mm_token_type_ids": kinds}
