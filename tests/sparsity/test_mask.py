"""Masks: counting, files, models they fit and models they do not."""

import pytest
import torch

from console.errors import InputError
from sparsity.mask import Mask


@pytest.fixture
def mask():
    generator = torch.Generator().manual_seed(0)
    shapes = {"vision.a.weight": (3, 5), "vision.b.weight": (7, 2), "text.c.weight": (4, 4)}
    kept = {name: torch.rand(shape, generator=generator) < 0.4 for name, shape in shapes.items()}
    return Mask(kept, {name: name.split(".")[0] for name in kept}, {"pruner": "test", "seed": 1})


def test_counts_against_plain_sums(mask):
    tensors = dict(mask)
    kept, size = sum(int(t.sum()) for t in tensors.values()), sum(t.numel() for t in tensors.values())
    assert mask.sparsity() == pytest.approx(1 - kept / size)
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.bool
        assert mask.sparsity([name]) == pytest.approx(1 - tensor.float().mean().item())
    vision = torch.cat([tensors["vision.a.weight"].flatten(), tensors["vision.b.weight"].flatten()])
    assert mask.sparsity_by_modality()["vision"] == pytest.approx(1 - vision.float().mean().item())


def test_layers_come_one_by_one(mask):
    """Solved layers are packed as they come; a layer's weights can be taken out, and are then no longer carried."""
    weights = {name: torch.randn(kept.shape, dtype=torch.float64) for name, kept in mask.items()}
    grown = Mask({}, mask.modalities)
    for name, kept in mask.items():
        grown.add(name, kept, weights[name])
    assert grown == mask.with_values(weights.items())
    for name, kept in mask.items():
        expected = torch.where(kept, weights[name], 0).float()
        assert torch.equal(torch.from_numpy(grown.pop_weights(name)), expected)
    assert grown == mask
    assert not grown.has_values


def test_file_gives_back_every_bit_and_its_origin(mask, tmp_path):
    mask.save(tmp_path / "mask.safetensors")
    loaded = Mask.load(tmp_path / "mask.safetensors")
    assert loaded == mask
    assert list(loaded) == list(mask)
    assert loaded.source == {"pruner": "test", "seed": 1}
    assert loaded.modalities == mask.modalities


def test_a_bit_that_flipped_is_noticed(mask, tmp_path):
    path = tmp_path / "mask.safetensors"
    mask.save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged: its bits have changed since they were written"):
        Mask.load(path)


def test_one_bit_a_weight_on_disk(tmp_path):
    mask = Mask({"w": torch.rand(1000, 800) < 0.5})
    mask.save(tmp_path / "mask.safetensors")
    assert (tmp_path / "mask.safetensors").stat().st_size < 1000 * 800 / 8 + 1000


def test_apply_zeroes_exactly_the_pruned_weights(xvlm):
    import copy

    model = copy.deepcopy(xvlm)
    layers = model.prunable_layers()
    mask = Mask({name: torch.rand(layer.weight.shape) < 0.5 for name, layer in layers.items()})
    mask.apply(model)
    for name, layer in layers.items():
        original = xvlm.get_submodule(name.removesuffix(".weight")).weight
        assert torch.equal(layer.weight, original * mask[name])
    untouched = {n for n, p in xvlm.named_parameters() if torch.equal(p, model.get_parameter(n))}
    assert untouched == {n for n, _ in xvlm.named_parameters()} - set(layers)


def test_mask_of_another_model_names_the_first_keys(mask, xvlm):
    with pytest.raises(InputError, match=r"another model: it lacks 80 layers \(first: vision_encoder.*has 3 layers"):
        mask.apply(xvlm)


def test_mask_of_another_size_names_the_shapes(xvlm):
    kept = {name: torch.ones(layer.weight.shape).bool() for name, layer in xvlm.prunable_layers().items()}
    kept["vision_encoder.encoder.layers.0.mlp.fc1.weight"] = torch.ones(2, 3).bool()
    with pytest.raises(InputError, match=r"1 layer has another shape \(first: vision_encoder.*\(2, 3\) in the mask"):
        Mask(kept).check_fits(xvlm.prunable_layers())


def test_other_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="is not a mask file"):
        Mask.load(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"not a file of tensors at all")
    with pytest.raises(InputError, match="corrupt"):
        Mask.load(tmp_path / "y.safetensors")
    with pytest.raises(InputError, match="no such file"):
        Mask.load(tmp_path / "z.safetensors")


def test_only_booleans_make_a_mask():
    with pytest.raises(InputError, match="must be boolean"):
        Mask({"w": torch.zeros(3)})
