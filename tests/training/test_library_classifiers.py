"""timm's and Hugging Face's classifiers of images, finetuned and tested dense and under masks of their convolutions."""

import json
import os
import signal

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from torch import nn

import training.loop
from configs.schema import parse
from console.interrupt import interrupt
from data.classification import ImagesToClassify
from data.labelled import LabelledSet
from data.miniworld import ensure
from models import load_model, load_task_model
from pruners import prune
from tests.training.small_finetuning import flowers
from training.run import DEBUG_SAMPLES

SMALL_RESNET = {"channels": [8, 8, 16, 16], "pretrained_cfg_overlay": {"input_size": [3, 32, 32]}}
CLASSES = 24  # of the small world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return ensure("flowers102", tmp_path_factory.mktemp("world"), workers=1, show=False, scale=0.02)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small classifier of each kind as Hugging Face saves it, of other classes than the data have."""
    root = tmp_path_factory.mktemp("hf")
    torch.manual_seed(0)
    residual = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tower = transformers.ViTConfig(**sizes, image_size=32, patch_size=8)
    transformers.ResNetForImageClassification(residual).save_pretrained(root / "resnet")
    (root / "resnet" / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 32}}))
    transformers.ViTModel(tower).save_pretrained(root / "vit")  # no classifier at all
    return {"resnet": f"hf:{root / 'resnet'}", "vit": f"hf:{root / 'vit'}", "timm": "timm:resnet18"}


def command(name, config, out, *more):
    options = ["--model", name, "--config", config, "--output_dir", out, "--accelerator", "cpu"]
    return ["image_classification.py", *options, "--no_samples", *more]


def write(path, world, **model):
    settings = flowers(world) | {"epochs": 2, "batch_size": 8, "recipe": {"lr": 1.0e-3}, "model": model}
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize("kind", ["timm", "resnet", "vit"])
def test_finetuned_dense_and_tested(kind, folders, world, run, tmp_path):
    model = SMALL_RESNET if kind == "timm" else {}
    config = write(tmp_path / "c.yaml", world, **model)
    done = run(*command(folders[kind], config, tmp_path / "out", "--dense", *(["-pre", "random"] * (kind == "timm"))))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 0 <= results["metrics"]["top1"] <= 100
    again = load_task_model(
        folders[kind],
        "image_classification",
        None,
        tmp_path / "out" / "last.safetensors",
        {**model, "classes": CLASSES},
    )
    assert not again.load_report.fresh
    assert again.logits(torch.randn(2, 3, 32, 32)).shape == (2, CLASSES)


@pytest.mark.parametrize("kind", ["timm", "resnet"])
def test_convolutions_from_the_command_line(kind, folders, world, run, tmp_path):
    """prune.py --conv, then a run under the mask, which says so: its zeros stay, running statistics follow."""
    model = SMALL_RESNET if kind == "timm" else {}
    start = load_model(folders[kind], weights="random", overrides={**model, "conv": True})
    torch.save(start.state_dict(), tmp_path / "start.pth")
    mask = prune(start, [start.example(4)], "wanda", (0.75,))[0.75]
    assert all(len(mask.shape(name)) == 4 for name in mask), "no linear layer is left but the classifier"
    mask.save(tmp_path / "mask.safetensors")
    config = write(tmp_path / "c.yaml", world, **model)
    more = ["--mask", tmp_path / "mask.safetensors", "-pre", tmp_path / "start.pth"]
    done = run(*command(folders[kind], config, tmp_path / "out", *more))
    assert done.returncode == 0, done.stderr
    state, before = load_file(tmp_path / "out" / "last.safetensors"), start.state_dict()
    for name in mask:
        assert not state[name][~mask[name]].any(), name
        assert not torch.equal(state[name][mask[name]], before[name][mask[name]]), name
    statistics = [name for name in state if name.endswith(("running_mean", "running_var"))]
    assert statistics
    assert all(not torch.equal(state[name], before[name]) for name in statistics)
    kept = json.loads((tmp_path / "out" / "results.json").read_text())["kept"]
    assert kept["after_loading"] == kept["after_training"]


def test_prune_py_prunes_convolutions(world, run, tmp_path):
    """The command line of the README, on the pictures of the small world."""
    settings = {"files": {"folder": str(tmp_path / "images")}, "reader": "labelled_images"}
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
    for number, path in enumerate(sorted((world / "data" / "flowers102" / "images").glob("*"))[:8]):
        (tmp_path / "images" / "ab"[number % 2] / path.name).write_bytes(path.read_bytes())
    (tmp_path / "prune.yaml").write_text(yaml.safe_dump({"sides": {"general": settings}, "batch_size": 2}))
    options = ["--config", tmp_path / "prune.yaml", "--weights", "random", "--num_batches", "1", "--num_workers", "0"]
    options += ["-s", "75", "--output_dir", tmp_path / "out"]
    done = run("prune.py", "--model", "timm:resnet18", "--pruner", "wanda", "--conv", *options)
    assert done.returncode == 0, done.stderr
    mask = load_file(tmp_path / "out" / "wanda" / "timm-resnet18_wanda_75_seed42.safetensors")
    assert "conv1.weight" in mask
    refused = run("prune.py", "--model", "timm:resnet18", "--pruner", "wanda", *options)
    assert refused.returncode == 2
    assert "a convolution, which conv=True (--conv) prunes" in refused.stderr


def test_a_stopped_run_ends_with_the_same_bits(world, run, tmp_path, monkeypatch):
    """Snapshots hold the wrapped module under its own names, running statistics included."""
    config = write(tmp_path / "c.yaml", world, **SMALL_RESNET)
    options = ("-pre", "random", "--dense", "--debug", "--snapshot_seconds", "1e9")
    done = run(*command("timm:resnet18", config, tmp_path / "whole", *options))
    assert done.returncode == 0, done.stderr
    set_rate = training.loop.set_rate

    def strike(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return set_rate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training.loop, "set_rate", strike)
        assert run(*command("timm:resnet18", config, tmp_path / "part", *options)).returncode == 130
    interrupt.requested = False
    done = run(*command("timm:resnet18", config, tmp_path / "part", *options))
    assert done.returncode == 0, done.stderr
    whole, part = (load_file(tmp_path / f"{name}_debug" / "last.safetensors") for name in ("whole", "part"))
    assert all(torch.equal(tensor, part[name]) for name, tensor in whole.items())


@pytest.mark.slow
def test_two_processes_test_one_model(world, run_ranks, tmp_path):
    """What they find together is what the weights that they leave find in one process."""
    config = write(tmp_path / "c.yaml", world, **SMALL_RESNET)
    options = ("-pre", "random", "--dense", "--debug", "--devices", "2")
    done = run_ranks(*command("timm:resnet18", config, tmp_path / "out", *options))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out_debug"
    items = json.loads((folder / "items.json").read_text())
    model = load_task_model(
        "timm:resnet18",
        "image_classification",
        weights=folder / "last.safetensors",
        overrides={**SMALL_RESNET, "classes": CLASSES},
    )
    files = flowers(world)["datasets"]["flowers102"]["test"]
    data = ImagesToClassify(parse(LabelledSet, files, "test"), model.image_shape, DEBUG_SAMPLES)
    with torch.no_grad():
        right = [int(model.logits(data[i][0][None]).argmax()) == data[i][1] for i in range(len(data))]
    results = json.loads((folder / "results.json").read_text())
    assert results["metrics"]["top1"] == round(100 * sum(right) / len(right), 2)
    assert [bool(score) for score in items["groups"]["items"]["scores"]["top1"]] == right


def test_a_nested_wrapped_model_loads_its_state():
    torch.manual_seed(0)
    first, second = (
        nn.ModuleDict(
            {"model": load_model("timm:resnet18", weights="random", overrides={**SMALL_RESNET, "conv": True})}
        )
        for _ in range(2)
    )
    with torch.no_grad():
        for tensor in first.state_dict().values():
            tensor.add_(1)
    assert "model.conv1.weight" in first.state_dict()
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_channels_without_any_weight():
    """What a pruned channel gives is its normalisation's bias, in training and after; gradients are finite."""
    model = load_model("timm:resnet18", weights="random", overrides={**SMALL_RESNET, "conv": True})
    with torch.no_grad():
        model.module.conv1.weight[:4] = 0
        model.module.bn1.bias[:4] = torch.tensor([0.0, 1.0, -1.0, 2.0])
    batch = model.example(4)["general"]
    for mode in (True, False):
        model.train(mode)
        seen = []
        hook = model.module.bn1.register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(output.clone())
        )
        loss = sum(model(batch).values())
        hook.remove()
        expected = torch.tensor([0.0, 1.0, -1.0, 2.0])[:, None, None].expand_as(seen[0][0, :4])
        if mode:
            torch.testing.assert_close(seen[0][0, :4], expected)
            loss.backward()
            assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
            for _ in range(200):  # until the running statistics are those of the pruned channels
                model(batch)
        else:
            torch.testing.assert_close(seen[0][0, :4], expected, atol=1e-3, rtol=0)
