"""Rows and n:m patterns against plain sorting of every group."""

import numpy as np
import pytest
import torch

from console.errors import InputError
from pruners import prune
from pruners.session import Session
from sparsity.allocation import allocation_named
from sparsity.groups import GroupCut, check_pattern, parse_pattern
from sparsity.mask import Mask
from sparsity.scores import Scores


@pytest.mark.parametrize("kind", ["random", "ties", "constant"])
@pytest.mark.parametrize("lost", [0, 1, 17, 35, 36, 70, 119, 120])
def test_groups_by_stable_sorts(kind, lost):
    rng = np.random.default_rng(lost)
    make = {
        "random": lambda: rng.standard_normal((6, 20)),
        "ties": lambda: rng.integers(0, 3, (6, 20)),
        "constant": lambda: np.ones((6, 20)),
    }[kind]
    scores = make().astype(np.float32)
    kept = GroupCut(lost, 20).keep(scores)
    assert kept.size - kept.sum() == lost
    for row, mask in zip(scores, kept, strict=True):
        gone = int((~mask).sum())
        assert gone in (lost // 6, -(-lost // 6))
        expected = np.ones(20, dtype=bool)
        expected[np.argsort(row, kind="stable")[:gone]] = False
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.5), ("1:4", 0.75), ("4:8", 0.5), ("3:4", 0.25)])
@pytest.mark.parametrize("pruner", ["omp", "multiflow", "lamp"])
def test_patterns_hold_in_every_group(pattern, sparsity, pruner, xvlm, xvlm_batches):
    kept, width = parse_pattern(pattern)
    session = Session(xvlm, xvlm_batches[:1], pruner, allocation=pattern)
    mask = session.masks((sparsity,))[sparsity]
    check_pattern(mask, kept, width)
    assert mask.sparsity() == sparsity
    for name in list(mask)[::20]:
        scores = session.pruner.scores()[name].reshape(-1, width)
        for group, keep in zip(scores[:50], mask[name].reshape(-1, width).numpy()[:50], strict=True):
            assert set(np.flatnonzero(keep)) == set(np.argsort(group, kind="stable")[width - kept :])


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.2), ("2:4", 0.45), ("1:4", 0.6)])
def test_towards_a_pattern_the_best_are_kept(pattern, sparsity):
    """Of the others, the lowest go: counted one by one, equal scores by position."""
    kept, width = parse_pattern(pattern)
    rng = np.random.default_rng(3)
    layers = {name: rng.integers(0, 30, (6, 8)).astype(np.float32) for name in ("a", "b")}
    cuts = allocation_named(pattern)(Scores.of(layers), Scores.of(layers), dict.fromkeys(layers, "text"), [sparsity])
    free = []
    for name, scores in layers.items():
        for start in range(0, scores.size, width):
            order = start + np.argsort(scores.reshape(-1)[start : start + width], kind="stable")
            free += [(scores.reshape(-1)[i], name, i) for i in order[: width - kept]]
    gone = {(name, i) for _, name, i in sorted(free)[: round(sparsity * 96)]}
    for name, scores in layers.items():
        [cut] = cuts(name, scores)
        keep = cut.keep(scores)
        assert {i for i in range(scores.size) if not keep.reshape(-1)[i]} == {i for layer, i in gone if layer == name}


@pytest.mark.parametrize("pruner", ["itersnip", "chita", "chita++"])
def test_patterns_of_methods_that_move_weights_about(pruner, xvlm, xvlm_batches):
    epochs = 1 if pruner == "chita" else 2
    mask = prune(xvlm, xvlm_batches[:2], pruner, (0.5,), allocation="2:4", epochs=epochs)[0.5]
    check_pattern(mask, 2, 4)
    assert mask.sparsity() == 0.5


def test_chita_keeps_the_counts_of_rows(xvlm, xvlm_batches):
    mask = prune(xvlm, xvlm_batches[:2], "chita", (0.75,), allocation="row")[0.75]
    for name in mask:
        rows = mask[name].sum(dim=1)
        assert rows.max() - rows.min() <= 1, name


def test_a_broken_pattern_is_named():
    mask = Mask({"fine": torch.tensor([[1, 0, 1, 0]]).bool(), "broken": torch.tensor([[1, 1, 1, 0]]).bool()})
    with pytest.raises(InputError, match="layer 'broken' does not keep 2 of every 4"):
        check_pattern(mask, 2, 4)


def test_bad_patterns(xvlm):
    with pytest.raises(InputError, match="has a sparsity of exactly 50 %"):
        prune(xvlm, [], "omp", (0.75,), allocation="2:4")
    with pytest.raises(InputError, match="give n:m with 0 < n < m"):
        prune(xvlm, [], "omp", (0.5,), allocation="4:4")
    with pytest.raises(InputError, match="which 2:5 cannot divide"):
        prune(xvlm, [], "omp", (0.6,), allocation="2:5")


def test_wanda_by_loops(xvlm, xvlm_batches):
    """Scores from the equation, every row at the sparsity."""
    session = Session(xvlm, xvlm_batches[:2], "wanda")
    mask = session.masks((0.75,))[0.75]
    name = "text_encoder.bert.encoder.layer.3.output.dense.weight"
    norms = session.pruner.norms.norms(name)
    weight = xvlm.get_submodule(name.removesuffix(".weight")).weight.detach()
    for o in (0, 17, 63):
        scores = torch.tensor([abs(weight[o, i]) * norms[i] for i in range(weight.shape[1])])
        expected = torch.ones(len(scores)).bool()
        expected[torch.argsort(scores, stable=True)[: round(0.75 * len(scores))]] = False
        assert torch.equal(mask[name][o], expected)
    for layer in mask:
        assert (mask[layer].sum(dim=1) == mask[layer].shape[1] // 4).all()
