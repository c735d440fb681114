"""prune.py --stream from end to end: a folder with zeros, what checks it, and bad input."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from console.errors import InputError
from inspection.folder import check_zeros
from sparsity.mask import Mask
from tests.models.generative import pairs, saved

QUICK = ("--num_batches", "2", "--batch_size", "2", "--num_workers", "0", "-s", "50")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A LLaVA, whose first shard has another precision, and what calibrates it: pictures of one colour."""
    root = tmp_path_factory.mktemp("stream")
    first = sorted(saved(root / "llava", "Llava").glob("*.safetensors"))[0]
    save_file({name: tensor.float() for name, tensor in load_file(first).items()}, first, {"format": "pt"})
    files = {"annotations": [str(pairs(root / "data"))], "image_roots": {"": str(root / "data")}}
    (root / "prune.yaml").write_text(
        yaml.safe_dump({"sides": {"general": {"reader": "processed_pairs", "files": files}}})
    )
    return root


@pytest.fixture
def stream(run, world):
    def command(*arguments, folder="llava", method="wanda"):
        return run(
            *("prune.py", "--model", f"hf:{world / folder}", "--config", str(world / "prune.yaml")),
            *("--pruner", method, "--output_dir", str(world / "out"), *QUICK, *arguments),
        )

    return command


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_folder_with_zeros(run, world, stream, method):
    done = stream("--stream", method=method)
    assert done.returncode == 0, done.stderr
    assert "for from_pretrained" in done.stderr + done.stdout
    [path] = (world / "out" / method).glob(f"*llava_{method}_50_seed42.safetensors")
    folder, mask = path.with_suffix(""), Mask.load(path)
    assert {file.name for file in folder.iterdir()} == {file.name for file in (world / "llava").iterdir()}
    for shard in (world / "llava").glob("*.safetensors"):
        before, after = load_file(shard), load_file(folder / shard.name)
        assert list(before) == list(after)
        assert all(after[name].dtype == tensor.dtype for name, tensor in before.items())
    found, info = transformers.LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    weights = found.state_dict()
    for name in mask:
        assert not weights[name][~mask[name]].any()
        expected = torch.from_numpy(mask.weights(name)) if method == "sparsegpt" else weights[name]
        assert torch.equal(weights[name], (expected * mask[name]).bfloat16())
    transformers.AutoProcessor.from_pretrained(folder)
    checked = run("masks.py", "check", str(folder), str(path))
    assert checked.returncode == 0 and "every weight that the mask prunes is zero" in checked.stdout
    shard = next(shard for shard in folder.glob("*.safetensors") if any("fc1.weight" in n for n in load_file(shard)))
    tensors = load_file(shard)
    name = next(name for name in tensors if name.endswith("fc1.weight"))
    save_file(tensors | {name: torch.ones_like(tensors[name])}, shard, {"format": "pt"})
    checked = run("masks.py", "check", str(folder), str(path))
    assert checked.returncode == 1 and "of 1 layer are nonzero" in checked.stdout
    integers = {name: tensor.float().mul(1000).to(torch.int8) for name, tensor in tensors.items()}
    save_file(integers | {name: integers[name][:, :4].contiguous()}, shard, {"format": "pt"})
    found = check_zeros(folder, mask)
    assert not any(one.back for one in found.values()), "what is quantised without an offset keeps its zeros"
    assert [one.reason[:9] for one in found.values() if one.reason] == ["its shape"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("pytorch_model.bin", "x", r"pytorch_model.bin, .*: write them as safetensors \(save_pretrained does\)$"),
        ("config.json", '{"model_type": "vit", "num_hidden_layers": "six"}', "is no folder of a Hugging Face model"),
    ],
)
def test_folders_that_cannot_be_checked(file, text, message, tmp_path):
    config = {"model_type": "vit", "architectures": ["ViTModel"], "hidden_size": 12, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=message):
        check_zeros(tmp_path, {})


@pytest.mark.parametrize(
    ("arguments", "method", "sentence"),
    [
        ((), "snip", "looks at gradients of the loss, for which the whole model must be in memory"),
        (("--accelerator", "mps"), "omp", "--stream runs on the CPU or a GPU"),
        (("--precision", "bf16-true"), "omp", "--stream computes in 32-true"),
        (("--save_scores",), "omp", "--save_scores would write"),
        (("--weights", "other.safetensors"), "omp", "leave out --weights"),
    ],
)
def test_what_cannot_be_streamed(stream, arguments, method, sentence):
    done = stream("--stream", *arguments, method=method)
    assert done.returncode == 2 and sentence in done.stderr


def test_too_little_disk(stream, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    done = stream("--stream", method="omp")
    assert done.returncode == 2 and "to write the model with its zeros, but only 1.0 kB are free" in done.stderr


def test_images_larger_than_the_positions(stream, world):
    shutil.copytree(world / "llava", world / "larger")
    file = world / "larger" / "processor_config.json"
    file.write_text(file.read_text().replace("32", "64"))
    for arguments in ((), ("--stream",)):
        done = stream(*arguments, folder="larger")
        assert done.returncode == 2
        assert "images of 64x64 pixels, and the model has positions for 32x32" in " ".join(done.stderr.split())


def test_folders_that_cannot_be_streamed(stream, world, tmp_path):
    def broken(name, change):
        folder = world / name
        if not folder.exists():
            saved(folder, "Llava")
            change(folder)
        done = stream("--stream", folder=name, method="omp")
        assert done.returncode == 2
        return " ".join(done.stderr.split())

    def shards(folder):
        return sorted(folder.glob("*.safetensors"))

    def configured(**values):
        def change(folder):
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | values))

        return change

    def integers(folder):
        tensors = {name: tensor.to(torch.int8) for name, tensor in load_file(shards(folder)[0]).items()}
        save_file(tensors, shards(folder)[0], {"format": "pt"})

    assert "without weights" in broken("empty", lambda f: [s.unlink() for s in f.glob("*model*")])
    assert "1 is missing (first: model-0000" in broken("missing", lambda f: shards(f)[0].unlink())
    assert "stored as int8: prune the model before" in broken("integers", integers)
    assert "quantised weights" in broken("quantised", configured(quantization_config={"quant_method": "gptq"}))
    assert "docs/add-a-model.md" in broken("unknown", configured(architectures=["Kosmos2ForConditionalGeneration"]))
    done = stream("--stream", folder="nowhere", method="omp")
    assert done.returncode == 2 and "there is no such folder" in done.stderr
