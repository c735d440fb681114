"""Every pretraining objective on tiny data: finite losses, right gradients, and values worked out independently."""

import copy
import math

import pytest
import torch

from console.errors import InputError
from data.miniworld.readers import LABELS
from models import class_of, load_model
from models.common import examples
from models.common.contrastive import TEMP_RANGE
from pretraining.objectives import OBJECTIVES, DenseLabels, MaskedText, Together
from pretraining.self_distillation import OUTPUTS, SelfDistillation
from tests.conftest import REFERENCE
from training.optimizer import Recipe, make_optimizer

SIZE = 4
MINIS = ("clip-mini",)  # which is no family of its own


def reference_model(name):
    return load_model(name, config=None if name in MINIS else REFERENCE / f"{name}.yaml", weights="random")


def dense_batch(model):
    p = (model.image_shape.image_size // model.image_shape.patch_size) ** 2
    labels = torch.stack([torch.randint(-1, n, (SIZE, p)) for n in LABELS.values()], dim=-1)
    side = model.image_shape.image_size
    return {"scenes": {"image": torch.randn(SIZE, 3, side, side), "labels": labels}}


def crops_batch(model, small=3):
    side = model.image_shape.image_size
    half = side // 2
    return {"crops": {"global": torch.randn(SIZE, 2, 3, side, side), "local": torch.randn(SIZE, small, 3, half, half)}}


def masked_words(batch):
    return batch | examples.masked(batch)


def regions(model):
    """X-VLM's region batch, with the words of another model."""
    batch = reference_model("xvlm").example(SIZE)["region"]
    side = model.image_shape.image_size
    assert batch["image"].shape[-1] == side
    return batch | {"text_ids": batch["text_ids"].clamp(max=model.config.text.vocab_size - 3)}


def opposed(model):
    """BLIP's pairs, and for the second a text of other words."""
    batch = model.example(SIZE)["general"]
    other = {"opposed_ids": batch["text_ids"][1:2].flip(1), "opposed_atts": batch["text_atts"][1:2].flip(1)}
    return batch | other | {"opposed_of": torch.tensor([1])}


CASES = {
    ("dense_labels", "xvlm"): dense_batch,
    ("dense_labels", "blip"): dense_batch,
    ("dense_labels", "dino"): dense_batch,
    ("whole_images", "dino"): dense_batch,
    ("dense_places", "xvlm"): lambda model: dense_batch(model) | {"region": model.example(SIZE)["region"]},
    ("masked_text", "xvlm"): lambda model: {"texts": model.example(SIZE)["general"]},
    ("masked_text", "blip"): lambda model: {"texts": masked_words(model.example(SIZE)["general"])},
    ("self_distillation", "dino"): crops_batch,
    ("self_distillation", "dino", "no small crops"): lambda model: crops_batch(model, small=0),
    ("together", "xvlm"): lambda model: model.example(SIZE),
    ("together", "blip"): lambda model: model.example(SIZE),
    ("locked_images", "clip-mini"): lambda model: model.example(SIZE),
    ("guided", "xvlm"): lambda model: model.example(SIZE),
    ("grounded", "blip"): lambda model: {"general": model.example(SIZE)["general"], "region": regions(model)},
    ("grounded", "blip", "opposites"): lambda model: {"general": opposed(model), "region": regions(model)},
}
MOMENTUM = [("together", "blip"), ("grounded", "blip"), ("grounded", "blip", "opposites")]
"""BLIP's own losses move its slow copies."""


def build(case):
    torch.manual_seed(0)
    objective, name, *_ = case
    model = reference_model(name)
    sides = CASES[case](model)
    return OBJECTIVES[objective](model).train(), sides


def total(objective, sides):
    torch.manual_seed(1)  # hard negatives are drawn
    return sum(objective(sides).values())


def test_opposites_use_the_picture_of_their_pair():
    """By hand: the caption is a match, its opposite none."""
    objective, sides = build(("grounded", "blip", "opposites"))
    objective.eval()
    batch, model = sides["general"], objective.model
    image = model.visual_encoder(batch["image"])[1:2]
    said, turned = (
        model.itm_head(model.grounded_states(ids, atts, image)[:, 0])
        for ids, atts in (
            (batch["text_ids"][1:2], batch["text_atts"][1:2]),
            (batch["opposed_ids"], batch["opposed_atts"]),
        )
    )
    by_hand = -(said.log_softmax(1)[0, 1] + turned.log_softmax(1)[0, 0]) / 2
    torch.testing.assert_close(objective(sides)["general.opposed"], by_hand)


def test_every_objective_is_tried():
    assert {case[0] for case in CASES} == set(OBJECTIVES)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_finite_and_differentiable_and_learning(case):
    """Each trained parameter gets a gradient, what is frozen stays, and five steps on one batch lower the loss."""
    objective, sides = build(case)
    frozen = {n: p.clone() for n, p in objective.named_parameters() if not p.requires_grad}
    losses = objective(sides)
    assert losses
    assert all(loss.shape == () and math.isfinite(loss.item()) for loss in losses.values())
    sum(losses.values()).backward()
    trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    without = [n for n, p in trained.items() if p.grad is None]
    assert without == [], "one process may leave them alone, several may not"
    assert all(p.grad.isfinite().all() for p in trained.values())
    objective.zero_grad()
    optimizer = make_optimizer(objective.named_parameters(), Recipe(lr=1e-3))
    values, buffers = [], {n: b.clone() for n, b in objective.named_buffers()}
    for _ in range(5):
        for name, buffer in objective.named_buffers():  # centre, queues: with them the goal itself would move
            buffer.copy_(buffers[name])
        loss = total(objective, sides)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.item())
    assert values[-1] < values[0]
    assert case in MOMENTUM or all(torch.equal(p, frozen[n]) for n, p in objective.named_parameters() if n in frozen)


@pytest.mark.parametrize("case", [case for case in CASES if case not in MOMENTUM], ids=" ".join)
def test_gradients_are_the_slope(case):
    """Along a random direction, the central difference of the loss equals what autograd says."""
    objective, sides = build(case)
    trained = [p for p in objective.parameters() if p.requires_grad]
    for parameter in trained:  # away from the flat start; the temperature stays within its range
        parameter.data += 0.05 * torch.randn_like(parameter) * (parameter.dim() > 0)
    directions = [0.2 * torch.randn_like(p) for p in trained]
    state = copy.deepcopy(objective.state_dict())
    total(objective, sides).backward()
    slope = sum((p.grad * d).sum().item() for p, d in zip(trained, directions, strict=True))
    values = []
    for sign in (1, -1):
        objective.load_state_dict(state)
        with torch.no_grad():
            for parameter, direction in zip(trained, directions, strict=True):
                parameter += sign * 2e-3 * direction
            values.append(total(objective, sides).item())
    assert abs(slope) > 0.01
    assert (values[0] - values[1]) / 4e-3 == pytest.approx(slope, rel=0.02, abs=2e-3)


def test_dense_labels_by_loops():
    """The mean over labelled patches of -log softmax, a kind of label at a time; patches without one do not count."""
    objective, sides = build(("dense_labels", "xvlm"))
    losses = objective(sides)
    assert list(losses) == list(LABELS)
    labels = sides["scenes"]["labels"]
    with torch.no_grad():
        states = objective.tower(sides["scenes"]["image"])
        for k, name in enumerate(LABELS):
            head, terms = objective.heads[name], []
            for b in range(SIZE):
                for patch in range(labels.shape[1]):
                    if labels[b, patch, k] >= 0:
                        logits = (head.weight @ states[b, patch + 1] + head.bias).tolist()
                        most = max(logits)
                        norm = most + math.log(sum(math.exp(x - most) for x in logits))
                        terms.append(norm - logits[labels[b, patch, k]])
            assert losses[name].item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_whole_images_by_loops():
    """The class token's mean over pictures and labels of -log sigmoid of whether a patch has the label."""
    objective, sides = build(("whole_images", "dino"))
    losses = objective(sides)
    labels = sides["scenes"]["labels"]
    with torch.no_grad():
        states = objective.tower(sides["scenes"]["image"])
        for k, name in enumerate(LABELS):
            head, terms = objective.whole[name], []
            for b in range(SIZE):
                logits = (head.weight @ states[b, 0] + head.bias).tolist()
                found = set(labels[b, :, k].tolist())
                terms += [math.log1p(math.exp(-x if kind in found else x)) for kind, x in enumerate(logits)]
            assert losses[f"whole.{name}"].item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    patches = DenseLabels.forward(objective, sides)
    assert {name: loss.item() for name, loss in patches.items()} == {name: losses[name].item() for name in patches}


def test_dense_labels_know_nothing_at_first():
    objective, sides = build(("dense_labels", "dino"))
    for head in objective.heads.values():
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    for name, loss in objective(sides).items():
        assert loss.item() == pytest.approx(math.log(LABELS[name]), rel=1e-6)


def test_masked_text_trains_the_words_alone():
    objective, sides = build(("masked_text", "xvlm"))
    model = objective.model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if n.startswith("text_encoder.") and "crossatt" not in n}
    batch = sides["texts"]
    changed = {"texts": batch | {"image": torch.zeros_like(batch["image"])}}
    assert torch.equal(objective(changed)["mlm"], objective(sides)["mlm"]), "images are not looked at"
    words = batch["text_ids_masked"].clone()
    words[:, 1] = 7
    assert not torch.equal(objective({"texts": batch | {"text_ids_masked": words}})["mlm"], objective(sides)["mlm"])


def test_together_is_the_models_own_losses(xvlm_batches):
    model = load_model(
        "xvlm", config=REFERENCE / "xvlm.yaml", weights=REFERENCE / "vectors" / "xvlm" / "weights.safetensors"
    )
    sides = xvlm_batches[0]
    torch.manual_seed(5)
    losses = Together(model)(sides)
    torch.manual_seed(5)
    own = {f"{side}.{name}": loss for side, batch in sides.items() for name, loss in model.losses(batch).items()}
    assert losses.keys() == own.keys()
    assert {"general.itc", "general.itm", "general.mlm", "region.bbox", "region.giou"} <= losses.keys()
    assert "general.bbox" not in losses
    assert all(torch.equal(losses[name], own[name]) for name in own)


@pytest.mark.parametrize(("before", "after"), [(5.0, TEMP_RANGE[1]), (1e-6, TEMP_RANGE[0]), (0.07, 0.07)])
def test_together_keeps_the_temperature_in_its_range(before, after):
    objective, sides = build(("together", "xvlm"))
    objective.model.temp.data.fill_(before)
    losses = objective(sides)
    assert objective.model.temp.item() == pytest.approx(after)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("case", [case for case in CASES if case[0] == "self_distillation"], ids=" ".join)
def test_self_distillation_by_loops(case):
    """DINO's algorithm 1 with multi-crop: cross-entropy of every small or other large view with each large one."""
    objective, sides = build(case)
    objective.center.copy_(torch.randn(OUTPUTS))
    center = objective.center.clone()
    large, small = sides["crops"]["global"], sides["crops"]["local"]
    views = [large[:, 0], large[:, 1], *small.unbind(1)]
    with torch.no_grad():
        teacher = [objective.teacher_head(objective.teacher(view)[:, 0]) for view in views[:2]]
        student = [objective.head(objective.student(view)[:, 0]) for view in views]
    terms = []
    for t, said in enumerate(teacher):
        for s, answer in enumerate(student):
            if s != t:
                for b in range(SIZE):
                    target = torch.softmax((said[b] - center).double() / 0.04, dim=0)
                    log = torch.log_softmax(answer[b].double() / 0.1, dim=0)
                    terms.append(-(target * log).sum().item())
    assert len(terms) == SIZE * 2 * (len(views) - 1)
    assert objective(sides)["distillation"].item() == pytest.approx(sum(terms) / len(terms), rel=1e-4)
    moved = 0.9 * center + 0.1 * torch.cat(teacher).mean(dim=0)
    assert torch.allclose(objective.center, moved, atol=1e-6)


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.99), (50, 0.995), (100, 1.0)])
def test_the_teacher_follows_along_a_cosine(step, momentum):
    objective, _ = build(("self_distillation", "dino"))
    for parameter in (*objective.student.parameters(), *objective.head.parameters()):
        parameter.data += torch.randn_like(parameter)
    before = copy.deepcopy(objective)
    objective.after_step(step, 100)
    for part, source in (("teacher", "student"), ("teacher_head", "head")):
        for new, old, fast in zip(
            *(getattr(o, n).parameters() for o, n in ((objective, part), (before, part), (before, source))),
            strict=True,
        ):
            assert torch.allclose(new, momentum * old + (1 - momentum) * fast, atol=1e-6)


def test_the_teacher_is_what_remains():
    model = reference_model("dino")
    objective = SelfDistillation(model)
    with torch.no_grad():
        for parameter in objective.teacher.parameters():
            parameter.fill_(0.25)
    objective.finish()
    assert all((parameter == 0.25).all() for parameter in model.vision_tower().parameters())


def test_blips_slow_copies_start_from_a_trained_tower():
    model = reference_model("blip")
    for objective, fast, slow in (
        (DenseLabels(model), model.visual_encoder, model.visual_encoder_m),
        (MaskedText(model), model.text_encoder, model.text_encoder_m),
    ):
        with torch.no_grad():
            for parameter in fast.parameters():
                parameter.add_(1)
        assert not torch.equal(next(fast.parameters()), next(slow.parameters()))
        objective.finish()
        assert all(torch.equal(slow.state_dict()[name], tensor) for name, tensor in fast.state_dict().items())


def test_locked_images_need_two_towers():
    with pytest.raises(InputError, match="for models with two separate towers"):
        OBJECTIVES["locked_images"](load_model("resnet-mini", weights="random"))


def test_a_batch_of_one_has_no_wrong_partner():
    model = reference_model("xvlm")
    one = {"general": {name: tensor[:1] for name, tensor in model.example(2)["general"].items()}}
    with pytest.raises(InputError, match="batch of one"):
        Together(model)(one)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_objectives_say_whom_they_serve(case):
    objective, family, *_ = case
    assert issubclass(class_of(family), OBJECTIVES[objective].serves)
