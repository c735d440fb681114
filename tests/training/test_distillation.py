"""Learning from a teacher: the losses by plain loops, what is compared after layers went, resuming, refusals."""

import argparse
import json

import pytest
import torch
import torch.nn.functional as F

from console.errors import InputError
from models.parts import layers
from models.surgery import cut
from shrinking.relearning import Pretraining
from storage.tensors import read_safetensors
from tests.models.test_parts import FAMILIES, shaken
from training.distillation import (
    Distillation,
    Outputs,
    freeze_other_tower,
    layer_outputs,
    of_classes,
    of_pairs,
    same_blocks,
)

KEYS = ("epochs=1", "short_epoch=4", "snapshot_steps=2", "samples=16")
SMALL = ("--no_samples", *(word for key in KEYS for word in ("--set", key)))


@pytest.fixture(scope="module")
def pair():
    """A teacher, and a student of which every second layer of a tower is gone, with a batch."""
    torch.manual_seed(0)
    teacher = shaken(FAMILIES["xvlm"]()).requires_grad_(False)
    row = layers(teacher)[0]
    student = cut(teacher, {row.name: torch.arange(row.count) % 2 == 0})
    return student.requires_grad_(True), teacher, teacher.example(5)["general"]


def test_by_plain_loops(pair):
    student, teacher, batch = pair
    found = of_pairs(Outputs(student), Outputs(teacher), batch, same_blocks(student, teacher))
    atts, scale = batch["text_atts"], min(100.0, 1 / float(teacher.temp))
    v, t = teacher.image_entry(batch["image"])[1], teacher.text_entry(batch["text_ids"], atts)[1]
    a, b = student.image_entry(batch["image"])[1], student.text_entry(batch["text_ids"], atts)[1]
    target = scale * v @ t.t()
    sim = 0.0
    for own in (scale * a @ t.t(), scale * v @ b.t()):
        for rows, wanted in ((own, target), (own.t(), target.t())):
            for i in range(5):
                sim += float(-(wanted[i].softmax(0) * rows[i].detach().log_softmax(0)).sum()) / 5 / 2
    assert found["sim"].item() == pytest.approx(sim, rel=1e-4)
    feat = (((a - v) ** 2).sum() + ((b - t) ** 2).sum()).item() / a.numel() / 2
    assert found["feat"].item() == pytest.approx(feat, rel=1e-4)
    with layer_outputs(student) as own, layer_outputs(teacher) as theirs:
        for model in (student, teacher):
            model.image_entry(batch["image"])
            model.text_entry(batch["text_ids"], atts)
    hidden = 0.0
    for name, ours, other in same_blocks(student, teacher):
        if (name, ours) in own and (name, other) in theirs:
            x, y = own[name, ours], theirs[name, other]
            rows, width = range(len(x)), x.shape[-1]
            real = [(i, p) for i in rows for p in range(x.shape[1]) if "text" not in name or atts[i, p]]
            hidden += sum((x[i, p] - y[i, p]).square().sum().item() for i, p in real) / len(real) / width / 2
    assert found["hidden"].item() == pytest.approx(hidden, rel=1e-4)


def test_tinyclip_compares_the_students_own_towers(pair):
    """At its own temperature; its loss is that of similarities alone."""
    student, teacher, batch = pair
    found = of_pairs(Outputs(student), Outputs(teacher), batch, [], own_towers=True)["sim"]
    features = []
    for model in (student, teacher):
        ids, atts = batch["text_ids"], batch["text_atts"]
        features.append((model.image_entry(batch["image"])[1], model.text_entry(ids, atts)[1], model.temp))
    own, wanted = (image @ text.t() / temp.clamp(min=0.01) for image, text, temp in features)
    expected = 0.0
    for rows, target in ((own, wanted), (own.t(), wanted.t())):
        expected -= float((target.softmax(1) * rows.detach().log_softmax(1)).sum()) / len(rows) / 2
    assert found.item() == pytest.approx(expected, rel=1e-4)


class Wider(Outputs):
    """Zeros after the features, which leave their similarities as they are."""

    def towers(self, batch):
        return [(F.pad(features, (0, 3)), seen) for features, seen in super().towers(batch)]


def test_features_of_another_width(pair):
    student, teacher, batch = pair
    same, wider = (
        of_pairs(Outputs(student), kind(teacher), batch, [], own_towers=True, feat=False) for kind in (Outputs, Wider)
    )
    assert wider["sim"].item() == pytest.approx(same["sim"].item(), rel=1e-5)
    for more in ({"feat": False}, {"own_towers": True}):
        with pytest.raises(InputError, match="only --distil tinyclip without --feat"):
            of_pairs(Outputs(student), Wider(teacher), batch, [], **more)


@pytest.mark.parametrize("distil", ["mope", "tinyclip"])
def test_a_weight_of_0_compares_no_layers(pair, distil):
    """Not even to refuse layers of another width."""
    student, teacher, batch = pair
    args = argparse.Namespace(distil=distil, sim=None, feat=None, hidden=0.0)
    module = Distillation(Pretraining(student), teacher, args)
    assert module._blocks == []
    assert "hidden" not in module(batch)


@pytest.mark.parametrize(("tower", "other"), [("vision", "text"), ("text", "vision")])
@pytest.mark.parametrize("name", ["xvlm", "hf CLIP"])
def test_one_tower_learns_alone(name, tower, other):
    """The other one's features and the temperature get no gradients, with all that makes them; fusion does."""
    torch.manual_seed(0)
    model = shaken(FAMILIES[name]()).requires_grad_(True)
    freeze_other_tower(model, tower)
    batch = model.example(2)["general"]
    image, text = model.image_entry(batch["image"])[1], model.text_entry(batch["text_ids"], batch["text_atts"])[1]
    assert {"vision": image, "text": text}[tower].requires_grad
    assert not {"vision": image, "text": text}[other].requires_grad
    assert not model.temp.requires_grad
    prunable = model.prunable_layers().items()
    assert {model.modality_of(n) for n, layer in prunable if not layer.weight.requires_grad} == {other}


def test_a_copy_has_nothing_to_learn(pair):
    """Features and states are equal, and similarities are as uncertain as the teacher is: no gradient."""
    _, teacher, batch = pair
    student = cut(teacher, {}).requires_grad_(True)
    found = of_pairs(Outputs(student), Outputs(teacher), batch, same_blocks(student, teacher))
    assert found["feat"].item() == found["hidden"].item() == 0
    scale = min(100.0, 1 / float(teacher.temp))
    v, t = teacher.image_entry(batch["image"])[1], teacher.text_entry(batch["text_ids"], batch["text_atts"])[1]
    entropy = 0.0
    for rows in (scale * v @ t.t(), scale * t @ v.t()):
        entropy += float(-(rows.softmax(1) * rows.log_softmax(1)).sum(1).mean())
    assert found["sim"].item() == pytest.approx(entropy, rel=1e-5)
    found["sim"].backward()
    norms = [float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None]
    assert max(norms) < 1e-4


def test_gradients_by_differences(pair):
    """In double precision, of a bias far below all losses."""
    student, teacher, batch = (part.double() if hasattr(part, "double") else part for part in pair)
    batch = {name: part.double() if part.is_floating_point() else part for name, part in batch.items()}
    assert batch["image"].dtype == torch.float64
    bias = student.vision_encoder.encoder.layers[0].mlp.fc1.bias
    blocks = same_blocks(student, teacher)

    def loss():
        return sum(of_pairs(Outputs(student), Outputs(teacher), batch, blocks).values())

    (slope,) = torch.autograd.grad(loss(), bias)
    with torch.no_grad():
        bias[3] += 1e-3
        above = float(loss())
        bias[3] -= 2e-3
        below = float(loss())
        bias[3] += 1e-3
    student.float(), teacher.float()
    assert float(slope[3]) == pytest.approx((above - below) / 2e-3, rel=1e-4)


def test_blocks_keep_their_numbers(pair):
    """Of four layers 1 and 3 go: 0 and 2 learn from 0 and 2, and the last one from the last one, too."""
    student, teacher, _ = pair
    row = layers(teacher)[0]
    found = [block[1:] for block in same_blocks(student, teacher) if block[0] == row.name]
    kept = list(range(0, row.count, 2))
    expected = [(j, number) for j, number in enumerate(kept)]
    assert found[: len(kept)] == expected
    assert (len(kept) - 1, row.count - 1) in found
    assert same_blocks(teacher, teacher)[0] == (row.name, 0, 0)


def test_classes():
    torch.manual_seed(0)
    teacher, student = shaken(FAMILIES["dino"]()), shaken(FAMILIES["dino"]())
    batch = teacher.example(4)["general"]
    found = of_classes(Outputs(student), Outputs(teacher), batch, [])
    rows, wanted = student.logits(batch["image"]), teacher.logits(batch["image"])
    assert found["sim"].item() == pytest.approx(float(F.cross_entropy(rows, wanted.softmax(1))), rel=1e-5)
    assert found["hidden"] == 0
    args = argparse.Namespace(distil=None, sim=None, feat=1.0, hidden=None)
    with pytest.raises(InputError, match="--feat compares features of images and texts"):
        Distillation(Pretraining(student), teacher, args)


def test_towers_run_once_a_step():
    """The task's losses and the teacher's share the student's outputs, which are those of a pass by itself."""
    torch.manual_seed(0)
    student, teacher = shaken(FAMILIES["hf CLIP"]()), shaken(FAMILIES["hf CLIP"]())
    batch = teacher.example(4)["general"]
    args = argparse.Namespace(distil=None, sim=None, feat=None, hidden=None)
    module = Distillation(Pretraining(student), teacher, args)
    calls = []
    handle = student.towers[0].register_forward_hook(lambda *_: calls.append(1))
    found = module(batch)
    handle.remove()
    apart = of_pairs(Outputs(student), Outputs(teacher), batch, same_blocks(student, teacher))
    for name, weight in (("sim", 1.0), ("feat", 1000.0), ("hidden", 1.0)):
        assert found[name].item() == pytest.approx(weight * apart[name].item(), rel=1e-5)
    assert len(calls) == 1
    assert "image_entry" not in vars(student)


def test_a_model_without_features():
    objective = argparse.Namespace(model=torch.nn.Linear(2, 2), extra_modules=torch.nn.ModuleDict())
    args = argparse.Namespace(distil="mope", sim=None, feat=None, hidden=0.0)
    with pytest.raises(InputError, match="works for retrieval and classification"):
        Distillation(objective, FAMILIES["dino"](), args)


def test_a_run_that_is_killed(run, tmp_path, monkeypatch):
    """Started again it ends with the same weights; the teacher is in no file."""
    whole = ("image_classification.py", "--model", "dino-mini", "--dense", *SMALL)
    assert run(*whole, "--output_dir", tmp_path / "dense").returncode == 0
    weights = tmp_path / "dense" / "last.safetensors"
    teacher = (*whole, "--teacher", "dino-mini", "--teacher_weights", weights)
    done = run(*teacher, "--output_dir", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    with monkeypatch.context() as patch:
        import training.loop

        rates = training.loop.set_rate
        steps = iter(range(9))

        def killed(*args):
            if next(steps) == 3:
                raise KeyboardInterrupt
            return rates(*args)

        patch.setattr(training.loop, "set_rate", killed)
        assert run(*teacher, "--output_dir", tmp_path / "b").returncode != 0
    done = run(*teacher, "--output_dir", tmp_path / "b")
    assert "resuming after step 2" in done.stderr
    states = [read_safetensors(tmp_path / name / "last.safetensors")[0] for name in ("a", "b", "dense")]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
    log = json.loads((tmp_path / "a" / "log.jsonl").read_text().splitlines()[-1])
    assert {"classes", "sim", "hidden"} <= log.keys()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--sim", "2"), "--sim needs a teacher"),
        (("--teacher", "dino-mini", "--hidden", "-1"), "hidden must be at least 0"),
        (("--teacher", "dino-mini"), "its head for this task is newly initialised"),
    ],
)
def test_refused(run, tmp_path, options, says):
    done = run("image_classification.py", "--model", "dino-mini", "--dense", *options, "--output_dir", tmp_path / "a")
    assert done.returncode == 2
    assert says in done.stderr
    assert not (tmp_path / "a").exists()
