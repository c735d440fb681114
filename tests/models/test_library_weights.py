"""Weights of timm and Hugging Face models from files: as those libraries load them, with every key accounted for."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import vision_transformer

from console.errors import InputError
from models import load_model
from models.library import hub
from models.library.hub import hub_or_cache
from models.library.timm_models import load_timm
from tests.models.test_any_module import HUGGING_FACE

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
SWIN = {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "num_classes": 5}


def by_timm(name, state, settings):
    """A model with these weights, loaded by timm alone: as weights that it would have fetched."""
    classes = {"num_classes": settings["num_classes"]}
    overlay = {"state_dict": {key: tensor.clone() for key, tensor in state.items()}, **classes}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **settings)


def equal(module, other):
    state, expected = module.state_dict(), other.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)


@pytest.mark.parametrize(
    ("name", "settings", "old", "new", "resized"),
    [
        ("vit_small_patch16_224", VIT, {"img_size": 64}, {"img_size": 32}, ["pos_embed"]),
        ("vit_small_patch16_224", VIT, {"img_size": 32}, {"img_size": 64}, ["pos_embed"]),
        ("vit_small_patch16_224", VIT, {"img_size": 32}, {"img_size": (32, 64)}, ["pos_embed"]),
        ("vit_small_patch14_reg4_dinov2", VIT, {"img_size": 56}, {"img_size": 28}, ["pos_embed"]),
        ("vit_base_patch16_siglip_224", VIT, {"img_size": 32}, {"img_size": 64}, ["pos_embed"]),
        ("deit3_small_patch16_224", VIT, {"img_size": 32}, {"img_size": 64}, ["pos_embed"]),
        ("eva02_tiny_patch14_224", VIT, {"img_size": 28}, {"img_size": 56}, ["pos_embed"]),
        (
            "beit_base_patch16_224",
            VIT,
            {"img_size": 32},
            {"img_size": 64},
            [f"blocks.{i}.attn.relative_position_bias_table" for i in (0, 1)],
        ),
        (
            "swin_tiny_patch4_window7_224",
            SWIN,
            {"img_size": 56, "window_size": 7},
            {"img_size": 64, "window_size": 8},
            [f"layers.{i}.blocks.0.attn.relative_position_bias_table" for i in (0, 1)],
        ),
        (
            "vit_small_patch16_224",
            VIT,
            {"img_size": 32},
            {"img_size": 32, "patch_size": 8},
            ["pos_embed", "patch_embed.proj.weight"],
        ),
    ],
)
def test_other_sizes_as_timm_resizes_them(name, settings, old, new, resized, tmp_path):
    state = timm.create_model(name, **settings, **old).state_dict()
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, tmp_path / "a.pth")
    expected = by_timm(name, state, settings | new)
    model = load_timm(name, tmp_path / "a.pth", settings | new)
    assert equal(model.module, expected)
    assert list(model.load_report.resized) == resized
    assert model.load_report.loaded == len(expected.state_dict())
    assert not model.load_report.dropped


def test_settings_that_timm_refuses(tmp_path):
    """By an assertion. With a file of weights, advice to give one would be of no use."""
    for weights in ("random", tmp_path / "a.pth"):
        (tmp_path / "a.pth").write_bytes(b"x")
        with pytest.raises(InputError, match=r"cannot build .*dim should be divisible by num_heads\): check the sett"):
            load_timm("vit_tiny_patch16_224", weights, {"num_heads": 5})


def test_a_table_that_is_no_square(tmp_path):
    """Its sides are in no file: neither timm nor this toolkit can tell them."""
    state = timm.create_model("vit_small_patch16_224", img_size=(32, 64), **VIT).state_dict()
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(RuntimeError, match="shape"):
        by_timm("vit_small_patch16_224", state, VIT | {"img_size": 64})
    with pytest.raises(InputError, match=r"'pos_embed' has shape \(1, 9, 32\) but the model needs \(1, 17, 32\)"):
        load_timm("vit_small_patch16_224", tmp_path / "a.pth", VIT | {"img_size": 64})
    model = load_timm("vit_small_patch16_224", tmp_path / "a.pth", VIT | {"img_size": (32, 64)})
    assert torch.equal(model.module.pos_embed, state["pos_embed"])


def dinov2_by_facebook(registers):
    """A small DINOv2 under the names of Facebook's file, and timm's own."""
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    settings = VIT | {"img_size": 56, "num_classes": 0}
    state = dict(timm.create_model(name, **settings).state_dict())
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.randn(1, 1, 32), state["pos_embed"]], dim=1)
    return name, settings, state | {"mask_token": torch.zeros(1, 32)}


@pytest.mark.parametrize("registers", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_facebooks_names_of_dinov2(registers, prefix, tmp_path):
    name, settings, state = dinov2_by_facebook(registers)
    torch.save({f"{prefix}{key}": tensor for key, tensor in state.items()}, tmp_path / "fb.pth")
    expected = timm.create_model(name, **settings)
    torch.save(state, tmp_path / "plain.pth")
    convert = vision_transformer.checkpoint_filter_fn
    timm.models.load_checkpoint(expected, str(tmp_path / "plain.pth"), filter_fn=convert)
    model = load_timm(name, tmp_path / "fb.pth", settings)
    assert equal(model.module, expected)
    report = model.load_report
    assert report.dropped == ["mask_token"]
    assert report.renamed == ({"register_tokens": "reg_token"} if registers else {})
    assert list(report.resized) == (["cls_token", "pos_embed"] if registers else [])


@pytest.mark.parametrize(("old", "new"), [("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2")])
def test_names_of_deit3_are_traced(old, new, tmp_path):
    settings = VIT | {"img_size": 32}
    expected = timm.create_model("deit3_small_patch16_224", **settings)
    state = {key.replace(old, new): tensor for key, tensor in expected.state_dict().items()}
    torch.save({"model": state}, tmp_path / "a.pth")
    model = load_timm("deit3_small_patch16_224", tmp_path / "a.pth", settings)
    assert equal(model.module, expected)
    assert model.load_report.renamed == {f"blocks.{i}.{new}": f"blocks.{i}.{old}" for i in (0, 1)}


def test_the_same_tensors_in_order_under_other_names(tmp_path):
    """As another port writes them; without the key, or with a tensor out of its place, they are refused."""
    tiny = {"channels": (8, 8, 8, 8), "num_classes": 5}
    expected = timm.create_model("resnet18", **tiny)
    named = {f"_{name}".replace("conv", "_c"): tensor for name, tensor in expected.state_dict().items()}
    torch.save(named, tmp_path / "port.pth")
    model = load_timm("resnet18", tmp_path / "port.pth", tiny | {"in_order": True, "conv": True})
    assert equal(model.module, expected)
    assert model.load_report.renamed["__c1.weight"] == "conv1.weight"
    assert {layer.weight.dim() for layer in model.prunable_layers().values()} == {4}
    with pytest.raises(InputError):
        load_timm("resnet18", tmp_path / "port.pth", tiny)
    items = list(named.items())
    for state, words in ((items[:1] + items[2:3] + items[1:2] + items[3:], "'_bn1.bias'"), (items[:-1], "the model")):
        state = dict(state)
        torch.save(state, tmp_path / "other.pth")
        with pytest.raises(InputError, match=f"in_order: .*{words}"):
            load_timm("resnet18", tmp_path / "other.pth", tiny | {"in_order": True})


def test_unknown_and_missing_keys_of_timm(tmp_path):
    settings = VIT | {"img_size": 32}
    state = dict(timm.create_model("vit_small_patch16_224", img_size=64, **VIT).state_dict())
    for change, message in (
        ({"extra.weight": torch.zeros(1)}, r"1 key is unknown \(first: extra\.weight\)"),
        ({"blocks.0.mlp.fc1.weight": None}, r"1 of the model's \d+ tensors is missing \(first: blocks\.0\.mlp"),
        ({"head.weight": torch.zeros(7, 32)}, r"'head\.weight' has shape \(7, 32\) but the model needs \(5, 32\)"),
        ({"norm.bias": torch.full((32,), torch.nan)}, "'norm.bias' has 32 values that are NaN"),
    ):
        changed = {key: tensor for key, tensor in (state | change).items() if tensor is not None}
        torch.save(changed, tmp_path / "a.pth")
        with pytest.raises(InputError, match=message):
            load_timm("vit_small_patch16_224", tmp_path / "a.pth", settings)


@pytest.mark.parametrize("classes", [7, 0])
def test_a_file_of_other_classes_or_of_none(classes, tmp_path):
    """timm's own model of so many classes holds the same tensors; DINOv2's head lies next to its backbone."""
    settings = VIT | {"img_size": 32, "num_classes": classes}
    expected = timm.create_model("vit_small_patch16_224", **settings)
    state = {f"backbone.{key}": tensor for key, tensor in expected.state_dict().items()}
    torch.save({"teacher": state | {"dino_head.last": torch.zeros(2)}}, tmp_path / "a.pth")
    del settings["num_classes"]
    model = load_timm("vit_small_patch16_224", tmp_path / "a.pth", settings)
    assert equal(model.module, expected)
    assert model.load_report.dropped == ["dino_head.last"]
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.logits(image), expected(image))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vit.layernorm.weight", lambda w: w * torch.nan, r"'vit\.layernorm\.weight' has \d+ values that are NaN"),
        ("classifier.weight", lambda w: w[:5], r"'classifier\.weight' has shape \(5, \d+\) but the model needs \(7,"),
        ("vit.layers.0.mlp.fc1.weight", lambda w: w[:5], r"fc1\.weight' has shape \(5, \d+\) but the model needs"),
    ],
)
def test_a_folder_of_hugging_face_that_does_not_fit(name, change, message, tmp_path):
    original = HUGGING_FACE["ViTForImageClassification"]()
    original.save_pretrained(tmp_path)
    state = original.state_dict()
    save_file({**state, name: change(state[name]).clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=message):
        load_model(f"hf:{tmp_path}")


@pytest.mark.parametrize("name", HUGGING_FACE)
@pytest.mark.parametrize("kind", ["shards", "file in parallel", "pickle in the folder"])
def test_hugging_face_weights_from_files(name, kind, tmp_path):
    torch.manual_seed(0)
    original = HUGGING_FACE[name]().eval()
    folder, weights = tmp_path / "model", None
    original.save_pretrained(folder, max_shard_size="20KB" if kind == "shards" else "5GB")
    state = {f"module.{key}": tensor for key, tensor in original.state_dict().items()}
    if kind == "shards":
        assert (folder / "model.safetensors.index.json").is_file()
    else:
        (folder / "model.safetensors").unlink()
        weights = None if kind == "pickle in the folder" else tmp_path / "a.ckpt"
        torch.save({"state_dict": state, "epoch": 1}, weights or folder / "pytorch_model.bin")
    model = load_model(f"hf:{folder}", weights=weights)
    assert equal(model.module, original)
    assert model.load_report.loaded == len(original.state_dict())
    assert ("in parallel" in kind or "pickle" in kind) == ("without the prefix 'module.'" in str(model.load_report))


class TestOffline:
    def closed(self):
        """An address at which nobody listens."""
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            return f"http://127.0.0.1:{server.getsockname()[1]}"

    @pytest.mark.parametrize("name", ["hf:nobody/has-this-model", "timm:vit_tiny_patch16_224"])
    def test_said_at_once(self, name, monkeypatch, tmp_path, capsys):
        """huggingface_hub alone tries for 23 to 47 seconds."""
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", self.closed())
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        started = time.perf_counter()
        with pytest.raises(InputError, match="cannot"):
            load_model(name)
        assert time.perf_counter() - started < 10
        assert "does not answer: only what was fetched before is there" in " ".join(capsys.readouterr().err.split())
        assert not huggingface_hub.is_offline_mode()

    def test_any_answer_is_one(self):
        class Refuses(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_error(403)

            def log_message(self, *arguments):
                pass

        server = HTTPServer(("127.0.0.1", 0), Refuses)
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert hub._answers(f"http://127.0.0.1:{server.server_port}")
        server.server_close()

    def test_an_address_of_no_server(self):
        assert not hub._answers("hf-mirror.example")

    def test_silence_is_none(self, monkeypatch):
        monkeypatch.setattr(hub, "PATIENCE", 0.2)
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            assert not hub._answers(f"http://127.0.0.1:{server.getsockname()[1]}")

    def test_a_wish_to_be_offline_asks_nobody(self, monkeypatch, capsys):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(hub, "_answers", lambda address: pytest.fail("asked"))
        with hub_or_cache():
            assert huggingface_hub.is_offline_mode()
        assert capsys.readouterr().err == ""

    def test_folders_ask_nobody(self, tmp_path, monkeypatch):
        monkeypatch.setattr(hub, "_answers", lambda address: pytest.fail("asked"))
        HUGGING_FACE["ViTForImageClassification"]().save_pretrained(tmp_path)
        assert load_model(f"hf:{tmp_path}").load_report.loaded == len(load_file(tmp_path / "model.safetensors"))
        for name in ("./nowhere", "/no/such/folder", "a/b/c"):
            with pytest.raises(InputError, match="there is no such folder"):
                load_model(f"hf:{name}")
