"""Masks in the authors' format, under other names, and merged into weights that stock code loads."""

import pytest
import timm
import torch

from console.errors import InputError
from models import load_model, load_task_model
from pruners import prune
from sparsity.mask import Mask
from sparsity.published import contains_mask
from tests.conftest import REFERENCE, on_meta
from training.epoch_weights import write_model


def small(name):
    return load_model(name, config=REFERENCE / f"{name}.yaml", weights="random")


def random_mask(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = model.prunable_layers()
    return Mask({name: torch.rand(layer.weight.shape, generator=generator) < 0.3 for name, layer in layers.items()})


@pytest.mark.parametrize(("name", "entries"), [("xvlm", 352), ("blip", 782), ("dino", 146)])
def test_as_many_entries_as_the_published_files(name, entries, tmp_path):
    """At full size, on the meta device: names and count only."""
    from sparsity.published import write_published

    model = on_meta(name)
    small_model = torch.nn.Module()
    written = {}
    import sparsity.published as published

    saved, published.torch.save = published.torch.save, lambda content, file: written.update(content)
    try:
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.cpu = lambda self=layer: self
        monkey, torch.Tensor.cpu = torch.Tensor.cpu, lambda self: self
        write_published(tmp_path / "m.pth", {}, model)
    finally:
        published.torch.save, torch.Tensor.cpu = saved, monkey
    assert small_model is not None
    assert len(written) == entries
    prunable = {f"{key}_pruning_mask" for key in model.prunable_layers()}
    assert prunable <= set(written)


@pytest.mark.parametrize("name", ["xvlm", "blip", "dino"])
def test_round_trip_through_the_published_format(name, tmp_path):
    model = small(name)
    mask = random_mask(model)
    mask.save(tmp_path / "mask.pth", format="pth", model=model)
    content = torch.load(tmp_path / "mask.pth", weights_only=True)
    assert all(tensor.dtype == torch.bool for tensor in content.values())
    assert Mask.load(tmp_path / "mask.pth").fitted(model) == mask
    if name == "blip":
        assert not any(key.startswith("text_decoder.bert.encoder.layer.0.intermediate") for key in content)
        assert content["text_encoder_m.encoder.layer.0.output.dense.weight_pruning_mask"].all()


def test_floats_biases_and_random_heads(tmp_path):
    """What TAMT's released files look like: floats, no biases, noise where nothing is pruned."""
    model = small("xvlm")
    mask = random_mask(model)
    content = {f"{name}_pruning_mask": mask[name].float() for name in mask}
    content["itm_head.0.weight_pruning_mask"] = torch.randn(128, 64)
    torch.save(content, tmp_path / "tamt.pth")
    assert Mask.load(tmp_path / "tamt.pth").fitted(model) == mask


@pytest.mark.parametrize("layout", ["timm", "transformers"])
def test_dino_masks_under_other_names(layout, tmp_path):
    model = small("dino")
    mask = random_mask(model)
    renamed = model.layouts[layout]({name: mask[name] for name in mask})
    torch.save({f"{name}_pruning_mask": kept for name, kept in renamed.items()}, tmp_path / "m.pth")
    assert Mask.load(tmp_path / "m.pth").fitted(model) == mask


def test_masks_of_other_models_name_the_first_keys(tmp_path):
    mask = random_mask(small("dino"))
    mask.save(tmp_path / "m.pth", format="pth", model=small("dino"))
    with pytest.raises(InputError, match=r"lacks 80 layers \(first: vision_encoder.*does not \(first: vit\.encoder"):
        Mask.load(tmp_path / "m.pth").apply(small("xvlm"))
    torch.save({"weights": torch.zeros(3)}, tmp_path / "no.pth")
    with pytest.raises(InputError, match="is not a mask file"):
        Mask.load(tmp_path / "no.pth")
    with pytest.raises(InputError, match="give the model, too"):
        mask.save(tmp_path / "x.pth", format="pth")


def test_merged_weights_load_into_stock_code():
    """timm, transformers and the official class's names take the pruned weights; the model stays dense."""
    from transformers import ViTConfig, ViTForImageClassification

    model = small("dino")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mask = prune(model, [], "omp", (0.75,))[0.75]
    stock = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=4, num_classes=10
    )
    stock.load_state_dict(mask.merge(model, layout="timm"))
    share = (stock.blocks[1].mlp.fc1.weight == 0).float().mean().item()
    assert share == pytest.approx(mask.sparsity(["vit.encoder.layer.1.intermediate.dense.weight"]), abs=1e-4)
    config = ViTConfig(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256, image_size=32,
                       patch_size=8, num_labels=10)  # fmt: skip
    other = ViTForImageClassification(config).eval()
    other.load_state_dict(mask.merge(model, layout="transformers"))
    mask_model = small("dino")
    mask_model.load_state_dict(mask.merge(model))
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(other(image).logits, mask_model.eval().logits(image), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(InputError, match="unknown layout 'onnx': this model offers timm, transformers"):
        mask.merge(model, layout="onnx")


def test_merged_blip_keeps_its_ties():
    model = small("blip")
    state = prune(model, [], "omp", (0.5,))[0.5].merge(model)
    a = state["text_encoder.encoder.layer.0.output.dense.weight"]
    assert torch.equal(a, state["text_decoder.bert.encoder.layer.0.output.dense.weight"])
    assert (a == 0).any()
    tower = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=4, num_classes=0, global_pool=""
    )
    tower.load_state_dict(
        {k.removeprefix("visual_encoder."): v for k, v in state.items() if k.startswith("visual_encoder.")}
    )


def test_transposed_layers_stay_transposed_in_files(tmp_path):
    """A Conv1D of 8 inputs and 8 outputs keeps rows [i]; the published format would take them for outputs."""
    from transformers.pytorch_utils import Conv1D

    from models.wrap import wrap

    model = wrap(Conv1D(8, 8))
    mask = prune(model, [], "omp", (0.5,), allocation="row")[0.5]
    with pytest.raises(InputError, match="'weight' keeps its matrix transposed"):
        mask.save(tmp_path / "mask.pth", format="pth", model=model)
    torch.save({"weight_pruning_mask": mask["weight"]}, tmp_path / "mask.pth")
    write_model(tmp_path / "weights.safetensors", model.inner, 1, mask)
    fitted = Mask.load(tmp_path / "mask.pth").fitted(model)
    for found in (fitted, Mask.load(tmp_path / "weights.safetensors")):
        assert torch.equal(found.matrix("weight"), mask["weight"].t())
        assert found.matrix("weight").sum(dim=1).tolist() == [4] * 8


def test_runs_of_the_published_gradual_program(tmp_path):
    """Weights below `module.`, whose zeros are the mask; as weights they load, too."""
    model = load_task_model("blip-mini", "captioning")
    mask = prune(load_model("blip-mini"), [], "omp", (0.8,))[0.8].fitted(model)
    mask.apply(model)
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    content = {"epoch": 4, "model_state_dict": state, "optimizer_state_dict": {}, "loss": 1.0, "lr_schedule": {}}
    path = tmp_path / "epoch_4globalstep_100.pth"
    torch.save(content, path)
    assert contains_mask(path)
    assert Mask.load(path).fitted(model) == mask
    again = load_task_model("blip-mini", "captioning", weights=path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
