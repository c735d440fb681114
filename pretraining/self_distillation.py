"""DINO's pretraining: a student matches, on crops, the output of a momentum teacher on the whole view.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021: multi-crop, centering and
sharpening of the teacher's output, momentum teacher.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Batch
from models.common.gather import add_processes, place
from models.tasks import ImageEncoder

OUTPUTS, BOTTLENECK = 1024, 64
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.04
MOMENTUM, CENTER_MOMENTUM = 0.99, 0.9


class ProjectionHead(nn.Module):
    """DINO's head: a small MLP, normalised, then `OUTPUTS` prototypes of unit length. Discarded afterwards."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, 2 * width), nn.GELU(),
            nn.Linear(2 * width, BOTTLENECK),
        )  # fmt: skip
        self.prototypes = nn.Parameter(torch.randn(OUTPUTS, BOTTLENECK))

    def forward(self, x: Tensor) -> Tensor:
        """x [b, d] -> [b, OUTPUTS]."""
        return F.normalize(self.mlp(x), dim=-1) @ F.normalize(self.prototypes, dim=-1).t()


class SelfDistillation(nn.Module):
    """Student and teacher over a model's backbone; at the end the teacher's backbone becomes the model's."""

    sides = ("crops",)
    reads_more = False
    serves = (ImageEncoder,)

    def __init__(self, model: ImageEncoder):
        super().__init__()
        self.student = model.vision_tower()
        self.head = ProjectionHead(model.vision_width)
        self.teacher, self.teacher_head = copy.deepcopy(self.student), copy.deepcopy(self.head)
        for parameter in (*self.teacher.parameters(), *self.teacher_head.parameters()):
            parameter.requires_grad_(False)
        self.register_buffer("center", torch.zeros(OUTPUTS))

    def forward(self, sides: dict[str, Batch]) -> dict[str, Tensor]:
        """Side `crops`: global [b, 2, 3, H, W] and local [b, n, 3, h, w]; loss `distillation` over all crop pairs."""
        views, small = sides["crops"]["global"], sides["crops"]["local"]
        b, n = views.shape[0], small.shape[1]
        flat = views.transpose(0, 1).flatten(0, 1)
        with torch.no_grad():
            said = self.teacher_head(self.teacher(flat)[:, 0])
            target = ((said - self.center) / TEACHER_TEMPERATURE).softmax(dim=-1).view(2, b, -1)
            mean = add_processes(said.mean(dim=0)) / place()[1]
            self.center.mul_(CENTER_MOMENTUM).add_(mean, alpha=1 - CENTER_MOMENTUM)
        student = [self.head(self.student(flat)[:, 0]).view(2, b, -1)]
        if n:
            local = small.transpose(0, 1).flatten(0, 1)
            student.append(self.head(self.student(local)[:, 0]).view(n, b, -1))
        log = F.log_softmax(torch.cat(student) / STUDENT_TEMPERATURE, dim=-1)
        pairs = [(t, s) for t in range(2) for s in range(2 + n) if s != t]
        loss = sum(-(target[t] * log[s]).sum(dim=-1).mean() for t, s in pairs) / len(pairs)
        return {"distillation": loss}

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """Move the teacher towards the student; its momentum rises to 1 along a cosine."""
        momentum = 1 - (1 - MOMENTUM) * (math.cos(math.pi * step / steps) + 1) / 2
        for teacher, student in ((self.teacher, self.student), (self.teacher_head, self.head)):
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 1 - momentum)

    @torch.no_grad()
    def finish(self) -> None:
        """The teacher is what remains."""
        for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            fast.copy_(slow)
