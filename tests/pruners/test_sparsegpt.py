"""SparseGPT against plain float64 implementations written from its equations, and its moments against the inputs."""

import numpy as np
import pytest
import torch
from torch import nn

from console.errors import InputError
from models.wrap import wrap
from pruners import prune
from pruners.session import Session
from pruners.sparsegpt import inverse_factor, reconstruct
from sparsity.allocation import check_kept
from sparsity.groups import check_pattern
from sparsity.mask import Mask


def test_sparsegpt_by_optimal_brain_surgeon():
    """With blocks of one column, each step is OBS's update with the inverse Hessian of what is left, by loops."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator).double()
    w = torch.randn(3, 6, generator=generator).double()
    h = x.t() @ x
    factor = inverse_factor(h, 1e-9)
    support, found = reconstruct(w, factor, pruned=9, block=6, group=None)
    expected = w.clone()
    rest = h + 1e-9 * h.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    for column in range(6):
        inverse = torch.linalg.inv(rest[column:, column:])
        for row in range(3):
            if not support[row, column]:
                change = -expected[row, column] / inverse[0, 0] * inverse[:, 0]
                expected[row, column:] += change
                expected[row, column] = 0
    torch.testing.assert_close(found, expected * support, rtol=1e-6, atol=1e-8)
    assert int((~support).sum()) == 9
    error = ((x @ found.t() - x @ w.t()) ** 2).sum()
    assert error < ((x @ (w * support).t() - x @ w.t()) ** 2).sum(), "the update must help"


@pytest.mark.parametrize("inputs", [512, 513, 1300])
def test_factor_in_halves_and_strips(inputs):
    x = torch.randn(600, inputs, generator=torch.Generator().manual_seed(0))
    h = x.t() @ x / 600
    found = inverse_factor(h, 0.01)
    damped = h.double() + 0.01 * h.diagonal().double().mean() * torch.eye(inputs, dtype=torch.float64)
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11 * float(expected.abs().max()))


@pytest.mark.parametrize("allocation", ["layer", "multimodal", "2:4"])
def test_sparsegpt_on_a_model(allocation, xvlm, xvlm_batches):
    sparsity = 0.5
    mask = prune(xvlm, xvlm_batches[:2], "sparsegpt", (sparsity,), allocation=allocation)[sparsity]
    if allocation == "2:4":
        check_pattern(mask, 2, 4)
    if allocation == "layer":
        assert all(mask.size(n) - mask.kept(n) == round(sparsity * mask.size(n)) for n in mask)
    if allocation == "multimodal":
        assert all(s == pytest.approx(sparsity, abs=1e-4) for s in mask.sparsity_by_modality().values())
    assert mask.has_values


def test_hessians_are_shared_and_right(xvlm, xvlm_batches):
    session = Session(xvlm, xvlm_batches[:1], "sparsegpt")
    session.masks((0.5,))
    hessians = session.pruner.hessians
    start = "text_encoder.bert.encoder.layer.2.attention.self."
    readers = tuple((f"{start}{part}.weight", 0) for part in ("query", "key", "value"))
    assert readers in hessians._sums
    assert len(hessians._sums) < len(xvlm.prunable_layers())
    seen = []
    layer = xvlm.get_submodule(f"{start}value")
    hook = layer.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    total = 0
    with torch.no_grad():
        for batch in xvlm_batches[0].values():
            seen.clear()
            xvlm.observe(batch)
            tokens = seen[0][batch["text_atts"].bool()]
            total = total + tokens.t() @ tokens
    hook.remove()
    torch.testing.assert_close(hessians.of(f"{start}value.weight"), total, rtol=1e-4, atol=1e-3)


def one_layer(inputs, outputs=24, seed=0):
    torch.manual_seed(seed)
    return wrap(nn.Sequential(nn.Linear(inputs, outputs, bias=False)), forward=lambda m, b: m(b["x"]))


def some_dead(rows=200, inputs=32, dead=8, scale=1.0, first=0):
    """Correlated inputs, the columns from `first` on always zero."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator)
    x[:, first : first + dead] = 0
    return x * scale


class TestInputsThatAreAlwaysZero:
    @pytest.mark.parametrize("allocation", ["layer", "row", "global"])
    @pytest.mark.parametrize("first", [0, 13, 24])
    @pytest.mark.parametrize("block", [4, 128])
    def test_their_weights_go_first_and_cost_nothing(self, allocation, first, block):
        """A quarter of the inputs is dead, a quarter of the weights goes: none that is alive, and no output changes."""
        model, x = one_layer(32), some_dead(first=first)
        weight = model.module[0].weight.detach().clone()
        mask = prune(model, [{"x": x}], "sparsegpt", (0.25,), allocation=allocation, block=block)[0.25]
        live = torch.ones(32, dtype=torch.bool)
        live[first : first + 8] = False
        assert mask["0.weight"][:, live].all()
        assert not mask["0.weight"][:, ~live].any()
        updated = torch.from_numpy(mask.weights("0.weight"))
        assert torch.equal(x @ updated.t(), x @ weight.t())

    def test_two_of_four_neighbours(self):
        x = some_dead(dead=0)
        x[:, [0, 3, 4, 5, 10, 11, 12, 15, 17, 18, 20, 23, 25, 26, 28, 30]] = 0
        model = one_layer(32)
        weight = model.module[0].weight.detach().clone()
        mask = prune(model, [{"x": x}], "sparsegpt", (0.5,), allocation="2:4")[0.5]
        assert torch.equal(x @ torch.from_numpy(mask.weights("0.weight")).t(), x @ weight.t())

    @pytest.mark.parametrize("allocation", ["layer", "row", "2:4"])
    def test_the_scale_of_inputs_changes_nothing(self, allocation):
        masks = [
            prune(one_layer(32), [{"x": some_dead(scale=s)}], "sparsegpt", (0.5,), allocation=allocation)[0.5]
            for s in (1.0, 2.0**-20)
        ]
        assert torch.equal(masks[0]["0.weight"], masks[1]["0.weight"])
        torch.testing.assert_close(masks[0].weights("0.weight"), masks[1].weights("0.weight"), rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("sparsity", [0.1, 0.25, 0.4, 0.9])
    @pytest.mark.parametrize("allocation", ["layer", "row"])
    def test_counts_are_exact_whatever_goes(self, sparsity, allocation):
        mask = prune(one_layer(32), [{"x": some_dead()}], "sparsegpt", (sparsity,), allocation=allocation)[sparsity]
        check_kept(allocation, mask, sparsity)

    def test_dead_inputs_do_not_affect_live_ones(self):
        """Mask and weights of the live columns are those of a layer without the dead ones."""
        x, weight = some_dead(dead=8, first=24), torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
        h = x.t() @ x
        whole = reconstruct(weight, inverse_factor(h, 0.01), 6 * 8 + 72, 32, None, h.diagonal() == 0)
        small = reconstruct(weight[:, :24], inverse_factor(h[:24, :24], 0.01), 72, 32, None)
        assert torch.equal(whole[0][:, :24], small[0])
        torch.testing.assert_close(whole[1][:, :24], small[1])


def test_damping_is_a_share_of_the_mean_diagonal():
    """Of the inputs in use, as in the paper: H + 0.01 mean(diag) I, inverted by numpy."""
    h = some_dead().t() @ some_dead()
    live = h.diagonal() > 0
    used = h[live][:, live].double().numpy()
    damped = used + 0.01 * np.diag(used).mean() * np.eye(len(used))
    factor = inverse_factor(h, 0.01)
    inverse = (factor.t() @ factor)[live][:, live].numpy()
    np.testing.assert_allclose(inverse, np.linalg.inv(damped), rtol=1e-6, atol=1e-12)


class TestRows:
    def test_every_row_loses_its_share(self, xvlm, xvlm_batches):
        mask = prune(xvlm, xvlm_batches[:2], "sparsegpt", (0.75,), allocation="row")[0.75]
        assert mask.source["allocation"] == "row"
        for name in mask:
            kept = mask[name].sum(dim=1)
            assert kept.max() - kept.min() <= 1, name

    def test_a_row_is_solved_as_a_layer_by_itself(self):
        """Rows do not meet: each is the algorithm on a matrix of one row."""
        x, weight = some_dead(dead=3), torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
        h = x.t() @ x
        factor, dead, lost = inverse_factor(h, 0.01), h.diagonal() == 0, np.array([20, 20, 20, 19, 19])
        support, found = reconstruct(weight, factor, lost, 8, None, dead)
        for row, count in enumerate(lost):
            alone = reconstruct(weight[row : row + 1], factor, int(count), 8, None, dead)
            assert torch.equal(support[row], alone[0][0])
            torch.testing.assert_close(found[row], alone[1][0])


class TestKeptAllocations:
    def test_what_is_not_kept_is_named(self):
        kept = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 0]]).bool()
        check_kept("layer", Mask({"a": kept}), 0.5)
        with pytest.raises(InputError, match="rows of layer 'a' keep from 1 to 3 weights"):
            check_kept("row", Mask({"a": kept}), 0.5)
        with pytest.raises(InputError, match="4 of 8 weights of layer 'a' are pruned instead of 6"):
            check_kept("layer", Mask({"a": kept}), 0.75)
        parts = Mask({"a": kept, "b": torch.ones(2, 4).bool()}, {"a": "text", "b": "vision"})
        check_kept("global", parts, 0.25)
        with pytest.raises(InputError, match="4 of 8 weights of modality 'text' are pruned instead of 2"):
            check_kept("multimodal", parts, 0.25)

    def test_a_broken_allocation_is_an_error(self, xvlm, monkeypatch):
        from pruners.omp import OMP

        monkeypatch.setattr(
            OMP, "masks", lambda self, sparsities: {s: self.cut(self.scores(), 0.4) for s in sparsities}
        )
        with pytest.raises(
            InputError, match=r"omp cannot keep the allocation 'global' \(\d+ of \d+ weights of the model are pruned"
        ):
            prune(xvlm, [], "omp", (0.5,))


def test_inputs_below_the_range_of_squares():
    """Of 1e-23 a square is no float32: as of a layer that reads nothing, weights go by magnitude."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 6)
    mask = prune(wrap(layer, forward=lambda m, b: m(b["x"])), [{"x": 1e-23 * torch.randn(20, 8)}], "sparsegpt", (0.5,))
    kept, size = mask[0.5]["weight"], layer.weight.detach().abs()
    assert size[kept].min() >= size[~kept].max()
