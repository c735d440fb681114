"""BLIP against the published class: names, shapes, ties, outputs and losses."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

from models import load_model
from pruners import prune
from tests.conftest import REFERENCE, on_meta, reference_batches
from tests.models.test_xvlm import listed

WEIGHTS = REFERENCE / "vectors" / "blip" / "weights.safetensors"


@pytest.fixture
def blip():
    return load_model("blip", config=REFERENCE / "blip.yaml", weights=WEIGHTS)


@pytest.fixture(scope="module")
def full_size():
    return on_meta("blip")


def tied_groups(model):
    groups = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return sorted(sorted(names) for names in groups.values() if len(names) > 1)


def official_ties():
    lines = (REFERENCE / "checkpoints" / "blip_pretrain.tied.txt").read_text().splitlines()
    return sorted(sorted(line.split(" = ")) for line in lines if line)


def test_full_size_names_shapes_and_ties(full_size):
    official = {n: s for n, s in listed("blip_pretrain.txt").items() if not n.endswith("position_ids")}
    assert {n: tuple(t.shape) for n, t in full_size.state_dict().items()} == official
    assert sum(p.numel() for p in full_size.parameters()) == 475_892_799
    assert tied_groups(full_size) == official_ties()


def test_full_size_prunable_weights(full_size):
    layers = full_size.prunable_layers()
    assert {n: tuple(layer.weight.shape) for n, layer in layers.items()} == listed("blip_prunable.txt")
    assert sum(layer.weight.numel() for layer in layers.values()) == 226_492_416


def test_ties_outlast_loading_copying_and_moving(blip):
    import copy

    expected = tied_groups(blip)
    assert len(expected) == len({tuple(names) for names in expected}) == 16 * 3 + 2 + 2
    assert tied_groups(copy.deepcopy(blip)) == expected
    assert tied_groups(blip.to(torch.float64)) == expected


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("side", ["general", "region"])
def test_outputs_and_losses(side, index, blip, hardest_negatives):
    batch = reference_batches("blip", 6)[index][side]
    expected = load_file(REFERENCE / "vectors" / "blip" / "forward.safetensors")
    ids, atts = batch["text_ids"].clone(), batch["text_atts"]
    with torch.no_grad():
        found = {f"loss_{name}": loss for name, loss in blip.losses(batch).items()}
        image = blip.visual_encoder(batch["image"])
        found["image_embeds"] = image
        found["text_embeds"] = blip.text_states(batch["text_ids"], atts)
        found["multimodal"] = blip.grounded_states(batch["text_ids"], atts, image)
        found["decoder_logits"] = blip.decoder_logits(batch["text_ids"], atts, image)
    assert torch.equal(batch["text_ids"], ids), "the given ids must stay as they are"
    names = {key.split(".")[2] for key in expected if key.startswith(f"{side}.{index}.")}
    assert names == set(found)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[f"{side}.{index}.{name}"], rtol=1e-5, atol=1e-5)


def test_prune_restores_queues_and_momentum(blip):
    batches = reference_batches("blip", 2)
    before = {name: tensor.clone() for name, tensor in blip.state_dict().items()}
    with torch.no_grad():
        blip.losses(batches[0]["general"])
    assert blip.queue_ptr.item() == 4
    assert not torch.equal(blip.image_queue, before["image_queue"])
    assert torch.equal(blip.image_queue[:, 4:], before["image_queue"][:, 4:])
    name = "text_encoder_m.encoder.layer.0.output.dense.weight"
    online = blip.state_dict()[name.replace("_m", "")]
    torch.testing.assert_close(blip.state_dict()[name], 0.995 * before[name] + 0.005 * online)
    blip.load_state_dict(before)
    for pruner, options in (("snip", {}), ("itersnip", {"epochs": 2})):
        prune(blip, batches, pruner, (0.5,), **options)
        for key, tensor in blip.state_dict().items():
            assert torch.equal(tensor, before[key]), key


def test_sparsities_do_not_influence_each_other(blip):
    """In the published tool a fifth of IterSNIP's bits at 75 % depend on having pruned at 63 % before."""
    batches = reference_batches("blip", 2)
    together = prune(blip, batches, "itersnip", (0.63, 0.75), epochs=2)
    assert together[0.75] == prune(blip, batches, "itersnip", (0.75,), epochs=2)[0.75]


def test_a_file_with_a_queue_of_another_length(tmp_path):
    """Everything but the queues comes from the file; the queues are drawn anew, with memory, and work."""
    settings = yaml.safe_load((REFERENCE / "blip.yaml").read_text()) | {"queue": 32}
    config = tmp_path / "blip.yaml"
    config.write_text(yaml.safe_dump(settings))
    model = load_model("blip", config=config, weights=WEIGHTS)
    filed = load_file(WEIGHTS)
    for name, tensor in model.state_dict().items():
        assert not tensor.is_meta, name
        if name in ("image_queue", "text_queue"):
            assert tensor.shape[1] == 32
            torch.testing.assert_close(tensor.norm(dim=0), torch.ones(32))
        elif name in filed:
            assert torch.equal(tensor, filed[name]), name
    batch = reference_batches("blip", 1)[0]["general"]
    losses = model(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert model.queue_ptr.item() == len(batch["image"])


def test_queues_wrap_around(blip):
    """61 places taken, 4 features: the last one begins anew."""
    blip.queue_ptr.fill_(61)
    features = torch.nn.functional.normalize(torch.randn(4, 32), dim=-1)
    blip._enqueue(features, features)
    assert torch.equal(blip.text_queue[:, 61:], features[:3].t())
    assert torch.equal(blip.text_queue[:, 0], features[3])
    assert blip.queue_ptr.item() == 1


def test_gradients_of_shared_tensors_add_up(blip):
    """The gradient of a shared tensor is the sum of those of its uses as encoder and as decoder."""
    batch = reference_batches("blip", 1)[0]["general"]
    ids, atts = batch["text_ids"], batch["text_atts"]
    image = torch.randn(4, 17, 64)
    weight = blip.text_encoder.encoder.layer[1].intermediate.dense.weight
    assert weight is blip.text_decoder.bert.encoder.layer[1].intermediate.dense.weight
    encoder = torch.autograd.grad(blip.grounded_states(ids, atts, image).sum(), weight)[0]
    decoder = torch.autograd.grad(blip.decoder_logits(ids, atts, image).logsumexp(-1).sum(), weight)[0]
    total = blip.grounded_states(ids, atts, image).sum() + blip.decoder_logits(ids, atts, image).logsumexp(-1).sum()
    torch.testing.assert_close(torch.autograd.grad(total, weight)[0], encoder + decoder, rtol=1e-4, atol=1e-5)


def test_shared_layers_are_observed_once(blip):
    """Norms of a shared layer's input equal those of the encoder's run alone."""
    from pruners.session import Session

    batch = reference_batches("blip", 1)[0]["general"]
    session = Session(blip, [{"general": batch, "region": batch}], "multiflow")
    session.masks((0.5,))
    inputs = {}
    name = "text_encoder.encoder.layer.0.crossattention.self.query"
    hook = blip.get_submodule(name).register_forward_pre_hook(lambda m, x: inputs.setdefault("x", x[0]))
    with torch.no_grad():
        blip.grounded_states(batch["text_ids"], batch["text_atts"], blip.visual_encoder(batch["image"]))
    hook.remove()
    x = inputs["x"] * batch["text_atts"].unsqueeze(-1)
    expected = (x.square().sum(dim=(0, 1)) / 4).sqrt()
    torch.testing.assert_close(session.pruner.norms.norms(f"{name}.weight"), expected)
