"""BLIP for NLVR2 against the published class; what reaches it of a pretraining model; that images may change places."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from calibration.layer_outputs import watch_outputs
from configs.schema import parse
from console.errors import InputError
from models import FAMILIES, load_model, load_task_model, merged, read_config
from models.common.checkpoint import resize_positions
from pruners import prune
from tests.conftest import REFERENCE
from tests.models.test_xvlm import listed

VECTORS = REFERENCE / "vectors" / "blip_nlvr"
CONFIG = REFERENCE / "blip_nlvr.yaml"
SMALL = REFERENCE / "blip.yaml"  # of pretraining, three layers, of which the last two merge
PRETRAINED = REFERENCE / "vectors" / "blip" / "weights.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With the published class's weights, which the vectors keep in half of their bits."""
    path = tmp_path_factory.mktemp("nlvr") / "model_base_nlvr.pth"
    torch.save({"model": {n: t.float() if t.is_floating_point() else t for n, t in weights().items()}}, path)
    return load_task_model("blip", "nlvr", config=CONFIG, weights=path)


def weights():
    return load_file(VECTORS / "weights.safetensors")


def batch_of(index):
    """A batch of the vectors under the names of batches here."""
    tensors = load_file(VECTORS / "batches.safetensors")
    images = [tensors[f"{index}.images{number}"].float() for number in range(2)]
    texts = {f"text_{kind}": tensors[f"{index}.text_{kind}"] for kind in ("ids", "atts")}
    return {"image": torch.stack(images, dim=1), **texts, "label": tensors[f"{index}.labels"]}


@pytest.mark.parametrize("index", range(3))
def test_logits_loss_and_gradients(index, model):
    expected, batch = load_file(VECTORS / "forward.safetensors"), batch_of(index)
    model.zero_grad()
    logits = model.logits(batch)
    torch.testing.assert_close(logits, expected[f"{index}.logits"], rtol=1e-6, atol=1e-6)
    assert torch.equal(logits.argmax(dim=1), expected[f"{index}.prediction"])
    losses = model(batch)
    assert list(losses) == ["nlvr"]
    torch.testing.assert_close(losses["nlvr"], expected[f"{index}.loss"], rtol=1e-6, atol=1e-6)
    losses["nlvr"].backward()
    with safe_open(VECTORS / "forward.safetensors", "pt") as file:
        names = json.loads(file.metadata()["gradient_norms"])
    parameters = dict(model.named_parameters())
    assert set(names) == set(parameters)
    norms = torch.stack([parameters[name].grad.norm() for name in names])
    torch.testing.assert_close(norms, expected[f"{index}.gradient_norms"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("index", range(3))
def test_states_on_the_way(index, model):
    expected, batch = load_file(VECTORS / "forward.safetensors"), batch_of(index)
    seen = {}
    for name, module in (("image", model.visual_encoder), ("text", model.text_encoder)):
        module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: output}))
    for number in (0, 6):
        layer = model.text_encoder.encoder.layer[number]
        layer.register_forward_hook(lambda _, inputs, output, number=number: seen.update({number: output}))
    with torch.no_grad():
        model.logits(batch)
    images = torch.cat([seen["image"][side::2, 0] for side in (0, 1)])  # the vectors have the left ones first
    pairs = {"image_states_first_token": images, "text_states": seen["text"]}
    for name, found in (pairs | {"layer0": seen[0], "layer6": seen[6]}).items():
        torch.testing.assert_close(found, expected[f"{index}.{name}"], rtol=1e-5, atol=5e-6)


def test_a_pair_with_several_statements_is_seen_once(model):
    batch, seen = batch_of(0), []
    pairs, of = batch["image"][:2], torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        hook = model.visual_encoder.register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
        shared = model.logits(batch | {"image": pairs, "image_of": of})
        hook.remove()
        torch.testing.assert_close(shared, model.logits(batch | {"image": pairs[of]}), rtol=1e-5, atol=1e-5)
    assert seen == [4]


def exchanged(name):
    """What a parameter is called when the two images change places."""
    for one, other in (("self0.", "self1."), ("dense0.", "dense1.")):
        if one in name or other in name:
            return name.replace(one, other) if one in name else name.replace(other, one)
    return name


def test_images_change_places_with_their_attentions(model):
    """Not alone: which image is the left one is in the weights."""
    batch = batch_of(0)
    swapped = batch | {"image": batch["image"].flip(1)}
    state = {exchanged(name): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if name.endswith("merge_layer.weight"):
            state[name] = torch.cat(tensor.chunk(2, dim=1)[::-1], dim=1)
    other = load_task_model("blip", "nlvr", config=CONFIG, weights="random")
    other.load_state_dict(state)
    with torch.no_grad():
        right = model.logits(batch)
        torch.testing.assert_close(other.logits(swapped), right, rtol=0, atol=5e-6)
        assert (model.logits(swapped) - right).abs().max() > 0.1


@pytest.fixture(scope="module")
def full_size():
    settings, where = read_config("blip", None)
    settings = {key: value for key, value in settings.items() if key not in ("family", "weights", "tokenizer")}
    model_class = FAMILIES["blip"].tasks["nlvr"]
    config = parse(model_class.Config, merged(settings, {"vision": {"image_size": 384}}), where)
    with torch.device("meta"):
        return model_class(config)


def test_full_size_names_and_shapes(full_size):
    official = {n: s for n, s in listed("blip_nlvr.txt").items() if not n.endswith("position_ids")}
    assert {n: tuple(t.shape) for n, t in full_size.state_dict().items()} == official
    assert sum(p.numel() for p in full_size.parameters()) == 259_372_034


def test_full_size_prunable_weights(full_size):
    layers = full_size.prunable_layers()
    names = (REFERENCE / "checkpoints" / "blip_nlvr_prunable.txt").read_text().split()
    assert set(layers) == set(names) and len(layers) == 222
    assert sum(layer.weight.numel() for layer in layers.values()) == 233_570_304
    assert {full_size.modality_of(name) for name in layers} == {"vision", "text"}
    vision = [layer.weight.numel() for name, layer in layers.items() if full_size.modality_of(name) == "vision"]
    assert (len(vision), sum(vision)) == (48, 84_934_656)


def source_of(name):
    """The pretraining tensor that one starts from, written down anew; None for what is fresh."""
    if "merge_layer" in name or name.startswith("cls_head"):
        return None
    for number in ("0", "1"):
        name = name.replace(f"crossattention.self{number}.", "crossattention.self.")
        name = name.replace(f"crossattention.output.dense{number}.", "crossattention.output.dense.")
    return name


def small(**overrides):
    return load_task_model("blip", "nlvr", config=SMALL, weights=PRETRAINED, overrides=overrides)


def test_weights_of_pretraining():
    model, pretrained = small(), load_file(PRETRAINED)
    fresh = []
    for name, tensor in model.state_dict().items():
        assert not tensor.is_meta
        if source_of(name) is None:
            fresh.append(name)
        else:
            assert torch.equal(tensor, pretrained[source_of(name)]), name
    layers = [f"text_encoder.encoder.layer.{number}.crossattention.output.merge_layer" for number in (1, 2)]
    head = ["cls_head.0.weight", "cls_head.0.bias", "cls_head.2.weight", "cls_head.2.bias"]
    merging = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    assert fresh == [*merging, *head] == model.load_report.fresh
    for merge in map(model.get_submodule, layers):
        assert merge.weight.std().item() == pytest.approx(0.02, rel=0.05) and not merge.bias.any()
    assert model.cls_head[0].bias.any()  # torch's default is not zero
    for name, tensor in small().state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), "fresh weights are the same each time"
    first = model.text_encoder.encoder.layer[0].crossattention
    assert first.self0.query.weight.data_ptr() != first.self1.query.weight.data_ptr()


def test_which_layers_merge(full_size):
    def merging(model):
        layers = model.text_encoder.encoder.layer
        return [number for number, layer in enumerate(layers) if layer.crossattention.output.merge_layer is not None]

    assert merging(full_size) == list(range(6, 12))
    assert merging(small(text={"merge_from": 2})) == [2]
    assert merging(small(text={"merge_from": 3})) == []
    with pytest.raises(InputError, match="merge_from must be at least 0, not -1"):
        small(text={"merge_from": -1})


def test_positions_grow():
    model = small(vision={"image_size": 48})
    expected = resize_positions(load_file(PRETRAINED)["visual_encoder.pos_embed"], 37)
    assert torch.equal(model.visual_encoder.pos_embed, expected)


@pytest.fixture(scope="module")
def mask():
    return prune(load_model("blip", config=SMALL, weights=PRETRAINED), [], "omp", (0.75,))[0.75]


@pytest.mark.parametrize("inherit", [False, True])
def test_masks_of_pretraining(inherit, mask):
    model = small(inherit_mask=inherit)
    fitted = mask.fitted(model)
    assert list(fitted) == list(model.prunable_layers())
    for name in fitted:
        if source_of(name) is not None:
            assert torch.equal(fitted[name], mask[source_of(name)]), name
    merge = "text_encoder.encoder.layer.2.crossattention.output.merge_layer.weight"
    before = mask["text_encoder.encoder.layer.2.crossattention.output.dense.weight"]
    assert torch.equal(fitted[merge], torch.cat([before, before], dim=1) if inherit else torch.ones(64, 128).bool())
    mask.apply(model)
    zeros = sum(int((layer.weight == 0).sum()) for layer in model.prunable_layers().values())
    assert zeros == sum(fitted.size(name) - fitted.kept(name) for name in fitted)


def test_updated_weights_travel(mask):
    updated = mask.with_values((name, torch.randn(mask.shape(name))) for name in mask)
    model = small()
    before = {name: layer.weight.clone() for name, layer in model.prunable_layers().items()}
    updated.apply(model)
    for name, layer in model.prunable_layers().items():
        source = source_of(name)
        expected = before[name] if source is None else torch.from_numpy(updated.weights(source))
        assert torch.equal(layer.weight, expected), name


def test_its_own_mask_and_weights_load_again(tmp_path, mask):
    model = small()
    fitted = mask.fitted(model)
    assert fitted.fitted(model) == fitted
    fitted.apply(model)
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, tmp_path / "last.safetensors")
    again = load_task_model("blip", "nlvr", config=SMALL, weights=tmp_path / "last.safetensors")
    assert not again.load_report.fresh
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_other_families_and_masks_are_refused(mask):
    with pytest.raises(InputError, match="xvlm has no model for 'nlvr'"):
        load_task_model("xvlm", "nlvr")
    with pytest.raises(InputError, match="belongs to another model"):
        prune(load_model("xvlm-mini"), [], "omp", (0.75,))[0.75].apply(small())


def test_what_a_gradient_sees(model):
    """Both images count, and the statement; padding does not."""
    batch = batch_of(1)
    with torch.no_grad():
        right = model.logits(batch)
        for side in (0, 1):
            image = batch["image"].clone()
            image[:, side] = image[:, side].flip(-1)
            assert not torch.allclose(model.logits(batch | {"image": image}), right, atol=1e-3)
        longer = {name: F.pad(batch[name], (0, 5)) for name in ("text_ids", "text_atts")}
        assert torch.equal(model.logits(batch | longer), right)


def test_what_layers_put_out_is_of_one_sample(model):
    """Outputs [b, t, d] of a batch are those of its samples alone, and zero where a text is padded."""
    batch = batch_of(0)

    def watch(rows):
        found = {}
        part = {name: tensor[rows] for name, tensor in batch.items()}
        run = type(model).logits
        watch_outputs(model, part, run, None, lambda name, out, padded: found.update({name: out}))
        return found

    with torch.no_grad():
        outputs = watch(slice(None))
        alone = watch(slice(2, 3))
    assert set(outputs) == set(alone) == set(model.prunable_layers())
    real = int(batch["text_atts"][2].sum())
    assert real < int(batch["text_atts"].sum(dim=1).max())
    for name, out in outputs.items():
        same = alone[name][0]
        torch.testing.assert_close(out[2, : len(same)], same, rtol=1e-4, atol=1e-4)
        assert not out[2, len(same) :].any(), name
