"""CHITA and TAMT against plain float64 implementations written from their equations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from calibration import gradient_rows
from calibration.gradient_rows import GradientRows, WeightVector
from calibration.processes import Group
from console.errors import InputError
from console.interrupt import interrupt
from pruners import prune
from pruners.chita_blocks import _largest
from pruners.session import Session
from sparsity.mask import Mask
from tests.pruners.test_methods import Toy


class OneLayer(Toy):
    """A regression with one prunable matrix, so that CHITA's problem is one block."""

    def __init__(self):
        nn.Module.__init__(self)
        self.a = nn.Linear(12, 10)

    def prunable_layers(self):
        return {"a.weight": self.a}

    def observe(self, batch):
        self.a(batch["x"])

    def real_tokens(self, name, batch):
        return None

    def losses(self, batch):
        return {"square": (self.a(batch["x"]).tanh() - batch["y"]).square().mean()}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return OneLayer()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "general": {
                "x": torch.randn(5, 12, generator=generator),
                "y": torch.randn(5, 10, generator=generator),
            }
        }
        for _ in range(6)
    ]


def gradient_matrix(model, batches):
    rows = [torch.autograd.grad(model.loss(b["general"]), model.a.weight)[0].flatten() for b in batches]
    return torch.stack(rows).double()


def dense_chita(a, w, batch, lambda_, keep, steps):
    """Hard thresholding from w over all weights, then within the block, then ridge on the support; all dense."""
    n, mu = len(a), len(a) * lambda_
    linear = a.sum(0) / batch

    def objective(b):
        return ((a @ (b - w)) ** 2).sum() / 2 + linear @ (b - w) + mu / 2 * ((b - w) ** 2).sum()

    def largest(u):
        kept = torch.zeros_like(u).bool()
        kept[u.abs().argsort(stable=True)[len(u) - keep :]] = True
        return torch.where(kept, u, 0), kept

    curvature = torch.linalg.eigvalsh(a.t() @ a)[-1] + mu
    best, support = largest(w)
    start = objective(best)
    for step in (4, 1):
        b, kept = largest(w - step / curvature * linear)
        if objective(b) < objective(best):
            best, support = b, kept
    for _ in range(2 * steps - 1):  # global steps, then those inside the only block
        for step in (4, 1):
            u = best - step / curvature * (a.t() @ (a @ (best - w)) + linear + mu * (best - w))
            b, kept = largest(u)
            if objective(b) < objective(best):
                best, support = b, kept
                break
        else:
            break
    hessian = a.t() @ a + mu * torch.eye(len(w), dtype=w.dtype)
    s = support
    right = hessian[s] @ w - linear[s]
    solved = torch.zeros_like(w)
    solved[s] = torch.linalg.solve(hessian[s][:, s], right)
    assert len(a) == n
    return solved, support, objective(solved), start


@pytest.mark.parametrize("lambda_", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_chita_equals_the_dense_solution(model, batches, lambda_, sparsity):
    a = gradient_matrix(model, batches)
    w = model.a.weight.detach().flatten().double()
    keep = 120 - round(sparsity * 120)
    solved, support, after, before = dense_chita(a, w, 5, lambda_, keep, steps=5)
    mask = prune(model, batches, "chita", (sparsity,), lambda_=lambda_, num_batches=6)[sparsity]
    assert int(mask["a.weight"].sum()) == keep
    found = torch.from_numpy(mask.weights("a.weight")).flatten().double()
    d = found - w
    mine = ((a @ d) ** 2).sum() / 2 + a.sum(0) @ d / 5 + 6 * lambda_ / 2 * (d**2).sum()
    assert mine <= before + 1e-9, "never above the start's objective"
    if torch.equal(mask["a.weight"].flatten(), support):
        torch.testing.assert_close(found, solved, rtol=1e-5, atol=1e-5)
    else:  # line searches may part ways; then ours must be as good, and optimal on its own support
        assert mine <= after * (1 - 1e-6 * np.sign(float(after)))
    s = mask["a.weight"].flatten()
    hessian = a.t() @ a + 6 * lambda_ * torch.eye(120, dtype=torch.float64)
    exact = torch.linalg.solve(hessian[s][:, s], hessian[s] @ w - a.sum(0)[s] / 5)
    torch.testing.assert_close(found[s], exact, rtol=1e-4, atol=1e-5)


def test_chita_blocks_keep_their_counts(xvlm, xvlm_batches):
    mask = prune(xvlm, xvlm_batches, "chita", (0.9,), block=1000, lambda_=1e-1)[0.9]
    total = sum(map(mask.size, mask))
    assert total - sum(map(mask.kept, mask)) == round(0.9 * total)
    again = prune(xvlm, xvlm_batches, "chita", (0.75, 0.9), block=1000, lambda_=1e-1)[0.9]
    assert again == mask


def test_largest_of_a_block_by_sorting():
    """Ties, rows that keep nothing or all, and empty columns: as a stable sort has it."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(100):
        m = int(torch.randint(1, 30, (), generator=generator))
        u = torch.randint(-3, 4, (4, m), generator=generator).double()
        empty = torch.rand(4, m, generator=generator) < 0.3
        kept = torch.randint(0, m + 1, (4,), generator=generator).tolist()
        for row, k, support in zip(range(4), kept, _largest(u, kept, empty), strict=True):
            never = empty[row] & (u[row] == 0)
            order = sorted(range(m), key=lambda j: (-1.0 if never[j] else abs(float(u[row, j])), j))
            assert support.nonzero()[:, 0].tolist() == sorted(order[m - k :])


def test_gradients_and_inputs_that_are_no_numbers(model, batches):
    for name, field in (("chita", "y"), ("sparsegpt", "x")):
        broken = [{"general": {**batch["general"], field: batch["general"][field] * torch.nan}} for batch in batches]
        with pytest.raises(InputError, match="that are NaN or infinite"):
            prune(model, broken, name, (0.5,))


def test_weights_that_are_no_numbers(model, batches):
    model.a.weight.data[1:] = torch.nan  # more than are kept: no threshold lies among numbers
    with pytest.raises(InputError, match=r"layer 'a\.weight' has weights that are NaN"):
        prune(model, batches, "chita", (0.95,))


def test_a_stop_interrupts_gathering_gradients(model, batches, tmp_path):
    def stop(*_):
        interrupt.requested = True

    try:
        with pytest.raises(KeyboardInterrupt):
            Session(model, batches, "chita", scratch_dir=str(tmp_path), advance=stop).masks((0.5,))
    finally:
        interrupt.requested = False
    assert not list(tmp_path.iterdir())


def test_fewer_rows_are_counted_rightly(model, batches):
    """Six batches where fifty were asked for: n is six, in mu too."""
    asked = prune(model, batches, "chita", (0.5,), lambda_=1e-2, num_batches=50)[0.5]
    there = prune(model, batches, "chita", (0.5,), lambda_=1e-2, num_batches=6)[0.5]
    assert asked == there


def test_chita_restores_files_and_weights(model, batches, tmp_path):
    before = model.a.weight.detach().clone()
    prune(model, batches, "chita", (0.5, 0.9), scratch_dir=str(tmp_path), num_batches=6)
    prune(model, batches, "chita++", (0.5,), scratch_dir=str(tmp_path), epochs=3, num_batches=2)
    assert not list(tmp_path.iterdir())
    assert torch.equal(model.a.weight, before)


def test_chita_holds_one_gradient_at_a_time(xvlm, xvlm_batches, monkeypatch):
    """All of them together would be as large as the model."""
    written, add = [], GradientRows._add

    def counted(rows, name, *rest, **more):
        written.append(sum(layer.weight.grad is not None for layer in rows._layers.values()))
        add(rows, name, *rest, **more)

    monkeypatch.setattr(GradientRows, "_add", counted)
    prune(xvlm, xvlm_batches, "chita", (0.5,), block=1000, lambda_=1e-1, num_batches=2)
    assert len(written) == 2 * 2 * len(xvlm.prunable_layers())
    assert max(written) == 1


def test_vectors_on_disk(tmp_path):
    vector = WeightVector(tmp_path / "v", {"a": (5,), "b": (3, 1)})
    vector.write("b", 1, np.array([7, 8], dtype=np.float64))
    vector.write("a", 0, np.arange(5))
    vector.write("a", 3, np.array([9]))
    np.testing.assert_array_equal(vector.read("a"), np.array([0, 1, 2, 9, 4], dtype=np.float32))
    np.testing.assert_array_equal(vector.read("b"), np.array([[0], [7], [8]], dtype=np.float32))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_said():
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(InputError, match="the disk is full"):
        gradient_rows._write(full, np.zeros(4, dtype=np.float32))


def test_no_step_leaves_magnitude(model, batches):
    """The blocks' weights are still solved for, on the support of the largest weights."""
    mask, magnitude = (
        prune(model, batches, pruner, (0.5,), **options)[0.5]
        for pruner, options in (("chita", {"num_batches": 6, "iterations": 0}), ("omp", {}))
    )
    assert all(torch.equal(mask[name], magnitude[name]) for name in mask)


def test_chita_needs_space(model, batches, monkeypatch):
    import shutil
    from collections import namedtuple

    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(10, 10, 100))
    with pytest.raises(InputError, match=r"6 gradients of 0\.0 M weights need .* but .* has 0\.0 GB free"):
        prune(model, batches, "chita", (0.5,), num_batches=6)


def test_chita_counts_samples_by_a_tensor(model, batches, monkeypatch):
    monkeypatch.setattr(model, "losses", lambda batch: {"square": model.a(batch["all"]["x"]).square().mean()})
    with pytest.raises(InputError, match="this batch has none at its top level"):
        prune(model, [{"all": batches[0]["general"]}], "chita", (0.5,))


def test_chita_plus_plus_by_rounds(model, batches):
    """Round two starts from round one's weights; what is dead stays dead."""
    first = prune(model, batches[:3], "chita", (1 - 0.2**0.5,), num_batches=3, lambda_=1e-2)
    both = prune(model, batches, "chita++", (0.8,), epochs=2, num_batches=3, lambda_=1e-2)[0.8]
    (first_mask,) = first.values()
    assert not (both["a.weight"] & ~first_mask["a.weight"]).any()
    assert int(both["a.weight"].sum()) == 24


def test_chita_plus_plus_shares_its_first_round(model, batches, monkeypatch):
    """The first gradients serve every sparsity; masks and weights equal those of each sparsity alone."""
    seen, update = [], GradientRows.update
    monkeypatch.setattr(GradientRows, "update", lambda self, batch: seen.append(update(self, batch)))
    options = {"epochs": 3, "num_batches": 2, "lambda_": 1e-2}
    both = prune(model, batches, "chita++", (0.5, 0.8), **options)
    assert len(seen) == 2 + 2 * 2 * 2
    for sparsity, mask in both.items():
        alone = prune(model, batches, "chita++", (sparsity,), **options)[sparsity]
        assert alone == mask
        np.testing.assert_array_equal(alone.weights("a.weight"), mask.weights("a.weight"))


def test_updated_weights_travel_with_the_mask(model, batches, tmp_path):
    import copy

    mask = prune(model, batches, "chita", (0.5,), lambda_=1e-2, num_batches=6)[0.5]
    mask.save(tmp_path / "m.safetensors")
    loaded = Mask.load(tmp_path / "m.safetensors")
    assert loaded == mask
    pruned = copy.deepcopy(model)
    loaded.apply(pruned)
    np.testing.assert_array_equal(pruned.a.weight.detach().numpy(), mask.weights("a.weight"))
    assert (pruned.a.weight != 0).sum() <= 60


def test_tamt_by_hand(model, batches):
    """Three steps with plain tensors and torch's AdamW; density exact at every step, the first included."""
    w = model.a.weight.detach().clone()
    keep = 120 - round(0.7 * 120)
    order = w.abs().flatten().argsort(stable=True)
    kept = torch.zeros(120).bool()
    kept[order[120 - keep :]] = True
    real = nn.Parameter(kept.float().reshape(10, 12) * 2 * w.abs().flatten()[kept].min())
    optimizer = torch.optim.AdamW([real], lr=1e-3)
    for t, batch in enumerate(batches[:3]):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - t / 3)
        alive = torch.zeros(120).bool()
        alive[real.detach().abs().flatten().argsort(stable=True)[120 - keep :]] = True
        masked = (w * alive.reshape(10, 12)).requires_grad_(True)
        x, y = batch["general"]["x"], batch["general"]["y"]
        loss = (nn.functional.linear(x, masked, model.a.bias).tanh() - y).square().mean()
        real.grad = torch.autograd.grad(loss, masked)[0] * w
        optimizer.step()
    alive = torch.zeros(120).bool()
    alive[real.detach().abs().flatten().argsort(stable=True)[120 - keep :]] = True
    session = Session(model, batches[:3], "tamt", lr=1e-3)
    mask = session.masks((0.7,))[0.7]
    assert torch.equal(mask["a.weight"].flatten(), alive)
    assert torch.equal(model.a.weight, w)
    scores = session.pruner.scores_by_sparsity[0.7]["a.weight"]
    np.testing.assert_allclose(scores, real.detach().abs().numpy(), rtol=1e-5)


def test_tamt_that_moved_nothing_says_so(model, batches, capsys):
    """A rate that cannot move a weight across the cut at one sparsity, and one that can."""
    mask = prune(model, batches[:2], "tamt", (0.5, 0.75), lr=1e-6)
    assert mask == prune(model, [], "omp", (0.5, 0.75))
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("tamt: at 50 %, 75 % the mask equals magnitude pruning, since 2 steps at a learning rate")
    assert "(--num_batches)" in said
    prune(model, batches[:1], "tamt", (0.5,), lr=1e-6)
    assert "since 1 step at a learning rate of 1e-06 is too few to" in " ".join(capsys.readouterr().err.split())
    mask = prune(model, batches, "tamt", (0.5,), lr=0.1)
    assert mask != prune(model, [], "omp", (0.5,))
    assert capsys.readouterr().err == ""


def test_tamt_with_more_processes_than_sides(model, batches, monkeypatch):
    monkeypatch.setattr(Group, "current", lambda: Group(0, 2))
    with pytest.raises(InputError, match="which 2 processes cannot share: use --devices 1"):
        prune(model, batches, "tamt")


def test_tamt_density_is_exact_at_every_step(xvlm, xvlm_batches, monkeypatch):
    from sparsity.sparsifiers import TrainedScores

    densities = []
    update = TrainedScores.after_update

    def watched(scores, step):
        update(scores, step)
        densities.append(1 - scores.mask.sparsity())

    monkeypatch.setattr(TrainedScores, "after_update", watched)
    prune(xvlm, xvlm_batches, "tamt", (0.63,))
    total = sum(layer.weight.numel() for layer in xvlm.prunable_layers().values())
    expected = 1 - round(0.63 * total) / total
    assert densities == pytest.approx([expected] * len(xvlm_batches), abs=1e-12)


@pytest.mark.parametrize(
    ("pruner", "options", "message"),
    [
        ("chita", {"lambda_": 0.0}, "must be above 0"),
        ("chita", {"epochs": 0}, "must be at least 1"),
        ("chita", {"scratch_dir": "/nowhere"}, "scratch_dir /nowhere is not a folder"),
        ("tamt", {"lr": -1.0}, "lr must be above 0"),
        ("sparsegpt", {"damping": 0.0}, "damping must be above 0"),
    ],
)
def test_bad_options(pruner, options, message, model, batches):
    with pytest.raises(InputError, match=message):
        prune(model, batches, pruner, (0.5,), **options)
