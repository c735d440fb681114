"""Smaller models as folders: read back exactly, by the name small:FOLDER, for other tasks, and refused when damaged."""

import json

import pytest
import torch

from configs.schema import library_of, task_file
from console.errors import InputError
from models import class_of, file_name, load_model, load_task_model
from models.library.hf_models import load_hf
from models.parts import all_sets, layers, units
from models.plans import Plan, Stay, in_ranges, plan_identity
from models.small import save_small
from models.surgery import cut
from sparsity.mask import Mask
from tests.models.test_any_module import HUGGING_FACE
from tests.models.test_layers_removed import rows_cut
from tests.models.test_parts import outputs, random_choice

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 7}


def hf_model(folder, name="ViTForImageClassification"):
    torch.manual_seed(0)
    HUGGING_FACE[name]().save_pretrained(folder / "base")
    return load_model(f"hf:{folder / 'base'}")


MODELS = {
    "resnet-mini": lambda folder: load_model("resnet-mini"),
    "dino-mini": lambda folder: load_model("dino-mini"),
    "xvlm-mini": lambda folder: load_model("xvlm-mini"),
    "blip-mini": lambda folder: load_model("blip-mini"),
    "timm": lambda folder: load_model("timm:vit_small_patch16_224", weights="random", overrides=VIT),
    "hf classifier": hf_model,
    "hf pairs": lambda folder: hf_model(folder, "CLIPModel"),
}


def saved(name, folder, seed=3):
    """A model with random units removed, in FOLDER/small; the model, and the name to load it by."""
    model = MODELS[name](folder)
    small = cut(model, random_choice(model, seed) | rows_cut(model, seed))
    save_small(folder / "small", small, {"criterion": "random"})
    return small, f"small:{folder / 'small'}"


@pytest.mark.parametrize("name", MODELS)
class TestFolder:
    def test_read_back_exactly(self, name, tmp_path):
        small, reference = saved(name, tmp_path)
        loaded = load_model(reference)
        assert type(loaded) is type(small)
        state, expected = loaded.state_dict(), small.state_dict()
        beside = {id(tensor) for tensor in small.training_only()}
        names = {key for key, tensor in small.state_dict(keep_vars=True).items() if id(tensor) not in beside}
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in names)
        assert loaded.plan == small.plan
        assert loaded.tokenizer == small.tokenizer
        assert loaded.image_shape == small.image_shape
        if not beside:
            found, expected = outputs(loaded), outputs(small)
            assert all(torch.equal(found[key], expected[key]) for key in expected)

    def test_its_mask_applies(self, name, tmp_path):
        _, reference = saved(name, tmp_path)
        model = load_model(reference)
        Mask({key: layer.weight > 0 for key, layer in model.prunable_layers().items()}).apply(model)

    def test_same_bytes_again(self, name, tmp_path):
        _, reference = saved(name, tmp_path)
        save_small(tmp_path / "again", load_model(reference), {"criterion": "random"})
        for file in ("model.safetensors", "plan.json"):
            assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "small" / file).read_bytes()


class TestTasks:
    @pytest.mark.parametrize(
        ("name", "task"),
        [(name, task) for name in ("xvlm-mini", "blip-mini") for task in ("retrieval", "captioning", "vqa")]
        + [("blip-mini", "nlvr")],
    )
    def test_of_a_family(self, name, task, tmp_path):
        """What the task's model takes from pretraining is the smaller one's."""
        small, reference = saved(name, tmp_path)
        model = load_task_model(reference, task)
        whole = load_task_model(name, task)
        assert sum(map(torch.numel, model.parameters())) < sum(map(torch.numel, whole.parameters()))
        tower = "vision_encoder." if name == "xvlm-mini" else "visual_encoder."
        ours = {key: value for key, value in small.state_dict().items() if key.startswith(tower)}
        state = model.state_dict()
        assert all(torch.equal(state[key], value) for key, value in ours.items())

    def test_classifier_of_another_data_set(self, tmp_path):
        _, reference = saved("resnet-mini", tmp_path)
        model = load_task_model(reference, "image_classification", overrides={"classes": 10})
        assert model.logits(torch.randn(2, 3, 64, 64)).shape == (2, 10)
        assert len(model.load_report.fresh) == 2
        save_small(tmp_path / "tuned", model)
        assert load_model(f"small:{tmp_path / 'tuned'}").module.num_classes == 10

    def test_a_finetuned_class_is_cut_and_found_again(self, tmp_path):
        model = load_task_model("xvlm-mini", "retrieval")
        save_small(tmp_path / "small", cut(model, random_choice(model, 4)))
        loaded = load_model(f"small:{tmp_path / 'small'}")
        assert type(loaded) is type(model)
        assert type(load_task_model(f"small:{tmp_path / 'small'}", "retrieval")) is type(model)


class TestNames:
    def test_of_configurations_and_files(self, tmp_path):
        _, reference = saved("resnet-mini", tmp_path)
        assert task_file(reference, "prune") == task_file("resnet-mini", "prune")
        assert library_of(reference) == "resnet-mini"
        assert class_of(reference) is class_of("resnet-mini")
        assert file_name(reference) == "small-small"


class TestPlans:
    def test_of_a_plan_keeps_the_first_numbers(self):
        model = load_model("dino-mini")
        name = "vit.encoder.layer.0.attention"
        once = cut(model, {name: torch.tensor([False, True, True, True])})
        twice = cut(once, {name: torch.tensor([True, False, True])})
        assert dict(twice.plan.stays)[name] == Stay("heads", 4, (1, 3))
        straight = cut(model, {name: torch.tensor([False, True, False, True])})
        assert straight.plan == twice.plan
        assert hash(straight.plan) == hash(twice.plan)
        assert torch.equal(
            straight.state_dict()[f"{name}.output.dense.weight"], twice.state_dict()[f"{name}.output.dense.weight"]
        )

    def test_ranges(self):
        assert in_ranges([0, 2, 3, 5, 6, 7, 9]) == [0, 2, 3, [5, 8], 9]
        plan = Plan((("a", Stay("neurons", 12, (0, 2, 3, 5, 6, 7, 9))), ("b", Stay("heads", 2, ()))))
        assert Plan.from_json(json.loads(json.dumps(plan.to_json())), "here") == plan

    def test_of_another_model(self):
        found = units(load_model("dino-mini"))
        with pytest.raises(InputError, match="has 4 heads here, and 8 heads there"):
            Plan((("vit.encoder.layer.0.attention", Stay("heads", 8, (1,))),)).kept(found)
        with pytest.raises(InputError, match=r"there is no 'blocks.0.attn' in this one"):
            Plan((("blocks.0.attn", Stay("heads", 4, (1,))),)).kept(found)

    def test_of_layers_that_were_removed(self):
        model = load_model("dino-mini")
        row = layers(model)[0]
        small = cut(model, {row.name: torch.arange(row.count) != 3})
        plan = Plan(((f"{row.name}.3.attention", Stay("heads", 4, (1,))),))
        with pytest.raises(InputError, match=r"keeps layers of 'vit.encoder.layer' that were removed before"):
            plan.kept(all_sets(small), small.plan)


def test_mask_of_other_units(tmp_path):
    """Equal shapes do not make a mask of one smaller model one of another."""
    masks = []
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        small, _ = saved("dino-mini", tmp_path / str(seed), seed)
        layers = small.prunable_layers()
        source = {"model": f"small:{seed}"} | plan_identity(small.plan)
        masks.append((small, Mask({n: layer.weight > 0 for n, layer in layers.items()}, {}, source)))
    (small, own), (_, other) = masks
    own.apply(small)
    with pytest.raises(InputError, match="the mask was made for other units, those of small:2"):
        other.apply(small)


class TestBadFolders:
    def test_that_is_none(self, tmp_path):
        with pytest.raises(InputError, match=r"is not a small model: it has no plan.json"):
            load_model(f"small:{tmp_path}")

    @pytest.mark.parametrize("content", ["{", "[]", '{"format": 2}', '{"format": 1, "kept": 3}'])
    def test_damaged_plan(self, content, tmp_path):
        _, reference = saved("resnet-mini", tmp_path)
        (tmp_path / "small" / "plan.json").write_text(content)
        with pytest.raises(InputError, match=r"plan\.json is no plan"):
            load_model(reference)

    @pytest.mark.parametrize("kept", [[3, 2], [99], ["a"], [[0]], [[]], [[0, 10**12]]])
    def test_damaged_numbers(self, kept, tmp_path):
        _, reference = saved("resnet-mini", tmp_path)
        path = tmp_path / "small" / "plan.json"
        about = json.loads(path.read_text())
        next(iter(about["kept"].values()))["kept"] = kept
        path.write_text(json.dumps(about))
        with pytest.raises(InputError, match=r"plan\.json is damaged"):
            load_model(reference)

    def test_weights_of_another_size(self, tmp_path):
        _, reference = saved("resnet-mini", tmp_path)
        with pytest.raises(InputError, match=r"belongs to a model of another size"):
            load_model(reference, weights="weights/resnet-mini.safetensors")

    def test_weights_missing(self, tmp_path):
        _, reference = saved("resnet-mini", tmp_path)
        (tmp_path / "small" / "model.safetensors").unlink()
        with pytest.raises(InputError, match=r"model\.safetensors does not exist"):
            load_model(reference)

    def test_nothing_removed(self, tmp_path):
        with pytest.raises(InputError, match="nothing was removed"):
            save_small(tmp_path / "small", load_model("resnet-mini"))

    def test_in_the_way(self, tmp_path):
        small, _ = saved("resnet-mini", tmp_path)
        with pytest.raises(InputError, match="is there already"):
            save_small(tmp_path / "small", small)


def test_random_weights_and_another_image_size(tmp_path):
    _, reference = saved("xvlm-mini", tmp_path)
    assert load_model(reference, weights="random", seed=1).load_report is None
    assert load_model(reference, overrides={"vision": {"image_size": 96}}).image_shape.image_size == 96


def test_hf_without_its_base(tmp_path):
    """The folder has all that it is built from."""
    small, reference = saved("hf classifier", tmp_path)
    for file in (tmp_path / "base").iterdir():
        file.unlink()
    assert load_model(reference).plan == small.plan
    with pytest.raises(InputError):
        load_hf(str(tmp_path / "base"), None, {})
