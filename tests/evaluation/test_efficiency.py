"""The efficiency command: its numbers against the mask and the files, its words, and bad input."""

import json
import statistics
import zlib

import pytest
import torch
from safetensors.torch import save

from evaluation.efficiency.sizes import count_parameters, file_sizes
from evaluation.efficiency.speed import compress_layers, in_turn, obstacle, speed_up, spread
from evaluation.efficiency.table import side_by_side, speed_words
from models import load_model, load_task_model
from models.common.checkpoint import shipped
from models.surgery import cut
from pruners import prune
from sparsity.mask import Mask

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dino():
    return load_model("dino-mini")


@pytest.fixture(scope="module")
def omp(dino, tmp_path_factory):
    """A mask of dino-mini at 75 %, as a file."""
    path = tmp_path_factory.mktemp("mask") / "omp.safetensors"
    prune(dino, [], "omp", (0.75,))[0.75].save(path)
    return path


def test_the_command(dino, omp, tmp_path, run):
    arguments = ("--mask", omp, "--batch_size", 2, "--repeats", 2, "--device", "cpu", "--json", tmp_path / "out.json")
    done = run("-m", "evaluation.efficiency", "--model", "dino-mini", *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    dense, masked = found["rows"]
    assert (dense["name"], masked["name"]) == ("dense", "masked")
    prunable = sum(layer.weight.numel() for layer in dino.prunable_layers().values())
    assert dense["kept"] == dense["prunable"] == masked["prunable"] == prunable
    assert masked["kept"] == prunable - round(0.75 * prunable)
    assert dense["parameters"] == sum(p.numel() for p in dino.parameters())
    mask = Mask.load(omp)
    tokens = 2 * 65
    spared = sum(2 * tokens * (mask.size(name) - mask.kept(name)) for name in mask)
    assert masked["nominal_flops"] == dense["flops"] - spared
    assert masked["flops"] == dense["flops"] == dense["nominal_flops"]
    assert dense["bytes"]["fp32"] == masked["bytes"]["fp32"]
    assert "packed" not in dense["bytes"]
    packed = masked["kept"] * 2 + prunable / 8 + (dense["parameters"] - prunable) * 2
    assert packed < masked["bytes"]["packed"] < packed + 20_000  # names and shapes
    assert masked["bytes"]["packed"] < masked["bytes"]["zipped"] < dense["bytes"]["zipped"] < dense["bytes"]["fp16"]
    for row in (dense, masked):
        latency = row["latency_ms"]
        assert 0 < latency["least"] <= latency["low"] <= latency["median"] <= latency["high"]
        assert row["samples_per_second"] == pytest.approx(2000 / latency["median"])
    assert found["speed"].keys() == {"masked"}
    shown = done.stdout
    assert "masked runs at" in shown
    assert "2:4 was not measured: the mask is not 2:4" in shown
    assert f"{prunable:,} (100.00 %)" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--batch_size", 0), "--batch_size must be at least 1, not 0"),
        (("--repeats", 0), "--repeats must be at least 1, not 0"),
        (("--device", "cuda:99"), "--device cuda:99 is missing"),
        (("--device", "tpu"), "--device must be cpu, cuda or cuda:<number>, not 'tpu'"),
        (("--mask", "nowhere.safetensors"), "no such file"),
        (("--json", "weights/mini-vocab.txt/out.json"), "cannot write to weights/mini-vocab.txt"),
        (("--task", "retrieval"), "'dino-mini' has no configuration for 'retrieval'"),
    ],
)
def test_bad_input(arguments, says, run):
    done = run("-m", "evaluation.efficiency", "--model", "dino-mini", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_mask_of_another_model(omp, run):
    done = run("-m", "evaluation.efficiency", "--model", "xvlm-mini", "--mask", omp)
    assert done.returncode == 2
    assert "the mask belongs to another model" in done.stderr


def test_a_refusal_leaves_no_folder(run, tmp_path):
    out = tmp_path / "new" / "out.json"
    done = run("-m", "evaluation.efficiency", "--model", "dino-mini", "--mask", "nowhere.safetensors", "--json", out)
    assert done.returncode == 2
    assert not out.parent.exists()


def speed(median, low, high, fastest):
    return {"median": median, "low": low, "high": high, "fastest": fastest}


def test_words_on_speed():
    assert speed_words("masked", speed(1.0, 0.97, 1.03, 0.99)) == (
        "No speed-up, since zeros are multiplied like any other number: masked runs at 1.00 x the speed of dense "
        "(quartiles 0.97 to 1.03; the fastest pass of each: 0.99 x)."
    )
    assert "no kernel here skips zeros" in speed_words("masked", speed(1.3, 1.25, 1.35, 1.3))
    uncertain = speed_words("masked", speed(1.3, 0.9, 2.5, 1.0))
    assert uncertain.startswith("Speed-up unclear: the timings vary too much (masked runs at 1.30 x")
    assert "No speed-up" in speed_words("masked", speed(1.3, 1.2, 1.35, 1.0))  # the fastest passes are equal
    assert speed_words("2:4", speed(1.3, 1.25, 1.35, 1.3)).startswith("Speed: 2:4 runs at 1.30 x")
    assert "even without half of the products" in speed_words("2:4", speed(0.9, 0.85, 1.0, 0.9))


def test_works_take_turns():
    calls = []
    works = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = in_turn(works, repeats=3, device=CPU, warm_up=1)
    assert calls == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


def test_spread_and_speed():
    values = [5.0, 1.0, 2.0, 9.0, 4.0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    assert spread(values) == {"median": median, "low": low, "high": high, "least": 1.0}
    assert set(spread([2.0]).values()) == {2.0}
    assert speed_up([2.0, 4.0, 3.0], [1.0, 1.0, 0.5]) == speed(4.0, 3.0, 5.0, 4.0)


def test_files_of_known_bytes():
    tensors = {"a": torch.nn.Parameter(torch.arange(4096.0) % 7), "n": torch.arange(3)}
    plain = {name: tensor.detach() for name, tensor in tensors.items()}
    half = save(plain | {"a": plain["a"].half()}, {})
    found = file_sizes(tensors)
    assert found == {"fp32": len(save(plain, {})), "fp16": len(half), "zipped": len(zlib.compress(half))}
    assert count_parameters(tensors) == 4096


def test_what_only_training_needs_is_not_shipped():
    """BLIP's momentum copies and queues; shared tensors are there once, prunable ones under their own name."""
    blip = load_model("blip-mini", weights="random")
    found = shipped(blip)
    online = {id(p): p.numel() for name, p in blip.named_parameters() if "_m." not in name}
    assert count_parameters(found) == sum(online.values())
    assert set(blip.prunable_layers()) <= set(found)
    assert not {"image_queue", "text_queue", "queue_ptr"} & set(found)
    retrieval = shipped(load_task_model("blip-mini", "retrieval", weights="random"))
    assert not [name for name in retrieval if "_m." in name or "queue" in name]


def test_why_there_is_no_2_to_4(dino, monkeypatch):
    pattern = prune(dino, [], "omp", (0.5,), allocation="2:4")[0.5]
    other = prune(dino, [], "omp", (0.5,))[0.5]
    cuda = torch.device("cuda")
    assert "needs a CUDA device" in obstacle(CPU, torch.half, pattern)
    assert "the mask is not 2:4" in obstacle(cuda, torch.half, other)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "this one has 7.5" in obstacle(cuda, torch.half, pattern)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert "--precision 16-true" in obstacle(cuda, torch.float32, pattern)
    assert obstacle(cuda, torch.half, pattern) is None


def test_layers_that_fit_go_into_the_format(monkeypatch):
    """With the conversion, which needs a CUDA device, replaced: narrow layers stay dense, shared ones stay shared."""

    def convert(weight):
        if weight.shape[1] > 128:
            raise RuntimeError(f"Error original_tensor.shape {weight.shape} is not supported!")
        return weight + 1

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", convert)
    blip = load_model("blip-mini", weights="random")
    before = {name: layer.weight.detach().clone() for name, layer in blip.prunable_layers().items()}
    fitting = [name for name, weight in before.items() if weight.shape[1] <= 128]
    assert compress_layers(blip) == (len(fitting), len(before))
    assert list(blip.prunable_layers()) == list(before)  # a shared weight in two would be there twice
    for name, layer in blip.prunable_layers().items():
        assert torch.equal(layer.weight, before[name] + 1 if name in fitting else before[name])


def test_a_smaller_model_beside_the_whole_one():
    """Half of the neurons of two layers: their parameters and products are gone, and it is no slower by much."""
    model = load_model("dino-mini")
    half = {f"vit.encoder.layer.{n}.intermediate": torch.arange(512) < 256 for n in (0, 1)}
    rows = side_by_side({"dense": model, "small": cut(model, half)}, 2, 3, CPU)
    assert rows["dense"]["parameters"] - rows["small"]["parameters"] == 2 * 256 * (128 + 1 + 128)
    assert rows["dense"]["flops"] - rows["small"]["flops"] == 2 * 256 * 2 * 128 * 2 * (2 * 65)
    assert "speed" not in rows["dense"]
    assert rows["small"]["speed"]["median"] > 0.2
    assert rows["small"]["latency_ms"]["least"] > 0
