"""Two small towers joined over drawn pictures: what learns, what stays, what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from configs.overrides import read_settings
from configs.schema import parse
from console.errors import InputError
from data.sources import Files
from models import load_model
from models.tasks import Retriever
from pretraining.dual_encoder import CONFIG, DualEncoderConfig, build

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
COLOURS = ("red", "blue", "green", "black", "white", "golden")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Plain pictures of six colours; DINOv2 and BERT of random weights, with the minis' vocabulary."""
    root = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    sizes = {"image_size": 56, "patch_size": 14, "mlp_ratio": 2}
    transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, **sizes)).save_pretrained(root / "vision")
    (root / "vision" / "preprocessor_config.json").write_text(json.dumps({"crop_size": 28}))
    text = transformers.BertConfig(**SMALL, vocab_size=160, max_position_embeddings=16, initializer_range=0.3)
    transformers.BertModel(text).save_pretrained(root / "text")
    vocabulary = Path("weights/mini-vocab.txt").read_text().splitlines()
    tokenizer = transformers.BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)})
    tokenizer.save_pretrained(root / "text")
    records = []
    for colour in COLOURS:
        Image.new("RGB", (28, 28), "gold" if colour == "golden" else colour).save(root / f"{colour}.png")
        records.append({"image": f"{colour}.png", "image_id": colour, "caption": f"all is {colour}"})
    (root / "pairs.json").write_text(json.dumps(records))
    files = Files(annotations=[str(root / "pairs.json")], image_roots={"own": str(root)})
    towers = {"vision": str(root / "vision"), "text": str(root / "text")}
    return DualEncoderConfig(**towers, train=files, test=files, projection_dim=16, steps=40, batch_size=6, lr=2.0e-2)


@pytest.fixture(scope="module")
def made(config, tmp_path_factory):
    """The folder, and what its test found."""
    folder = tmp_path_factory.mktemp("made") / "dual"
    return folder, build(config, folder)


def test_it_finds_what_it_learnt(made, config):
    folder, found = made
    assert found["img_r1"] == found["txt_r1"] == 100
    said = json.loads((folder / "results.json").read_text())
    assert said["test"] == found
    assert said["loss"] < 1
    assert not said["random"]


def test_the_towers_are_unchanged(made, config):
    model = load_model(f"hf:{made[0]}")
    assert isinstance(model, Retriever)
    assert model.image_shape.image_size == 28
    towers = model.module.vision_model, model.module.text_model
    for tower, place in zip(towers, (config.vision, config.text), strict=True):
        before = transformers.AutoModel.from_pretrained(place).state_dict()
        assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())
    assert model.tokenizer.encode("all is red", True, 9) == [2, *model.tokenizer.encode("all is red", True, 9)[1:-1], 3]
    assert {model.modality_of(name) for name in model.prunable_layers()} == {"vision", "text"}
    assert not any("projection" in name or "pooler" in name for name in model.prunable_layers())


def test_the_same_again_with_other_threads(made, config, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(3 if threads == 1 else 1)
    try:
        assert build(config, tmp_path / "again") == made[1]
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (made[0] / "model.safetensors").read_bytes()
    build(dataclasses.replace(config, steps=1), tmp_path / "random", random=True)
    one, other = (load_model(f"hf:{place}").state_dict() for place in (made[0], tmp_path / "random"))
    key = next(key for key in other if key.endswith("mlp.fc1.weight"))
    assert not torch.equal(one[key], other[key])


def test_bad_input(made, config, tmp_path):
    with pytest.raises(InputError, match="exists already"):
        build(config, made[0])
    exchanged = dataclasses.replace(config, vision=config.text, text=config.vision)
    with pytest.raises(InputError, match="must be an image encoder"):
        build(exchanged, tmp_path / "out")
    shutil.copytree(config.text, tmp_path / "mute", ignore=shutil.ignore_patterns("*token*", "vocab*"))
    with pytest.raises(InputError, match="a text encoder with its tokenizer"):
        build(dataclasses.replace(config, text=str(tmp_path / "mute")), tmp_path / "out")
    with pytest.raises(InputError, match="there is no such folder"):
        build(dataclasses.replace(config, text=str(tmp_path / "nowhere")), tmp_path / "out")
    shutil.copytree(config.text, tmp_path / "no-pooler")
    bare = transformers.DistilBertConfig(vocab_size=160, dim=16, hidden_dim=16, n_heads=2, n_layers=1)
    transformers.DistilBertModel(bare).save_pretrained(tmp_path / "no-pooler")
    with pytest.raises(InputError, match="no-pooler has no pooled output"):
        build(dataclasses.replace(config, text=str(tmp_path / "no-pooler")), tmp_path / "out")
    shutil.copytree(config.text, tmp_path / "fresh")
    state = load_file(tmp_path / "fresh" / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if "pooler" not in name}
    save_file(kept, tmp_path / "fresh" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="which pools its output"):
        build(dataclasses.replace(config, text=str(tmp_path / "fresh")), tmp_path / "out")
    with pytest.raises(InputError, match="lr must be above 0"):
        dataclasses.replace(config, lr=0.0)
    with pytest.raises(InputError, match="the loss of the projections is nan in the end"):
        build(dataclasses.replace(config, lr=1e300), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_shipped_configuration():
    shipped = parse(DualEncoderConfig, *read_settings(CONFIG, []))
    assert shipped.test.annotations == ["data/finetune/itr/coco_test.json"]
