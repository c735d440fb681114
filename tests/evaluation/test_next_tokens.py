"""How a pruned generative model reads on, against the classes' own losses and scores."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
import torch
import yaml

from configs.schema import parse
from console.errors import InputError
from data.batches import Side
from data.readers import make_reader
from evaluation import next_tokens_table
from evaluation.next_tokens_table import NextTokensConfig, compare, opened, read_texts
from models.library.hf_models import wrap_hf
from pruners import prune
from sparsity.mask import Mask
from tests.models.generative import pairs, saved, small

COUNT = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A LLaVA, the same with zeros in a folder and as a mask, and pairs of six pictures."""
    root = tmp_path_factory.mktemp("next")
    files = {"annotations": [str(pairs(root / "data", COUNT))], "image_roots": {"": str(root / "data")}}
    settings = {"pairs": {"reader": "processed_pairs", "files": files}, "count": COUNT, "num_workers": 0}
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    saved(root / "llava", "Llava", dtype=torch.float32)
    model = opened(f"hf:{root / 'llava'}", None, stream=False)
    mask = prune(model, [], "omp", (0.9,))[0.9]
    mask.save(root / "llava_omp_90.safetensors")
    mask.apply(model)
    saved(root / "pruned", "Llava", dtype=torch.float32)
    model.module.save_pretrained(root / "pruned", max_shard_size="20KB")
    return root


@pytest.fixture
def command(run, world):
    def compare(*arguments):
        return run(
            *("-m", "evaluation.next_tokens", "--model", f"hf:{world / 'llava'}"),
            *("--config", world / "config.yaml", "--device", "cpu", *arguments),
        )

    return compare


@pytest.mark.parametrize("family", ["Llava", "Qwen3VL", "Idefics3", "PaliGemma", "Gemma3"])
def test_the_loss_is_the_classs_own(family):
    """Of an example with padding, whose tokens are all of one batch."""
    model = wrap_hf(small(family)).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        batch = model.example(3)["general"]

    class One:
        batches, starts = 1, [0]

        def each(self):
            return lambda: batch

    read = read_texts(model, One(), lambda share: None)
    assert read.losses.mean().item() == pytest.approx(model.loss(batch).item(), rel=1e-5)
    scores = model.module(**{k: v for k, v in batch.items() if k != "labels"}).logits
    wanted = model.next_tokens(batch) != -100
    assert torch.equal(scores[wanted].argmax(-1), read.predicted)
    assert torch.equal(wanted.nonzero()[:, 0], read.pairs)


def test_the_command(command, world, tmp_path):
    """A mask and the folder with its zeros read alike; in blocks, too; and as plain loops find it."""
    paths = [str(world / name) for name in ("llava_omp_90.safetensors", "pruned")]
    done = command("--pruned", *paths, "--json", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    dense, masked, folder = json.loads((tmp_path / "found.json").read_text())
    assert [row["mask"] for row in (dense, masked, folder)] == ["dense", "llava_omp_90.safetensors", "pruned"]
    assert dense["agreement"] == dense["low"] == 100 > masked["agreement"]
    assert masked["low"] <= masked["agreement"] <= masked["high"]
    assert masked | {"mask": ""} == folder | {"mask": ""} and masked["loss"] != dense["loss"]
    assert "6 texts" in done.stdout

    models = [opened(f"hf:{world / 'llava'}", path, stream=False) for path in (None, str(world / "pruned"))]
    config = NextTokensConfig(**_side(world), count=COUNT)
    side = Side("pairs", make_reader(config.pairs, models[0].image_shape, models[0].tokenizer), 2, 0)
    same, losses = [], []
    for t in range(3):
        batch = side[t].batch
        ones, others = (model.module(**batch).logits for model in models)
        for sample in range(2):
            text = (batch["input_ids"][sample] != 98) & (batch["attention_mask"][sample] == 1)
            for position in range(1, len(text)):
                if text[position]:
                    same.append(ones[sample, position - 1].argmax() == others[sample, position - 1].argmax())
                    scores = others[sample, position - 1].log_softmax(-1)
                    losses.append(-scores[batch["input_ids"][sample, position]].item())
    assert folder["agreement"] == round(100 * sum(same).item() / len(same), 2)
    assert folder["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    items = json.loads((tmp_path / "items_pruned.json").read_text())["groups"]["tokens"]
    assert items["scores"]["agreement"] == [float(one) for one in same] and len(set(items["pictures"])) == COUNT

    done = command("--pruned", str(world / "pruned"), "--stream", "--json", tmp_path / "streamed.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "streamed.json").read_text()) == [dense, folder]


def _side(world):
    settings = yaml.safe_load((world / "config.yaml").read_text())
    return {"pairs": parse(NextTokensConfig, settings, "test").pairs}


def test_bad_input(command, world, run, tmp_path, monkeypatch):
    def refused(*arguments):
        done = command(*arguments)
        assert done.returncode == 2
        return done.stderr

    mask = str(world / "llava_omp_90.safetensors")
    assert "there is no pruned model or mask 'nowhere'" in refused("--pruned", "nowhere")
    gemma = saved(tmp_path / "gemma", "Gemma3")
    assert "is a Gemma3ForConditionalGeneration with a vocabulary of 99" in refused("--pruned", gemma)
    assert "with --stream give the folder" in refused("--pruned", mask, "--stream")
    assert "count is 8: lower it" in refused("--set", "count=8")
    assert "count 5 is no multiple of batch_size 2" in refused("--set", "count=5")
    Mask({"other.weight": torch.ones(2, 2).bool()}).save(tmp_path / "other.safetensors")
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"other\.weight"):
        patch.setattr(next_tokens_table, "read_texts", None)  # masks are read first
        args = Namespace(model=f"hf:{world / 'llava'}", pruned=[str(tmp_path / "other.safetensors")], json=None)
        args.stream, args.device = False, "cpu"
        compare(args, NextTokensConfig(**_side(world), count=COUNT))
    assert "items.json is for" in refused("--json", tmp_path / "items.json")
    done = run("-m", "evaluation.next_tokens", "--model", "clip-mini", "--config", world / "config.yaml")
    assert done.returncode == 2 and "clip-mini is not a generative model" in done.stderr
    (world / "data" / "0.png").write_bytes(b"no picture")
    assert "an evaluation needs all pairs" in refused()
