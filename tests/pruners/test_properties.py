"""Promises of every registered pruner, on the reference X-VLM."""

import numpy as np
import pytest
import torch

from console.errors import InputError
from models import load_model
from pruners import PRUNERS, prune
from pruners.base import OneShot
from pruners.session import Session
from sparsity import ALLOCATIONS
from sparsity.mask import Mask
from tests.conftest import REFERENCE

SPARSITIES = (0.5, 0.63, 0.9)
FEW_ROUNDS = {name: {"epochs": 2, "num_batches": 2} for name in ("itersnip", "chita++")}
ONE_SHOT = [name for name in PRUNERS if issubclass(PRUNERS[name], OneShot)]


def masks_of(name, model, batches, sparsities=SPARSITIES, **options):
    return prune(model, batches, name, sparsities, **{**FEW_ROUNDS.get(name, {}), **options})


@pytest.fixture(scope="module")
def made(xvlm, xvlm_batches):
    """Each pruner's masks, and the model's state before and after."""
    before = {name: tensor.clone() for name, tensor in xvlm.state_dict().items()}
    masks = {name: masks_of(name, xvlm, xvlm_batches) for name in PRUNERS}
    return masks, before


@pytest.mark.parametrize("name", PRUNERS)
def test_exactly_so_many_go(name, made):
    for sparsity, mask in made[0][name].items():
        sizes = {layer: mask.size(layer) for layer in mask}
        lost = {layer: mask.size(layer) - int(mask[layer].sum()) for layer in mask}
        allocation = PRUNERS[name].allocation
        if allocation in ("layer", "row"):
            assert lost == {layer: round(sparsity * size) for layer, size in sizes.items()}
        elif allocation in ("modality", "multimodal"):
            for names in mask.layers_by_modality().values():
                assert sum(lost[n] for n in names) == round(sparsity * sum(sizes[n] for n in names))
        else:
            assert sum(lost.values()) == round(sparsity * sum(sizes.values()))


@pytest.mark.parametrize("name", PRUNERS)
def test_masks_cover_exactly_the_prunable_layers(name, made, xvlm):
    for mask in made[0][name].values():
        mask.check_fits(xvlm.prunable_layers())
        excluded = ("vision_proj", "text_proj", "itm_head", "bbox_head", "cls.", "embeddings", "LayerNorm", "patch")
        assert not any(part in layer for layer in mask for part in excluded)


def test_the_model_is_left_as_it_was(made, xvlm):
    for name, tensor in xvlm.state_dict().items():
        assert torch.equal(tensor, made[1][name]), name
    assert all(parameter.grad is None and parameter.requires_grad for parameter in xvlm.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in xvlm.modules())


@pytest.mark.parametrize("name", PRUNERS)
def test_convolutions(name):
    """Of a residual net: exact counts, the same mask again, and running statistics as they were."""
    model = load_model("resnet-mini", weights="random")
    torch.manual_seed(0)
    batches = [model.example(4) for _ in range(2)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mask = masks_of(name, model, batches, (0.63,))[0.63]
    assert mask.sparsity() == pytest.approx(0.63, abs=1e-3)
    assert set(mask) == set(model.prunable_layers())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert masks_of(name, model, batches, (0.63,))[0.63] == mask


@pytest.mark.parametrize("name", PRUNERS)
def test_same_seed_same_mask(name, made, xvlm, xvlm_batches):
    """Again, with another random state around it, and one sparsity at a time."""
    torch.manual_seed(12345)
    for sparsity in (0.9, 0.5):
        assert masks_of(name, xvlm, xvlm_batches, (sparsity,))[sparsity] == made[0][name][sparsity]


@pytest.mark.parametrize("name", ONE_SHOT)
def test_sparser_masks_lie_within_denser_ones(name, made):
    for denser, sparser in ((0.5, 0.63), (0.63, 0.9)):
        for layer, kept in made[0][name][sparser].items():
            assert not (kept & ~made[0][name][denser][layer]).any()


@pytest.mark.parametrize("name", PRUNERS)
def test_save_and_load_give_the_same_mask(name, made, tmp_path):
    for mask in made[0][name].values():
        mask.save(tmp_path / "mask.safetensors")
        loaded = Mask.load(tmp_path / "mask.safetensors")
        assert loaded == mask
        assert loaded.source["pruner"] == name
        assert loaded.source["sparsity_reached"] == mask.sparsity()


def test_multiflow_ignores_the_order_of_batches(made, xvlm, xvlm_batches):
    assert masks_of("multiflow", xvlm, xvlm_batches[::-1]) == made[0]["multiflow"]


@pytest.mark.parametrize("name", ["multiflow", "snip"])
def test_other_data_other_mask(name, made, xvlm, xvlm_batches):
    assert masks_of(name, xvlm, xvlm_batches[:2]) != made[0][name]


@pytest.mark.parametrize("name", ["rand", "snip"])
def test_other_seed_other_mask(name, made, xvlm, xvlm_batches):
    """SNIP's negatives are drawn, so its gradients follow the seed."""
    assert masks_of(name, xvlm, xvlm_batches, seed=1) != made[0][name]


@pytest.mark.slow
@pytest.mark.parametrize("allocation", [name for name in ALLOCATIONS if not ALLOCATIONS[name].by_row])
@pytest.mark.parametrize("name", ["omp", "multiflow", "lamp"])
def test_every_criterion_with_every_allocation(name, allocation, xvlm, xvlm_batches):
    """The share each layer loses, against plain sorting of the scores (or magnitudes, for the prior)."""
    session = Session(xvlm, xvlm_batches[:1], name, allocation=allocation)
    mask = session.masks((0.7,))[0.7]
    scores = session.pruner.scores()
    layers = xvlm.prunable_layers()
    ranked = scores if allocation != "multimodal" else {n: layers[n].weight.detach().abs().numpy() for n in layers}
    groups = {"global": lambda n: "", "layer": lambda n: n}.get(allocation, xvlm.modality_of)
    by_group = {}
    for n in scores:
        by_group.setdefault(groups(n), []).append(n)
    for names in by_group.values():
        everything = np.concatenate([ranked[n].ravel() for n in names])
        gone = np.zeros(everything.size, dtype=bool)
        gone[np.argsort(everything, kind="stable")[: round(0.7 * everything.size)]] = True
        shares = np.split(gone, np.cumsum([ranked[n].size for n in names])[:-1])
        for n, share in zip(names, shares, strict=True):
            expected = np.ones(scores[n].size, dtype=bool)
            expected[np.argsort(scores[n].ravel(), kind="stable")[: share.sum()]] = False
            np.testing.assert_array_equal(mask[n].numpy().ravel(), expected)


class TestBadInput:
    def test_unknown_names_offer_the_nearest(self, xvlm):
        with pytest.raises(InputError, match=r"unknown pruner 'multiflo' \(did you mean 'multiflow'\?\)"):
            prune(xvlm, [], "multiflo")
        with pytest.raises(InputError, match=r"unknown allocation 'globl' \(did you mean 'global'\?\)"):
            prune(xvlm, [], "omp", allocation="globl")
        with pytest.raises(InputError, match=r"unknown key 'epoch' \(did you mean 'epochs'\?\)"):
            prune(xvlm, [], "itersnip", epoch=3)
        with pytest.raises(InputError, match=r"unknown schedule 'expo'"):
            prune(xvlm, [], "itersnip", schedule="expo")

    @pytest.mark.parametrize("sparsities", [(0.0,), (1.0,), (63,), (0.5, 0.5), (), ("a",)])
    def test_impossible_sparsities(self, sparsities, xvlm):
        with pytest.raises(InputError, match="sparsity"):
            prune(xvlm, [], "omp", sparsities)

    def test_empty_data(self, xvlm):
        for name in ("multiflow", "snip"):
            with pytest.raises(InputError, match="calibration data is empty"):
                prune(xvlm, [], name)

    def test_a_generator_that_is_too_short(self, xvlm, xvlm_batches):
        with pytest.raises(InputError, match="ends after 1 of 2 steps and cannot be read again: give a list"):
            prune(xvlm, iter(xvlm_batches[:1]), "multiflow", num_batches=2)

    def test_missing_side_and_field(self, xvlm, xvlm_batches):
        with pytest.raises(InputError, match="sides general, region, but it has: general"):
            prune(xvlm, [{"general": xvlm_batches[0]["general"]}])
        broken = {side: dict(batch) for side, batch in xvlm_batches[0].items()}
        del broken["general"]["text_ids"]
        with pytest.raises(InputError, match="general batch 0 lacks the field 'text_ids'"):
            prune(xvlm, [broken])

    def test_text_of_padding_only(self, xvlm, xvlm_batches):
        broken = {side: {k: v.clone() for k, v in batch.items()} for side, batch in xvlm_batches[0].items()}
        broken["region"]["text_atts"][3] = 0
        with pytest.raises(InputError, match=r"region batch 0 has a text of padding only \(row 3\)"):
            prune(xvlm, [broken])

    def test_batch_of_one(self, xvlm, xvlm_batches):
        """Enough for MULTIFLOW, too little for a loss with negatives: said in words."""
        one = {
            "general": {k: v[:1] for k, v in xvlm_batches[0]["general"].items()},
            "region": {k: v[:1] for k, v in xvlm_batches[0]["region"].items()},
        }
        assert prune(xvlm, [one], "multiflow", (0.5,))[0.5].sparsity() == pytest.approx(0.5, abs=1e-5)
        with pytest.raises(InputError, match="batch of one"):
            prune(xvlm, [one], "snip")

    def test_nan_weights_and_scores(self, xvlm, xvlm_batches):
        import copy

        model = copy.deepcopy(xvlm)
        layer = "text_encoder.bert.encoder.layer.2.output.dense"
        model.get_submodule(layer).weight.data[0, 0] = float("nan")
        with pytest.raises(InputError, match=rf"layer '{layer}.weight' has weights that are NaN"):
            prune(model, [], "omp")
        for layer in model.prunable_layers().values():  # more than are kept: no threshold lies among numbers
            layer.weight.data[0] = float("nan")
        with pytest.raises(InputError, match=r"layer '.*' has weights that are NaN"):
            prune(model, [], "rand", (0.999,), allocation="multimodal")
        broken = {side: dict(batch) for side, batch in xvlm_batches[0].items()}
        broken["general"]["image"] = broken["general"]["image"] * float("inf")
        with pytest.raises(InputError, match="has scores that are NaN"):
            prune(xvlm, [broken], "multiflow")

    def test_data_that_cannot_be_read_again(self, xvlm, xvlm_batches):
        """Rounds that outlast a generator: an error in words, not a short run."""
        with pytest.raises(InputError, match="in several rounds, but these batches can be read only once"):
            prune(xvlm, iter(xvlm_batches[:2]), "itersnip", (0.5,), epochs=2, num_batches=2)

    def test_the_model_is_left_as_it_was_after_an_error(self, xvlm, xvlm_batches):
        with pytest.raises(InputError):
            prune(xvlm, [*xvlm_batches[:1], {}], "itersnip", (0.5,), epochs=1, num_batches=2)
        assert all(parameter.grad is None and parameter.requires_grad for parameter in xvlm.parameters())

    def test_a_fitted_classifier_goes_after_an_error(self, monkeypatch):
        model = load_model("dino", config=REFERENCE / "dino.yaml", weights="random")
        model.classifier_origin, before = None, model.classifier.weight.detach().clone()
        monkeypatch.setattr(PRUNERS["snip"], "calibrate", lambda pruner: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prune(model, [model.example(8)], "snip")
        assert torch.equal(model.classifier.weight, before)
