"""Generative vision-language models of Hugging Face: each family answers all questions."""

from __future__ import annotations

import pytest
import torch

from configs.schema import parse
from console.errors import InputError
from models import load_model
from models.conformance import check_model
from models.library.hf_classes import record_of
from models.library.hf_generative import IMAGE, PADDING, TEXT
from models.library.hf_models import wrap_hf
from pruners import prune
from pruners.preparing import calibration_batches
from pruners.settings import PruneConfig
from tests.models.generative import CONFIGS, pairs, saved, small


@pytest.mark.parametrize("family", CONFIGS)
def test_a_family_conforms(family):
    module = small(family)
    model = wrap_hf(module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        batch = model.example(4)["general"]
    record = record_of(type(module).__name__)
    kinds = record.kinds(module.config, batch)
    assert {PADDING, TEXT, IMAGE} == set(kinds.flatten().tolist())
    assert set(map(model.modality_of, model.prunable_layers())) == {"vision", "language"} | (
        set() if family == "Gemma3" else {"projector"}
    )
    assert not any("lm_head" in name for name in model.prunable_layers())
    rows = [module.get_submodule(path) for path in record.blocks]
    assert all(isinstance(row, torch.nn.ModuleList) for row in rows)
    assert check_model(model, family)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_folder_gives_the_same_weights(family, tmp_path):
    original = small(family).to(torch.bfloat16)
    loaded = load_model(f"hf:{saved(tmp_path / 'model', family)}")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, original.get_parameter(name).float())


@pytest.mark.parametrize("family", [family for family in CONFIGS if family != "SmolVLM"])
def test_pairs_become_batches_by_the_models_processor(family, tmp_path):
    model = load_model(f"hf:{saved(tmp_path / 'model', family)}")
    files = {"annotations": [str(pairs(tmp_path / "data"))], "image_roots": {"": str(tmp_path / "data")}}
    side = {"reader": "processed_pairs", "files": files}
    config = parse(PruneConfig, {"sides": {"general": side}, "batch_size": 3, "num_workers": 0}, "test")
    batches = calibration_batches(model, config)
    batch = next(iter(batches))["general"]
    record = record_of(type(model.module).__name__)
    kinds = record.kinds(model.module.config, batch)
    assert batch["input_ids"].shape[0] == 3
    assert (kinds == IMAGE).any(dim=1).all() and (kinds == TEXT).any(dim=1).all()
    assert torch.isfinite(model.loss(batch))
    mask = prune(model, batches, "wanda", (0.5,))[0.5]
    assert abs(mask.sparsity() - 0.5) < 0.02


def test_without_a_processor_there_is_a_sentence():
    config = parse(PruneConfig, {"sides": {"general": {"reader": "processed_pairs", "files": {}}}}, "test")
    with pytest.raises(InputError, match="needs the model's own processor"):
        calibration_batches(wrap_hf(small("Llava")), config)
