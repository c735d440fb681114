"""Whole layers removed: states pass them by, numbers and configurations follow, plans keep the first numbers."""

import pytest
import torch
from torch import nn

from console.errors import InputError
from models import load_model
from models.parts import all_sets, layers, masked, units
from models.surgery import cut
from tests.models.test_parts import CONVOLUTIONS, FAMILIES, outputs, random_choice, shaken


class Passed(nn.Module):
    """In the place of a layer: states go by."""

    def forward(self, x, *arguments, **keywords):
        return x


def rows_cut(model, seed):
    """Of each row of layers about half, and one at least of each tower."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for row in layers(model):
        stays = torch.rand(row.count, generator=generator) < 0.5
        for tower in set(row.towers):
            own = [number for number in range(row.count) if row.towers[number] == tower]
            stays[own[-1]] = True
            stays[own[0]] &= len(own) == 1
        kept[row.name] = stays
    return kept


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in CONVOLUTIONS])
class TestLayers:
    def test_states_pass_by_what_is_removed(self, family):
        model = shaken(FAMILIES[family]())
        kept = rows_cut(model, 1)
        assert kept
        small = cut(model, kept)
        for row in layers(model):
            for path in row.lists:
                whole = model.inner.get_submodule(path)
                assert len(small.inner.get_submodule(path)) == int(kept[row.name].sum()) < len(whole)
                for number in (~kept[row.name]).nonzero()[:, 0].tolist():
                    whole[number] = Passed()
        expected, found = outputs(model), outputs(small)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)

    def test_with_units_at_once_or_one_after_the_other(self, family):
        """Width and depth at once, or depth of what width left: the same plan, the same tensors."""
        model = FAMILIES[family]()
        width, depth = random_choice(model, 9), rows_cut(model, 2)
        once = cut(model, width | depth)
        twice = cut(cut(model, width), depth)
        assert once.plan == twice.plan
        state, expected = twice.state_dict(), once.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        again = cut(model, once.plan.kept(all_sets(model)))
        assert again.plan == once.plan
        assert set(once.prunable_layers()) <= set(expected)

    def test_width_after_depth_has_the_first_numbers(self, family):
        model = FAMILIES[family]()
        depth = rows_cut(model, 2)
        shallow = cut(model, depth)
        last = units(shallow)[-1]
        half = {last.name: torch.arange(last.count) % 2 == 0}
        small = cut(shallow, half)
        again = cut(model, small.plan.kept(all_sets(model)))
        assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in small.state_dict().items())


class TestMasks:
    def test_of_removed_layers_all_weights_go(self):
        model = load_model("blip-mini")
        kept = {"text_encoder.encoder.layer": torch.tensor([True, False, True])}
        masks = masked(model, kept)
        gone = {name for name, mask in masks.items() if not mask.any()}
        assert gone == {n for n in masks if ".encoder.layer.1." in n and n.startswith("text_")}
        assert any(name.startswith("text_decoder.") for name in gone)
        assert all(mask.all() for name, mask in masks.items() if name not in gone)


class TestTowers:
    def test_each_keeps_a_layer(self):
        model = load_model("xvlm-mini")
        (vision, text) = layers(model)
        assert (vision.towers, text.towers) == (("vision",) * 4, ("text", "text", "fusion", "fusion"))
        with pytest.raises(InputError, match="would keep no layer of the tower 'fusion'"):
            cut(model, {text.name: torch.tensor([True, True, False, False])})

    def test_configurations_count_anew(self):
        """X-VLM's text layers end, and its layers with regions begin, where they did."""
        model = load_model("xvlm-mini")
        small = cut(model, {one.name: torch.tensor([True, False, True, False]) for one in layers(model)})
        assert (small.config.text.layers, small.config.text.fusion_layer) == (2, 1)
        assert (small.config.vision.layers, small.vision_encoder.config.region_layers) == (2, 1)
        assert [small.modality_of(name) for name in small.prunable_layers()][-1] == "fusion"

    def test_blip_rows_share_tensors(self):
        model = load_model("blip-mini")
        assert {one.lists for one in layers(model)} == {
            ("visual_encoder.blocks", "visual_encoder_m.blocks"),
            ("text_encoder.encoder.layer", "text_encoder_m.encoder.layer", "text_decoder.bert.encoder.layer"),
        }
        small = cut(model, {"text_encoder.encoder.layer": torch.tensor([False, True, True])})
        decoder = small.text_decoder.bert.encoder.layer
        assert [layer.attention.self.layer_idx for layer in decoder] == [0, 1]
        assert decoder[0].output.dense.weight is small.text_encoder.encoder.layer[0].output.dense.weight

    def test_hugging_faces_config(self):
        model = FAMILIES["hf CLIP"]()
        small = cut(model, {"text_model.encoder.layers": torch.tensor([False, True])})
        assert small.module.config.text_config.num_hidden_layers == 1
        assert model.module.config.text_config.num_hidden_layers == 2
        assert small.module.config.vision_config.num_hidden_layers == 2
