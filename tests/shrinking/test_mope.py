"""Errors of parts against brute force: the model really cut, and all of the data evaluated; Taylor by plain loops."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calibration.processes import Group
from calibration.resume import Checkpoint
from console.errors import InputError
from data.randomness import seeded
from evaluation.recall import Candidates, ranks, recalls
from models.library.parts import units_of
from models.parts import all_sets
from models.surgery import cut
from models.wrap import wrap
from shrinking import mope as module
from shrinking.errors import groups_of
from shrinking.gradients import influence, taylor
from shrinking.mope import mope
from shrinking.replay import Replay
from shrinking.scores import mean_recall, score_of
from shrinking.screening import Screen
from tests.models.test_parts import FAMILIES, shaken


def family(name):
    torch.manual_seed(0)
    return shaken(FAMILIES[name]())


def examples(model, sizes=(4, 1)):
    """Batches with padding, the last one of a single sample."""
    torch.manual_seed(1)
    return [model.example(size)[model.sides[0]] for size in sizes]


def z(model, name, batches):
    """The score in plain words: every run over all of the data."""
    score = score_of(model, name)
    rows = []
    for run in score.runs:
        found = []
        for number, batch in enumerate(batches):
            state = [tensor.clone() for tensor in model.moving_tensors()]
            with seeded(42, "unit", number), torch.no_grad():
                found.append(run(batch))
            with torch.no_grad():
                for tensor, value in zip(model.moving_tensors(), state, strict=True):
                    tensor.copy_(value)
        rows.append(torch.cat(found))
    return score.value(rows)


def by_brute_force(model, name, batches, table):
    """Of every third part, since to copy a model takes long."""
    whole, found = z(model, name, batches), {}
    parts = [(name, number) for name, errors in table.errors.items() for number in range(len(errors))]
    for place, (set_name, number) in enumerate(parts):
        if place % 3 == 0:
            groups = table.groups[set_name]
            small = cut(model, {set_name: groups != number}).eval()
            found[set_name, number] = whole - z(small, name, batches)
    return found


def compare(model, name, batches, size=32, only=lambda one: True):
    values = {one.name: torch.rand(one.count).double() for one in all_sets(model) if only(one)}
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    table = mope(model, lambda: batches, score_of(model, name), groups_of(model, values, size))
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    expected = by_brute_force(model, name, batches, table)
    assert expected
    for (set_name, number), error in expected.items():
        assert float(table.errors[set_name][number]) == pytest.approx(error, abs=1e-5), (set_name, number)
    return table


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet18", "timm vit, gated", "hf ViT", "hf DINOv2, gated", "hf CLIP", "hf SigLIP", "hf BLIP", "xvlm", "blip"],
)
def test_every_part_by_the_loss(name, hardest_negatives):
    """Of X-VLM and BLIP also what looks at both, and copies by momentum."""
    model = family(name)
    table = compare(model, "loss", examples(model, (3,)), 3 if name == "resnet18" else 32)
    assert table.groups.keys() == {one.name for one in all_sets(model)}


@pytest.mark.parametrize("name", ["xvlm", "blip", "hf CLIP", "hf SigLIP"])
def test_towers_by_itc(name):
    """What looks at both sides is not met, and of a row with such layers neither are these."""
    model = family(name)
    table = compare(model, "itc", examples(model))
    assert not any("crossattention" in name for name in table.errors)
    if name == "xvlm":
        text, fusion = table.groups["text_encoder.bert.encoder.layer"], model.config.text.fusion_layer
        assert (text[:fusion] >= 0).all()
        assert (text[fusion:] == -1).all()


def test_other_scores():
    compare(family("xvlm"), "recall", examples(family("xvlm"), (9, 2)), 64)
    compare(family("dino"), "accuracy", examples(family("dino"), (9, 2)))


@pytest.fixture(scope="module")
def clip():
    """A small CLIP with batches, groups, and errors by brute force of any parts."""
    model = family("hf CLIP")
    batches = examples(model)
    groups = groups_of(model, {one.name: torch.arange(one.count).double() for one in all_sets(model)}, 16)
    whole = z(model, "itc", batches)
    return model, batches, groups, lambda kept: whole - z(cut(model, kept).eval(), "itc", batches)


def test_a_rank_of_neurons_from_all_layers(clip):
    """Errors are those of a model that has lost the group of that rank in each layer of the tower."""
    model, batches, groups, without = clip
    table = mope(model, lambda: batches, score_of(model, "itc"), groups, together=True)
    for tower in ("vision", "text"):
        names = [name for name in table.errors if name.startswith(tower) and name.endswith(".mlp")]
        assert len(names) == 2
        for rank in range(3):
            error = without({name: table.groups[name] != rank for name in names})
            assert [float(table.errors[name][rank]) for name in names] == pytest.approx([error] * 2, abs=1e-5)


def test_screened(clip):
    """Half of the heads are measured, next to the cut; the others keep Taylor's order, below. Layers all are."""
    model, batches, groups, _ = clip
    score = score_of(model, "itc")
    values = {one.name: torch.arange(one.count).double() for one in all_sets(model)}
    whole = mope(model, lambda: batches, score, groups).errors
    found = mope(model, lambda: batches, score, groups, screen=Screen(values, 0.5, keep=0.25)).errors
    for name, errors in found.items():
        same = (errors == whole[name]).tolist()
        if name.endswith(".self_attn"):  # of 8 heads in 2 layers, 0 to 3 by Taylor: places 4 to 7 are next to 3/4
            assert same == [False, False, True, True]
            assert (
                errors[0] < errors[1] < min(float(one[2:].min()) for key, one in found.items() if tower_of(key, name))
            )
        elif name.endswith(".layers"):
            assert all(same)


def tower_of(key, name):
    """Whether it is an attention of the same tower."""
    return key.endswith(".self_attn") and key.split("_")[0] == name.split("_")[0]


def test_tokens_that_nobody_reads(clip):
    """Behind the last attention of the image tower there is the class token alone; keys and values are read at all."""
    model, batches, _, _ = clip
    work = module._Work(model, lambda: batches, score_of(model, "itc"), 42)
    with module.preserved(model, gradients=False), torch.no_grad(), work.pooled.watching():
        work.look()
    layer, tokens = model.module.vision_model.encoder.layers[1], batches[0]["image"].shape[0]
    each = model.module.vision_model.embeddings.num_positions
    found = work.pooled._found[0, 0]
    expected = {layer.self_attn.q_proj, layer.self_attn.out_proj, layer.mlp.fc1, layer.mlp.fc2}
    assert found.keys() == expected
    assert all(at.tolist() == [i * each for i in range(tokens)] for at in found.values())


def test_recall_is_that_of_evaluations():
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(40, 4), dim=1) for _ in range(2))
    similarity = images @ texts.t()
    own = range(40)
    found = recalls(ranks(Candidates(similarity), Candidates(similarity.t()), [[i] for i in own], list(own)))
    assert mean_recall([images, texts]) == pytest.approx(found["r_mean"], abs=0.01)
    assert mean_recall([images[:1].expand(40, -1), texts[:1].expand(40, -1)]) == pytest.approx(100 * 16 / 120)


def test_what_is_dead_goes_first():
    """A head that nobody reads has no error at all."""
    model = family("xvlm")
    out = model.vision_encoder.encoder.layers[0].self_attn.out_proj.weight
    with torch.no_grad():
        out[:, : out.shape[1] // model.config.vision.heads] = 0
    errors = compare(model, "itc", examples(model), only=lambda one: one.name.endswith("layers.0.self_attn")).errors
    (found,) = errors.values()
    assert found[0] == 0 < found.abs()[1]


class Killed(Exception):
    pass


def test_interrupted_and_shared(monkeypatch, tmp_path):
    """Killed after some parts and started again, or shared by processes: the same table, bit for bit."""
    monkeypatch.setattr(module, "EVERY", 5)
    model = family("xvlm")
    batches, score = examples(model), score_of(model, "itc")
    groups = groups_of(model, {one.name: torch.arange(one.count).double() for one in all_sets(model)}, 16)

    def table(**changes):
        return mope(model, lambda: batches, score, groups, **changes).errors

    whole = table()
    monkeypatch.setattr(Checkpoint, "offer", killing(Checkpoint.offer, 3))
    with pytest.raises(Killed):
        table(checkpoint=Checkpoint(tmp_path / "a", {"of": 1}, every=0))
    monkeypatch.undo()
    monkeypatch.setattr(module, "EVERY", 7)
    again = table(checkpoint=Checkpoint(tmp_path / "a", {"of": 1}, every=0, resume=True))
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    with pytest.raises(InputError, match="another run"):
        table(checkpoint=Checkpoint(tmp_path / "a", {"of": 2}, every=0, resume=True))


def killing(offer, times):
    count = iter(range(times))

    def offered(self, state):
        offer(self, state)
        if next(count) == times - 1:
            raise Killed

    return offered


def test_processes_share_the_parts(monkeypatch):
    """What each of two measures, two parts at a time: together the table of one."""
    monkeypatch.setattr(module, "EVERY", 2)
    model = family("xvlm")
    batches, score = examples(model, (4,)), score_of(model, "itc")
    own = {one.name: torch.zeros(one.count).double() for one in all_sets(model) if one.name.endswith(".self_attn")}
    groups = groups_of(model, dict(list(own.items())[:2]), 1)
    alone = mope(model, lambda: batches, score, groups).errors
    assert sum(map(len, alone.values())) % 4 == 0
    noted = []

    class Second(Group):
        def objects(self, mine, ranks):
            """Its own are noted, and the first one's are not known yet."""
            noted.append(mine)
            return [[float("nan")] * len(mine), mine]

    class First(Group):
        def objects(self, mine, ranks):
            """The second one's are known."""
            return [mine, noted.pop(0)]

    mope(model, lambda: batches, score, groups, group=Second(1, 2))
    both = mope(model, lambda: batches, score, groups, group=First(0, 2)).errors
    assert all(torch.equal(both[name], alone[name]) for name in alone)


def test_replay_computes_what_changed_alone():
    """Calls with equal inputs are replayed, others are computed; also those after a tensor was written to."""
    count = []

    class Counted(nn.Linear):
        def forward(self, x):
            count.append(1)
            return super().forward(x)

    layers = nn.Sequential(*(Counted(4, 4) for _ in range(3)))
    x = torch.randn(2, 4)
    replay = Replay(layers)
    with torch.no_grad(), replay.watching():
        with replay.record():
            expected = layers(x)
        assert torch.equal(layers(x.clone()), expected)
        assert len(count) == 3
        replay.without({id(layers[1].weight)})
        layers(x)
        assert len(count) == 4  # its own result is the same, so that the one behind it is replayed
        layers(x + 1)
        assert len(count) == 7
        expected.add_(1)
        torch.testing.assert_close(layers(x), expected - 1)
    assert "forward" not in layers[0].__dict__
    assert layers(x).shape == (2, 4)


def test_taylor_by_plain_loops():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3))
    loss = lambda net, batch: F.cross_entropy(net(batch["x"]), batch["label"])  # noqa: E731
    parts = lambda net: [units_of(net, "mlp", "neurons", feeds=["0"], reads="2")]  # noqa: E731
    model = wrap(net, forward=lambda net, batch: net(batch["x"]), loss=loss, parts=parts)
    batches = [{"x": torch.randn(4, 5), "label": torch.arange(4) % 3} for _ in range(3)]
    found = taylor(model, lambda: batches, model.loss)["mlp"]
    expected = [0.0] * 6
    for batch in batches:
        net.zero_grad()
        loss(net, batch).backward()
        for unit in range(6):
            up, bias, down = (p.detach() * p.grad for p in (net[0].weight, net[0].bias, net[2].weight))
            made, read = float(up[unit].sum() + bias[unit]), float(down[:, unit].sum())
            expected[unit] += abs(made) + abs(read)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_taylor_of_models():
    """Fused rows, heads, layers, ties; what a loss does not read is unknown, not worthless."""
    model = family("xvlm")
    batches, score = examples(model), score_of(model, "itc")
    found = taylor(model, lambda: batches, score.loss)
    assert all(parameter.grad is None for parameter in model.parameters())
    row = found["text_encoder.bert.encoder.layer"]
    assert row.isnan().tolist() == [number >= model.config.text.fusion_layer for number in range(len(row))]
    assert all(values.isnan().all() for name, values in found.items() if "crossattention" in name)
    layer, unit = model.vision_encoder.encoder.layers[0], 3
    expected = 0.0
    for number, batch in enumerate(batches):
        model.requires_grad_(True).zero_grad()
        with seeded(42, "unit", number):
            score.loss(batch).backward()
        products = [p.detach() * p.grad for p in (layer.mlp.fc1.weight, layer.mlp.fc1.bias, layer.mlp.fc2.weight)]
        expected += float((products[0][unit].sum() + products[1][unit]).abs() + products[2][:, unit].sum().abs())
    assert float(found["vision_encoder.encoder.layers.0.mlp"][unit]) == pytest.approx(expected, rel=1e-4)


def test_influence_leaves_padding_out():
    model = family("xvlm")
    (batch,) = examples(model, (4,))
    found = influence(model, lambda: [batch])["text_encoder.bert.encoder.layer"]
    seen = []
    layer = model.bert.encoder.layer[0]
    handle = layer.register_forward_hook(lambda layer, args, output: seen.append((args[0], output)))
    model.observe(batch)
    handle.remove()
    before, after = seen[0]
    values = []
    for row, length in enumerate(batch["text_atts"].sum(dim=1).tolist()):
        values += [1 - F.cosine_similarity(before[row, t], after[row, t], dim=0).item() for t in range(length)]
    assert float(found[0]) == pytest.approx(sum(values) / len(values), rel=1e-4)
