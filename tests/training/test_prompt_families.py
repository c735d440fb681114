"""VPNs on every kind of classifier, small and with random weights where the official ones are not at hand."""

import json

import pytest
import torch
import transformers
import yaml

from configs.schema import task_file
from data.miniworld import ensure
from sparsity.mask import Mask
from tests.training.small_finetuning import placed
from tests.training.small_prompts import MODEL, command, draw

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 7}
KINDS = {
    "timm:resnet50": {"channels": [8, 8, 16, 16], "num_classes": 7},
    "timm:vgg16": {"mlp_ratio": 0.01, "num_classes": 7},
    "timm:vit_small_patch16_224": VIT,
    "timm:mobilenetv3_small_050": {"num_classes": 7},
}
PICTURES = {"pretrained_cfg_overlay": {"input_size": [3, 32, 32]}}
CONVOLUTIONS = 4  # axes


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return {"four": draw(tmp_path_factory.mktemp("pictures") / "four", 4)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Small classifiers as Hugging Face saves them."""
    root = tmp_path_factory.mktemp("hf")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vit = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=6)
    transformers.ViTForImageClassification(vit).save_pretrained(root / "vit")
    residual = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=6)
    transformers.ResNetForImageClassification(residual).save_pretrained(root / "resnet")
    (root / "resnet" / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 32}}))
    return {kind: f"hf:{root / kind}" for kind in ("vit", "resnet")}


def settings_of(name, sets, folder, **model):
    """The library's own configuration with data, sizes and steps of a test."""
    library = name.partition(":")[0]
    settings = yaml.safe_load(task_file(f"{library}:x", "prompts").read_text())
    settings |= {"epochs": 2, "batch_size": 8, "prompts": {"prompt_width": 4}, "datasets": sets}
    settings["model"] |= model
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def pruned(run, name, config, out, *more):
    words = command(config, out, "--no_samples", "--debug", *more)
    words[words.index("timm:resnet18")] = name
    if name.startswith("hf:") or "-mini" in name:
        at = words.index("-pre")
        del words[at : at + 2]
    done = run(*words)
    assert done.returncode == 0, done.stderr
    folder = out.with_name(f"{out.name}_debug")
    mask = Mask.load(folder / "mask.safetensors")
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    assert {"top1", "plain_top1", "search_top1", "search_plain_top1"} == metrics.keys()
    total = sum(map(mask.size, mask))
    assert sum(map(mask.kept, mask)) == total - round(0.7 * total)
    return mask, " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("name", KINDS)
def test_classifiers_of_timm(name, sets, run, tmp_path):
    """Convolutions count without --conv; grouped ones do not, and are named."""
    model = KINDS[name] | ({} if "vit" in name else PICTURES)
    config = settings_of(name, sets, tmp_path, **model)
    mask, said = pruned(run, name, config, tmp_path / "out", "--prune", "vpns", "-s", "70")
    assert any(len(mask.shape(layer)) == CONVOLUTIONS for layer in mask)
    assert ("a convolution in groups" in said) == ("mobilenet" in name)


def test_the_classifier_on_request(sets, run, tmp_path):
    config = settings_of("timm:resnet18", sets, tmp_path, **MODEL, prune_head=True)
    mask, _ = pruned(run, "timm:resnet18", config, tmp_path / "out", "--prune", "vpns", "-s", "70")
    assert mask.shape("fc.weight") == (7, 16)
    config = settings_of("timm:resnet18", sets, tmp_path, **MODEL)
    words = ("--mask", tmp_path / "out_debug" / "mask.safetensors", "--prompt", "new", "--no_samples", "--debug")
    done = run(*command(config, tmp_path / "dense_head", *words))
    assert done.returncode == 0, done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    assert "note: 1 layer is in the mask, but not prunable in this model, and stays dense: fc.weight" in said


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("mapping", ["flm", "head"])
def test_classifiers_of_hugging_face(kind, mapping, folders, sets, run, tmp_path):
    config = settings_of(folders[kind], sets, tmp_path, prune_head=mapping == "flm")
    more = ("--prune", "vpns", "-s", "70", "--mapping", mapping)
    mask, _ = pruned(run, folders[kind], config, tmp_path / "out", *more)
    assert any(len(mask.shape(layer)) == CONVOLUTIONS for layer in mask)
    assert any("classifier" in layer for layer in mask) == (mapping == "flm")


@pytest.mark.parametrize("mini", ["dino-mini", "resnet-mini"])
def test_the_minis(mini, run, tmp_path):
    world = ensure("flowers102", tmp_path / "world", workers=1, show=False, scale=0.02)
    settings = placed(yaml.safe_load(task_file(mini, "prompts").read_text()), world)
    settings["datasets"] = {"flowers102": settings["datasets"]["flowers102"]}
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(settings | {"batch_size": 8}))
    pruned(run, mini, config, tmp_path / "out", "--prune", "vpns", "-s", "70")


def test_a_mask_says_whether_convolutions_count(sets, run, tmp_path):
    """Made with them it needs no --conv, and without them none of a configuration's."""
    config = settings_of("timm:vit_small_patch16_224", sets, tmp_path, **VIT)
    name, found = "timm:vit_small_patch16_224", {}
    for conv in (True, False):
        settings = yaml.safe_load(config.read_text())
        settings["model"]["conv"] = conv
        path = tmp_path / f"{conv}.yaml"
        path.write_text(yaml.safe_dump(settings))
        found[conv], _ = pruned(run, name, path, tmp_path / str(conv), "--prune", "vpns", "-s", "70")
        assert ("patch_embed.proj.weight" in found[conv]) == conv
    for conv in (True, False):
        mask = tmp_path / f"{conv}_debug" / "mask.safetensors"
        words = command(tmp_path / f"{not conv}.yaml", tmp_path / f"under{conv}", "--mask", mask, "--prompt", "new")
        words[words.index("timm:resnet18")] = name
        done = run(*words, "--no_samples", "--debug")
        assert done.returncode == 0, done.stderr
