"""DSnoT against plain loops written from its criteria; as a repair of any method's mask."""

import pytest
import torch
from torch import nn

from calibration.processes import Group
from console.errors import InputError
from models.wrap import wrap
from pruners import prune
from pruners.dsnot import ENOUGH, STEPS, InputMoments, exchanged


def by_loops(weight, kept, mean, variance, norm):
    """One row after the other, one exchange after the other."""
    kept = kept.clone()
    for w, mask in zip(weight.double(), kept, strict=True):
        share = w * mean
        pruned_before, kept_before = [c for c in range(len(w)) if not mask[c]], [c for c in range(len(w)) if mask[c]]
        error = sum(float(share[c]) for c in pruned_before)
        for _ in range(STEPS):
            if abs(error) <= ENOUGH:
                break
            sign = 1 if error > 0 else -1
            comes = [c for c in pruned_before if not mask[c] and sign * share[c] > 0]
            goes = [c for c in kept_before if mask[c] and sign * share[c] < 0]
            if not comes or not goes:
                break
            best = max(comes, key=lambda c: float(sign * share[c] / variance[c]))
            least = min(goes, key=lambda c: float(w[c].abs() * norm[c]))
            mask[best], mask[least] = True, False
            error += float(share[least] - share[best])
    return kept


@pytest.mark.parametrize("scale", [0.02, 1.0, 30.0])
def test_exchanges_by_loops(scale):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 64, generator=generator)
    kept = torch.rand(40, 64, generator=generator) < 0.5
    mean = scale * torch.randn(64, generator=generator).double()
    variance, norm = torch.rand(64, generator=generator).double() + 0.1, torch.rand(64, generator=generator) + 0.5
    found = exchanged(weight, kept, mean, variance, norm)
    assert torch.equal(found, by_loops(weight, kept, mean, variance, norm))
    assert torch.equal(found.sum(dim=1), kept.sum(dim=1))
    assert not torch.equal(found, kept)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10))
    batches = [{"x": torch.randn(4, 5, 12) + 1} for _ in range(3)]
    return wrap(net, forward=lambda module, batch: module(batch["x"])), batches


def test_means_and_variances(model):
    net, batches = model
    made = InputMoments(net, net.prunable_layers())
    for batch in batches:
        made.update(batch)
        made.merge(Group(), [0])
    x = torch.cat([batch["x"] for batch in batches]).double()
    mean, variance = made.moments("0.weight", 0)
    torch.testing.assert_close(mean, x.sum(dim=1).mean(dim=0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(variance, x.flatten(0, 1).var(dim=0, correction=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["wanda", "omp"])
def test_the_expected_output_comes_back(model, method):
    """The error of the mean output falls, and every row has as many weights as before."""
    net, batches = model
    before, after = (prune(net, batches, method, (0.7, 0.5), repair=repair) for repair in (None, "dsnot"))
    mean = torch.cat([batch["x"] for batch in batches]).sum(dim=1).mean(dim=0)
    weight = net.module[0].weight.detach()
    for sparsity in before:
        one, other = (masks[sparsity]["0.weight"] for masks in (before, after))
        assert torch.equal(one.sum(dim=1), other.sum(dim=1))
        errors = [((weight * ~mask) @ mean).abs().mean() for mask in (one, other)]
        assert errors[1] < 0.9 * errors[0]
        assert after[sparsity].source["repair"] == "dsnot"
    assert prune(net, batches, method, (0.5,), repair="dsnot")[0.5] == after[0.5]


def test_what_cannot_be_repaired(model):
    net, batches = model
    with pytest.raises(InputError, match="sparsegpt has updated those that it keeps"):
        prune(net, batches, "sparsegpt", (0.5,), repair="dsnot")
    with pytest.raises(InputError, match="would break the pattern 2:4"):
        prune(net, batches, "wanda", (0.5,), allocation="2:4", repair="dsnot")
    with pytest.raises(InputError, match="can be read only once"):
        prune(net, iter(batches), "wanda", (0.5,), repair="dsnot")
    with pytest.raises(InputError, match="unknown repair 'dsno' "):
        prune(net, batches, "wanda", (0.5,), repair="dsno")
