"""Distillation: finetune a smaller model with the dense model as its teacher (--teacher).

    L = task + a L_sim + b L_feat + g L_hidden, with --sim, --feat, --hidden (1, 1000, 1)

of models that compare images and texts, for each of the two towers (S student, T teacher, v its features):
    L_sim    = (CE(softmax(s_T), s_S) by rows + by columns) / 2, s_S: the student's tower against the other one of the
               teacher, at the teacher's temperature
    L_feat   = MSE(v_S, v_T) / 2, features L2-normalised
    L_hidden = sum over blocks of MSE(x_S, x_T) / 2, without padding; blocks of the same original number, and the last
of classifiers: L_sim is the cross-entropy with the teacher's probabilities, L_hidden as above, and there is no L_feat.
With --distil tinyclip it is L_sim alone, between the student's own two towers and at its own temperature (Wu et al.,
"TinyCLIP", ICCV 2023).
Losses of Lin et al., "MoPE-CLIP", CVPR 2024, as in its reimplementations: the paper gives no formulas.

    python retrieval.py --model small:FOLDER --dense --teacher xvlm-mini --teacher_weights RUN/best.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from console.errors import InputError
from models import load_task_model
from models.base import Batch, Model, placed
from models.parts import Layers, layers
from models.tasks import Classifier, Retriever
from training.run import Run
from training.task import Objective

WEIGHTS = {"mope": {"sim": 1.0, "feat": 1000.0, "hidden": 1.0}, "tinyclip": {"sim": 1.0, "feat": 0.0, "hidden": 0.0}}

TOWERS = ("vision", "text")

HOTTEST = 100.0
"""Upper bound of 1 / temperature, as in CLIP."""

States = dict[tuple[str, int], Tensor]
"""Name of a list of layers, and number in it -> output of the layer at its first call [b, t, d]."""

Block = tuple[str, int, int]
"""Name of a list of layers; the numbers of a layer in the student's list and in the teacher's."""


def with_teacher(run: Run, objective: Objective) -> nn.Module:
    """The module that the loop trains: the objective, or the objective with the teacher of --teacher."""
    if run.args.only:
        freeze_other_tower(objective.model, run.args.only)
    return Distillation(objective, teacher_of(run), run.args) if run.args.teacher else objective


def freeze_other_tower(model: Model, tower: str) -> None:
    """Freeze the other tower and the temperature. This tower and the fusion layers are trained."""
    if not isinstance(model, Retriever):
        raise InputError("--only is for models that compare images and texts, which this one does not: leave it out")
    if tower not in TOWERS:
        raise InputError(f"--only takes {' or '.join(TOWERS)}, not '{tower}': choose one of them")
    batch = placed(model.probe(2).batch, model)
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    none = [None] * len(own)
    reached: list[set[nn.Parameter]] = []
    with torch.enable_grad():
        for value in (*(feature for feature, _ in Outputs(model).towers(batch)), model.temp):
            found = torch.autograd.grad(value.sum(), own, allow_unused=True) if value.requires_grad else none
            reached.append({parameter for parameter, one in zip(own, found, strict=True) if one is not None})
    for parameter in set().union(*reached) - reached[TOWERS.index(tower)]:
        parameter.requires_grad_(False)


def teacher_of(run: Run) -> Model:
    """The frozen teacher; InputError when it is not trained on the task."""
    args, task = run.args, run.name
    teacher = load_task_model(args.teacher, task, weights=args.teacher_weights, overrides=run.config.model)
    report = teacher.load_report
    if report is None or report.fresh or report.resized:
        made = "its weights are random" if report is None else "its head for this task is newly initialised"
        raise InputError(
            f"--teacher {args.teacher} is not trained on {task}, {made}: give the weights of a run with "
            "--teacher_weights FILE"
        )
    return run.fabric.to_device(teacher).eval().requires_grad_(False)


class Distillation(nn.Module):
    """An objective with a teacher. Parameter names are the objective's, and snapshots do not contain the teacher."""

    def __init__(self, objective: Objective, teacher: Model, args: argparse.Namespace):
        super().__init__()
        self.model, self.extra_modules = objective.model, objective.extra_modules
        self._outside = (objective, teacher)
        self._weights = {
            name: first if (own := getattr(args, name)) is None else own
            for name, first in WEIGHTS[args.distil or "mope"].items()
        }
        self._own_towers = args.distil == "tinyclip"
        student = self.model
        if not any(isinstance(student, kind) and isinstance(teacher, kind) for kind in (Retriever, Classifier)):
            raise InputError(
                f"--teacher works for retrieval and classification, not for a {type(student).__name__} by a "
                f"{type(teacher).__name__}"
            )
        if args.feat and not isinstance(student, Retriever):
            raise InputError("--feat compares features of images and texts, which a classifier lacks: leave it out")
        self._blocks = same_blocks(student, teacher) if self._weights["hidden"] else []
        if self._weights["hidden"] and not self._blocks:
            if args.hidden:
                raise InputError("--hidden compares layers, and teacher and student share none: leave it out")
            self._weights["hidden"] = 0.0

    def forward(self, batch: Batch, rehearsal: bool = False) -> dict[str, Tensor]:
        """The task's losses and the teacher's."""
        objective, teacher = self._outside
        if rehearsal or not any(self._weights.values()):
            return objective(batch, rehearsal)
        student = Outputs(self.model)
        with student.shared():
            losses = objective(batch, rehearsal)
        if isinstance(self.model, Retriever):
            feat = bool(self._weights["feat"])
            found = of_pairs(student, Outputs(teacher), batch, self._blocks, self._own_towers, feat)
        else:
            found = of_classes(student, Outputs(teacher), batch, self._blocks)
        return losses | {name: self._weights[name] * loss for name, loss in found.items() if self._weights[name]}


class Outputs:
    """The outputs of a model and of its layers for a batch, each computed once per step.

    Without this, the task's losses and the distillation would each run the student. Losses that do not call these
    methods still run it again: those of X-VLM's pretraining and of BLIP.
    """

    def __init__(self, model: Retriever | Classifier):
        self.model = model
        names = ("image_entry", "text_entry") if isinstance(model, Retriever) else ("logits",)
        self._methods = {name: getattr(model, name) for name in names}
        self._found: dict[tuple, tuple] = {}

    def of(self, name: str, *inputs: Tensor) -> tuple[Any, States]:
        """The result of a method of the model, and the outputs of layers at their first call in it."""
        key = (name, *map(id, inputs))
        if key not in self._found:
            with layer_outputs(self.model) as seen:
                value = self._methods[name](*inputs)
            self._found[key] = value, seen, inputs  # the inputs are held, so that their ids stay unique
        return self._found[key][:2]

    def towers(self, batch: Batch) -> list[tuple[Tensor, States]]:
        """Features of the images and of the texts [b, e], with the outputs of the layers."""
        batch = placed(batch, self.model)
        found = self.of("image_entry", batch["image"]), self.of("text_entry", batch["text_ids"], batch["text_atts"])
        return [(value[1], seen) for value, seen in found]

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Inside, calls of these methods on the model return the stored results."""
        for name in self._methods:
            setattr(self.model, name, lambda *inputs, name=name: self.of(name, *inputs)[0])
        try:
            yield
        finally:
            for name in self._methods:
                delattr(self.model, name)


def of_pairs(
    student: Outputs, teacher: Outputs, batch: Batch, blocks: list[Block], own_towers: bool = False, feat: bool = True
) -> dict[str, Tensor]:
    """sim, feat and hidden of both towers. batch: image, text_ids, text_atts.

    own_towers: compare the student's two towers with each other, once, instead of each with the teacher's other one.
    feat: whether features are compared; otherwise it is 0.
    """
    atts = batch["text_atts"]
    with torch.no_grad():
        features, states = zip(*teacher.towers(batch), strict=True)
        # One temperature for student and teacher: otherwise the loss would mix scale with similarity.
        scale = (1 / teacher.model.temp).clamp(max=HOTTEST)
        target = scale * features[0] @ features[1].t()
    zero = target.new_zeros(())
    found = {"sim": zero, "feat": zero, "hidden": zero}
    ours = student.towers(batch)
    for tower, (own, seen) in enumerate(ours):
        if own.shape != features[tower].shape and (feat or not own_towers):
            raise InputError(
                f"teacher and student have features of {features[tower].shape[1]} and {own.shape[1]} numbers: only "
                "--distil tinyclip without --feat compares these"
            )
        if not own_towers:
            # Each student tower is compared with the teacher's other tower, so that both stay in the teacher's space.
            by_row = target if tower == 0 else target.t()
            found["sim"] = found["sim"] + similar(scale * own @ features[1 - tower].t(), by_row)
        if feat:
            found["feat"] = found["feat"] + F.mse_loss(wide(own), wide(features[tower])) / 2
        found["hidden"] = found["hidden"] + hidden(seen, states[tower], blocks, atts if tower else None) / 2
    if own_towers:
        own_scale = (1 / student.model.temp).clamp(max=HOTTEST)
        found["sim"] = similar(own_scale * ours[0][0] @ ours[1][0].t(), target)
    return found


def similar(similarity: Tensor, target: Tensor) -> Tensor:
    """L_sim of similarities [n, n]: cross-entropy with the teacher's, by rows and by columns."""
    return (soft(similarity, target) + soft(similarity.t(), target.t())) / 2


def of_classes(student: Outputs, teacher: Outputs, batch: Batch, blocks: list[Block]) -> dict[str, Tensor]:
    """sim and hidden of images. batch: image."""
    with torch.no_grad():
        target, theirs = teacher.of("logits", placed(batch, teacher.model)["image"])
    logits, own = student.of("logits", batch["image"])
    return {"sim": soft(logits, target), "hidden": hidden(own, theirs, blocks, None) / 2}


def soft(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with the softmax of `target`, both [n, m], mean over rows."""
    return F.cross_entropy(wide(logits), wide(target).softmax(dim=1))


def wide(x: Tensor) -> Tensor:
    """Convert to at least single precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def same_blocks(student: Model, teacher: Model) -> list[Block]:
    """The pairs of layers that are compared: those of equal original number, and the last ones of each tower."""
    theirs = {row.name: row for row in layers(teacher)}
    found: list[Block] = []
    for row in layers(student):
        if row.name not in theirs:
            continue
        ours, whole = _numbers(student, row), _numbers(teacher, theirs[row.name])
        found += [(row.name, j, whole.index(number)) for j, number in enumerate(ours) if number in whole]
        last = {tower: j for j, tower in enumerate(row.towers)}
        last_there = {tower: j for j, tower in enumerate(theirs[row.name].towers)}
        ends = [(row.name, j, last_there[tower]) for tower, j in last.items() if tower in last_there]
        found += [end for end in ends if end not in found]
    return found


def _numbers(model: Model, row: Layers) -> list[int]:
    """Numbers in the dense model of the layers of a list."""
    stays = dict(model.plan.stays) if model.plan else {}
    return list(stays[row.name].kept) if row.name in stays else list(range(row.count))


@contextmanager
def layer_outputs(model: Model) -> Iterator[States]:
    """Record the outputs of layers at their first call inside, by list and number."""
    seen: States = {}
    handles = []
    for row in layers(model):
        for number in range(row.count):

            def note(layer: nn.Module, args: tuple, output: object, key: tuple[str, int] = (row.name, number)) -> None:
                seen.setdefault(key, output if isinstance(output, Tensor) else output[0])

            handles.append(model.inner.get_submodule(f"{row.name}.{number}").register_forward_hook(note))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def hidden(own: States, theirs: States, blocks: list[Block], atts: Tensor | None) -> Tensor | float:
    """Sum over blocks of the mean squared difference, without padding (atts [b, t]); only blocks that both models
    called.
    """
    total: Tensor | float = 0.0
    for row, ours, other in blocks:
        if (row, ours) not in own or (row, other) not in theirs:
            continue
        a, b = wide(own[row, ours]), wide(theirs[row, other])
        if a.shape != b.shape:
            raise InputError(
                f"--hidden compares states of one width, and in {row} the student has {tuple(a.shape)}, the teacher "
                f"{tuple(b.shape)}: give --hidden 0"
            )
        # The width must not change the weight of the loss, so the mean is over features first.
        difference = (a - b).square().mean(dim=-1)
        if atts is not None:
            real = atts[:, : a.shape[1]].to(difference)
            total = total + (difference * real).sum() / real.sum()
        else:
            total = total + difference.mean()
    return total
