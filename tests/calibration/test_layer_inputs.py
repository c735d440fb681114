"""What layers read, however modules share, change and pass it on: against the same function written plainly."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from calibration.hessians import InputHessians
from calibration.layer_inputs import watch_inputs
from calibration.statistics import InputNorms
from console.errors import InputError
from models.wrap import wrap
from pruners import prune
from pruners.session import Session

BY_INPUT = ("multiflow", "wanda", "sparsegpt")


def call(module, batch):
    return module(batch["x"])


def loss(module, batch):
    return module(batch["x"]).square().sum()


def statistics(module, batches, **options):
    """Input norms and Hessians of a module, by layer."""
    model = wrap(module, forward=options.pop("forward", call), **options)
    found = []
    for statistic in (InputNorms, InputHessians):
        made = statistic(model, model.prunable_layers())
        for batch in batches:
            made.update(batch)
            made.merge(Session(model, batches, "omp")._work.group, [0])
        found.append(made)
    return found


def by_hand(inputs, sequences=None):
    """a and H of the tensors that a layer reads, in float64."""
    rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs]).double()
    count = sum(len(x) for x in inputs) if sequences is None else sequences
    return rows.square().sum(0).div(count).sqrt(), rows.t() @ rows


def assert_read(found, name, inputs, sequences=None):
    norms, hessians = found
    a, h = by_hand(inputs, sequences)
    torch.testing.assert_close(norms.norms(name).double(), a, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(hessians.of(name).double(), h, rtol=1e-4, atol=1e-5)


class Residual(nn.Module):
    """Blocks whose sums are taken in place, or not."""

    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.in_place = in_place

    def forward(self, x):
        x = x.clone()
        for layer in (self.a, self.b, self.c):
            if self.in_place:
                x += 3 * layer(x)
            else:
                x = x + 3 * layer(x)
        return x


class Rectified(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (nn.Linear(8, 8, bias=False) for _ in range(2))
        self.act = nn.ReLU(inplace=in_place)

    def forward(self, x):
        x = x * torch.linspace(-3, 3, 8)
        return self.a(x) + self.b(self.act(x))


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.rand(5, 4, 8, generator=generator)} for _ in range(3)]


class TestChangedInPlace:
    @pytest.mark.parametrize("kind", [Residual, Rectified])
    def test_statistics_are_those_without(self, kind, batches):
        changed, plain = (statistics(kind(in_place), batches) for in_place in (True, False))
        for name in plain[0]._layers:
            torch.testing.assert_close(changed[0].norms(name), plain[0].norms(name), rtol=0, atol=0)
            torch.testing.assert_close(changed[1].of(name), plain[1].of(name), rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("kind", [Residual, Rectified])
    @pytest.mark.parametrize("pruner", BY_INPUT)
    def test_masks_are_those_without(self, kind, pruner, batches):
        one, other = (prune(wrap(kind(c), forward=call), batches, pruner, (0.5,))[0.5] for c in (True, False))
        assert all(torch.equal(one[name], other[name]) for name in other)

    def test_a_loss_that_torch_cannot_differentiate(self, batches):
        with pytest.raises(InputError, match=r"cannot be differentiated: .* is changed in place"):
            prune(wrap(Rectified(True), loss=loss, forward=call), batches, "snip", (0.5,))

    def test_inference_mode_in_the_forward_pass(self, batches):
        """Its tensors have no version to compare."""

        def forward(module, batch):
            with torch.inference_mode():
                module(batch["x"])

        found = statistics(Residual(True), batches, forward=forward)
        plain = statistics(Residual(False), batches)
        torch.testing.assert_close(found[0].norms("b.weight"), plain[0].norms("b.weight"))


class Together(nn.Module):
    """a and b read one tensor; b (or a) also another, in some batches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, more):
        return self.a(x), self.b(x), self.b(more)


class TestSharedInputs:
    def test_a_layer_that_reads_more_than_the_others(self, batches):
        extra = [torch.randn(2, 3, 8) for _ in batches]
        fields = [{"x": b["x"], "more": e} for b, e in zip(batches, extra, strict=True)]
        found = statistics(Together(), fields, forward=lambda module, batch: module(**batch))
        shared = [b["x"] for b in batches]
        assert_read(found, "a.weight", shared)
        assert_read(found, "b.weight", [*shared, *extra])
        assert len(found[1]._sums) == 2

    def test_each_with_its_own_tokens(self, batches):
        """a counts the first two tokens, b the last one, of the same tensor."""
        masks = {"a.weight": torch.tensor([1, 1, 0, 0]), "b.weight": torch.tensor([0, 0, 0, 1])}
        module = Together()
        forward = lambda module, batch: module.a(batch["x"]) + module.b(batch["x"])  # noqa: E731
        tokens = lambda name, batch: masks[name].expand(5, 4)  # noqa: E731
        found = statistics(module, batches, forward=forward, tokens=tokens)
        for name, mask in masks.items():
            assert_read(found, name, [b["x"] * mask[:, None] for b in batches])

    def test_equal_masks_made_anew_are_one(self, batches):
        forward = lambda module, batch: module.a(batch["x"]) + module.b(batch["x"])  # noqa: E731
        found = statistics(Together(), batches, forward=forward, tokens=lambda name, batch: torch.ones(5, 4))
        assert len(found[1]._sums) == 1

    def test_saved_sums_go_on(self, batches):
        """Half before an interruption, half after."""
        model = wrap(Together(), forward=lambda m, b: m(b["x"], b["x"][:2]))
        whole, first, second = (InputHessians(model, model.prunable_layers()) for _ in range(3))
        group = Session(model, batches, "omp")._work.group
        for i, batch in enumerate(batches):
            for statistic in (whole, first if i < 2 else second):
                if statistic is second and i == 2:
                    second.restore(first.state())
                statistic.update(batch)
                statistic.merge(group, [0])
        for name in model.prunable_layers():
            assert torch.equal(whole.of(name), second.of(name))


class Twice(nn.Module):
    """One weight used twice: by one module, or by two that share it."""

    def __init__(self, tied):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.h = nn.Linear(16, 16, bias=False), nn.Linear(16, 4)
        self.b = self.a
        if tied:
            self.b = nn.Linear(16, 16, bias=False)
            self.b.weight = self.a.weight

    def forward(self, x):
        return self.h(self.b(self.a(x).relu() * torch.linspace(0.01, 30, 16)))


class TestTiedModules:
    @pytest.mark.parametrize("pruner", [*BY_INPUT, "snip", "chita", "tamt"])
    def test_two_modules_are_one_called_twice(self, pruner):
        batches = [{"x": torch.randn(8, 16, generator=torch.Generator().manual_seed(s))} for s in range(3)]
        masks = [
            prune(wrap(Twice(tied), loss=loss, forward=call, exclude=["h"]), batches, pruner, (0.5,))[0.5]
            for tied in (False, True)
        ]
        assert torch.equal(masks[0]["a.weight"], masks[1]["a.weight"])

    def test_only_the_second_is_called(self):
        x = torch.randn(8, 16)
        found = statistics(Twice(True), [{"x": x}], forward=lambda m, b: m.b(b["x"]), exclude=["h"])
        assert_read(found, "a.weight", [x])

    def test_tokens_are_asked_by_the_name_of_each(self):
        asked = []
        model = wrap(Twice(True), forward=call, exclude=["h"], tokens=lambda name, batch: asked.append(name))
        watch_inputs(model, {"x": torch.randn(2, 16)}, lambda read: None)
        assert asked == ["a.weight", "b.weight"]

    @pytest.mark.parametrize("first", ["layer", "other"])
    def test_weights_that_modules_use_in_several_ways(self, first):
        """Another's inputs could not be added up, or not be seen: it stays, is named, and disturbs nobody."""

        class Own(nn.Module):
            def __init__(self, weight):
                super().__init__()
                self.matrix = weight

            def forward(self, x):
                return nn.functional.linear(x, self.matrix)

        def attention(weight):
            made = nn.MultiheadAttention(8, 2, batch_first=True)
            made.in_proj_weight = weight
            return made

        def conv1d(weight):
            made = Conv1D(*weight.shape)
            made.weight = weight
            return made

        for make, rows in ((Own, 8), (attention, 24), (conv1d, 8)):
            layer = nn.Linear(8, rows, bias=False)
            parts = [("layer", layer), ("other", make(layer.weight))]
            model = nn.ModuleDict(dict(parts if first == "layer" else parts[::-1]) | {"kept": nn.Linear(8, 4)})
            wrapped = wrap(model, forward=lambda m, b: (m["layer"](b["x"]), m["kept"](b["x"])))
            assert [name for name in wrapped.prunable_layers() if "out_proj" not in name] == ["kept.weight"]
            assert [one.weights for one in wrapped.skipped] == [8 * rows]
            if first == "layer":
                assert wrapped.skipped[0].reason.startswith("other.")

    def test_attentions_sharing_a_weight_use_own_tokens(self):
        class Pair(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
                self.b.in_proj_weight, self.b.out_proj.weight = self.a.in_proj_weight, self.a.out_proj.weight

            def forward(self, batch):
                return self.a(*3 * [batch["x"]])[0], self.b(*3 * [batch["y"]])[0]

        x, y, atts = torch.randn(2, 5, 8), torch.randn(2, 4, 8), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
        tokens = lambda name, batch: atts if name.startswith("a.") else None  # noqa: E731
        found = statistics(Pair(), [{"x": x, "y": y}], forward=lambda m, b: m(b), tokens=tokens)
        assert_read(found, "a.in_proj_weight", [x * atts[..., None], y])

    def test_blip_counts_the_encoder_alone(self):
        """What encoder and decoder share goes by the encoder's inputs, as in the published code."""
        from models import load_model
        from tests.conftest import REFERENCE

        model = load_model("blip", config=REFERENCE / "blip.yaml", weights="random")
        met = dict.fromkeys(model.prunable_layers(), 0)

        def look(read):
            met[read.name] += 1

        watch_inputs(model, model.example(2)["general"], look)
        assert set(met.values()) == {1}


class TestOddInputs:
    def test_a_vector_without_a_batch_axis(self):
        x = torch.randn(8)
        found = statistics(nn.Sequential(nn.Linear(8, 3)), [{"x": x}])
        assert_read(found, "0.weight", [x[None]])

    def test_an_input_by_keyword(self):
        class Own(nn.Linear):
            def forward(self, tokens):
                return super().forward(tokens)

        x = torch.randn(4, 8)
        module = nn.ModuleDict({"a": Own(8, 3)})
        found = statistics(module, [{"x": x}], forward=lambda m, b: m["a"](tokens=b["x"]))
        assert_read(found, "a.weight", [x])

    def test_a_layer_that_reads_another_width(self):
        class Folded(nn.Linear):
            def forward(self, x):
                return super().forward(x.reshape(-1, 8))

        with pytest.raises(
            InputError, match=r"'0.weight' has a weight for 8 inputs but reads a tensor of shape \(2, 16\)"
        ):
            statistics(nn.Sequential(Folded(8, 3)), [{"x": torch.randn(2, 16)}])

    @pytest.mark.parametrize("pruner", [*BY_INPUT, "snip", "itersnip", "chita", "chita++", "tamt"])
    def test_an_expert_without_tokens_is_named(self, pruner, capsys):
        """It is scored by magnitude where nothing else is known, and nothing of it goes in silence."""

        class Experts(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.expert = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

            def forward(self, x):
                send = torch.arange(len(x)) % 2  # never to the third
                return torch.cat([expert(x[send == i]) for i, expert in enumerate(self.expert)])

        module = Experts()
        mask = prune(
            wrap(module, loss=loss, forward=call), [{"x": torch.randn(6, 8)}], pruner, (0.5,), allocation="layer"
        )[0.5]
        said = " ".join(capsys.readouterr().err.split())
        assert "the calibration data does not reach 1 of 3 layers (first: expert.2.weight)" in said
        if pruner in ("wanda", "sparsegpt"):
            weight = module.expert[2].weight.detach().abs()
            assert weight[mask["expert.2.weight"]].min() >= weight[~mask["expert.2.weight"]].max()


class CrossAttention(nn.Module):
    """torch's own attention, or its arithmetic written with linear layers of the same weights."""

    def __init__(self, batch_first=True, kdim=None):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=batch_first, kdim=kdim, vdim=kdim)

    def forward(self, x, image=None):
        image = x if image is None else image
        return self.attention(x, image, image)[0]


class TestMultiheadAttention:
    def plain(self, attention, x, image):
        """What out_proj reads, by the textbook; batch first."""
        w = attention.in_proj_weight.chunk(3) if attention.in_proj_weight is not None else (
            attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)  # fmt: skip
        b = attention.in_proj_bias.chunk(3)
        q, k, v = (
            (y @ wi.t() + bi).unflatten(-1, (2, 8)).transpose(1, 2)
            for y, wi, bi in zip((x, image, image), w, b, strict=True)
        )
        return ((q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def test_self_attention_is_a_fused_linear_layer(
        self,
    ):
        x = torch.randn(3, 5, 16)
        module = CrossAttention()
        found = statistics(module, [{"x": x}])
        assert list(found[0]._layers) == ["attention.in_proj_weight", "attention.out_proj.weight"]
        assert_read(found, "attention.in_proj_weight", [x])
        assert len(found[0].by_rows("attention.in_proj_weight")) == 1
        with torch.no_grad():
            assert_read(found, "attention.out_proj.weight", [self.plain(module.attention, x, x)])

    @pytest.mark.parametrize("batch_first", [True, False])
    @pytest.mark.parametrize("kdim", [None, 12])
    def test_cross_attention_reads_two_inputs(self, batch_first, kdim):
        x, image = torch.randn(3, 5, 16), torch.randn(3, 7, kdim or 16)
        module = CrossAttention(batch_first, kdim)
        order = (lambda t: t) if batch_first else (lambda t: t.transpose(0, 1))
        forward = lambda m, b: m(order(b["x"]), order(b["image"]))  # noqa: E731
        norms, hessians = statistics(module, [{"x": x, "image": image}], forward=forward)
        with torch.no_grad():
            mixed = self.plain(module.attention, x, image)
        expected = {"query": x, "key": image, "value": image, "out": mixed}
        for block, (part, read) in enumerate(expected.items()):
            a, h = by_hand([read])
            name = "attention.out_proj.weight" if part == "out" else "attention.in_proj_weight"
            if kdim and part != "out":
                name = f"attention.{part[0]}_proj_weight"
            at = 0 if part == "out" or kdim else block
            torch.testing.assert_close(norms.norms(name, at).double(), a, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(hessians.of(name, at).double(), h, rtol=1e-4, atol=1e-4)

    def test_without_a_batch_axis_there_is_one_sequence(self):
        x, image = torch.randn(5, 16), torch.randn(7, 16)
        forward = lambda m, b: m(b["x"], b["image"])  # noqa: E731
        norms, _ = statistics(CrossAttention(), [{"x": x, "image": image}], forward=forward)
        for block, read in enumerate((x, image, image)):
            a, _ = by_hand([read], 1)
            torch.testing.assert_close(norms.norms("attention.in_proj_weight", block).double(), a)

    def test_a_class_of_ones_own_is_called_in_its_own_way(self):
        class Self(nn.MultiheadAttention):
            def forward(self, x):
                return super().forward(x, x, x, need_weights=False)[0]

        x = torch.randn(3, 5, 16)
        found = statistics(Self(16, 2, batch_first=True), [{"x": x}], forward=lambda m, b: m(x=b["x"]))
        assert_read(found, "in_proj_weight", [x])

    def test_padding_by_the_name_of_each_input(self):
        x, image = torch.randn(3, 5, 16), torch.randn(3, 7, 16)
        atts = (torch.arange(5) < torch.tensor([[2], [5], [3]])).long()

        def tokens(name, batch):
            return None if name.endswith((".key", ".value")) else atts

        found = statistics(
            CrossAttention(), [{"x": x, "image": image}], forward=lambda m, b: m(b["x"], b["image"]), tokens=tokens
        )
        a, _ = by_hand([x * atts[..., None]])
        torch.testing.assert_close(found[0].norms("attention.in_proj_weight").double(), a, rtol=1e-5, atol=1e-6)
        assert_read_key = by_hand([image])[0]
        torch.testing.assert_close(
            found[0].norms("attention.in_proj_weight", 1).double(), assert_read_key, rtol=1e-5, atol=1e-6
        )

    @pytest.mark.parametrize("pruner", [*BY_INPUT, "omp", "snip", "lamp", "itersnip", "chita", "tamt"])
    def test_every_method_prunes_it(self, pruner):
        layer = nn.TransformerDecoderLayer(16, 2, 32, 0.0, batch_first=True)
        before = copy.deepcopy(layer.state_dict())
        model = wrap(
            layer,
            loss=lambda m, b: m(b["x"], b["image"]).square().sum(),
            forward=lambda m, b: m(b["x"], b["image"]),
        )
        assert not model.skipped
        options = {"epochs": 2} if pruner == "itersnip" else {}
        batches = [{"x": torch.randn(3, 5, 16), "image": torch.randn(3, 7, 16)} for _ in range(2)]
        mask = prune(model, batches, pruner, (0.5,), **options)[0.5]
        assert mask["multihead_attn.in_proj_weight"].shape == (48, 16)
        assert mask.sparsity() == pytest.approx(0.5, abs=1e-3)
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
        mask.apply(model)
        zeros = float((layer.self_attn.in_proj_weight == 0).float().mean())
        assert zeros == pytest.approx(mask.sparsity(["self_attn.in_proj_weight"]), abs=1e-6)
