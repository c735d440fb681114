"""Visual prompts and label mappings against the published classes' numbers (tests/reference/vectors/vpns)."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from console.errors import InputError
from models.label_mapping import LabelMapping, answers
from models.prompts import KINDS, Prompted, VisualPrompt
from models.wrap import WrappedClassifier
from tests.conftest import REFERENCE

PROMPTS = load_file(REFERENCE / "vectors" / "vpns" / "prompts.safetensors")
MAPPINGS = load_file(REFERENCE / "vectors" / "vpns" / "label_mapping.safetensors")


def case_of(tensors, name):
    return {key.partition("/")[2]: value for key, value in tensors.items() if key.startswith(f"{name}/")}


def cases(tensors):
    return sorted({key.partition("/")[0] for key in tensors})


@pytest.mark.parametrize("name", cases(PROMPTS))
def test_equals_the_published_prompt(name):
    case = case_of(PROMPTS, name)
    side, picture, width, square = case["numbers"].tolist()
    kind = name.partition("_")[0]
    sizes = {"width": width} if kind == "pad" else {"square": square} if kind in ("fix", "random") else {}
    prompt = VisualPrompt(kind, side=side, picture=picture, **sizes)
    corner = case["corner"].tolist() if "corner" in case else None
    x = case["x"].float() / 255
    assert torch.equal(prompt(x, corner=corner), case["out_zero"])

    prompt.load_program(case["program"])
    out = prompt(x, corner=corner)
    torch.testing.assert_close(out, case["out"], rtol=0, atol=1e-6)  # sigmoid rounds by an element's place in memory
    (out * case["weight"]).sum().backward()
    numbers, prompt.program.data = prompt.program.data, prompt.program.grad
    torch.testing.assert_close(prompt.full_program(), case["grad"], rtol=1e-6, atol=1e-6)
    assert int(prompt.program.count_nonzero()) == int(case["learned"])
    if kind != "random":  # only what can learn is held
        assert 3 * len(prompt.places) == int(case["mask_count"]) == numbers.numel()


@pytest.mark.parametrize(
    ("kind", "held"), [("pad", 39_936), ("fix", 39_675), ("random", 150_528), ("expand", 3 * (224**2 - 160**2))]
)
def test_holds_what_can_learn(kind, held):
    picture = 160 if kind == "expand" else None
    assert VisualPrompt(kind, picture=picture).program.numel() == held


def test_random_reaches_every_corner():
    """The published draw never reaches the last one, and fails for a square as large as the canvas."""
    prompt = VisualPrompt("random", side=4, square=3).train()
    torch.manual_seed(0)
    seen = {tuple(prompt.frame()[0].nonzero()[0].tolist()) for _ in range(50)}
    assert seen == {(0, 0), (0, 1), (1, 0), (1, 1)}
    whole = VisualPrompt("random", side=4, square=4).train()
    assert bool((whole.frame() == 0.5).all())
    assert torch.equal(prompt.eval().frame(), prompt.frame())


@pytest.mark.parametrize("kind", KINDS)
def test_plain_pictures_are_padded(kind):
    """All passes see pictures of one size: the published second half saw unpadded ones."""
    prompt = VisualPrompt(kind, side=9, picture=6, width=2, square=3)
    x = torch.rand(1, 3, 6, 6)
    shown = prompt.plain(x) * prompt.std + prompt.mean
    torch.testing.assert_close(shown[:, :, 2:8, 2:8], x)
    shown[:, :, 2:8, 2:8] = 0
    torch.testing.assert_close(shown, torch.zeros_like(shown), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "bad"}, "unknown prompt 'bad'"),
        ({"picture": 300}, "pictures of 300 pixels do not fit into the model's 224"),
        ({"width": 113}, "a frame of 113 pixels leaves no picture of 224"),
        ({"kind": "fix", "square": 225}, "a square of 225 pixels does not fit"),
        ({"kind": "expand"}, "surrounds pictures that are smaller than the model's 224 pixels"),
    ],
)
def test_sizes_that_mean_nothing(arguments, words):
    with pytest.raises(InputError, match=words):
        VisualPrompt(**arguments)


def test_the_shape_has_the_exact_normalisation():
    prompt = VisualPrompt(side=4, width=1, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.485, 0.456, 0.406))
    assert torch.equal(VisualPrompt(**prompt.shape()).mean, prompt.mean)
    assert prompt.shape()["std"] == [0.485, 0.456, 0.406]


def test_a_prompt_of_another_size():
    with pytest.raises(InputError, match="a prompt of 3 x 8 x 8 numbers does not fit pictures of 3 x 16 x 16"):
        VisualPrompt(side=16, width=2).load_program(torch.zeros(3, 8, 8))
    with pytest.raises(InputError, match="of pictures of 16 pixels, not of 8"):
        VisualPrompt(side=16, width=2)(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("name", cases(MAPPINGS))
def test_equals_the_published_mapping(name):
    case = case_of(MAPPINGS, name)
    logits, labels = case["logits"], case["labels"]
    classes = case["counts"].shape[1]
    assert torch.equal(answers(logits, labels, classes), case["counts"])
    found = LabelMapping.fit(logits, labels, classes=classes)
    assert torch.equal(found.mapping, case["mapping"])
    assert torch.equal(found(logits), case["mapped_logits"])
    parts = [answers(logits[i::3], labels[i::3], classes) for i in range(3)]  # sums over batches, in any order
    assert torch.equal(LabelMapping.of_counts(sum(parts)).mapping, case["mapping"])


def test_a_class_without_pictures_gets_a_source():
    found = LabelMapping.fit(torch.eye(3), torch.tensor([0, 2, 2]), classes=3)
    assert sorted(found.mapping.tolist()) == [0, 1, 2]


def test_more_classes_than_the_model_knows():
    with pytest.raises(InputError, match="4 classes cannot be mapped to the model's 3 classes: add --mapping head"):
        LabelMapping.fit(torch.eye(3), torch.tensor([0, 1, 3]), classes=4)


def test_prompted_is_one_module():
    network = WrappedClassifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), lambda module, x: module(x))
    prompt = VisualPrompt(side=4, width=1)
    whole = Prompted(network, prompt, LabelMapping(torch.tensor([3, 1])))
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(whole(x), network.logits(prompt.plain(x))[:, [3, 1]])  # a prompt of zeros adds nothing
    prompt.load_program(torch.randn(3, 4, 4))
    assert not torch.equal(whole(x), whole(x, prompted=False))
    assert "prompt.program" in dict(whole.named_parameters())
