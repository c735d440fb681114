"""Task models: names and shapes of the published classes, and how weights and masks of pretraining reach them."""

import pytest
import torch

from configs.schema import parse
from console.errors import InputError
from models import FAMILIES, load_model, load_task_model, merged, read_config
from pruners import prune
from sparsity.mask import Mask
from tests.conftest import REFERENCE
from tests.models.test_xvlm import listed

PARAMETERS = {  # models.md 3.5, each tied tensor once, buffers included
    ("blip", "retrieval"): 447_486_979,
    ("blip", "captioning"): 223_971_644,
    ("blip", "vqa"): 361_230_140,
}
CASES = [(family, task) for task in ("retrieval", "captioning", "vqa") for family in ("xvlm", "blip")]


def class_of(family, task):
    return FAMILIES[family].tasks[task]


@pytest.mark.parametrize(("family", "task"), [*CASES, ("xvlm", "captioning_pretrain")])
def test_full_size_names_and_shapes(family, task):
    settings, where = read_config(family, None)
    settings = {key: value for key, value in settings.items() if key not in ("family", "weights", "tokenizer")}
    size = 224 if task == "captioning_pretrain" else 384
    model_class = class_of(family, task)
    config = parse(model_class.Config, merged(settings, {"vision": {"image_size": size}}), where)
    with torch.device("meta"):
        model = model_class(config)
    official = {n: s for n, s in listed(f"{family}_{task}.txt").items() if not n.endswith("position_ids")}
    assert {n: tuple(t.shape) for n, t in model.state_dict().items()} == official
    if (family, task) in PARAMETERS:
        assert sum(p.numel() for p in model.parameters()) == PARAMETERS[family, task]


def small(family, task, **overrides):
    weights = REFERENCE / "vectors" / family / "weights.safetensors"
    return load_task_model(family, task, config=REFERENCE / f"{family}.yaml", weights=weights, overrides=overrides)


@pytest.fixture(scope="module")
def masks():
    """A magnitude mask of each pretraining model."""
    made = {}
    for family in ("xvlm", "blip"):
        weights = REFERENCE / "vectors" / family / "weights.safetensors"
        model = load_model(family, config=REFERENCE / f"{family}.yaml", weights=weights)
        made[family] = prune(model, [], "omp", (0.75,))[0.75]
    return made


def source_of(family, task, name):
    """The pretraining tensor that a task's tensor starts from, written down from models.md 2.6 and 3.5 anew."""
    if family == "xvlm":
        if task == "captioning":
            return name.replace("text_decoder.", "text_encoder.")
        if name.startswith("text_decoder.bert.encoder.layer."):
            number, rest = name.removeprefix("text_decoder.bert.encoder.layer.").split(".", 1)
            return f"text_encoder.bert.encoder.layer.{int(number) + 6}.{rest}"  # the small model fuses from layer 6
        if name.startswith("text_decoder."):
            return name.replace("text_decoder.", "text_encoder.")
        return name.replace("text_encoder.", "text_encoder.bert.")
    if name.startswith("text_decoder.bert.") and ".attention." not in name:
        return name.replace("text_decoder.bert.", "text_encoder.")
    return name


@pytest.mark.parametrize(("family", "task"), CASES)
def test_weights_of_pretraining(family, task):
    model = small(family, task)
    pretrained = load_model(
        family, config=REFERENCE / f"{family}.yaml", weights=REFERENCE / "vectors" / family / "weights.safetensors"
    ).state_dict()
    for name, tensor in model.state_dict().items():
        if name == "idx_queue":
            assert (tensor == -100).all()
        elif name == "ptr_queue":
            assert tensor.tolist() == [0]
        else:
            assert torch.equal(tensor, pretrained[source_of(family, task, name)]), name


@pytest.mark.parametrize("inherit", [False, True])
@pytest.mark.parametrize(("family", "task"), CASES)
def test_masks_of_pretraining(family, task, inherit, masks):
    if inherit and (family, task) != ("xvlm", "vqa"):
        pytest.skip("only X-VLM's VQA decoder may or may not be pruned")
    model = small(family, task, **({"inherit_mask": True} if inherit else {}))
    fitted = masks[family].fitted(model)
    assert set(fitted) == set(model.prunable_layers())
    for name in fitted:
        assert torch.equal(fitted[name], masks[family][source_of(family, task, name)]), name
    decoder = [name for name in fitted if name.startswith("text_decoder.")]
    assert bool(decoder) == (task == "captioning" or (task == "vqa" and (inherit or family == "blip")))
    masks[family].apply(model)
    zeros = sum(int((layer.weight == 0).sum()) for layer in model.prunable_layers().values())
    assert zeros == sum(fitted.size(name) - fitted.kept(name) for name in fitted)


@pytest.mark.parametrize("inherit", [False, True])
@pytest.mark.parametrize(("family", "task"), CASES)
def test_updated_weights_travel_to_a_task(family, task, inherit, masks):
    """A decoder that is not pruned starts from the weights of pretraining, whatever the mask carries."""
    if inherit and (family, task) != ("xvlm", "vqa"):
        pytest.skip("only X-VLM's VQA decoder may or may not be pruned")
    layers = masks[family]
    updated = layers.with_values((name, torch.randn(layers.shape(name))) for name in layers)
    model = small(family, task, **({"inherit_mask": True} if inherit else {}))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    updated.apply(model)
    pruned = model.prunable_layers()
    for name, layer in pruned.items():
        expected = torch.from_numpy(updated.weights(source_of(family, task, name)))
        assert torch.equal(layer.weight, expected), name
    alike = {id(layer.weight) for layer in pruned.values()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in alike and "_m." not in name:
            assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(("family", "task"), CASES)
def test_position_tables_grow(family, task):
    model = small(family, task, vision={"image_size": 48})
    assert model.image_shape.image_size == 48
    assert any(
        "(1, 17, 64) -> (1, 37, 64)" in c or "(17, 64) -> (37, 64)" in c for c in model.load_report.resized.values()
    )


def test_files_of_the_task_load_again(tmp_path):
    from safetensors.torch import save_model

    for family, task in CASES:
        model = small(family, task)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        save_model(model, tmp_path / "model.safetensors")
        again = load_task_model(
            family, task, config=REFERENCE / f"{family}.yaml", weights=tmp_path / "model.safetensors"
        )
        for (name, old), new in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(old, new), f"{family} {task} {name}"


def test_unknown_keys_and_tasks_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(REFERENCE / "vectors" / "xvlm" / "weights.safetensors")
    save_file({**state, "surprise.weight": torch.zeros(1)}, tmp_path / "odd.safetensors")
    with pytest.raises(InputError, match="surprise"):
        load_task_model("xvlm", "vqa", config=REFERENCE / "xvlm.yaml", weights=tmp_path / "odd.safetensors")
    with pytest.raises(InputError, match="did you mean 'captioning'"):
        load_task_model("xvlm", "captionin")
    with pytest.raises(InputError, match="has no model for 'vqa'"):
        load_task_model("dino", "vqa")


def test_a_mask_of_another_family(masks):
    with pytest.raises(InputError, match="belongs to another model"):
        masks["blip"].apply(small("xvlm", "retrieval"))
    assert isinstance(masks["blip"], Mask)
