"""Negatives from the whole effective batch: the gradients of micro-batches are those of one large batch."""

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from safetensors.torch import load_file

from data.randomness import derive_seed
from models.common.contrastive import contrastive_features
from tests.training.tiny_pairs import PAIRS, PASSES, SEED, gradients, hardest, pairs, run, tiny_model
from tests.training.toy import one_process, same_weights
from training.loop import Callback
from training.negatives import StepFeatures


def double():
    return Fabric(accelerator="cpu", devices=1, precision="64-true")


def gradient_of(model, loss):
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def one_large_batch(model, itm=0.0):
    """Gradient of the model's own losses on all pairs at once; matching among the pairs of a micro-batch."""
    parts = [pairs(number, torch.float64) for number in range(PASSES)]
    large = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    loss = model(large)["itc"]
    if itm:
        loss = loss + itm * sum(model(part)["itm"] for part in parts) / PASSES
    return gradient_of(model, loss)


def distance(found, expected):
    """Largest distance of a parameter's gradient, relative to its length (or the mean length, where that is larger)."""
    lengths = {name: tensor.norm().item() for name, tensor in expected.items()}
    floor = sum(lengths.values()) / len(lengths)
    nothing = torch.zeros(())
    return max(
        (found.get(name, nothing) - tensor).norm().item() / max(floor, lengths[name])
        for name, tensor in expected.items()
    )


def test_the_gradient_is_that_of_one_large_batch(tmp_path):
    found = gradients(double(), tiny_model(), tmp_path, itm=0.0)
    expected = one_large_batch(tiny_model().double())
    assert distance(found, expected) < 1e-6
    assert found["temp"].item() == pytest.approx(expected["temp"].item(), rel=1e-6)
    model = tiny_model().double()
    separate = gradient_of(model, sum(model(pairs(n, torch.float64))["itc"] for n in range(PASSES)) / PASSES)
    assert distance(separate, expected) > 1e-2, "micro-batches on their own are something else"


def test_in_single_precision(tmp_path):
    found = gradients(one_process(), tiny_model(), tmp_path, itm=0.0)
    expected = one_large_batch(tiny_model().double())
    assert distance({name: tensor.double() for name, tensor in found.items()}, expected) < 1e-5


def test_dropout_is_the_same_in_both_passes(tmp_path):
    found = gradients(double(), tiny_model(0.3), tmp_path, itm=0.0)
    model, images, texts, numbers = tiny_model(0.3).double(), [], [], []
    for number in range(PASSES):
        part = pairs(number, torch.float64)
        torch.manual_seed(derive_seed(SEED, "step", 0, 0, number))
        images.append(contrastive_features(model.vision_encoder(part["image"]), model.vision_proj))
        states = model.text_states(part["text_ids"], part["text_atts"])
        texts.append(contrastive_features(states, model.text_proj))
        numbers += part["idx"].tolist()
    similarity = torch.cat(images) @ torch.cat(texts).t() / model.temp
    same = torch.tensor([[float(a == b) for a in numbers] for b in numbers], dtype=torch.float64)
    assert same.sum() > PASSES * PAIRS, "some pairs of different micro-batches share an image"
    right = same / same.sum(dim=1, keepdim=True)
    loss = (F.cross_entropy(similarity, right) + F.cross_entropy(similarity.t(), right)) / 2
    assert distance(found, gradient_of(model, loss)) < 1e-6
    assert distance(found, one_large_batch(tiny_model().double())) > 1e-2, "dropout was at work"


def test_matching_stays_within_a_micro_batch(tmp_path, hardest_negatives):
    found = gradients(double(), tiny_model(), tmp_path)
    assert distance(found, one_large_batch(tiny_model().double(), itm=1.0)) < 1e-6


@pytest.mark.slow
def test_two_processes(tmp_path, run_ranks, monkeypatch):
    done = run_ranks("-m", "tests.training.tiny_pairs", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    monkeypatch.setattr(torch, "multinomial", hardest)
    expected = one_large_batch(tiny_model().double(), itm=1.0)
    for rank in (0, 1):
        assert distance(load_file(tmp_path / f"rank{rank}.safetensors"), expected) < 1e-6


def test_a_crashed_run_goes_on_bit_for_bit(tmp_path):
    def die(step):
        if step == 2:
            raise MemoryError

    whole, broken, resumed = (tiny_model(0.3) for _ in range(3))
    run(one_process(), whole, tmp_path / "whole", steps=3)
    with pytest.raises(MemoryError):
        run(one_process(), broken, tmp_path / "broken", steps=3, callbacks=[Callback(after_step=die)])
    torch.manual_seed(99)
    run(one_process(), resumed, tmp_path / "broken", steps=3)
    assert same_weights(resumed, whole)
    assert not same_weights(resumed, tiny_model())


def test_columns_are_filled_anew_for_each_step():
    features = StepFeatures()
    for step in range(2):
        parts = [torch.full((2, 1), float(10 * step + k), requires_grad=True) for k in range(3)]
        for part in parts:
            features.collect(part)
        for k in range(3):
            gathered = features.gather()(parts[k] + 0.5)
            expected = [[10.0 * step + n + 0.5 * (n == k)] for n in range(3) for _ in range(2)]
            assert gathered.tolist() == expected
            gathered.sum().backward()
        assert all(part.grad.tolist() == [[3.0], [3.0]] for part in parts)
    with pytest.raises(RuntimeError, match="not rehearsed"):
        features.gather()
