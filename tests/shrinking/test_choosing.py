"""Tables of errors and what is chosen from them: shares, targets, ties, rounding, files."""

import pytest
import torch

from console.errors import InputError
from models import load_model
from models.parts import Layers, all_sets
from models.surgery import cut
from shrinking import CRITERIA
from shrinking.checking import check_plan
from shrinking.choosing import Limits, by_shares, rounded, to_target
from shrinking.errors import Errors, ordered_groups, restricted
from shrinking.options import parser_of

ABOUT = {"model": "dino-mini", "criterion": "random", "seed": 0}


@pytest.fixture(scope="module")
def dino():
    return load_model("dino-mini")


@pytest.fixture(scope="module")
def table(dino):
    return Errors.of(dino, CRITERIA["random"](dino, 0), 64, ABOUT)


def parameters(model):
    return sum(tensor.numel() for tensor in model.parameters())


class TestErrors:
    def test_groups_by_what_units_are_worth(self):
        assert ordered_groups(torch.tensor([3.0, 9.0, 1.0, 9.0, 4.0]), 2).tolist() == [1, 0, 2, 0, 1]
        assert ordered_groups(torch.tensor([3.0, 9.0, 1.0]), 1).tolist() == [0, 1, 2]

    def test_a_groups_error_is_its_mean(self, dino, table):
        values = CRITERIA["random"](dino, 0)["vit.encoder.layer.2.intermediate"]
        for number in range(8):
            inside = values[table.groups["vit.encoder.layer.2.intermediate"] == number]
            assert len(inside) == 64
            assert table.errors["vit.encoder.layer.2.intermediate"][number] == pytest.approx(float(inside.mean()))

    def test_file(self, table, tmp_path):
        table.save(tmp_path / "a.safetensors")
        again = Errors.load(tmp_path / "a.safetensors")
        assert again.about == ABOUT
        assert all(torch.equal(again.errors[name], table.errors[name]) for name in table.errors)
        assert all(torch.equal(again.groups[name], table.groups[name]) for name in table.groups)

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["--keep", "0.5", "--flops", "3"], "--flops is a target"),
            (["--flops", "3", "--scope", "layer"], "leave out --scope layer"),
            (["--batch_size", "2"], "--batch_size is for --flops and --latency"),
            (["--parameters", "3", "--batch_size", "2"], "--batch_size is for --flops and --latency"),
        ],
    )
    def test_options_without_use(self, words, says):
        with pytest.raises(InputError, match=says):
            check_plan(parser_of(None).parse_args(["plan", "errors", *words]))

    def test_bad_files(self, table, tmp_path, dino):
        with pytest.raises(InputError, match="not a table of errors"):
            Errors.load("weights/dino-mini.safetensors")
        other = Errors.of(load_model("xvlm-mini"), CRITERIA["random"](load_model("xvlm-mini"), 0), 64, ABOUT)
        with pytest.raises(InputError, match="of another model"):
            by_shares(dino, other, {"heads": 0.5}, Limits())

    def test_magnitude_by_hand(self, dino):
        found = CRITERIA["magnitude"](dino, 0)
        block = dino.vit.encoder.layer[1]
        block.requires_grad_(False)
        own = [block.intermediate["dense"].weight[7], block.output["dense"].weight[:, 7]]
        assert found["vit.encoder.layer.1.intermediate"][7] == pytest.approx(float(torch.cat(own).norm()), rel=1e-6)
        rows = [block.attention.attention._modules[n].weight[32:64] for n in ("query", "key", "value")]
        head = torch.cat([*rows, block.attention.output["dense"].weight[:, 32:64].T])
        assert found["vit.encoder.layer.1.attention"][1] == pytest.approx(float(head.norm()), rel=1e-6)


class TestShares:
    def test_the_best_of_all_stay(self, dino, table):
        """Against a sort by hand over all heads of the tower."""
        kept = by_shares(dino, table, {"heads": 0.3}, Limits())
        heads = sorted((float(e), n, i) for n, v in table.errors.items() if "attention" in n for i, e in enumerate(v))
        best = {(n, i) for _, n, i in heads[-round(0.3 * 24) :]}
        for name in table.errors:
            if "attention" in name:
                stays = kept.get(name, torch.ones(4).bool())
                assert {i for i in range(4) if stays[i]} == {i for n, i in best if n == name}

    def test_the_same_share_of_each_layer(self, dino, table):
        kept = by_shares(dino, table, {"heads": 0.5, "neurons": 0.25}, Limits(), "layer")
        assert {int(stays.sum()) for name, stays in kept.items() if "attention" in name} == {2}
        assert {int(stays.sum()) for name, stays in kept.items() if "intermediate" in name} == {128}
        assert len(kept) == 12

    def test_equal_errors_go_by_position(self, dino, table):
        flat = Errors({n: torch.zeros_like(e) for n, e in table.errors.items()}, table.groups, ABOUT)
        kept = by_shares(dino, flat, {"heads": 0.5}, Limits())
        assert [name for name, stays in kept.items() if not stays.any()] == [
            f"vit.encoder.layer.{number}.attention" for number in range(3)
        ]

    def test_layers(self, dino, table):
        kept = by_shares(dino, table, {"layers": 0.5}, Limits())
        best = table.errors["vit.encoder.layer"].topk(3).indices.sort().values
        assert torch.equal(kept["vit.encoder.layer"].nonzero()[:, 0], best)

    def test_each_tower_by_itself(self):
        model = load_model("xvlm-mini")
        table = Errors.of(model, CRITERIA["magnitude"](model, 0), 64, ABOUT)
        one = by_shares(model, table, {"heads": 0.5, "layers": 0.5}, Limits(("vision",)))
        assert all(name.startswith("vision_encoder.") for name in one)
        both = by_shares(model, table, {"layers": 0.1}, Limits())
        assert [int(stays.sum()) for stays in both.values()] == [1, 2]  # of text and fusion a layer each
        cut(model, both)

    def test_protected(self, dino, table):
        kept = by_shares(dino, table, {"heads": 0.5, "neurons": 0.5}, Limits(protect=("layer.0.", "layer.5.")))
        assert kept
        assert not [name for name in kept if ".layer.0." in name or ".layer.5." in name]

    @pytest.mark.parametrize(
        ("shares", "limits", "says"),
        [
            ({"heads": 1.0}, Limits(), "all shares to keep are 1"),
            ({"heads": 0.0}, Limits(), "more than 0 and at most 1, not 0"),
            ({"heads": 1.5}, Limits(), "more than 0 and at most 1, not 1.5"),
            ({"head": 0.5}, Limits(), r"no head to keep \(did you mean 'heads'"),
            ({"channels": 0.5}, Limits(), "no errors of channels"),
            ({"heads": 0.5}, Limits(("text",)), "no errors of a tower 'text': there are of vision"),
            ({"heads": 0.5}, Limits(protect=("head",)), "'head' is in no name"),
            ({"heads": 0.5}, Limits(protect=("vit",)), "nothing can be removed"),
        ],
    )
    def test_bad_input(self, dino, table, shares, limits, says):
        with pytest.raises(InputError, match=says):
            by_shares(dino, table, shares, limits)


class TestTargets:
    def test_as_little_as_it_takes(self, dino, table):
        """One group less removed would miss the target: all groups save fewer parameters than that."""
        target = 900_000
        kept = to_target(dino, table, parameters, target, Limits())
        small = parameters(cut(dino, kept))
        largest = max(3 * 32 * 128 + 96 + 32 * 128, 64 * 257)
        assert target - largest < small <= target

    def test_out_of_reach(self, dino, table):
        with pytest.raises(InputError, match=r"100,000 cannot be reached: without all .* of 1,227,168"):
            to_target(dino, table, parameters, 100_000, Limits(protect=("layer.0.",)))
        with pytest.raises(InputError, match="already met"):
            to_target(dino, table, parameters, 2_000_000, Limits())

    def test_channels_keep_one_at_least(self):
        model = load_model("resnet-mini")
        table = Errors.of(model, CRITERIA["magnitude"](model, 0), 4, ABOUT)
        least = min(parameters(cut(model, {one.name: torch.arange(one.count) < 1})) for one in all_sets(model)[:1])
        kept = to_target(model, table, parameters, least // 2, Limits(round=8))
        assert all(stays.any() for stays in kept.values())


@pytest.mark.parametrize(
    ("width", "multiple", "whole", "expected"),
    [(100, 64, 512, 128), (96, 64, 512, 64), (30, 64, 512, 64), (0, 64, 512, 0), (512, 64, 512, 512),
     (500, 64, 512, 512),
     (20, 64, 48, 16), (3, 64, 3, 3), (2, 64, 3, 2), (490, 64, 500, 500)],
)  # fmt: skip
def test_rounded(width, multiple, whole, expected):
    assert rounded(width, multiple, whole) == expected


def test_rounding_takes_the_worst(dino):
    """Groups of 10 leave 260 neurons of 512; the four of the worst group that stays go."""
    table = Errors.of(dino, CRITERIA["random"](dino, 3), 10, ABOUT)
    rough = by_shares(dino, table, {"neurons": 0.5}, Limits(), "layer")
    fine = by_shares(dino, table, {"neurons": 0.5}, Limits(round=64), "layer")
    for name, stays in fine.items():
        assert int(stays.sum()) == 256
        assert not (stays & ~rough[name]).any()
        errors = table.errors[name][table.groups[name]]
        assert errors[stays].min() >= errors[rough[name] & ~stays].max()


def test_every_set_has_a_value():
    for name in ("dino-mini", "resnet-mini", "blip-mini"):
        model = load_model(name)
        for criterion in CRITERIA:
            values = CRITERIA[criterion](model, 1)
            assert {one.name: one.count for one in all_sets(model)} == {n: len(v) for n, v in values.items()}
            assert all(torch.isfinite(v).all() for v in values.values())
    assert any(isinstance(one, Layers) for one in all_sets(model))


def test_some_kinds_of_one_tower():
    """Layers of two towers in one list: those of the other one are not measured, and are always kept."""
    model = load_model("xvlm-mini")
    whole = CRITERIA["magnitude"](model, 0)
    layers = Errors.of(model, restricted(model, whole, ["layers"], "text"), 1, {})
    (name,) = layers.errors
    (one,) = (one for one in all_sets(model) if one.name == name)
    assert [number >= 0 for number in layers.groups[name].tolist()] == [tower == "text" for tower in one.towers]
    vision = restricted(model, whole, ["heads", "neurons"], "vision")
    assert {model.modality_of(one.consumer) for one in all_sets(model) if one.name in vision} == {"vision"}
    assert all(torch.equal(values, whole[name]) for name, values in vision.items())
    assert restricted(model, whole, None, "both").keys() == whole.keys()


@pytest.mark.parametrize(
    ("kinds", "tower", "says"),
    [(["head"], "both", "has no 'head' \\(did you mean 'heads'"), (None, "txt", "has no 'txt' \\(did you mean 'text'")],
)
def test_kinds_and_towers_that_are_none(kinds, tower, says):
    with pytest.raises(InputError, match=says):
        restricted(load_model("xvlm-mini"), {}, kinds, tower)
