"""The first stage of captioning and the second that goes on from it: recipe, loss, mask, refusals."""

import argparse
import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from configs.schema import parse, read_yaml, task_file
from data.captioning import crop_to_box
from data.images import read_image
from data.miniworld import ensure
from data.readers import make_reader
from data.tokenizer import load_tokenizer
from models import load_model, load_task_model
from models.xvlm.captioning import captioning_name
from pruners import prune
from sparsity.mask import Mask
from tasks.captioning_pretrain import HEAD, FirstStage, FirstStageConfig, use_first_stage
from tests.conftest import REFERENCE, runner
from tests.models.test_xvlm import listed
from tests.training.small_finetuning import placed
from tests.training.toy import one_process
from training.evaluating import Evaluation

LAYERS = ("vision_encoder.encoder.layers.0.mlp.fc1", "text_decoder.bert.encoder.layer.3.crossattention.self.key")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Some eighty pictures for the first stage, some twenty for the second."""
    root = tmp_path_factory.mktemp("world")
    for part in ("calibration", "pretrain", "itr", "ic"):
        world = ensure(part, root, workers=1, show=False, scale=0.008)
    return world


@pytest.fixture(scope="module")
def mask(tmp_path_factory):
    path = tmp_path_factory.mktemp("mask") / "omp75.safetensors"
    prune(load_model("xvlm-mini"), [], "omp", (0.75,))[0.75].save(path)
    return path


def settings_of(task, world):
    """The shipped configuration of the mini, in the small world."""
    settings = placed(yaml.safe_load(task_file("xvlm-mini", task).read_text()), world) | {"batch_size": 8}
    if task == "captioning_pretrain":
        settings["train"]["files"]["shards"] = ["data/pretrain/sbu/00000.tar"]  # so small a world has one
    return settings


@pytest.fixture(scope="module")
def config(world, tmp_path_factory):
    """Task -> configuration file."""
    folder = tmp_path_factory.mktemp("config")
    for task in ("captioning_pretrain", "captioning"):
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(settings_of(task, world)))
    return lambda task: folder / f"{task}.yaml"


def options(task, config, out, *more, model="xvlm-mini"):
    """--debug: two steps and a small evaluation, into <out>_debug."""
    command = [f"{task}.py", "--model", model, "--config", config, "--output_dir", out, "--accelerator", "cpu"]
    return [*map(str, [*command, "--debug", *more]), *(["--skip_eval"] if task == "captioning" else [])]


@pytest.fixture(scope="module")
def first(config, mask, tmp_path_factory):
    """The folders of a first stage under the mask, and of a dense one."""
    out = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        for name, how in (("sparse", ["--mask", mask]), ("dense", ["--dense"])):
            done = runner(patch)(*options("captioning_pretrain", config("captioning_pretrain"), out / name, *how))
            assert done.returncode == 0, done.stderr
    return {name: out / f"{name}_debug" for name in ("sparse", "dense")}


def zeros_kept(weights, mask):
    """Pruned weights are zero, and (all but) all others are not."""
    for name, kept in mask.items():
        assert (weights[name][~kept] == 0).all(), name
        assert (weights[name][kept] != 0).float().mean() > 0.999, name


# -- the recipe -----------------------------------------------------------------------------------------


def test_the_published_recipe():
    config = parse(FirstStageConfig, read_yaml(task_file("xvlm", "captioning_pretrain")), "file")
    recipe = config.recipe
    assert (config.epochs, config.accumulation(1), config.accumulation(4), config.snapshot_steps) == (1, 4, 1, 1024)
    assert (recipe.lr, recipe.weight_decay, recipe.betas, recipe.eps, recipe.clip) == (3e-5, 0.01, [0.9, 0.98], 1e-8, 1)
    assert (recipe.schedule.warmup, recipe.schedule.decay) == (0.1, "linear")
    assert config.model == {} and read_yaml(task_file("xvlm", "model"))["vision"]["image_size"] == 224
    train = config.train
    assert (train.reader, train.max_words, train.max_tokens) == ("first_stage_captions", 40, 40)
    assert dataclasses.astuple(train.augmentation)[:1] == ([0.2, 1.0],) and train.augmentation.ops == 2
    assert {name.split("/")[-1].split("_")[0] for name in train.files.annotations} == set(train.files.image_roots)


def test_images_are_cropped_to_the_drawn_box(world):
    config = parse(FirstStageConfig, settings_of("captioning_pretrain", world), "file")
    shape = load_model("xvlm-mini").image_shape
    tokenizer = load_tokenizer("weights/mini-vocab.txt")
    reader = make_reader(config.train, shape, tokenizer)
    boxed = [i for i in range(len(reader.source)) if (reader.source.record(i) or {}).get("bb")]
    assert 0 < len(boxed) < len(reader.source)  # the rest is shown whole
    for index in boxed[:4]:
        record, image = reader.source.record(index), read_image(reader.source.file(index))
        for seed in range(4):
            pixels, ids = reader.sample(index, random.Random(seed))
            shown = []
            for text, box in zip(record["caption"], record["bb"], strict=True):
                if tokenizer.text(ids) == text:
                    torch.manual_seed(0)
                    shown.append(torch.equal(pixels, reader._transform(crop_to_box(image, box))))
            assert any(shown), record
    whole = next(i for i in range(len(reader.source)) if i not in boxed)
    pixels, _ = reader.sample(whole, random.Random(0))
    assert torch.equal(pixels, reader._transform(reader.source.read(whole)[0]))


def test_the_held_out_loss_by_hand(world):
    """Sum over all words but [CLS], divided by their number; batches of different lengths weigh by their words."""
    settings = settings_of("captioning_pretrain", world) | {"eval_batch": 3}
    config = parse(FirstStageConfig, settings, "file")
    model = load_task_model("xvlm-mini", "captioning_pretrain")
    task = FirstStage(config, model, load_tokenizer("weights/mini-vocab.txt"))
    total, words = 0.0, 0
    for t in range(task._held_out.batches):
        batch = task._held_out[t].batch
        with torch.no_grad():
            states = model.image_states(batch["image"])
            said = model.caption_logits(batch["text_ids"], batch["text_atts"], states).log_softmax(-1)
        for row, ids, atts in zip(said, batch["text_ids"], batch["text_atts"], strict=True):
            for position in range(1, int(atts.sum())):
                total -= row[position - 1, ids[position]].item()
                words += 1
    assert words > 10
    look = Evaluation(one_process(), "val", 1)
    found = task.evaluate(model, look)
    assert found["lm"] == pytest.approx(total / words, abs=2e-4)
    assert FirstStage(dataclasses.replace(config, val=None), model, None).evaluate(model, look) == {}


# -- two stages -----------------------------------------------------------------------------------------


def test_the_first_stages_weights_contain_their_mask(first, mask):
    state = load_file(first["sparse"] / "last.safetensors")
    model = load_task_model("xvlm-mini", "captioning_pretrain")
    expected = Mask.load(mask).fitted(model)
    assert {name for name in state if name.endswith("_pruning_mask")} == {f"{name}_pruning_mask" for name in expected}
    zeros_kept(state, expected)
    inside = Mask.load(first["sparse"] / "last.safetensors")
    assert inside.fitted(model) == expected
    assert inside.source["pruner"] == "omp" and inside.modalities[f"{LAYERS[1]}.weight"] == "fusion"
    results = json.loads((first["sparse"] / "results.json").read_text())
    assert results["metrics"].keys() == {"lm"} and results["run"]["mask"]["sparsity"] == pytest.approx(0.75, abs=1e-6)
    before = load_model("xvlm-mini").state_dict()["text_encoder.bert.encoder.layer.3.output.dense.weight"]
    name = "text_decoder.bert.encoder.layer.3.output.dense.weight"
    assert not torch.equal(state[name][expected[name]], before[expected[name]])  # it has learnt something
    dense = load_file(first["dense"] / "last.safetensors")
    assert not any(name.endswith("_pruning_mask") for name in dense)
    assert (dense[name] != 0).float().mean() > 0.999


def test_the_second_stage_goes_on_under_the_same_mask(first, mask, config, run, tmp_path):
    start = first["sparse"] / "last.safetensors"
    command = options("captioning", config("captioning"), tmp_path / "second", "--load_capt_pretrain", "-pre", start)
    done = run(*command)
    assert done.returncode == 0, done.stderr
    last = load_file(tmp_path / "second_debug" / "last.safetensors")
    expected = Mask.load(mask).fitted(load_task_model("xvlm-mini", "captioning"))
    zeros_kept(last, expected)
    assert not any(name.endswith("_pruning_mask") for name in last)  # a captioning file as any other
    run_of = json.loads((tmp_path / "second_debug" / "results.json").read_text())["run"]
    assert run_of["mask"]["pruner"] == "omp" and run_of["mask"]["sparsity"] == pytest.approx(0.75, abs=1e-6)
    beside = run(*command, "--mask", mask, "--incremental")
    assert beside.returncode == 0 and "--mask is not used" in " ".join(beside.stderr.split())
    again = load_file(tmp_path / "second_debug_2" / "last.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in last.items())


def test_dense_ignores_the_mask_inside(first, config, run, tmp_path):
    command = options("captioning", config("captioning"), tmp_path / "out", "--load_capt_pretrain", "--dense")
    done = run(*command, "-pre", first["sparse"] / "last.safetensors")
    assert done.returncode == 0, done.stderr
    start, last = (load_file(folder / "last.safetensors") for folder in (first["sparse"], tmp_path / "out_debug"))
    for layer in LAYERS:
        pruned = ~start[f"{layer}.weight_pruning_mask"].bool()
        assert (start[f"{layer}.weight"][pruned] == 0).all()
        assert (last[f"{layer}.weight"][pruned] != 0).float().mean() > 0.9
    assert json.loads((tmp_path / "out_debug" / "results.json").read_text())["run"]["mask"] is None


def test_where_a_second_stage_writes(first, monkeypatch):
    from captioning import parse_args
    from sparsity.progressive_config import ProgressiveConfig
    from training.run import output_folder

    args = parse_args(["-m", "xvlm-mini", "--load_capt_pretrain", "-pre", str(first["sparse"] / "last.safetensors")])
    use_first_stage(args)
    config = argparse.Namespace(progressive=None)
    assert str(output_folder(args, config, Path("captioning"), 1)) == "runs/captioning/xvlm-mini_sparse_debug_seed1"
    args = parse_args(["-m", "xvlm-mini", "--mask", "masks/xvlm-mini_omp_75_seed42.safetensors"])
    assert str(output_folder(args, config, Path("captioning"), 1)) == "runs/captioning/xvlm-mini_omp_75_seed42_seed1"
    config = argparse.Namespace(progressive=ProgressiveConfig(prune="platon", sparsity=60))
    args = parse_args(["-m", "xvlm-mini"])
    assert str(output_folder(args, config, Path("captioning"), 1)) == "runs/captioning/xvlm-mini_platon_60_seed1"
    args = parse_args(["-m", "xvlm-mini", "--dense", "--debug", "--output_dir", "runs/x/"])
    assert str(output_folder(args, config, Path("captioning"), 1)) == "runs/x_debug"


@pytest.mark.parametrize(
    ("task", "start", "more", "message"),
    [
        ("captioning", None, ["--load_capt_pretrain"], "give its weights with -pre FILE"),
        ("captioning", "dense", ["--load_capt_pretrain"], "contains no mask, so its first stage was dense"),
        ("captioning", "weights/xvlm-mini.safetensors", ["--load_capt_pretrain"], "is not from a first stage"),
        (
            "captioning",
            "weights/xvlm-mini.safetensors",
            ["--load_capt_pretrain", "--dense"],
            "is not from a first stage",
        ),
        ("captioning", "nowhere.safetensors", ["--load_capt_pretrain"], "nowhere.safetensors: no such file"),
        ("captioning", "sparse", ["--dense"], "continue a first stage with captioning.py --load_capt_pretrain"),
        ("captioning", "sparse", ["--mask", "any.safetensors"], "contains a mask: give it as --mask as well"),
        ("captioning_pretrain", None, ["--dense", "--set", "eval_batch=0"], "eval_batch must be at least 1"),
        ("captioning_pretrain", "sparse", ["--mask", "any.safetensors"], "contains a mask: give it as --mask as well"),
    ],
)
def test_refusals(task, start, more, message, first, config, run, tmp_path):
    start = first[start] / "last.safetensors" if start in first else start
    done = run(*options(task, config(task), tmp_path / "out", *more, *(["-pre", start] if start else [])))
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "out_debug").exists()


def test_blip_has_no_first_stage(first, config, run, tmp_path):
    more = ["--load_capt_pretrain", "-pre", first["sparse"] / "last.safetensors"]
    done = run(*options("captioning", config("captioning"), tmp_path / "out", *more, model="blip-mini"))
    assert done.returncode == 2
    assert "model 'blip-mini' has no configuration for 'captioning_pretrain'" in done.stderr


# -- files of the published first stage -----------------------------------------------------------------


def test_full_size_names_of_a_first_stage():
    """What the second stage needs is what the first one wrote, under the same names; position ids are made anew."""
    first, second = (listed(f"xvlm_captioning{stage}.txt") for stage in ("_pretrain", ""))
    for name in first:
        assert captioning_name(name, set(first)) == (None if name.endswith("position_ids") else name)
    assert first.keys() - second.keys() == set() and {n for n in second if n not in first} == set()
    assert {n for n in first if first[n] != second[n] and not n.endswith("position_ids")} == {
        "vision_encoder.pos_embed.weight"
    }
    assert first["vision_encoder.pos_embed.weight"] == (197, 768)
    assert second["vision_encoder.pos_embed.weight"] == (577, 768)


@pytest.mark.parametrize(("dtype", "tied"), [(torch.bool, True), (torch.float32, False)])
def test_a_published_file_and_a_larger_image(dtype, tied, tmp_path):
    """Under `model`, with masks of all linear layers, position ids and the second name of the word bias."""
    weights = REFERENCE / "vectors" / "xvlm" / "weights.safetensors"
    small = {"config": REFERENCE / "xvlm.yaml"}
    model = load_task_model("xvlm", "captioning_pretrain", weights=weights, **small)
    kept = {name: torch.rand(layer.weight.shape) < 0.3 for name, layer in model.prunable_layers().items()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            bits = kept.get(f"{name}.weight", torch.ones_like(layer.weight))
            state[f"{name}.weight_pruning_mask"] = bits.to(dtype)
            if layer.bias is not None:
                state[f"{name}.bias_pruning_mask"] = torch.ones_like(layer.bias, dtype=dtype)
    state["vision_encoder.position_ids"] = torch.arange(17)[None]
    state["text_decoder.bert.embeddings.position_ids"] = torch.arange(32)[None]
    state["text_decoder.cls.predictions.bias"] = state["text_decoder.cls.predictions.decoder.bias"].clone()
    if not tied:  # as the published masked layers leave it
        state[HEAD] = state[HEAD] + 0.01
    path = tmp_path / "snapshot.pth"
    torch.save({"model": state, "epoch": 0}, path)
    args = argparse.Namespace(model="xvlm", weights=path, dense=False, mask=None)
    changes = use_first_stage(args)
    assert changes == ({} if tied else {"own_head": True}) and args.mask == path
    larger = load_task_model(
        "xvlm", "captioning", weights=path, overrides={"vision": {"image_size": 48}} | changes, **small
    )
    assert larger.load_report.resized == {"vision_encoder.pos_embed.weight": "(17, 64) -> (37, 64), bicubic"}
    found = Mask.load(path).fitted(larger)
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[name], kept[name]) for name in kept)
    for name, tensor in larger.state_dict().items():
        assert name == "vision_encoder.pos_embed.weight" or torch.equal(tensor, state[name]), name


def test_a_mask_inside_weights_needs_no_metadata(tmp_path):
    from safetensors.torch import save_file

    bits = torch.tensor([[True, False], [False, True]])
    state = {"a.weight": torch.eye(2), "a.weight_pruning_mask": bits, "a.bias_pruning_mask": torch.ones(2)}
    save_file(state, tmp_path / "w.safetensors")
    found = Mask.load(tmp_path / "w.safetensors")
    assert list(found) == ["a.weight"] and torch.equal(found["a.weight"], bits)
    assert found.source == {"file": str(tmp_path / "w.safetensors")}


def test_metadata_says_where_the_mask_came_from(first):
    with safe_open(first["sparse"] / "last.safetensors", "pt") as file:
        about = file.metadata()
    assert about["format"] == "pt" and about["epoch"] == "1"
    assert json.loads(about["mask"])["source"]["pruner"] == "omp"
