"""Tokens that blocks choose: against plain loops over tokens, on generative models."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from calibration.hessians import InputHessians
from calibration.processes import Group
from calibration.statistics import InputNorms
from calibration.token_choice import Drift, Drifting, Representative, representatives
from console.errors import InputError
from models.library.hf_models import wrap_hf
from pruners import prune
from pruners.session import Session
from tests.models.generative import CONFIGS, IMAGE, small

LAYERS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")


@pytest.fixture(scope="module", params=["Llava", "Qwen2_5_VL"])
def seen(request):
    """A model, batches with padding and one without images, and what blocks and layers read, block by block.

    Of each block, for each sequence: tokens before and after it, which are of images, the last token's attention, and
    inputs and outputs of layers; without padding.
    """
    model = wrap_hf(small(request.param))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        batches = [model.example(2)["general"] for _ in range(2)]
    batches.append(_texts(batches[1]))
    assert not all(batch["attention_mask"].all() for batch in batches)
    model.module.set_attn_implementation("eager")  # it returns its weights
    return model, batches, _seen(model, batches)


def _texts(batch):
    """The same without images."""
    first = int((batch["input_ids"] == IMAGE).sum(dim=1)[0])
    return {name: value[:, first:] for name, value in batch.items() if value.shape == batch["input_ids"].shape}


def _seen(model, batches):
    found = {name: [] for name in model.mixed_blocks}
    met, handles = {}, []

    def keep(key):
        return lambda module, inputs, out: met.__setitem__(key, (inputs[0] if inputs else None, out))

    for name, block in model.mixed_blocks.items():
        handles.append(block.register_forward_hook(keep((name, "block"))))
        handles.append(block.self_attn.register_forward_hook(keep((name, "attention"))))
        handles += [block.get_submodule(path).register_forward_hook(keep((name, path))) for path in LAYERS]
    for batch in batches:
        with torch.no_grad():
            model.observe(batch)
        for name, sequences in found.items():
            for row, real in enumerate(batch["attention_mask"].bool()):
                before, after = (x[row, real] for x in met[name, "block"])
                weights = met[name, "attention"][1][1][row].mean(dim=0)[real][-1, real]
                layers = {path: [x[row, real].double() for x in met[name, path]] for path in LAYERS}
                sequences.append((before, after, batch["input_ids"][row, real] == IMAGE, weights, layers))
    for handle in handles:
        handle.remove()
    return found


def check(model, batches, choice, seen, chosen):
    """Norms and second moments of each layer, against those of the tokens that `chosen` gives of a sequence."""
    layers = model.prunable_layers()
    norms, hessians = InputNorms(model, layers, choice=choice), InputHessians(model, layers, choice=choice)
    for batch in batches:
        for statistic in (norms, hessians):
            statistic.update(batch)
            statistic.merge(Group(), [0])
    for block, sequences in seen.items():
        for path in LAYERS:
            name = f"{block}.{path}.weight"
            expected = sum(torch.outer(x, x) for one in sequences for x in one[4][path][0][chosen(block, one, path)])
            torch.testing.assert_close(hessians.of(name).double(), expected, rtol=1e-4, atol=1e-5)
            squares = norms.norms(name).double().square() * len(sequences)
            torch.testing.assert_close(squares, expected.diagonal(), rtol=1e-4, atol=1e-6)
    plain = InputNorms(model, layers)
    for batch in batches:
        plain.update(batch)
        plain.merge(Group(), [0])
    others = [name for name in layers if not name.startswith(tuple(seen))]
    assert all(torch.equal(plain.norms(name), norms.norms(name)) for name in others)


def drifts(one):
    """1 - cos of each token of a sequence."""
    return [1 - float(F.cosine_similarity(x, y, dim=0)) for x, y in zip(one[0], one[1], strict=True)]


def test_atv_counts_images_that_a_block_changes_most(seen):
    model, batches, found = seen
    drift = Drift(model)
    for batch in batches:
        drift.update(batch)
        drift.merge(Group(), [0])
    means = {}
    for name, sequences in found.items():
        of_images = [d for one in sequences for d, image in zip(drifts(one), one[2], strict=True) if image]
        means[name] = sum(of_images) / len(of_images)
    assert drift.means() == pytest.approx(means, rel=1e-5)
    counts = set()

    def chosen(block, one, path):
        images = [i for i, image in enumerate(one[2]) if image]
        texts = [i for i, image in enumerate(one[2]) if not image]
        most = min(len(images), round(min(1, means[block]) * len(texts)))
        ranked = sorted(images, key=lambda i: -drifts(one)[i])
        counts.add((most > 0, most < len(images)))
        return texts + ranked[:most]

    check(model, batches, Drifting(model, drift.means()).through, found, chosen)
    assert (True, True) in counts


def stand_for_all(outputs, image, attention):
    """AMIA, as its authors' code has it: a graph of the three nearest tokens, and a greedy choice from it."""
    unit = [x / x.norm() for x in outputs]
    n = len(unit)
    distance = [[1 - float(x @ y) for y in unit] for x in unit]
    kernel = [[math.exp(-float((x - y).square().sum()) / 2) for y in unit] for x in unit]
    pairs = {"text": [], "image": [], "both": []}
    for i in range(n):
        for j in range(i):
            kind = "both" if image[i] != image[j] else "image" if image[i] else "text"
            pairs[kind].append(distance[i][j])
    means = [sum(of) / len(of) for of in pairs.values() if of]
    enough = 0.1 * math.sqrt(sum(means) / len(means))
    near = [sorted((j for j in range(n) if j != i), key=lambda j: distance[i][j])[:3] for i in range(n)]
    score = [
        float(attention[i]) + sum(math.exp(-distance[i][j]) * float(attention[j]) for j in near[i]) for i in range(n)
    ]
    chosen = []
    while len(chosen) < n:
        one = max((i for i in range(n) if i not in chosen), key=lambda i: score[i])
        for j in near[one]:
            score[j] -= math.exp(-0.2 * distance[one][j]) * max(score[one], 0)
        chosen.append(one)
        among = sum(kernel[i][j] for i in chosen for j in chosen) / len(chosen) ** 2
        across = sum(kernel[i][j] for i in range(n) for j in chosen) / (n * len(chosen))
        if sum(map(sum, kernel)) / n**2 + among - 2 * across < enough:
            break
    return chosen


def test_amia_counts_tokens_that_stand_for_outputs(seen):
    model, batches, found = seen
    shares = []

    def chosen(block, one, path):
        which = stand_for_all(one[4][path][1], one[2].tolist(), one[3])
        shares.append(len(which) / len(one[2]))
        return which

    check(model, batches, Representative(model).through, found, chosen)
    assert min(shares) < 1


@pytest.mark.parametrize("family", CONFIGS)
def test_the_last_row_is_that_of_the_attention_itself(family):
    model = wrap_hf(small(family))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        batch = model.example(2)["general"]
    real, rows = batch["attention_mask"].bool(), []
    block = list(model.mixed_blocks.values())[-1]
    before = block.self_attn.config._attn_implementation

    def asked(module, inputs, by_name):
        rows.append(model.last_attention(block, lambda: block.forward(*inputs, **by_name), real))
        assert block.self_attn.config._attn_implementation == before

    handle = block.register_forward_pre_hook(asked, with_kwargs=True)
    with torch.no_grad():
        model.observe(batch)
    model.module.set_attn_implementation("eager")
    handle.remove()
    handle = block.self_attn.register_forward_hook(lambda module, inputs, out: rows.append(out[1].mean(dim=1)))
    with torch.no_grad():
        model.observe(batch)
    handle.remove()
    last = real.long().cumsum(dim=1).argmax(dim=1)
    torch.testing.assert_close(rows[0], rows[1][torch.arange(2), last], rtol=1e-4, atol=1e-6)


def test_a_choice_of_nothing():
    one = torch.ones(1, 4, dtype=torch.float64) / 2
    kinds = [torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
    assert representatives(one, kinds, torch.ones(1, dtype=torch.float64)).tolist() == [True]
    same, many = one.expand(6, 4), [kind.expand(6) for kind in kinds]
    assert representatives(same, many, torch.ones(6, dtype=torch.float64)).any()


@pytest.mark.parametrize("tokens", ["atv", "amia"])
def test_methods_prune_by_the_chosen_tokens(seen, tokens):
    model, batches, _ = seen
    for method in ("wanda", "multiflow", "sparsegpt"):
        masks = [prune(model, batches, method, (0.5,), allocation="layer", tokens=t)[0.5] for t in ("all", tokens)]
        differ = {name for name in masks[0] if not torch.equal(masks[0][name], masks[1][name])}
        assert differ
        assert all(name.startswith(tuple(model.mixed_blocks)) for name in differ)


def test_what_cannot_be_chosen(seen, xvlm, xvlm_batches):
    model, batches, _ = seen
    for tokens in ("atv", "amia"):
        with pytest.raises(InputError, match="names no such blocks: leave it out, or prune one of the models of docs"):
            prune(xvlm, xvlm_batches, "wanda", (0.5,), tokens=tokens)
    with pytest.raises(InputError, match=r"--tokens atv reads the calibration data again.*give a list"):
        Session(model, iter(batches), "wanda", tokens="atv")
    with pytest.raises(InputError, match=r"attention of Identity cannot be seen.*use atv"):
        model.last_attention(torch.nn.Identity(), lambda: None, batches[0]["attention_mask"].bool())
