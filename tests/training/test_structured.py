"""`--structured`: scores of whole units, and the smaller model that a run leaves."""

import json

import pytest
import torch

from models import load_task_model
from models.parts import kept_units, masked, units
from models.surgery import cut
from sparsity.mask import Mask
from sparsity.progressive_config import ProgressiveConfig
from sparsity.search import Search
from tests.training.small_prompts import MODEL, command, draw, write

PRUNED = ("--prune", "vpns", "-s", "50", "--structured", "--score_lr", "0.05")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("structured")
    return write(root / "c.yaml", {"four": draw(root / "four", 4)}, epochs=2)


@pytest.fixture(scope="module")
def out(config, tmp_path_factory):
    from tests.conftest import runner

    out = tmp_path_factory.mktemp("made") / "out"
    with pytest.MonkeyPatch.context() as patch:
        done = runner(patch)(*command(config, out, *PRUNED, "--no_samples"))
    assert done.returncode == 0, done.stderr
    return out


def network(**more):
    return load_task_model(
        "timm:resnet18", "image_classification", **({"weights": "random", "overrides": MODEL} | more)
    )


def test_exactly_the_units_asked_for_go(out):
    """All numbers of the run: units that nothing reads, the small model's logits, its sizes."""
    mask = Mask.load(out / "mask.safetensors")
    whole = network(weights=out / "last.safetensors").eval()
    kept = kept_units(whole, mask)
    count = sum(len(bits) for bits in kept.values())
    assert count - sum(int(bits.sum()) for bits in kept.values()) == round(0.5 * count)
    assert all(bits.any() for bits in kept.values())
    assert all(torch.equal(bits, mask[name]) for name, bits in masked(whole, kept).items())
    small = load_task_model(f"small:{out / 'small'}", "image_classification").eval()
    image = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(small.logits(image), whole.logits(image), rtol=0, atol=1e-5)
    told = json.loads((out / "results.json").read_text())["small"]
    for name, model in (("masked", whole), ("small", small)):
        assert told[name]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert told["small"]["flops"] < told["masked"]["flops"]
    assert told["small"]["latency_ms"]["median"] > 0


def test_the_small_model_is_tested_with_the_prompt(out, config, run, tmp_path):
    words = command(
        config,
        tmp_path / "again",
        "-pre",
        out / "small",
        "--evaluate",
        "--prompt",
        out / "small" / "prompt.safetensors",
    )
    words[words.index("timm:resnet18")] = f"small:{out / 'small'}"
    done = run(*words)
    assert done.returncode == 0, done.stderr
    before, again = (
        json.loads((folder / "results.json").read_text())["metrics"] for folder in (out, tmp_path / "again")
    )
    assert again["top1"] == before["top1"]
    assert again["plain_top1"] == before["plain_top1"]


def test_a_units_gradient_is_the_sum_of_its_readers(out):
    """By plain loops; the score of a unit that is gone has a gradient, too, so that it can come back."""
    model = network()
    search = Search(ProgressiveConfig(prune="vpns", sparsity=50, structured=True), None)
    dense = {name: layer.weight.detach().clone() for name, layer in model.prunable_layers().items()}
    search.attach(model)
    image = torch.rand(4, 3, 32, 32)
    model.train()
    sum(model({"image": image, "label": torch.arange(4)}).values()).backward()
    gradients = {name: layer.weight.grad.clone() for name, layer in model.prunable_layers().items()}
    search.after_backward()
    for one in units(model):
        score = search._scores.scores[one.consumer]
        for unit in range(one.count):
            product = gradients[one.consumer][:, unit] * dense[one.consumer][:, unit]
            expected = product.sum() * score[unit].sign()
            torch.testing.assert_close(score.grad[unit], expected, rtol=1e-4, atol=1e-7)


def test_cut_of_a_search_is_its_mask():
    model = network().eval()
    search = Search(ProgressiveConfig(prune="hydra", sparsity=75, structured=True, min_kept=0.2), None)
    search.attach(model)
    kept = kept_units(model, search.mask)
    assert all(int(bits.sum()) >= 2 for bits in kept.values())
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(cut(model, kept).logits(image), model.logits(image), rtol=0, atol=1e-5)
