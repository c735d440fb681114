"""The minis of BLIP, CLIP, DINO and ResNet: full classes with small numbers, within their budget; all checks pass."""

import pytest
import torch

from models import load_model
from models.common.checkpoint import LoadReport
from models.conformance import CHECKS
from pretraining.stages import save_weights

MINIS = {"blip-mini": 4_000_000, "clip-mini": 4_000_000, "dino-mini": 4_000_000, "resnet-mini": 2_000_000}
"""Name -> bytes that its committed file may have."""


@pytest.fixture(scope="module", params=MINIS)
def mini(request):
    return load_model(request.param, weights="random")


@pytest.mark.parametrize("check", CHECKS)
def test_conformance(check, mini):
    torch.manual_seed(0)
    assert CHECKS[check](mini)


@pytest.mark.parametrize("name", MINIS)
def test_the_exported_file_restores_the_model(name, tmp_path):
    mini, path = load_model(name, weights="random"), tmp_path / "mini.safetensors"
    save_weights(path, mini, small=True)
    assert path.stat().st_size <= MINIS[name]
    again = load_model(name, weights=path)
    state = mini.state_dict()
    for key, tensor in again.state_dict().items():
        if not key.startswith("classifier."):  # it is fitted where it is needed
            made_anew = key.endswith("_queue") or not tensor.is_floating_point()
            assert torch.equal(tensor, state[key] if made_anew else state[key].half().float()), key
    layers = {name: layer.weight.shape for name, layer in mini.prunable_layers().items()}
    assert {name: layer.weight.shape for name, layer in again.prunable_layers().items()} == layers
    assert all(again.load_report.source == str(path) and mini.key_rules.fresh(n) for n in again.load_report.fresh)


def test_captions_fit_with_special_tokens():
    from data.tokenizer import load_tokenizer

    blip = load_model("blip-mini", weights="random")
    assert len(load_tokenizer(blip.tokenizer)) <= blip.dec < blip.enc < blip.config.text.vocab_size


def test_pretraining_batches_divide_the_queue():
    """Else old and new features of one batch would stand in different rounds of the queue."""
    from configs.schema import parse, read_yaml, task_file
    from pretraining.stages import PretrainConfig

    stages = parse(PretrainConfig, read_yaml(task_file("blip-mini", "pretrain")), "blip-mini").stages
    assert load_model("blip-mini", weights="random").config.queue % stages[-1].batch_size == 0


def test_missing_keys_are_summarised():
    """blip-mini's file leaves out its momentum copies and queues."""
    report = load_model("blip-mini").load_report
    head, *lines = str(report).splitlines()
    assert head.endswith(f"{report.loaded} tensors loaded")
    (line,) = lines
    copies = sum(name.startswith("visual_encoder_m.") for name in report.fresh)
    assert copies > 50
    assert f"fresh    {len(report.fresh)} keys (not in the file, newly initialised): " in line
    assert f"visual_encoder_m.* ({copies})" in line
    assert "image_queue, text_queue, queue_ptr" in line
    assert len(line) < 250


def test_a_few_keys_have_a_line_each():
    few = {f"a.{n}": f"b.{n}" for n in range(3)}
    report = LoadReport("file", 9, renamed=few, dropped=["head.bias", *(f"body.{n}" for n in range(8))], fresh=["x.y"])
    report.fresh.append("z")
    report.resized["z"] = "(3,) -> (4,), newly initialised"
    assert str(report).splitlines() == [
        "file: 9 tensors loaded",
        "  renamed  a.0 -> b.0",
        "  renamed  a.1 -> b.1",
        "  renamed  a.2 -> b.2",
        "  dropped  9 keys: head.bias, body.* (8)",
        "  resized  z (3,) -> (4,), newly initialised",
        "  fresh    x.y (not in the file, newly initialised)",
    ]
