"""Heads, neurons and channels: what models offer, removed for real against masked, parameters counted by hand."""

import copy

import pytest
import timm
import torch
import transformers
from torch import nn

from console.errors import InputError
from models import load_model
from models.conformance import Wrong, check_parts
from models.library.hf_models import wrap_hf
from models.library.parts import units_of
from models.library.timm_models import wrap_timm
from models.parts import kept_units, left_whole, masked, named_tensors, units
from models.surgery import cut
from models.wrap import wrap
from sparsity.mask import Mask
from tests.conftest import REFERENCE
from tests.models.test_any_module import HUGGING_FACE

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 7}
RESNET = {"channels": (8, 12, 16, 20), "num_classes": 7}


def timm_model(name, **settings):
    torch.manual_seed(0)
    return wrap_timm(timm.create_model(name, **settings), 32, conv=True)


def vgg(name):
    """Two stages of timm's class, with its head of convolutions."""
    torch.manual_seed(0)
    norm = {"norm_layer": nn.BatchNorm2d} if name.endswith("bn") else {}
    module = timm.models.vgg.VGG([6, "M", 8, 9, "M"], num_classes=5, mlp_ratio=0.01, **norm)
    module.pretrained_cfg = {"classifier": "head.fc"}
    return wrap_timm(module, 16, conv=True)


def hf(name, **settings):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL | settings, image_size=32, patch_size=8, num_labels=7)
    return wrap_hf(getattr(transformers, f"{name}ForImageClassification")(config))


def pairs(name):
    torch.manual_seed(0)
    return wrap_hf(HUGGING_FACE[name]())


@torch.no_grad()
def loud(name):
    """With weights that keep the scale of what they read, so that one head shows in the loss."""
    model = pairs(name)
    for tensor in model.parameters():
        if tensor.dim() > 1:
            tensor.normal_(std=1.5 * (tensor.numel() / tensor.shape[0]) ** -0.5)
    return model


FAMILIES = {
    "resnet18": lambda: timm_model("resnet18", **RESNET),
    "resnet50": lambda: timm_model("resnet50", **RESNET),
    "resnet with blur": lambda: timm_model("resnetblur50", **RESNET),
    "resnet-mini": lambda: load_model("resnet-mini"),
    "vgg": lambda: vgg("vgg"),
    "vgg_bn": lambda: vgg("vgg_bn"),
    "timm vit": lambda: timm_model("vit_small_patch16_224", **TIMM_VIT),
    "timm vit, gated": lambda: timm_model("vit_small_patch16_224", **TIMM_VIT, mlp_layer=timm.layers.SwiGLUPacked),
    "timm vit, qk norm": lambda: timm_model("vit_small_patch16_224", **TIMM_VIT, qk_norm=True, init_values=0.1),
    "timm vit, swiglu": lambda: timm_model("vit_small_patch16_224", **TIMM_VIT, mlp_layer=timm.layers.SwiGLU),
    "dino": lambda: load_model("dino", config=REFERENCE / "dino.yaml"),
    "dino-mini": lambda: load_model("dino-mini"),
    "hf ViT": lambda: hf("ViT"),
    "hf DINOv2": lambda: hf("Dinov2", mlp_ratio=2),
    "hf DINOv2, gated": lambda: hf("Dinov2", mlp_ratio=2, use_swiglu_ffn=True),
    "hf CLIP": lambda: pairs("CLIPModel"),
    "hf SigLIP": lambda: pairs("SiglipModel"),
    "hf BLIP": lambda: pairs("BlipForImageTextRetrieval"),
    "hf DINOv3": lambda: pairs("DINOv3ViTModel"),
    "hf DistilBERT": lambda: loud("DistilBertModel"),
    "hf MobileViT": lambda: loud("MobileViTForImageClassification"),
    "xvlm": lambda: load_model("xvlm", config=REFERENCE / "xvlm.yaml", weights="random"),
    "blip": lambda: load_model("blip", config=REFERENCE / "blip.yaml", weights="random"),
}


def random_choice(model, seed, least=1):
    """Of each set of units a random number, in random places; of the first sets one unit alone."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for number, one in enumerate(units(model)):
        count = least if number < 2 else int(torch.randint(least, one.count + 1, (1,), generator=generator))
        kept[one.name] = torch.zeros(one.count, dtype=torch.bool)
        kept[one.name][torch.randperm(one.count, generator=generator)[:count]] = True
    return kept


def outputs(model):
    """What the model makes of a batch, as a dict of tensors."""
    torch.manual_seed(1)
    batch = model.example(3)[model.sides[0]]
    with torch.no_grad():
        torch.manual_seed(2)  # of hard negatives
        found = model.logits(batch["image"]) if hasattr(model, "logits") else copy.deepcopy(model).eval().losses(batch)
    return found if isinstance(found, dict) else {"logits": found}


@torch.no_grad()
def shaken(model):
    """Batch norms and biases with values of their own: at their first ones much would be equal by chance."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in named_tensors(model).items():
        if tensor.dim() == 1 and tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape, generator=generator), alpha=0.3)
        if "classifier.weight" in name:  # dino-mini's is zero until it is fitted
            tensor.add_(torch.rand(tensor.shape, generator=generator))
        if "running_var" in name:
            tensor.abs_()
    return model.eval()


CONVOLUTIONS = ("resnet18", "resnet50", "resnet with blur", "resnet-mini", "vgg", "vgg_bn")
"""Where one unit at least has to stay: else nothing would come through."""


@pytest.mark.parametrize(
    ("family", "least"), [(name, 1) for name in FAMILIES] + [(name, 0) for name in FAMILIES if name not in CONVOLUTIONS]
)
class TestCut:
    def test_equals_masked_and_leaves_the_model(self, family, least):
        model = shaken(FAMILIES[family]())
        before = {name: tensor.clone() for name, tensor in named_tensors(model).items()}
        kept = random_choice(model, 5, least)
        small = cut(model, kept)
        assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(model).items())
        dense = outputs(model)
        mask = Mask(masked(model, kept))
        mask.apply(model)
        for name, copied in model.followers().items():
            copied.weight.data.masked_fill_(~mask[name], 0)
        expected, found = outputs(model), outputs(small)
        assert any(not torch.allclose(dense[name], expected[name], atol=1e-4) for name in dense)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)

    def test_sizes_are_those_of_the_tensors(self, family, least):
        model = FAMILIES[family]()
        small = cut(model, random_choice(model, 6, least))
        for path, part in small.inner.named_modules():
            whole = model.inner.get_submodule(path)
            assert type(part) is type(whole)
            assert part.training == whole.training
            if isinstance(part, nn.Linear):
                assert (part.out_features, part.in_features) == tuple(part.weight.shape)
                assert part.bias is None or len(part.bias) == part.out_features
            elif isinstance(part, nn.Conv2d):
                assert (part.out_channels, part.in_channels // part.groups) == tuple(part.weight.shape[:2])
            elif isinstance(part, nn.BatchNorm2d):
                assert part.num_features == len(part.weight) == len(part.running_var)
        assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())

    def test_state_fits_a_model_cut_the_same_way(self, family, least):
        model = FAMILIES[family]()
        kept = random_choice(model, 7, least)
        small = cut(model, kept)
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        other = cut(other, kept)
        other.load_state_dict(small.state_dict())
        found, expected = outputs(other), outputs(small)
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_the_mask_says_the_choice_again(self, family, least):
        model = FAMILIES[family]()
        kept = random_choice(model, 8, least)
        masks = masked(model, kept)
        assert list(masks) == list(model.prunable_layers())
        again = kept_units(model, masks)
        assert again.keys() == kept.keys()
        assert all(torch.equal(again[name], kept[name]) for name in kept)


class TestCounts:
    """Parameters by hand."""

    def test_vit(self):
        """A head of width 8: 3 x 8 rows of 32 and their biases, 8 columns of 32. A neuron: 32 + 1 + 32."""
        model = FAMILIES["timm vit"]()
        kept = {"blocks.0.attn": torch.tensor([True, False, True, False]), "blocks.1.mlp": torch.arange(128) < 100}
        small = cut(model, kept)
        gone = 2 * (3 * 8 * 32 + 3 * 8 + 8 * 32) + 28 * (32 + 1 + 32)
        assert sum(map(torch.numel, model.parameters())) - sum(map(torch.numel, small.parameters())) == gone
        block = small.module.blocks[0].attn
        assert (block.num_heads, block.attn_dim, block.head_dim, block.scale) == (2, 16, 8, 8**-0.5)
        rows = [*range(8), *range(16, 24)]
        whole = model.module.blocks[0].attn
        assert torch.equal(block.qkv.weight, whole.qkv.weight[rows + [32 + r for r in rows] + [64 + r for r in rows]])
        assert torch.equal(block.proj.weight, whole.proj.weight[:, rows])

    def test_basic_block(self):
        """A channel of conv1: 9 x 8 weights, two of its norm, 9 x 8 columns of conv2."""
        model = FAMILIES["resnet18"]()
        small = cut(model, {"layer1.1.conv1": torch.arange(8) < 5})
        gone = 3 * (9 * 8 + 2 + 9 * 8)
        assert sum(map(torch.numel, model.parameters())) - sum(map(torch.numel, small.parameters())) == gone
        assert str(small.module.layer1[1].conv1).startswith("Conv2d(8, 5,")
        assert [one.name for one in units(model)] == [f"layer{s}.{b}.conv1" for s in (1, 2, 3, 4) for b in (0, 1)]

    def test_bottleneck(self):
        names = [one.name for one in units(FAMILIES["resnet50"]())]
        assert len(names) == 2 * 16
        assert names[:2] == ["layer1.0.conv1", "layer1.0.conv2"]

    def test_vgg(self):
        """Convolutions with biases; the last one is read by the head's 7 x 7 kernel."""
        model = FAMILIES["vgg"]()
        small = cut(model, {"features.5": torch.arange(9) < 4, "features.0": torch.arange(6) < 5})
        gone = 5 * (9 * 8 + 1 + 49 * 40) + (9 * 3 + 1 + 9 * 8)
        assert sum(map(torch.numel, model.parameters())) - sum(map(torch.numel, small.parameters())) == gone
        assert small.module.num_features == 4
        assert model.module.num_features == 9
        (left,) = left_whole(model)
        assert left.name == "head.fc.weight"


class TestShared:
    def test_of_blip_once_and_still_shared(self):
        """MLP and cross-attention belong to encoder and decoder; momentum copies lose the same units."""
        model = load_model("blip-mini")
        names = [one.name for one in units(model)]
        assert "text_encoder.encoder.layer.0.crossattention" in names
        assert "text_decoder.bert.encoder.layer.0.attention" in names
        assert not [name for name in names if "_m." in name or "decoder.bert.encoder.layer.0.cross" in name]
        heads, neurons = torch.tensor([True, False, True, True]), torch.arange(512) < 100
        layer = "encoder.layer.0"
        small = cut(
            model,
            {
                f"text_encoder.{layer}.crossattention": heads,
                f"text_encoder.{layer}.intermediate": neurons,
                "visual_encoder.blocks.0.attn": heads,
            },
        )
        encoder, decoder = small.text_encoder.encoder.layer[0], small.text_decoder.bert.encoder.layer[0]
        assert encoder.intermediate.dense.weight is decoder.intermediate.dense.weight
        assert encoder.crossattention.self.key.weight is decoder.crossattention.self.key.weight
        assert decoder.crossattention.self.num_attention_heads == 3
        assert decoder.intermediate.dense.out_features == 100
        slow = small.text_encoder_m.encoder.layer[0]
        assert slow.output.dense.weight.shape == (128, 100)
        assert slow.crossattention.self.num_attention_heads == 3
        assert small.visual_encoder_m.blocks[0].attn.num_heads == 3
        words = small.text_decoder.cls.predictions.decoder.weight
        assert words is small.text_encoder.embeddings.word_embeddings.weight
        assert decoder.attention.self.num_attention_heads == 4


class TestByHand:
    def test_channels_into_a_flattened_layer(self):
        """Each channel is 4 x 4 inputs of the classifier; a conv without bias, a Linear without bias."""
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
            nn.Linear(96, 10, bias=False), nn.ReLU(), nn.Linear(10, 4),
        )  # fmt: skip
        model = wrap(
            module.eval(),
            forward=lambda module, batch: module(batch["image"]),
            conv=True,
            parts=lambda m: [
                units_of(m, "0", "channels", feeds=["0", "1"], reads="4", block=16),
                units_of(m, "4", "neurons", feeds=["4"], reads="6"),
            ],
        )
        kept = {"0": torch.tensor([True, False, True, True, False, False]), "4": torch.arange(10) % 3 == 0}
        small = cut(model, kept)
        assert str(small.module[4]) == "Linear(in_features=48, out_features=4, bias=False)"
        image = torch.randn(2, 3, 4, 4)
        found = small.module(image)
        Mask(masked(model, kept)).apply(model)
        torch.testing.assert_close(found, model.module(image), rtol=1e-5, atol=1e-6)

    def test_gpt2_keeps_its_matrices_transposed(self):
        torch.manual_seed(0)
        config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=8)
        module = transformers.GPT2Model(config).eval()
        model = wrap(
            module,
            forward=lambda module, batch: module(batch["ids"]),
            parts=lambda m: [units_of(m, "h.0.mlp", "neurons", feeds=["h.0.mlp.c_fc"], reads="h.0.mlp.c_proj")],
        )
        kept = {"h.0.mlp": torch.arange(64) % 5 == 0}
        small = cut(model, kept)
        assert (small.module.h[0].mlp.c_fc.nf, small.module.h[0].mlp.c_proj.nx) == (13, 13)
        ids = torch.arange(6)[None]
        found = small.module(ids).last_hidden_state
        Mask(masked(model, kept), transposed=["h.0.mlp.c_proj.weight"]).apply(model)
        torch.testing.assert_close(found, module(ids).last_hidden_state, rtol=1e-5, atol=1e-6)

    def test_over_inputs_passes_gradients(self):
        """A score a head becomes a factor of each of its inputs."""
        (heads, *_) = units(FAMILIES["timm vit"]())
        scores = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
        spread = heads.over_inputs(scores, torch.Size((32, 32)))
        assert torch.equal(spread[5], torch.arange(1.0, 5).repeat_interleave(8))
        spread.sum().backward()
        assert torch.equal(scores.grad, torch.full((4,), 8.0 * 32))
        assert heads.by_unit(torch.zeros(32, 32)).shape == (4, 8 * 32)


class TestLeftOut:
    def reasons(self, model):
        return {left.name: left.reason for left in left_whole(model)}

    def test_convolutions_that_nobody_asked_for(self):
        model = wrap_timm(timm.create_model("resnet18", **RESNET), 32)
        with pytest.raises(InputError, match=r"no removable heads, neurons or channels .*conv=True"):
            units(model)

    def test_groups(self):
        model = timm_model("resnext50_32x4d", channels=(32, 32, 32, 32), num_classes=7)
        assert self.reasons(model)["layer1.0.conv3.weight"] == "a convolution in groups makes or reads them"

    def test_group_norm(self):
        reasons = self.reasons(timm_model("resnet50_gn", channels=(32, 32, 32, 32)))
        assert "a GroupNorm, which" in reasons["layer1.0.conv2.weight"]

    def test_blur(self):
        reasons = self.reasons(FAMILIES["resnet with blur"]())
        assert reasons["layer2.0.conv3.weight"] == "a BlurPool2d before it has a fixed number of channels"

    def test_norm_over_heads_and_neurons(self):
        model = timm_model("vit_small_patch16_224", **TIMM_VIT, scale_attn_norm=True, scale_mlp_norm=True)
        reasons = self.reasons(model)
        assert "over all heads" in reasons["blocks.0.attn.proj.weight"]
        assert "over all neurons" in reasons["blocks.0.mlp.fc2.weight"]

    def test_residual_stream(self):
        assert "patch_embed.proj.weight" in self.reasons(FAMILIES["timm vit"]())

    def test_hf_blips_fused_attention(self):
        reasons = self.reasons(FAMILIES["hf BLIP"]())
        assert "width of the states" in reasons["vision_model.encoder.layers.0.self_attn.projection.weight"]


class TestBadChoices:
    def test_unknown_name(self):
        model = FAMILIES["timm vit"]()
        with pytest.raises(InputError, match=r"no units 'blocks.0.at' \(did you mean 'blocks.0.attn'"):
            cut(model, {"blocks.0.at": torch.ones(4).bool()})

    def test_other_count(self):
        model = FAMILIES["timm vit"]()
        with pytest.raises(InputError, match=r"has 4 heads: the choice must be bool \(4,\), not bool \(5,\)"):
            masked(model, {"blocks.0.attn": torch.ones(5).bool()})

    def test_no_channel_left(self):
        model = FAMILIES["resnet18"]()
        with pytest.raises(InputError, match="would keep no channel"):
            cut(model, {"layer1.0.conv1": torch.zeros(8).bool()})


class TestExport:
    def test_torch_export(self):
        model = FAMILIES["timm vit"]().eval()
        small = cut(model, random_choice(model, 1))
        image = torch.randn(2, 3, 32, 32)
        program = torch.export.export(small.module, (image,))
        torch.testing.assert_close(program.module()(image), small.module(image))


OTHERS = {
    "swin_tiny_patch4_window7_224": {"embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "img_size": 56},
    "convnext_tiny": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    "eva02_tiny_patch14_224": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 28},
    "deit3_small_patch16_224": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32},
}
"""Models of timm that some of the readers' blocks are in, too."""


class TestConformance:
    @pytest.mark.parametrize("name", OTHERS)
    def test_other_models_with_these_blocks(self, name):
        torch.manual_seed(0)
        model = wrap_timm(timm.create_model(name, num_classes=5, **OTHERS[name]), OTHERS[name].get("img_size", 32))
        assert "neurons" in check_parts(shaken(model))

    def test_eager_attention(self):
        model = FAMILIES["hf CLIP"]()
        model.module.set_attn_implementation("eager")
        assert "heads" in check_parts(shaken(model))

    def test_families_pass(self):
        for family in ("resnet18", "timm vit", "hf CLIP", "xvlm", "blip"):
            model = shaken(FAMILIES[family]())
            assert "heads" in check_parts(model) or family == "resnet18"

    def test_units_that_depend_on_each_other_are_seen(self):
        """A softmax over the neurons: each depends on the others."""

        class Shifted(nn.Module):
            def __init__(self):
                super().__init__()
                self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)

            def forward(self, x):
                return self.down(self.up(x).softmax(dim=-1))

        model = wrap(
            Shifted(),
            loss=lambda module, batch: module(batch["x"]).square().sum(),
            forward=lambda module, batch: module(batch["x"]),
            example=lambda size: {"x": torch.randn(size, 6)},
            parts=lambda m: [units_of(m, "hidden", "neurons", feeds=["up"], reads="down")],
        )
        with pytest.raises(Wrong, match="only what treats each by itself"):
            check_parts(model)
