"""X-VLM against the published class: names, shapes, outputs and losses."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from console.errors import InputError
from models import load_model
from models.common.checkpoint import resize_positions
from tests.conftest import REFERENCE, on_meta, reference_batches

WEIGHTS = REFERENCE / "vectors" / "xvlm" / "weights.safetensors"


def listed(name):
    """Name -> shape from a list of the official classes' parameters."""
    lines = (REFERENCE / "checkpoints" / name).read_text().split("\n")
    pairs = [line.split() for line in lines if line.strip()]
    return {n: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for n, shape in pairs}


@pytest.fixture(scope="module")
def full_size():
    return on_meta("xvlm")


def test_full_size_names_and_shapes(full_size):
    official = {n: s for n, s in listed("xvlm_pretrain.txt").items() if not n.endswith("position_ids")}
    assert {n: tuple(t.shape) for n, t in full_size.state_dict().items()} == official
    assert sum(p.numel() for p in full_size.parameters()) == 212_268_609


def test_full_size_prunable_weights(full_size):
    layers = full_size.prunable_layers()
    assert {n: tuple(layer.weight.shape) for n, layer in layers.items()} == listed("xvlm_prunable.txt")
    assert sum(layer.weight.numel() for layer in layers.values()) == 184_025_088
    sizes = {}
    for name, layer in layers.items():
        modality = full_size.modality_of(name)
        sizes[modality] = sizes.get(modality, 0) + layer.weight.numel()
    assert sizes == {"vision": 84_934_656, "text": 42_467_328, "fusion": 56_623_104}


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("side", ["general", "region"])
def test_outputs_and_losses(side, index, xvlm, hardest_negatives):
    batch = reference_batches("xvlm", 6)[index][side]
    expected = load_file(REFERENCE / "vectors" / "xvlm" / "forward.safetensors")
    with torch.no_grad():
        losses = xvlm.losses(batch)
        image, image_atts, full, text = xvlm.states(batch)
        cross = xvlm.fusion_states(text, batch["text_atts"], image, image_atts)
    found = {"image_embeds": image, "text_embeds": text, "cross_embeds": cross}
    found |= {f"loss_{name}": loss for name, loss in losses.items()}
    if side == "region":
        found["image_embeds_full"] = full
    names = {key.split(".")[2] for key in expected if key.startswith(f"{side}.{index}.")}
    assert names == set(found)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[f"{side}.{index}.{name}"], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        total = xvlm.loss(batch)
    torch.testing.assert_close(total, losses["itc"] + losses["itm"] + losses["mlm"])


def test_texts_beyond_the_position_table(xvlm):
    positions = xvlm.config.text.positions
    ids = torch.ones(2, positions + 1, dtype=torch.long)
    with pytest.raises(InputError, match=f"{positions + 1} tokens is too long.*{positions} positions"):
        xvlm.text_states(ids, torch.ones_like(ids))


def test_padding_does_not_reach_real_tokens(xvlm, xvlm_batches):
    """Other words under the padding change no state of a real token."""
    batch = dict(xvlm_batches[0]["general"])
    with torch.no_grad():
        before = xvlm.text_states(batch["text_ids"], batch["text_atts"])
        noise = torch.where(batch["text_atts"] == 0, 150, batch["text_ids"])
        after = xvlm.text_states(noise, batch["text_atts"])
    real = batch["text_atts"].bool()
    torch.testing.assert_close(before[real], after[real], rtol=0, atol=1e-6)


def test_every_layer_is_met_once_in_observe(xvlm, xvlm_batches):
    for side in xvlm.sides:
        seen = []
        hooks = [
            layer.register_forward_hook(lambda m, i, o, n=name, seen=seen: seen.append(n))
            for name, layer in xvlm.prunable_layers().items()
        ]
        with torch.no_grad():
            xvlm.observe(xvlm_batches[0][side])
        for hook in hooks:
            hook.remove()
        assert sorted(seen) == sorted(xvlm.prunable_layers())


def test_a_batch_without_regions_has_no_box_loss(xvlm, xvlm_batches):
    batch = dict(xvlm_batches[0]["region"])
    batch["is_image"] = torch.ones_like(batch["is_image"])
    with torch.no_grad():
        losses = xvlm.losses(batch)
    assert losses["bbox"] == 0
    assert losses["giou"] == 0


def test_load_report_and_round_trip(xvlm, tmp_path):
    assert sorted(xvlm.load_report.dropped) == [
        "text_encoder.bert.embeddings.position_ids",
        "vision_encoder.position_ids",
    ]
    for name, tensor in load_file(WEIGHTS).items():
        if not name.endswith("position_ids"):
            assert torch.equal(xvlm.state_dict()[name], tensor)
    # an official layout: a .pth with the weights under 'model', and upstream's second name of the bias
    state = dict(xvlm.state_dict())
    state["text_encoder.cls.predictions.bias"] = state.pop("text_encoder.cls.predictions.decoder.bias")
    torch.save({"model": state, "epoch": 3}, tmp_path / "official.pth")
    again = load_model("xvlm", config=REFERENCE / "xvlm.yaml", weights=tmp_path / "official.pth")
    new = "text_encoder.cls.predictions.decoder.bias"
    assert again.load_report.renamed == {"text_encoder.cls.predictions.bias": new}
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), xvlm.state_dict().values(), strict=True))
    words = again.text_encoder.bert.embeddings.word_embeddings.weight
    assert again.text_encoder.cls.predictions.decoder.weight is words


def test_larger_images_interpolate_positions(xvlm):
    from configs.schema import read_yaml

    config = read_yaml(REFERENCE / "xvlm.yaml")
    config["vision"]["image_size"] = 48
    model = load_model("xvlm", config=config, weights=WEIGHTS)
    old, new = xvlm.vision_encoder.pos_embed.weight, model.vision_encoder.pos_embed.weight
    assert "vision_encoder.pos_embed.weight" in model.load_report.resized
    assert torch.equal(new[0], old[0])
    grid = old[1:].reshape(4, 4, 64).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(new[1:], expected[0].permute(1, 2, 0).reshape(36, 64))
    assert torch.equal(resize_positions(old, 17), old) or torch.allclose(resize_positions(old, 17), old, atol=1e-6)


class TestBadWeights:
    def load(self, path):
        return load_model("xvlm", config=REFERENCE / "xvlm.yaml", weights=path)

    def state(self):
        return load_file(WEIGHTS)

    def test_missing_default_file_says_where_it_goes(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=r"weights/4m-xvlm-vit-bert\.pth does not exist.*xvlm-mini"):
            load_model("xvlm")

    def test_unknown_key(self, tmp_path):
        save_file(self.state() | {"extra.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
        with pytest.raises(InputError, match=r"1 key is unknown \(first: extra\.weight\)"):
            self.load(tmp_path / "w.safetensors")

    def test_missing_key(self, tmp_path):
        state = self.state()
        del state["itm_head.0.weight"]
        save_file(state, tmp_path / "w.safetensors")
        with pytest.raises(InputError, match=r"1 of the model's \d+ tensors is missing \(first: itm_head\.0\.weight\)"):
            self.load(tmp_path / "w.safetensors")

    def test_other_model(self, tmp_path):
        torch.save({"model": {"visual_encoder.cls_token": torch.zeros(1)}}, tmp_path / "blip.pth")
        with pytest.raises(InputError, match="does not fit XVLM"):
            self.load(tmp_path / "blip.pth")

    def test_other_size(self, tmp_path):
        save_file(self.state() | {"vision_proj.weight": torch.zeros(32, 65)}, tmp_path / "w.safetensors")
        with pytest.raises(
            InputError, match=r"'vision_proj\.weight' has shape \(32, 65\) but the model needs \(32, 64\)"
        ):
            self.load(tmp_path / "w.safetensors")

    def test_nan(self, tmp_path):
        save_file(self.state() | {"vision_proj.bias": torch.full((32,), torch.nan)}, tmp_path / "w.safetensors")
        with pytest.raises(InputError, match=r"'vision_proj\.bias' has 32 values that are NaN"):
            self.load(tmp_path / "w.safetensors")

    def test_tied_names_that_differ(self, tmp_path):
        name = "text_encoder.cls.predictions.decoder.weight"
        save_file(self.state() | {name: torch.zeros(200, 64)}, tmp_path / "w.safetensors")
        with pytest.raises(InputError, match="one tensor in this model but differ"):
            self.load(tmp_path / "w.safetensors")

    def test_corrupt_files(self, tmp_path):
        (tmp_path / "a.pth").write_bytes(b"garbage" * 50)
        (tmp_path / "b.safetensors").write_bytes(b"garbage" * 50)
        torch.save(self.state(), tmp_path / "whole.pth")
        (tmp_path / "c.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
        (tmp_path / "d.pth").write_bytes(b"")
        for name in ("a.pth", "b.safetensors", "c.pth", "d.pth"):
            with pytest.raises(InputError, match=r"corrupt|refused"):
                self.load(tmp_path / name)

    def test_pickles_that_run_code_are_refused(self, tmp_path):
        import pickle

        class Trap:
            def __reduce__(self):
                return (open, (str(tmp_path / "ran"), "w"))

        with (tmp_path / "trap.pth").open("wb") as file:
            pickle.dump({"model": Trap()}, file)
        torch.save({"model": Trap()}, tmp_path / "trap2.pth")
        for name in ("trap.pth", "trap2.pth"):
            with pytest.raises(InputError, match="refused"):
                self.load(tmp_path / name)
        assert not (tmp_path / "ran").exists()
