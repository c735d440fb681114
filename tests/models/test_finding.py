"""What other people's modules are made of: what of it is pruned, what is named, and that nothing comes back."""

import numpy as np
import pytest
import torch
import torch.nn.utils.prune as torch_prune
import transformers
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from console.errors import InputError
from models.layers import weights_in_matrices
from models.wrap import wrap
from pruners import PRUNERS, prune
from pruners.session import Session
from sparsity.mask import Mask

ROUNDS = {"itersnip": {"epochs": 2}, "chita++": {"epochs": 2}}


def call(module, batch):
    return module(batch["x"])


def loss(module, batch):
    return call(module, batch).float().square().mean()


def mlp(middle=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), middle or nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


def wrapped(module, **options):
    return wrap(module, loss=loss, forward=call, **options)


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(6, 8, generator=generator)} for _ in range(3)]


class Int8(nn.Linear):
    """Whole numbers with a scale, as libraries of quantised layers keep them."""

    def __init__(self, i, o):
        super().__init__(i, o)
        weight = self.weight.data
        self.scale = float(weight.abs().max() / 127)
        self.weight = nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight.float() * self.scale, self.bias)


class Lora(nn.Module):
    """A layer with an adapter beside it, named as peft names them."""

    def __init__(self, i, o, r=2):
        super().__init__()
        self.base_layer = nn.Linear(i, o)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(i, r, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(r, o, bias=False)})
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def pruned_by_torch(layer):
    torch_prune.l1_unstructured(layer, "weight", 0.3)


RECOMPUTED = {
    "weight_norm": (weight_norm, "remove_weight_norm"),
    "spectral_norm": (spectral_norm, "remove_spectral_norm"),
    "parametrized": (parametrizations.weight_norm, "remove_parametrizations"),
    "prune": (pruned_by_torch, "prune.remove"),
}


class TestNamed:
    @pytest.mark.parametrize("kind", RECOMPUTED)
    @pytest.mark.parametrize("pruner", PRUNERS)
    def test_weights_that_are_made_anew(self, kind, pruner, batches):
        """The others are pruned to the count, stay pruned after a pass, and the way out is said."""
        change, way_out = RECOMPUTED[kind]
        module = mlp()
        change(module[2])
        model = wrapped(module)
        mask = prune(model, batches, pruner, (0.5,), **ROUNDS.get(pruner, {}))[0.5]
        assert list(mask) == ["0.weight", "4.weight"]
        assert any(one.name.startswith("2.") and way_out in one.reason for one in model.skipped)
        mask.apply(model)
        with torch.no_grad():
            module(batches[0]["x"])
        zeros = sum(int((module[i].weight == 0).sum()) for i in (0, 4))
        assert zeros == 80 == round(0.5 * 160)

    def test_none_but_such(self):
        module = mlp()
        for i in (0, 2, 4):
            parametrizations.weight_norm(module[i])
        with pytest.raises(InputError, match=r"has no layer to prune: .*remove_parametrizations"):
            wrapped(module)

    @pytest.mark.parametrize("pruner", PRUNERS)
    def test_whole_numbers(self, pruner, batches):
        model = wrapped(mlp(Int8(16, 8)))
        mask = prune(model, batches, pruner, (0.5,), **ROUNDS.get(pruner, {}))[0.5]
        assert "2.weight" not in mask
        assert [str(one) for one in model.skipped] == [
            "2.weight: its weights are stored as int8: prune before they are quantised (128 weights)"
        ]

    @pytest.mark.parametrize("pruner", ["omp", "multiflow", "snip"])
    def test_adapters_stay(self, pruner, batches):
        model = wrapped(nn.Sequential(Lora(8, 16), nn.ReLU(), Lora(16, 4)))
        mask = prune(model, batches, pruner, (0.5,))[0.5]
        assert list(mask) == ["0.base_layer.weight", "2.base_layer.weight"]
        assert {one.name for one in model.skipped if "adapter" in one.reason} == {
            f"{i}.lora_{part}.default.weight" for i in (0, 2) for part in "AB"
        }

    @pytest.mark.parametrize("names", [("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora_layer", "lora_other")])
    def test_adapters_of_other_libraries_stay(self, names, batches):
        """Inside the layer (peft before 0.5), or beside it under names of their own."""

        class Adapted(nn.Linear):
            def __init__(self):
                super().__init__(8, 8)
                self.add_module(names[0], nn.Linear(8, 2, bias=False))
                self.add_module(names[1], nn.Linear(2, 8, bias=False))

            def forward(self, x):
                down, up = (getattr(self, name) for name in names)
                return super().forward(x) + up(down(x))

        mask = prune(wrapped(nn.Sequential(Adapted(), nn.Linear(8, 4))), batches, "omp", (0.5,))[0.5]
        assert list(mask) == ["0.weight", "1.weight"]

    def test_layers_of_one_output_are_layers(self, batches):
        module = nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), nn.Linear(8, 8), nn.LayerNorm((1, 8)), nn.Linear(8, 1))
        model = wrap(module, loss=loss, forward=lambda m, b: m(b["x"].unsqueeze(1)))
        assert list(model.prunable_layers()) == ["1.weight", "3.weight"]
        assert [one.name for one in model.skipped] == ["0.weight"]
        assert weights_in_matrices(model) == (72, 75)
        assert prune(model, batches, "multiflow", (0.5,))[0.5].sparsity() == 0.5

    def test_quantised_weights_in_buffers_are_named(self):
        class Packed(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("qweight", torch.zeros(2, 16, dtype=torch.int32))
                self.register_buffer("g_idx", torch.zeros(2, 16, dtype=torch.int32))

        model = wrap(nn.Sequential(Packed(), nn.Linear(16, 4)))
        assert [str(one) for one in model.skipped] == [
            "0.qweight: its weights are stored as int32: prune before they are quantised (32 weights)"
        ]

    def test_every_matrix_is_pruned_or_named(self):
        """Counted one by one: convolutions, a recurrent net, a bilinear form and stacked experts."""

        class Mixed(nn.Module):
            def __init__(self):
                super().__init__()
                self.words = nn.Embedding(9, 8)
                self.positions = nn.Parameter(torch.zeros(1, 5, 8))
                self.conv = nn.Conv1d(8, 8, 3)
                self.lstm = nn.LSTM(8, 8)
                self.attention = nn.MultiheadAttention(8, 2)
                self.pair = nn.Bilinear(8, 8, 4)
                self.experts = nn.Parameter(torch.zeros(3, 8, 8))
                self.up = nn.Linear(8, 16)

        model = wrap(Mixed())
        assert list(model.prunable_layers()) == ["attention.in_proj_weight", "attention.out_proj.weight", "up.weight"]
        sizes = {one.name: one.weights for one in model.skipped}
        assert sizes == {
            "experts": 192,
            "conv.weight": 192,
            "lstm.weight_ih_l0": 256,
            "lstm.weight_hh_l0": 256,
            "pair.weight": 256,
        }
        assert weights_in_matrices(model) == (192 + 64 + 128, 192 + 64 + 128 + sum(sizes.values()))

    def test_layers_without_weights_yet(self, batches):
        module = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(4))
        with pytest.raises(InputError, match="'0' is a LazyLinear, which has no weights before its first pass"):
            wrapped(module)
        assert list(wrapped(nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 4)), exclude=["0"]).prunable_layers()) == [
            "1.weight"
        ]
        module(batches[0]["x"])
        assert prune(wrapped(module), batches, "wanda", (0.5,))[0.5].sparsity() == 0.5

    def test_of_which_share_a_percent_is(self, batches, capsys):
        """The mask's file says it, and so does the table of prune.py."""
        from pruners.report import prunable_share

        mask = prune(wrapped(mlp(Int8(16, 8))), batches, "omp", (0.5,))[0.5]
        assert prunable_share(mask.source) == "percent of 160 prunable weights, 55.6 % of those in the model's matrices"
        assert repr(mask) == "<Mask of 2 layers at 50.00 %, by omp>"
        assert prunable_share({}) is None


def gpt2():
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()


class Transposed(nn.Module):
    """GPT-2's layers, or nn.Linear with the same numbers."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 12)
        if kind == "Conv1D":
            for name in "ab":
                layer = getattr(self, name)
                made = transformers.pytorch_utils.Conv1D(layer.out_features, layer.in_features)
                made.weight, made.bias = nn.Parameter(layer.weight.detach().t().contiguous()), layer.bias
                setattr(self, name, made)

    def forward(self, x):
        return self.b(self.a(x).relu())


class TestConv1D:
    @pytest.mark.parametrize("pruner", [name for name in PRUNERS if name != "rand"])
    @pytest.mark.parametrize("allocation", [None, "row", "2:4", "global"])
    def test_masks_are_those_of_linear_layers(self, pruner, allocation, batches):
        options = {"allocation": allocation} if allocation else {}
        masks = {
            kind: prune(wrapped(Transposed(kind)), batches, pruner, (0.5,), **options, **ROUNDS.get(pruner, {}))[0.5]
            for kind in ("Conv1D", "Linear")
        }
        blocks = pruner.startswith("chita")  # its blocks of weights follow memory, and so differ
        for name, kept in masks["Linear"].items():
            assert masks["Conv1D"].shape(name) == kept.t().shape
            if blocks:
                assert int(masks["Conv1D"][name].sum()) == pytest.approx(int(kept.sum()), abs=4)
            else:
                assert torch.equal(masks["Conv1D"][name].t(), kept), name
            if masks["Linear"].has_values and not blocks:
                values = torch.from_numpy(masks["Conv1D"].weights(name)).t()
                torch.testing.assert_close(values, torch.from_numpy(masks["Linear"].weights(name)))

    def test_a_file_keeps_the_orientation(self, batches, tmp_path):
        model = wrapped(Transposed("Conv1D"))
        mask = prune(model, batches, "wanda", (0.5,))[0.5]
        mask.save(tmp_path / "mask.safetensors")
        loaded = Mask.load(tmp_path / "mask.safetensors")
        assert loaded == mask
        assert (loaded.matrix("a.weight").sum(dim=1) == 4).all()
        loaded.apply(model)
        assert torch.equal(model.module.a.weight != 0, mask["a.weight"])

    def test_new_masks_from_saved_scores(self, batches, tmp_path):
        from sparsity.saved_scores import cut_masks, forms_in, read_scores, write_scores

        session = Session(wrapped(Transposed("Conv1D")), batches, "wanda")
        mask = session.masks((0.5,))[0.5]
        about = mask.source | {"model": "m"}
        pruner = session.pruner
        write_scores(tmp_path / "s.safetensors", pruner.scores(), {}, pruner.modality, pruner.forms, about)
        scores, weights, about = read_scores(tmp_path / "s.safetensors")
        cut = cut_masks(scores, weights, about["modality"], forms_in(about), "row", [0.5])[0.5]
        assert cut == mask

    def test_a_whole_gpt2(self):
        model = wrap(gpt2())
        ids = torch.randint(0, 50, (4, 8))
        mask = prune(model, [{"input_ids": ids, "labels": ids}], "multiflow", (0.5,))[0.5]
        assert len(mask) == 8
        assert [one.name for one in model.skipped] == ["lm_head.weight"]
        assert mask.source["prunable_weights"] == 2 * (16 * 48 + 16 * 16 + 2 * 16 * 64)


class TestBatches:
    """As data loaders and tokenizers make them."""

    def test_what_is_no_tensor_is_left_to_the_module(self):
        ids = torch.randint(0, 50, (4, 8))
        plain = [{"input_ids": ids, "labels": ids}]
        expected = prune(wrap(gpt2()), plain, "snip", (0.5,))[0.5]
        encoding = transformers.BatchEncoding({"input_ids": ids, "labels": ids})
        arrays = {"input_ids": ids.numpy(), "labels": ids.numpy(), "attention_mask": None}
        beside = {**plain[0], "text": ["four", "texts", "as", "read"], "id": 7, "file": "a.json"}
        used = {**plain[0], "use_cache": False}
        for batch in (encoding, arrays, beside, used):
            assert prune(wrap(gpt2()), [batch], "snip", (0.5,))[0.5] == expected

    def test_unexpected_tensors_are_named(self):
        batch = {"input_ids": torch.zeros(2, 4, dtype=torch.long), "pixels": torch.zeros(2, 3)}

        class Strict(nn.Linear):
            def forward(self, input_ids):
                return super().forward(input_ids.float())

        with pytest.raises(InputError, match="cannot be called with the fields input_ids, pixels"):
            prune(wrap(Strict(4, 2)), [batch], "wanda", (0.5,))

    def test_arrays_of_any_order_and_numbers_beside_them(self, batches):
        """Reversed, byte-swapped and read-only arrays hold the same numbers; ids and an empty field take no part."""

        class Named(nn.Sequential):
            def forward(self, x):
                return super().forward(x)

        model = wrap(Named(*mlp()))
        expected = prune(model, batches, "wanda", (0.5,))[0.5]
        for kind in (lambda x: x[::-1].copy()[::-1], lambda x: x.astype(">f4"), lambda x: np.asfortranarray(x)):
            beside = {"id": np.arange(6), "scale": torch.tensor(2.0), "step": np.array(3), "long": np.longdouble([1])}
            arrays = [{"x": kind(batch["x"].numpy()), **beside} for batch in batches]
            assert prune(model, arrays, "wanda", (0.5,))[0.5] == expected
        model = wrapped(mlp())
        empty = [batch | {"boxes": torch.zeros(0, 4)} for batch in batches]
        assert prune(model, empty, "wanda", (0.5,))[0.5] == expected
        with pytest.raises(InputError, match="general batch 0 is empty"):
            prune(model, [{"x": torch.zeros(0, 8), "y": torch.zeros(0)}], "wanda", (0.5,))

    @pytest.mark.parametrize("what", [None, 3])
    def test_no_batches_at_all(self, what):
        with pytest.raises(InputError, match=f"the batches are {what}: give a list of dicts"):
            prune(wrapped(mlp()), what, "wanda", (0.5,))
        assert prune(wrapped(mlp()), what, "omp", (0.5,))[0.5].sparsity() == 0.5

    def test_texts_for_a_module_that_reads_texts(self):
        class Words(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Linear(1, 4)

            def forward(self, texts):
                return self.a(torch.tensor([[float(len(text))] for text in texts]))

        session = Session(wrap(Words()), [{"texts": ["a", "four"]}], "wanda")
        session.masks((0.5,))
        assert float(session.pruner.norms.norms("a.weight")[0]) == pytest.approx(((1 + 16) / 2) ** 0.5)


class TestTypes:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_tamt_trains_in_at_least_single_precision(self, dtype, batches):
        """Rates of 1e-5 vanish beside masks of 1e-2 in half precision: the mask is that of single precision, nearly."""
        masks = [
            prune(wrapped(mlp().to(kind)), [{"x": b["x"].to(kind)} for b in batches], "tamt", (0.5,), lr=0.2)[0.5]
            for kind in (dtype, torch.float32)
        ]
        assert masks[0] != prune(wrapped(mlp()), [], "omp", (0.5,))[0.5]
        agree = [(masks[0][name] == masks[1][name]).float().mean() for name in masks[1]]
        assert min(agree) > (0.999 if dtype == torch.float64 else 0.85)


class Checkpointed(nn.Module):
    """A frozen stem, then a block that is computed again in the backward pass, in torch's older way."""

    def __init__(self, again):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.block, self.head, self.again = nn.Linear(8, 8), mlp(), nn.Linear(4, 2), again
        self.stem.requires_grad_(False)

    def forward(self, x):
        x = self.stem(x)
        return self.head(checkpoint(self.block, x, use_reentrant=True) if self.again else self.block(x))


@pytest.mark.parametrize("pruner", ["snip", "chita", "multiflow"])
def test_checkpoints_behind_a_frozen_stem(pruner, batches):
    original = torch.utils.checkpoint.CheckpointFunction
    masks = [prune(wrapped(Checkpointed(again), exclude=["stem"]), batches, pruner, (0.5,))[0.5] for again in (0, 1)]
    assert masks[0] == masks[1]
    assert torch.utils.checkpoint.CheckpointFunction is original


class TestWrappers:
    @pytest.mark.parametrize(
        "wrapper", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel], ids=["compile", "DataParallel"]
    )
    @pytest.mark.parametrize("pruner", ["omp", "multiflow", "snip"])
    def test_masks_fit_the_plain_module_and_back(self, wrapper, pruner, batches):
        held = wrapped(wrapper(mlp()))
        mask = prune(held, batches, pruner, (0.5,))[0.5]
        plain = wrapped(mlp())
        assert mask == prune(plain, batches, pruner, (0.5,))[0.5]
        mask.apply(plain)
        prune(wrapped(mlp()), batches, pruner, (0.5,))[0.5].apply(held)
        for name, layer in held.prunable_layers().items():
            assert torch.equal(layer.weight, plain.prunable_layers()[name].weight)

    def test_blocks_that_are_compiled(self, batches):
        """Their compiled code would call no hook."""
        module = mlp()
        module[2].compile(backend="eager")
        module(batches[0]["x"])
        expected = prune(wrapped(mlp()), batches, "multiflow", (0.5,))[0.5]
        assert prune(wrapped(module), batches, "multiflow", (0.5,))[0.5] == expected


class TestStrides:
    """Weights that lie transposed in memory, as some files and `assign=True` leave them."""

    @pytest.mark.parametrize("allocation", [None, "row", "2:4", "multimodal"])
    @pytest.mark.parametrize("pruner", PRUNERS)
    @pytest.mark.parametrize("ties", [False, True])
    def test_masks_are_those_of_the_same_numbers_in_order(self, pruner, allocation, ties, batches):
        masks = []
        for in_order in (True, False):
            module = mlp()
            weight = module[2].weight.detach()
            if ties:
                weight = torch.where(torch.rand(8, 16, generator=torch.Generator().manual_seed(5)) < 0.7, 0, weight)
            module[2].weight = nn.Parameter(weight if in_order else weight.t().contiguous().t())
            assert module[2].weight.is_contiguous() == in_order
            options = {"allocation": allocation} if allocation else {}
            mask = prune(wrapped(module), batches, pruner, (0.5,), **options, **ROUNDS.get(pruner, {}))[0.5]
            masks.append(mask)
            mask.apply(wrapped(module))
            assert not module[2].weight[~mask["2.weight"]].any()
        if allocation is None:
            total = sum(map(masks[1].size, masks[1]))
            assert total - sum(map(masks[1].kept, masks[1])) == round(0.5 * total)
        assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
    def test_masks_that_carry_a_wrappers_names(self, prefix, batches, tmp_path):
        """As other tools write them, in both formats of files."""
        mask = prune(wrapped(mlp()), batches, "chita", (0.5,))[0.5]
        held = Mask({f"{prefix}{name}": mask[name] for name in mask})
        held = held.with_values((f"{prefix}{name}", torch.from_numpy(mask.weights(name))) for name in mask)
        assert held.fitted(wrapped(mlp())) == mask
        published = {f"{prefix}{name}_pruning_mask": mask[name] for name in mask}
        torch.save({"model": published}, tmp_path / "mask.pth")
        plain = Mask.load(tmp_path / "mask.pth").fitted(wrapped(mlp()))
        assert all(torch.equal(plain[name], mask[name]) for name in mask)

    def test_parts_that_are_compiled(self, batches):
        """Another part here than there, under a name that wrappers use too."""

        options = {"loss": lambda m, b: m["model"](b["x"]).square().mean(), "forward": lambda m, b: m["model"](b["x"])}
        masks = {}
        for part in (None, 0, 2):
            module = nn.Sequential(mlp())
            if part is not None:
                module[0][part] = torch.compile(module[0][part])
            model = wrap(nn.ModuleDict({"model": module}), **options)
            masks[part] = model, prune(model, batches, "chita", (0.5,))[0.5]
        assert "model.0.2._orig_mod.weight" in masks[2][1]
        for _, mask in masks.values():
            for model, its in masks.values():
                assert mask.fitted(model) == its

    def test_the_published_format_has_attentions_matrices(self, tmp_path):
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        model = wrap(layer, forward=call)
        mask = prune(model, [{"x": torch.randn(2, 5, 16)}], "wanda", (0.5,))[0.5]
        mask.save(tmp_path / "mask.pth", format="pth", model=model)
        assert Mask.load(tmp_path / "mask.pth").fitted(model) == mask
