"""Wrapped modules: hand-written, timm and Hugging Face, and the conformance test that finds what is wrong."""

import copy
import math

import pytest
import timm
import torch
import transformers
from torch import nn
from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

from console.errors import InputError
from models import load_model
from models.conformance import CHECKS, Wrong, check_model
from models.library.hf_models import load_hf, wrap_hf
from models.wrap import wrap
from pruners import prune
from pruners.preparing import describe
from pruners.session import Session

SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


class Attention(nn.Module):
    """One transformer block, written by hand."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x, mask):
        scores = self.q(x) @ self.k(x).transpose(1, 2)
        x = x + self.o(scores.masked_fill(mask[:, None] == 0, -1e4).softmax(-1) @ self.v(x))
        return x + self.down(self.up(x).relu())


class Hand(nn.Module):
    """A text classifier."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.blocks = nn.ModuleList(Attention() for _ in range(2))
        self.head = nn.Linear(16, 3)

    def forward(self, text_ids, text_atts):
        x = self.words(text_ids)
        for block in self.blocks:
            x = block(x, text_atts)
        return self.head(x[:, 0])


def hand_example(size):
    atts = (torch.arange(7) < torch.randint(2, 7, (size, 1))).long()
    return {"text_ids": torch.randint(5, 50, (size, 7)) * atts, "text_atts": atts, "label": torch.arange(size) % 3}


def hand_forward(module, batch):
    return module(batch["text_ids"], batch["text_atts"])


def hand_wrapped(module=None, **changes):
    torch.manual_seed(0)
    options = {
        "loss": lambda module, batch: nn.functional.cross_entropy(hand_forward(module, batch), batch["label"]),
        "forward": hand_forward,
        "exclude": ["head"],
        "tokens": lambda name, batch: batch["text_atts"],
        "example": hand_example,
    }
    return wrap(module or Hand(), **(options | changes))


def clip():
    text = transformers.CLIPTextConfig(**SMALL, vocab_size=99, max_position_embeddings=16, eos_token_id=2)
    vision = transformers.CLIPVisionConfig(**SMALL, image_size=32, patch_size=8)
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    )


def siglip():
    text = transformers.SiglipTextConfig(**SMALL, vocab_size=99, max_position_embeddings=16)
    vision = transformers.SiglipVisionConfig(**SMALL, image_size=32, patch_size=8)
    return transformers.SiglipModel(
        transformers.SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    )


def blip():
    text = transformers.BlipTextConfig(
        **SMALL, vocab_size=99, max_position_embeddings=16, encoder_hidden_size=32, is_decoder=True, bos_token_id=1
    )
    vision = transformers.BlipVisionConfig(**SMALL, image_size=32, patch_size=8)
    config = transformers.BlipConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16, image_text_hidden_size=16
    )
    return transformers.BlipForImageTextRetrieval(config)


def vit():
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**SMALL, image_size=32, patch_size=8, num_labels=7)
    )


def encoder(name, **settings):
    config = getattr(transformers, f"{name.removesuffix('Model')}Config")(**SMALL | settings)
    return lambda: getattr(transformers, name)(config)


IMAGES = {"image_size": 32, "patch_size": 8}
WORDS = {"vocab_size": 99, "max_position_embeddings": 16}


def siglip2():
    marks = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.Siglip2Config(
        text_config={**SMALL, **WORDS, **marks}, vision_config={**SMALL, "num_patches": 16, "patch_size": 8}
    )
    return transformers.Siglip2Model(config)


def dual():
    vision, text = transformers.Dinov2Config(**SMALL, **IMAGES), transformers.BertConfig(**SMALL, **WORDS)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=16)
    return transformers.VisionTextDualEncoderModel(config)


def distilbert():
    sizes = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
    return transformers.DistilBertModel(transformers.DistilBertConfig(**sizes, **WORDS))


def mobilevit():
    sizes = {"hidden_sizes": [8, 12, 16], "neck_hidden_sizes": [4, 4, 8, 8, 12, 16, 16], "num_attention_heads": 2}
    config = transformers.MobileViTConfig(**sizes, image_size=64, patch_size=2, expand_ratio=1.0, num_labels=7)
    return transformers.MobileViTForImageClassification(config)


HUGGING_FACE = {
    "CLIPModel": clip,
    "Siglip2Model": siglip2,
    "VisionTextDualEncoderModel": dual,
    "Dinov2Model": encoder("Dinov2Model", **IMAGES),
    "DINOv3ViTModel": encoder("DINOv3ViTModel", **IMAGES),
    "BertModel": encoder("BertModel", **WORDS),
    "DistilBertModel": distilbert,
    "RobertaModel": encoder("RobertaModel", **WORDS),
    "MobileViTForImageClassification": mobilevit,
    "SiglipModel": siglip,
    "BlipForImageTextRetrieval": blip,
    "ViTForImageClassification": vit,
}

MODALITIES = {
    **dict.fromkeys(("BertModel", "DistilBertModel", "RobertaModel"), ("text",)),
    **dict.fromkeys(("Dinov2Model", "DINOv3ViTModel", "ViTForImageClassification"), ("vision",)),
    "MobileViTForImageClassification": ("vision",),
}
"""Of classes that do not have both."""


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel", "Siglip2Model", "VisionTextDualEncoderModel"])
def test_towers_apart_have_features(name):
    """Similarities of features at the model's own temperature are its logits."""
    torch.manual_seed(0)
    model = wrap_hf(HUGGING_FACE[name]().eval())
    batch = model.example(4)["general"]
    names = {"pixel_values": batch["image"], "input_ids": batch["text_ids"]}
    names |= {} if name.startswith("Siglip") else {"attention_mask": batch["text_atts"]}
    if name == "Siglip2Model":  # as its own processor cuts images
        names["pixel_values"] = torch.stack([convert_image_to_patches(image, 8) for image in batch["image"]])
        names |= {"spatial_shapes": torch.full((4, 2), 4), "pixel_attention_mask": torch.ones(4, 16)}
    with torch.no_grad():
        image, text = model.image_entry(batch["image"])[1], model.text_entry(batch["text_ids"], batch["text_atts"])[1]
        found = image @ text.t() / model.temp + getattr(model.module, "logit_bias", 0)
        torch.testing.assert_close(found, model.module(**names).logits_per_image)


class TestTowers:
    """Encoders without a head: what their losses call alike."""

    def test_images_of_a_class(self):
        torch.manual_seed(0)
        model = wrap_hf(HUGGING_FACE["Dinov2Model"]().eval())
        image = torch.randn(4, 3, 32, 32)
        one, other = (nn.functional.normalize(model.embed_image(view), dim=1) for view in (image, image.flip(3)))
        similarity = (one @ other.t() / 0.07).tolist()
        for labels in (None, [0, 1, 0, 2]):
            batch = {"image": image} | ({} if labels is None else {"label": torch.tensor(labels)})
            ids, total = labels or range(4), 0.0
            for i in range(4):
                alike = [j for j in range(4) if ids[j] == ids[i]]
                for row in (similarity[i], [similarity[j][i] for j in range(4)]):
                    total -= sum(row[j] for j in alike) / len(alike) - math.log(sum(map(math.exp, row)))
            assert model.loss(batch).item() == pytest.approx(total / 8, rel=1e-4)

    def test_the_halves_of_a_text(self):
        """Words of one half do not move the features of the other, and equal texts are one."""
        torch.manual_seed(0)
        model = wrap_hf(HUGGING_FACE["BertModel"]().eval())
        ids = torch.tensor([[5, 6, 7, 8, 0], [5, 9, 10, 11, 12], [5, 6, 7, 8, 0]])
        atts = (ids > 0).long()
        states = [model.module(input_ids=ids, attention_mask=atts * half).last_hidden_state for half in HALVES]
        one, other = (
            torch.stack([row[(half * att) > 0].mean(0) for row, att in zip(state, atts, strict=True)])
            for state, half in zip(states, HALVES, strict=True)
        )
        scaled = nn.functional.normalize(one, dim=1) @ nn.functional.normalize(other, dim=1).t() / 0.07
        targets = torch.tensor([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]])
        expected = (nn.functional.cross_entropy(scaled, targets) + nn.functional.cross_entropy(scaled.t(), targets)) / 2
        torch.testing.assert_close(model.loss({"text_ids": ids, "text_atts": atts}), expected)
        whole = model.module(input_ids=ids, attention_mask=atts).last_hidden_state
        torch.testing.assert_close(model.embed_text(ids, atts)[1:2], whole[1:2].mean(dim=1))

    def test_a_mask_of_a_tower_fits_its_classifier(self):
        """And the reverse: the classifier has the tower's layers, under names with its prefix."""
        tower = wrap_hf(HUGGING_FACE["Dinov2Model"]().eval())
        classifier = wrap_hf(transformers.Dinov2ForImageClassification(tower.module.config).eval())
        mask = prune(tower, [], "omp", (0.5,))[0.5]
        fitted = mask.fitted(classifier)
        assert {name: bits.tolist() for name, bits in ((name, fitted[name]) for name in fitted)} == {
            f"dinov2.{name}": mask[name].tolist() for name in mask
        }
        again = fitted.fitted(tower)
        assert all(torch.equal(again[name], mask[name]) for name in tower.prunable_layers())

    def test_the_preprocessor_says_the_size_of_images(self):
        """DINOv2 was published at 518 pixels and is used at 224; a ViT knows one size."""
        said = {"crop_size": {"height": 16, "width": 16}, "image_mean": [0.4] * 3, "image_std": [0.2] * 3}
        shape = wrap_hf(HUGGING_FACE["Dinov2Model"](), preprocessor=said).image_shape
        assert (shape.image_size, shape.mean) == (16, (0.4, 0.4, 0.4))
        assert wrap_hf(HUGGING_FACE["Dinov2Model"]()).image_shape.image_size == 32
        assert wrap_hf(HUGGING_FACE["ViTForImageClassification"](), preprocessor=said).image_shape.image_size == 32

    def test_dinov2_gets_a_classifier(self, tmp_path, capsys):
        HUGGING_FACE["Dinov2Model"]().save_pretrained(tmp_path / "model")
        model = load_hf(str(tmp_path / "model"), None, {"classes": 3}, task="image_classification")
        assert "has no preprocessor_config.json" in capsys.readouterr().err
        assert type(model.module).__name__ == "Dinov2ForImageClassification"
        assert model.logits(torch.randn(2, 3, 32, 32)).shape == (2, 3)


HALVES = torch.tensor([[1, 0, 1, 0, 1], [1, 1, 0, 1, 0]])


class TestWrap:
    def test_five_lines(self):
        model = hand_wrapped()
        batches = [hand_example(4) for _ in range(3)]
        mask = prune(model, batches, "multiflow", (0.6,))[0.6]
        assert next(iter(mask)) == "blocks.0.q.weight"
        assert not any("head" in name for name in mask)
        assert mask.sparsity() == pytest.approx(0.6, abs=1e-3)
        mask.apply(model)
        assert (model.module.blocks[0].q.weight == 0).float().mean() == pytest.approx(
            mask.sparsity(["blocks.0.q.weight"])
        )

    def test_conforms(self, capsys):
        name = "hf:a[/b]/c"  # which is no markup
        assert check_model(hand_wrapped(), name)
        assert name in capsys.readouterr().out
        describe(hand_wrapped(), name)
        assert name in capsys.readouterr().err

    def test_modalities_by_prefix(self):
        model = hand_wrapped(modality={"blocks.0": "early", "blocks.1": "late"})
        mask = prune(model, [hand_example(4)], "multiflow", (0.5,))[0.5]
        assert mask.sparsity_by_modality() == pytest.approx({"early": 0.5, "late": 0.5})
        with pytest.raises(InputError, match=r"no modality for 'blocks\.1"):
            prune(hand_wrapped(modality={"blocks.0": "early"}), [hand_example(4)], "omp", (0.5,))

    def test_convolutions_by_unfolded_patches(self):
        """Norms of a strided, padded convolution's inputs, against explicit patches."""
        torch.manual_seed(0)
        conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        module = nn.Sequential(conv, nn.Flatten(), nn.Linear(4 * 4 * 4, 5))
        model = wrap(module, forward=lambda module, batch: module(batch["x"]), conv=True)
        batches = [{"x": torch.randn(2, 3, 8, 8)} for _ in range(2)]
        session = Session(model, batches, "multiflow")
        mask = session.masks((0.5,))[0.5]
        assert mask["0.weight"].shape == (4, 3, 3, 3)
        total = 0
        for batch in batches:
            padded = nn.functional.pad(batch["x"], (1, 1, 1, 1))
            for i in range(4):
                for j in range(4):
                    total = total + padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].square().sum(0).flatten()
        torch.testing.assert_close(session.pruner.norms.norms("0.weight"), (total / 4).sqrt())

    @pytest.mark.parametrize("pruner", ["snip", "lamp", "sparsegpt", "chita", "tamt", "wanda", "itersnip"])
    def test_convolutions_with_other_methods(self, pruner):
        torch.manual_seed(0)
        module = timm.create_model("resnet18", num_classes=10, channels=(16, 32, 32, 64))
        model = wrap(
            module,
            loss=lambda module, batch: nn.functional.cross_entropy(module(batch["image"]), batch["label"]),
            forward=lambda module, batch: module(batch["image"]),
            exclude=["fc"],
            conv=True,
        )
        before = copy.deepcopy(module.state_dict())
        batches = [{"image": torch.randn(2, 3, 32, 32), "label": torch.tensor([1, 2])}]
        options = {"epochs": 2} if pruner == "itersnip" else {}
        mask = prune(model, batches, pruner, (0.5,), **options)[0.5]
        assert mask.sparsity() == pytest.approx(0.5, abs=1e-3)
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class TestBadModules:
    def test_nothing_to_prune(self):
        with pytest.raises(InputError, match="Embedding has no layer to prune"):
            wrap(nn.Embedding(3, 4))
        with pytest.raises(InputError, match=r"108 weights of weight: a convolution, which conv=True"):
            wrap(nn.Conv2d(3, 4, 3))

    def test_loss_without_gradient(self):
        model = hand_wrapped(loss=lambda module, batch: hand_forward(module, batch).detach().sum())
        with pytest.raises(InputError, match="loss has no gradient"):
            prune(model, [hand_example(4)], "snip")

    def test_loss_that_is_no_scalar(self):
        model = hand_wrapped(loss=hand_forward)
        with pytest.raises(InputError, match=r"must be a scalar tensor, not a tensor of shape \(4, 3\)"):
            prune(model, [hand_example(4)], "snip")

    def test_mask_of_another_model(self):
        mask = prune(hand_wrapped(), [], "omp", (0.5,))[0.5]
        other = wrap(nn.Sequential(nn.Linear(3, 4)))
        with pytest.raises(InputError, match=r"belongs to another model: it lacks 1 layer \(first: 0\.weight\)"):
            mask.apply(other)


class TestConformance:
    """Each check fails on a model with the defect it is for, and says it in words."""

    def failed(self, check, model, message):
        with pytest.raises((Wrong, InputError), match=message):
            CHECKS[check](model)

    def test_layers(self):
        model = hand_wrapped()
        model._layers = {"nowhere.weight": nn.Linear(2, 2)}
        self.failed("prunable layers", model, "'nowhere.weight' is not a name of the state dict")
        module = Hand()
        module.blocks[1].q.weight = module.blocks[0].q.weight
        model = hand_wrapped(module)
        model._layers["blocks.1.q.weight"] = module.blocks[1].q
        self.failed("prunable layers", model, "are one tensor: name it once")

    def test_modalities(self):
        self.failed("modalities", hand_wrapped(modality=lambda name: None), "gives None, not a name")

    def test_losses(self):
        nan = hand_wrapped(loss=lambda module, batch: hand_forward(module, batch).sum() * float("nan"))
        self.failed("losses and gradients", nan, "not a finite scalar")
        partial = hand_wrapped(
            loss=lambda module, batch: module.blocks[0](module.words(batch["text_ids"]), batch["text_atts"]).sum()
        )
        self.failed("losses and gradients", partial, r"no gradient to 'blocks\.1\.")

    def test_observation(self):
        never = hand_wrapped(forward=lambda module, batch: module.blocks[0].q(module.words(batch["text_ids"])))
        self.failed("observation", never, r"never calls 'blocks\.0\.k\.weight'")
        twice = hand_wrapped(forward=lambda module, batch: [hand_forward(module, batch) for _ in range(2)])
        assert "12 of them more than once" in CHECKS["observation"](twice)
        self.failed("observation", hand_wrapped(tokens=lambda name, batch: batch["label"]), "must be a mask of shape")

    def test_padding(self):
        class Leaky(Hand):
            def forward(self, text_ids, text_atts):
                return super().forward(text_ids, torch.ones_like(text_atts))

        self.failed("padding", hand_wrapped(Leaky()), "other words under the padding")
        self.failed("padding", hand_wrapped(tokens=None), "leave it out in real_tokens")

    def test_state_dict(self):
        class Hidden(Hand):
            def __init__(self):
                super().__init__()
                self.scale = [torch.tensor(1.0)]

            def load_state_dict(self, state, **options):
                self.scale[0] = self.scale[0] * 2
                return super().load_state_dict(state, **options)

            def forward(self, text_ids, text_atts):
                return super().forward(text_ids, text_atts) * self.scale[0]

        self.failed("state dict", hand_wrapped(Hidden()), "after a round trip the loss")

    def test_pruning(self):
        class Counting(Hand):
            def __init__(self):
                super().__init__()
                self.seen = nn.Parameter(torch.zeros(()), requires_grad=False)

            def forward(self, text_ids, text_atts):
                with torch.no_grad():
                    self.seen += 1
                return super().forward(text_ids, text_atts)

        self.failed("pruning", hand_wrapped(Counting()), "leaves 'seen' changed: name it in moving_tensors")

    def test_the_command_prints_words(self, run):
        done = run("-m", "models.check", "xvlm", "--config", "tests/reference/xvlm.yaml")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("passed") == len(CHECKS)


@pytest.mark.parametrize("name", HUGGING_FACE)
class TestHuggingFace:
    def model(self, name):
        torch.manual_seed(0)
        return wrap_hf(HUGGING_FACE[name]().eval())

    def test_conforms(self, name):
        assert check_model(self.model(name), name)

    def test_modalities_and_padding(self, name):
        model = self.model(name)
        batch = model.example(4)["general"]
        modalities = {model.modality_of(layer) for layer in model.prunable_layers()}
        assert modalities == {*MODALITIES.get(name, ("vision", "text"))}
        for layer in model.prunable_layers():
            masked = model.real_tokens(layer, batch) is not None
            reads_text = model.modality_of(layer) == "text" and not (
                "crossattention" in layer and (".key." in layer or ".value." in layer)
            )
            assert masked == (reads_text and not name.startswith("Siglip")), layer

    def test_from_a_local_folder(self, name, tmp_path):
        original = HUGGING_FACE[name]().eval()
        original.save_pretrained(tmp_path / "model")
        model = load_model(f"hf:{tmp_path / 'model'}")
        for key, value in original.state_dict().items():
            assert torch.equal(model.state_dict()[key], value), key
        assert list(prune(model, [model.example(4)], "snip", (0.5,)))


def test_unknown_hugging_face_models(tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        load_model(f"hf:{tmp_path / 'nowhere'}")
    config = transformers.GPT2Config(architectures=["GPT2Model"])
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is of the class GPT2Model, which has no record here"):
        load_model(f"hf:{tmp_path}", weights="random")


def test_the_mini_resnet_conforms():
    assert check_model(load_model("resnet-mini"), "resnet-mini")


class TestTimm:
    def test_conforms(self):
        model = load_model("timm:vit_small_patch16_224", config=SMALL_VIT, weights="random")
        assert check_model(model, "timm")
        assert not any("head" in name for name in model.prunable_layers())
        assert "blocks.0.attn.qkv.weight" in model.prunable_layers()

    def test_unknown_names_and_files(self):
        with pytest.raises(InputError, match=r"timm has no model 'vit_smal_patch16_224' \(did you mean 'vit_"):
            load_model("timm:vit_smal_patch16_224")
        with pytest.raises(InputError, match=r"nowhere\.pth does not exist"):
            load_model("timm:vit_small_patch16_224", weights="nowhere.pth")
        with pytest.raises(InputError, match=r"model\.yaml is of the family dino, not of timm:vit_small_patch16_224: "):
            load_model("timm:vit_small_patch16_224", config="dino-mini")

    def test_labels_beyond_the_classes(self):
        model = load_model("timm:vit_small_patch16_224", config=SMALL_VIT, weights="random")
        batch = {"image": torch.randn(2, 3, 32, 32), "label": torch.tensor([1, 7])}
        with pytest.raises(InputError, match="has a class 7, but the model knows 5"):
            prune(model, [batch], "snip")

    def test_pruned_weights_load_into_stock_timm(self):
        model = load_model("timm:vit_small_patch16_224", config=SMALL_VIT, weights="random")
        prune(model, [], "lamp", (0.5,))[0.5].apply(model)
        stock = timm.create_model("vit_small_patch16_224", **SMALL_VIT)
        stock.load_state_dict(model.state_dict())
        assert (stock.blocks[0].attn.qkv.weight == 0).any()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"exclude": ["haed"]}, "'haed' is in no name of a module"),
        ({"modality": "text"}, "must be a function of the parameter's name or a mapping, not 'text'"),
        ({"modality": lambda name: None}, "the function gives None"),
    ],
)
def test_slips_of_the_pen(more, message):
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with pytest.raises(InputError, match=message):
        wrapped = wrap(module, loss=lambda m, b: m(b["x"]).sum(), forward=lambda m, b: m(b["x"]), **more)
        prune(wrapped, [{"x": torch.ones(2, 4)}], "multiflow", (0.5,))


def test_a_name_alone_is_one_part_and_not_letters():
    module = nn.ModuleDict({"head": nn.Linear(4, 2), "down": nn.Linear(4, 4)})
    assert list(wrap(module, exclude="head").prunable_layers()) == ["down.weight"]


def test_modules_must_be_wrapped_once():
    module = nn.Linear(4, 4)
    with pytest.raises(InputError, match="wrap it first"):
        prune(module, [], "omp", (0.5,))
    with pytest.raises(InputError, match="not a wrapped module"):
        wrap(wrap(module))
    with pytest.raises(InputError, match=r"must be a list or tuple, for example \(0\.75,\), not 0\.5"):
        prune(wrap(module), [], "omp", 0.5)
