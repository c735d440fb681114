"""The objectives a model is pretrained with, in stages: vision alone, text alone, then everything together.

Real models start from towers trained elsewhere (X-VLM from CLIP and BERT); the minis get such a start from dense
labels of the mini world and from masked language modelling of its captions.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Batch
from models.gather import gather_processes
from training.self_distillation import SelfDistillation

Losses = dict[str, Tensor]


class DenseLabels(nn.Module):
    """The vision tower learns what each patch shows; its linear heads are thrown away afterwards."""

    def __init__(self, model: nn.Module):
        super().__init__()
        from data.scenes import LABELS

        self.tower = model.vision_tower()
        self.heads = nn.ModuleDict({name: nn.Linear(model.vision_width, n) for name, n in LABELS.items()})

    def forward(self, sides: dict[str, Batch]) -> Losses:
        """Side `scenes`: image [b, 3, H, W], labels [b, p - 1, kinds] int64, -1 where a patch has none."""
        batch = sides["scenes"]
        states = self.tower(batch["image"])[:, 1:]
        return {
            name: F.cross_entropy(head(states).flatten(0, 1), batch["labels"][..., k].flatten(), ignore_index=-1)
            for k, (name, head) in enumerate(self.heads.items())
        }


class MaskedText(nn.Module):
    """The text and fusion layers learn masked language modelling, without images."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in model.text_parameters():
            parameter.requires_grad_(True)

    def forward(self, sides: dict[str, Batch]) -> Losses:
        """Side `texts`: text_ids_masked, text_atts [b, L]; masked_pos, masked_ids [b, m]."""
        return {"mlm": self.model.masked_words(sides["texts"])}


class Together(nn.Module):
    """The model's own pretraining losses on every side, with the features of all processes as negatives."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, sides: dict[str, Batch]) -> Losses:
        """Named losses of each side, for example `general.itc`."""
        self.model.clamp_temperature()
        return {
            f"{side}.{name}": loss
            for side, batch in sides.items()
            for name, loss in self.model(batch, gather=gather_processes).items()
        }


OBJECTIVES = {
    "dense_labels": DenseLabels,
    "masked_text": MaskedText,
    "self_distillation": SelfDistillation,
    "together": Together,
}
"""Name in configs/<model>/pretrain.yaml -> objective."""
