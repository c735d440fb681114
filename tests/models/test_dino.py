"""DINO against transformers' and timm's vision transformers, and under all the names its weights go by."""

import pytest
import timm
import torch
from transformers import ViTConfig, ViTForImageClassification

from console.errors import InputError
from models import load_model
from pruners import prune
from pruners.session import Session
from tests.conftest import REFERENCE, on_meta
from tests.models.test_xvlm import listed

CONFIG = REFERENCE / "dino.yaml"


@pytest.fixture
def dino():
    return load_model("dino", config=CONFIG, weights="random")


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "general": {
                "image": torch.randn(16, 3, 32, 32, generator=generator),
                "label": torch.randint(0, 10, (16,), generator=generator),
            }
        }
        for _ in range(3)
    ]


def hugging_face():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256, image_size=32,
        patch_size=8, num_labels=10,
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def original():
    """timm's ViT has the original code's names."""
    torch.manual_seed(0)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=4, num_classes=0, global_pool="token"
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_full_size_names_and_shapes():
    model = on_meta("dino")
    assert {n: tuple(t.shape) for n, t in model.state_dict().items()} == listed("dino_pretrain.txt")
    assert sum(p.numel() for p in model.parameters()) == 86_567_656
    layers = model.prunable_layers()
    assert {n: tuple(layer.weight.shape) for n, layer in layers.items()} == listed("dino_prunable.txt")
    assert list(layers) == list(listed("dino_prunable.txt"))
    assert sum(layer.weight.numel() for layer in layers.values()) == 84_934_656


def test_old_and_new_transformers_names_agree():
    """The two official lists, in their order, name the same tensors."""
    from models.dino.keys import official_name

    new = listed("dino_pretrain_transformers5.txt")
    renamed = {official_name(name, set(new)): shape for name, shape in new.items()}
    assert renamed == listed("dino_pretrain.txt")


def test_agrees_with_transformers(tmp_path):
    reference = hugging_face()
    torch.save(reference.state_dict(), tmp_path / "hf.bin")
    model = load_model("dino", config=CONFIG, weights=tmp_path / "hf.bin")
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(image), reference(image).logits, rtol=1e-5, atol=1e-5)
    assert model.classifier_origin == "the checkpoint's own"


@pytest.mark.parametrize("layout", ["bare", "training file", "timm with a head"])
def test_agrees_with_the_original_layouts(layout, tmp_path):
    reference = original()
    state = reference.state_dict()
    if layout == "training file":
        teacher = {f"module.backbone.{k}": v for k, v in state.items()}
        teacher |= {"module.head.mlp.0.weight": torch.zeros(2, 2), "module.head.last_layer.weight_v": torch.zeros(2, 2)}
        state = {"teacher": teacher, "student": {"x": torch.zeros(1)}, "epoch": 100}
    if layout == "timm with a head":
        state = state | {"head.weight": torch.randn(10, 64), "head.bias": torch.randn(10)}
    torch.save(state, tmp_path / "dino.pth")
    settings = {"family": "dino", "image_size": 32, "patch_size": 8, "width": 64, "layers": 4, "heads": 4, "mlp": 256}
    model = load_model("dino", config=settings | {"classes": 10, "eps": 1e-6}, weights=tmp_path / "dino.pth")
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.vit(image)[:, 0], reference(image), rtol=1e-5, atol=1e-5)
    assert (model.classifier_origin is None) == (layout != "timm with a head")
    assert sorted(model.load_report.dropped) == (
        ["head.last_layer.weight_v", "head.mlp.0.weight"] if layout == "training file" else []
    )


def test_unknown_keys_are_refused(dino, tmp_path):
    torch.save(dino.state_dict() | {"blocks.0.attn.strange.weight": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"1 key is unknown \(first: blocks\.0\.attn\.strange\.weight\)"):
        load_model("dino", config=CONFIG, weights=tmp_path / "x.pth")


def test_a_random_classifier_is_no_checkpoints(dino):
    assert dino.notes() == {"classifier": "random, as all weights"} and dino.preliminary() is None


@pytest.mark.parametrize("inputs", [64, 128])
def test_the_official_head_is_taken(inputs, dino, tmp_path):
    from configs.schema import read_yaml

    backbone = {k: v for k, v in dino.state_dict().items() if not k.startswith("classifier")}
    torch.save(backbone, tmp_path / "backbone.pth")
    head = {"module.linear.weight": torch.randn(10, inputs), "module.linear.bias": torch.randn(10)}
    torch.save({"epoch": 100, "state_dict": head}, tmp_path / "linear.pth")
    config = read_yaml(CONFIG) | {"head": str(tmp_path / "linear.pth")}
    model = load_model("dino", config=config, weights=tmp_path / "backbone.pth")
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        states = dino.vit(image)
        features = states[:, 0] if inputs == 64 else torch.cat([states[:, 0], states[:, 1:].mean(1)], 1)
        expected = features @ head["module.linear.weight"].t() + head["module.linear.bias"]
        torch.testing.assert_close(model.logits(image), expected)
    assert "official linear probe" in model.notes()["classifier"]


def test_the_head_is_fitted_before_gradients(dino, batches, tmp_path):
    """Against scipy-free linear discriminant analysis by scikit's formulas, written out with plain loops."""
    torch.save({k: v for k, v in dino.state_dict().items() if not k.startswith("classifier")}, tmp_path / "b.pth")
    model = load_model("dino", config=CONFIG, weights=tmp_path / "b.pth")
    assert model.classifier_origin is None
    statistic = model.preliminary()
    from calibration.processes import Group

    for batch in batches:
        statistic.update(batch["general"])
        statistic.merge(Group(), [0])
    statistic.finish()
    with torch.no_grad():
        x = torch.cat([model.features(b["general"]["image"]) for b in batches]).double()
    y = torch.cat([b["general"]["label"] for b in batches])
    means = torch.stack([x[y == c].mean(0) for c in range(10)])
    within = sum(torch.outer(row - means[c], row - means[c]) for row, c in zip(x, y, strict=True)) / len(x)
    covariance = 0.9 * within + 0.1 * within.diagonal().mean() * torch.eye(64, dtype=torch.float64)
    inverse = torch.linalg.inv(covariance)
    for c in range(10):
        torch.testing.assert_close(model.classifier.weight[c].double(), inverse @ means[c], rtol=1e-3, atol=1e-3)
        bias = torch.log((y == c).double().mean()) - means[c] @ inverse @ means[c] / 2
        torch.testing.assert_close(model.classifier.bias[c].double(), bias, rtol=1e-3, atol=1e-2)
    accuracy = (
        (model.logits(batches[0]["general"]["image"]).argmax(1) == batches[0]["general"]["label"]).double().mean()
    )
    assert accuracy > 0.8
    statistic.undo()
    assert not model.classifier.weight.any()
    masks = prune(model, batches, "snip", (0.5,))
    assert "fitted on the calibration features" in masks[0.5].source["classifier"]
    assert not model.classifier.weight.any(), "the model is left as it was"


@pytest.mark.parametrize("classifier", [None, "the checkpoint's own"])
def test_labels_beyond_the_classes(classifier, dino, batches):
    dino.classifier_origin = classifier  # None: one is fitted first
    batches[2]["general"]["label"][5] = 10
    with pytest.raises(InputError, match="has a class 10, but the model knows 10"):
        prune(dino, batches, "snip", (0.5,))


def test_one_image_a_class_fits_no_classifier(dino, batches, tmp_path):
    """The covariance within classes is zero: there is nothing to solve."""
    torch.save({k: v for k, v in dino.state_dict().items() if not k.startswith("classifier")}, tmp_path / "b.pth")
    model = load_model("dino", config=CONFIG, weights=tmp_path / "b.pth")
    few = {"image": batches[0]["general"]["image"][:4], "label": torch.arange(4)}
    with pytest.raises(InputError, match="of 4 images, no two of one class differ; give more"):
        prune(model, [{"general": few}], "snip", (0.5,))
    few["label"][3] = 0
    assert prune(model, [{"general": few}], "snip", (0.5,))[0.5].sparsity() == 0.5


def test_small_crops_and_a_mask(dino, batches):
    assert dino.vit(torch.randn(2, 3, 16, 16)).shape == (2, 5, 64)
    session = Session(dino, batches, "multiflow")
    mask = session.masks((0.75,))[0.75]
    assert mask.sparsity() == pytest.approx(0.75, abs=1e-5)
    assert "classifier" not in mask.source
