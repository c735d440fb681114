"""Distances between samples by layers' outputs, against outputs collected one sample at a time."""

import pytest
import torch
from torch import nn

from calibration.layer_outputs import output_shapes, plan_passes, squared_distances
from console.errors import InputError
from models.wrap import wrap

TEXTS = ("text_ids", "text_atts")


def observe(model, batch):
    model.observe(batch)


def cut(batches, sizes):
    """Single samples of batches, each with its own text only, put together to batches of other sizes."""
    samples = []
    for batch in batches:
        for i in range(len(batch["image"])):
            length = int(batch["text_atts"][i].sum())
            one = {
                name: tensor[i : i + 1] for name, tensor in batch.items() if name in ("image", "text_ids", "text_atts")
            }
            samples.append({n: t[:, :length] if n.startswith("text") else t for n, t in one.items()})
    start = 0
    for size in sizes:
        part = samples[start : start + size]
        longest = max(one["text_ids"].shape[1] for one in part)
        pad = {
            n: [nn.functional.pad(o[n], (0, longest - o[n].shape[1])) for o in part] for n in ("text_ids", "text_atts")
        }
        yield {"image": torch.cat([o["image"] for o in part])} | {name: torch.cat(parts) for name, parts in pad.items()}
        start += size


def by_layer(model, batches, memory, run=observe, longest=40):
    with torch.no_grad():
        shapes = output_shapes(model, batches[0], run, longest)
    samples = sum(len(next(iter(batch.values()))) for batch in batches)
    passes = plan_passes(shapes, samples, memory)
    return dict(squared_distances(model, lambda: iter(batches), samples, passes, run)), passes


@pytest.fixture
def batches(xvlm_batches):
    return [pair["general"] for pair in xvlm_batches]


@pytest.fixture
def alone(xvlm, batches):
    """Layer -> outputs of each sample by itself, in words of its own only."""
    found, handles = {}, []
    for name, layer in xvlm.prunable_layers().items():
        keep = found.setdefault(name, [])
        handles.append(layer.register_forward_hook(lambda module, inputs, out, keep=keep: keep.append(out[0].double())))
    total = sum(len(batch["image"]) for batch in batches)
    with torch.no_grad():
        for one in cut(batches, [1] * total):
            xvlm.observe(one)
    for handle in handles:
        handle.remove()
    return found


def test_equal_samples_taken_one_at_a_time(xvlm, batches, alone):
    """Exact differences in float64; tokens that a text does not have are zeros."""
    found, _ = by_layer(xvlm, batches, 1e12)
    assert found.keys() == xvlm.prunable_layers().keys()
    for name, outputs in alone.items():
        longest = max(len(out) for out in outputs)
        rows = torch.stack([nn.functional.pad(o, (0, 0, 0, longest - len(o))).flatten() for o in outputs])
        right = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
        torch.testing.assert_close(found[name], right, rtol=1e-4, atol=1e-5 * right.max().item())


def test_who_shares_a_batch_does_not_matter(xvlm, batches):
    total = sum(len(batch["image"]) for batch in batches)
    one, _ = by_layer(xvlm, list(cut(batches, [1] * total)), 1e12, longest=40)
    other, _ = by_layer(xvlm, list(cut(batches, [total - 3, 3])), 1e12)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5 * other[name].max().item())


def test_slices_of_tokens_add_up(xvlm, batches):
    """Memory for some tokens of a layer: more passes, the same distances."""
    whole, passes = by_layer(xvlm, batches, 1e12)
    assert len(passes) == 1
    samples = sum(len(batch["image"]) for batch in batches)
    widest = max(layer.out_features for layer in xvlm.prunable_layers().values())
    memory = 4 * samples * widest * 9
    sliced, passes = by_layer(xvlm, batches, memory)
    assert len(passes) > 5
    assert all(4 * samples * sum(piece.numbers for piece in pieces) <= memory for pieces in passes)
    for name in whole:
        torch.testing.assert_close(sliced[name], whole[name], rtol=1e-4, atol=1e-5 * whole[name].max().item())


def test_repeated_samples_are_at_distance_zero():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 50))
    model = wrap(module, forward=lambda module, batch: module(batch["x"]))
    x = 100 + torch.randn(12, 7, 6)
    x[5] = x[2]
    found, _ = by_layer(model, [{"x": x[:5]}, {"x": x[5:]}], 1e12)
    for squares in found.values():
        assert (squares == 0).nonzero().tolist() == sorted([[i, i] for i in range(12)] + [[2, 5], [5, 2]])


def test_library_attention_and_convolutions():
    """Products that no module does, and maps whose axes come behind the channels."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 2, stride=2)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            x = self.conv(x).flatten(2).transpose(1, 2)
            return self.attention(x, x, x)[0]

    torch.manual_seed(0)
    module = Both()
    model = wrap(module, forward=lambda module, batch: module(batch["x"]), conv=True)
    x = torch.randn(9, 3, 4, 4)
    found, _ = by_layer(model, [{"x": x}], 1e12)
    with torch.no_grad():
        maps = module.conv(x).flatten(2).transpose(1, 2)
        right = {
            "conv.weight": maps,
            "attention.in_proj_weight": maps @ module.attention.in_proj_weight.T,
            "attention.out_proj.weight": module(x),
        }
    assert found.keys() == right.keys()
    for name, out in right.items():
        expected = torch.cdist(out.flatten(1).double(), out.flatten(1).double()).square()
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-3)


def test_memory_for_no_token():
    with pytest.raises(InputError, match="--memory does not hold one token of 'a' for 600 samples"):
        plan_passes({"a": type("Shape", (), {"tokens": 4, "width": 64})()}, 600, 1e3)


def test_text_longer_than_planned(xvlm, batches):
    with pytest.raises(InputError, match=r"a text has .* tokens, more than the longest planned for"):
        singles = list(cut(batches, [1] * sum(len(batch["image"]) for batch in batches)))
        by_layer(xvlm, sorted(singles, key=lambda one: one["text_ids"].shape[1]), 1e12, longest=2)
