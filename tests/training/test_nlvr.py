"""Finetuning on statements about two images: dense, under a mask, pruning while training; results against by hand."""

import json
from itertools import groupby

import pytest
import torch
import yaml
from safetensors.torch import load_file

from configs.schema import parse
from data.image_pairs import StatementsToJudge
from data.miniworld import ensure
from data.tokenizer import load_tokenizer
from evaluation.items import groups_of
from models import load_model, load_task_model
from pruners import prune
from sparsity.mask import Mask
from tasks.nlvr import NLVRConfig
from tests.training.small_finetuning import options, write_config

BLIP = "blip-mini"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return ensure("nlvr", tmp_path_factory.mktemp("world"), workers=1, show=False, scale=0.01)


@pytest.fixture(scope="module")
def mask(tmp_path_factory):
    path = tmp_path_factory.mktemp("mask") / "omp75.safetensors"
    prune(load_model(BLIP), [], "omp", (0.75,))[0.75].save(path)
    return path


@pytest.fixture
def config(world, tmp_path):
    return write_config(tmp_path / "nlvr.yaml", world, "nlvr", BLIP, epochs=1, eval_batch=5)


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_dense_run(config, run, tmp_path):
    """Metrics and items against the weights that it leaves; the picture; the same bits again."""
    found = run(*options("nlvr", config, tmp_path / "out", "--dense", "--debug", mini=BLIP))
    assert found.returncode == 0, found.stderr
    folder = tmp_path / "out_debug"
    assert (folder / "samples.png").stat().st_size > 10_000
    metrics = results_of(folder)["metrics"]
    parsed = parse(NLVRConfig, yaml.safe_load(config.read_text()), "config")
    model = load_task_model(BLIP, "nlvr", weights=folder / "best.safetensors")
    data = StatementsToJudge(parsed.test, model.image_shape, load_tokenizer(model.tokenizer), parsed.train, 32)
    batch = data.collate([data[i] for i in range(32)])
    with torch.no_grad():
        right = (model.logits(batch).argmax(dim=1) == batch["label"]).tolist()
    assert metrics["accuracy"] == pytest.approx(100 * sum(right) / 32, abs=0.01)
    sentences = [one.identifier.split("-")[1::2] for one in data.statements]
    order = sorted(range(32), key=sentences.__getitem__)
    both = [all(right[i] for i in group) for _, group in groupby(order, key=sentences.__getitem__)]
    assert metrics["consistency"] == pytest.approx(100 * sum(both) / len(both), abs=0.01)

    items = groups_of(json.loads((folder / "items.json").read_text()), "items.json")["items"]
    assert items.ids == [one.identifier for one in data.statements]
    assert items.scores == {"accuracy": [float(one) for one in right]}
    shown = {}
    for one, picture in zip(data.statements, items.pictures, strict=True):
        assert shown.setdefault(picture, set(one.images)) == set(one.images)
    assert len(set(map(frozenset, shown.values()))) == len(shown) < len({one.images for one in data.statements})

    again = run(*options("nlvr", config, tmp_path / "again", "--dense", "--debug", mini=BLIP))
    assert again.returncode == 0, again.stderr
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("out_debug", "again_debug"))
    assert all(torch.equal(one[name], two[name]) for name in one)

    alone = options("nlvr", config, tmp_path / "alone", "--evaluate", "-pre", folder / "best.safetensors", "--debug")
    alone[alone.index("xvlm-mini")] = BLIP
    done = run(*alone)
    assert done.returncode == 0, done.stderr
    assert results_of(tmp_path / "alone_debug")["metrics"] == metrics

    alone[alone.index(str(tmp_path / "alone"))] = str(tmp_path / "dev")
    done = run(*alone, "--split", "val")
    assert done.returncode == 0, done.stderr
    judged = groups_of(json.loads((tmp_path / "dev_debug" / "items.json").read_text()), "items.json")["items"]
    dev = StatementsToJudge(parsed.val, model.image_shape, load_tokenizer(model.tokenizer), parsed.train, 32)
    assert judged.ids == [one.identifier for one in dev.statements] != items.ids
    accuracy = 100 * sum(judged.scores["accuracy"]) / len(judged.ids)
    assert results_of(tmp_path / "dev_debug")["metrics"]["accuracy"] == pytest.approx(accuracy, abs=0.01)


@pytest.mark.parametrize("inherit", [False, True])
def test_a_run_under_a_mask(inherit, config, mask, run, tmp_path):
    """Merge layers, of which pretraining has none, stay dense unless asked for."""
    more = ["--inherit_mask"] if inherit else []
    done = run(*options("nlvr", config, tmp_path / "out", "--mask", mask, "--debug", *more, mini=BLIP))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out_debug"
    model = load_task_model(BLIP, "nlvr", weights=folder / "last.safetensors", overrides={"inherit_mask": inherit})
    kept = Mask.load(mask).fitted(model)
    merging = [name for name in kept if "merge_layer" in name]
    assert merging
    for name, layer in model.prunable_layers().items():
        assert not layer.weight[~kept[name]].any()
        assert (kept.kept(name) == kept.size(name)) == (name in merging and not inherit)
    counted = results_of(folder)["kept"]["after_training"]["all"]
    assert counted["kept"] <= sum(kept.kept(name) for name in kept)


def test_a_run_that_prunes_while_it_trains(config, run, tmp_path):
    prunes = ["--prune", "magnitude", "-s", 80, "--dense_until", 0, "--interval", 1, "--settle", 0.5]
    done = run(*options("nlvr", config, tmp_path / "out", *prunes, "--debug", mini=BLIP))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out_debug"
    mask = Mask.load(folder / "mask.safetensors")
    total = sum(map(mask.size, mask))
    assert sum(map(mask.kept, mask)) == total - round(0.8 * total)
    assert any(mask.kept(name) < mask.size(name) for name in mask if "merge_layer" in name)
    weights = load_file(folder / "last.safetensors")
    assert all(not weights[name][~mask[name]].any() for name in mask)


def test_xvlm_is_refused(run, tmp_path):
    done = run("nlvr.py", "--model", "xvlm-mini", "--dense", "--output_dir", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "model 'xvlm-mini' has no configuration for 'nlvr'" in done.stderr
    done = run("nlvr.py", "--model", "xvlm-mini", "--config", "configs/blip-mini/nlvr.yaml", "--dense", "--output_dir",
               str(tmp_path / "out"))  # fmt: skip
    assert done.returncode == 2
    assert "xvlm-mini has no model for 'nlvr': it has models for retrieval" in done.stderr
    assert not (tmp_path / "out").exists()
