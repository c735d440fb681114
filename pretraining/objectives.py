"""Objectives of pretraining in stages: vision alone, text alone, then everything together.

Full-size models start from pretrained towers (X-VLM from CLIP and BERT). Instead, the towers of the minis are first
trained on dense labels of the mini world, and on masked language modelling of its captions.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from console.errors import InputError
from data.miniworld.readers import LABELS
from models.base import Batch, Model
from models.blip.model import BLIP
from models.common.contrastive import matching_loss
from models.common.gather import gather_processes
from models.library.pairs import WrappedPairs
from models.tasks import ImageEncoder
from models.wrap import WrappedModel
from models.xvlm.boxes import box_losses
from models.xvlm.model import XVLM, mlp_head
from pretraining.guides import (
    glance,
    grounding,
    guidance_loss,
    masked_words,
    patch_box_loss,
    text_parameters,
    tower_trained,
)
from pretraining.self_distillation import SelfDistillation

Losses = dict[str, Tensor]

PLACE_WEIGHT = 8.0  # weight of the patch box loss, whose gradient is small compared with cross-entropies
BOX_WEIGHT = 3.0  # weight of the box losses of the objectives `guided` and `grounded`


class DenseLabels(nn.Module):
    """The vision tower classifies what each patch shows; its linear heads are discarded afterwards."""

    sides = ("scenes",)
    reads_more = False
    serves = (ImageEncoder,)

    def __init__(self, model: ImageEncoder):
        super().__init__()
        self._trained = partial(tower_trained, model, "vision")  # not `self.model`: only the tower is trained
        self.tower = model.vision_tower()
        self.heads = nn.ModuleDict({name: nn.Linear(model.vision_width, n) for name, n in LABELS.items()})

    def forward(self, sides: dict[str, Batch]) -> Losses:
        """Side `scenes`: image [b, 3, H, W], labels [b, p - 1, kinds] int64, -1 where a patch has none."""
        batch = sides["scenes"]
        return self.patch_losses(self.tower(batch["image"])[:, 1:], batch["labels"])

    def patch_losses(self, states: Tensor, labels: Tensor) -> Losses:
        """Cross-entropy of each kind of label; states [b, p - 1, d], labels [b, p - 1, kinds]."""
        return {
            name: F.cross_entropy(head(states).flatten(0, 1), labels[..., k].flatten(), ignore_index=-1)
            for k, (name, head) in enumerate(self.heads.items())
        }

    def finish(self) -> None:
        """Let the model's copies of the tower (BLIP's momentum encoder) start from it."""
        self._trained()


class WholeImages(DenseLabels):
    """Dense labels, and the class token predicts which labels occur in the picture.

    Without this loss, information on patches does not reach the class token: a classifier on it learns colours and then
    stagnates for a thousand steps. The heads are discarded afterwards.
    """

    def __init__(self, model: ImageEncoder):
        super().__init__(model)
        self.whole = nn.ModuleDict(
            {name: nn.Linear(model.vision_width, head.out_features) for name, head in self.heads.items()}
        )

    def forward(self, sides: dict[str, Batch]) -> Losses:
        """Side `scenes` as for dense labels, which also give the labels that occur."""
        batch = sides["scenes"]
        states = self.tower(batch["image"])
        losses = self.patch_losses(states[:, 1:], batch["labels"])
        for k, (name, head) in enumerate(self.whole.items()):
            labels = batch["labels"][..., k]
            there = F.one_hot(labels + 1, head.out_features + 1).amax(dim=1)[:, 1:]  # without column 0, no label
            losses[f"whole.{name}"] = F.binary_cross_entropy_with_logits(head(states[:, 0]), there.to(states.dtype))
        return losses


class DensePlaces(DenseLabels):
    """Dense labels, and each patch of a region predicts the region's box.

    Labels of patches need no positions, so a tower trained on them alone discards the positions, and layers above it
    cannot learn boxes.
    """

    sides = ("scenes", "region")

    def __init__(self, model: ImageEncoder):
        super().__init__(model)
        self.places = nn.Linear(model.vision_width, 4)

    def forward(self, sides: dict[str, Batch]) -> Losses:
        """Also side `region`: image [g, 3, H, W], idx_to_group_img [n], image_atts [n, p], target_bbox [n, 4]."""
        batch = sides["region"]
        states = self.tower(batch["image"])[batch["idx_to_group_img"]]
        places = patch_box_loss(self.places(states).sigmoid(), batch["target_bbox"], batch["image_atts"])
        return super().forward(sides) | {"patches": PLACE_WEIGHT * places}


class MaskedText(nn.Module):
    """The text and fusion layers learn masked language modelling, without images."""

    sides = ("texts",)
    reads_more = False
    serves = (XVLM, BLIP)

    def __init__(self, model: XVLM | BLIP):
        super().__init__()
        self.model = model
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in text_parameters(model):
            parameter.requires_grad_(True)

    def forward(self, sides: dict[str, Batch]) -> Losses:
        """Side `texts`: text_ids_masked, text_atts [b, L]; masked_pos, masked_ids [b, m]."""
        return {"mlm": masked_words(self.model, sides["texts"])}

    def finish(self) -> None:
        """Let the model's copies of the text layers (BLIP's momentum encoder, its decoder) start from them."""
        tower_trained(self.model, "text")


class Together(nn.Module):
    """The model's own losses on every side, with the features of all processes as negatives."""

    sides: tuple[str, ...] = ()
    reads_more = True
    serves: tuple[type[Model], ...] = (Model,)

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, sides: dict[str, Batch]) -> Losses:
        """Named losses of each side, for example `general.itc`."""
        self.model.clamp_temperature()
        return {f"{side}.{name}": loss for side, batch in sides.items() for name, loss in self.losses(batch).items()}

    def losses(self, batch: Batch) -> Losses:
        """The losses of a side."""
        return self.model(batch, gather=gather_processes)


class LockedImages(Together):
    """The contrastive loss with a frozen image tower.

    After Zhai et al., "LiT: Zero-Shot Transfer with Locked-image text Tuning", CVPR 2022.
    """

    serves = (WrappedModel,)

    def __init__(self, model: WrappedModel):
        super().__init__(model)
        if not isinstance(model, WrappedPairs):
            raise InputError("locked_images is for models with two separate towers (CLIP, SigLIP)")
        model.towers[0].requires_grad_(False)


class Guided(Together):
    """X-VLM's losses with two more on regions: attention to the described region, and the position of each patch.

    A tower that was trained on the content of patches forgets their positions. A model of this size and training time
    does not recover them from the box loss alone: it always predicts the average box. The head is discarded afterwards.
    """

    sides = ("region",)
    serves = (XVLM,)

    def __init__(self, model: XVLM):
        super().__init__(model)
        self.head = nn.Linear(model.vision_width, 4)

    def losses(self, batch: Batch) -> Losses:
        """X-VLM's losses, and for regions `glance` (half of the heads of the first fusion layer attend to the region)
        and `patches` (each patch of the region predicts its box).
        """
        states = self.model.states(batch)
        losses = self.model.losses_of(batch, states, gather_processes)
        if states.full is not None:
            looks = glance(self.model, states.text, batch["text_atts"], states.full)
            losses["glance"] = guidance_loss(looks[:, : looks.shape[1] // 2], batch["image_atts"])
            predicted = self.head(states.full).sigmoid()
            losses["patches"] = patch_box_loss(predicted, batch["target_bbox"], batch["image_atts"])
        return losses

    def forward(self, sides: dict[str, Batch]) -> Losses:
        """Named losses of each side, those on boxes weighted."""
        weights = {"region.patches": PLACE_WEIGHT, "region.bbox": BOX_WEIGHT, "region.giou": BOX_WEIGHT}
        return {name: loss * weights.get(name, 1.0) for name, loss in super().forward(sides).items()}


class Grounded(Together):
    """For a model without box losses (BLIP): its own losses on pairs, and losses on regions and their texts.

    From captions alone a model of this size and training time does not learn left and right. Here [ENC] predicts the
    box of a region's text, the attention of half of a layer's heads is guided to the region, and each of its patches
    predicts its box. The heads are discarded afterwards. If the pairs have opposites (reader `opposed_pairs`), matching
    also distinguishes captions from them.
    """

    sides = ("general", "region")
    reads_more = False
    serves = (BLIP,)

    def __init__(self, model: BLIP):
        super().__init__(model)
        self.places = nn.Linear(model.vision_width, 4)
        self.boxes = mlp_head(model.config.text.width, 4)

    def forward(self, sides: dict[str, Batch]) -> Losses:
        """Side `general` as the model reads it; `region` with one text per region, as X-VLM reads it."""
        batch = sides["region"]
        losses = super().forward({"general": sides["general"]})
        full = self.model.vision_tower()(batch["image"])[batch["idx_to_group_img"]]
        state, looks = grounding(self.model, batch["text_ids"], batch["text_atts"], full)
        boxes = box_losses(self.boxes(state).sigmoid(), batch["target_bbox"], batch["is_image"])
        losses |= {f"region.{name}": BOX_WEIGHT * loss for name, loss in boxes.items()}
        losses["region.glance"] = guidance_loss(looks[:, : looks.shape[1] // 2], batch["image_atts"])
        places = patch_box_loss(self.places(full).sigmoid(), batch["target_bbox"], batch["image_atts"])
        losses["region.patches"] = PLACE_WEIGHT * places
        if len(sides["general"].get("opposed_of", ())):
            losses["general.opposed"] = self._opposed_loss(sides["general"])
        return losses

    def _opposed_loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of matching over captions with a direction and the same number of opposites."""
        of = batch["opposed_of"]
        ids, atts = (torch.cat([batch[f"text_{name}"][of], batch[f"opposed_{name}"]]) for name in ("ids", "atts"))
        states = self.model.grounded_states(ids, atts, self.model.vision_tower()(batch["image"][of]).repeat(2, 1, 1))
        return matching_loss(self.model.itm_head(states[:, 0]), pairs=len(of))


OBJECTIVES = {
    "dense_labels": DenseLabels,
    "whole_images": WholeImages,
    "dense_places": DensePlaces,
    "masked_text": MaskedText,
    "self_distillation": SelfDistillation,
    "together": Together,
    "locked_images": LockedImages,
    "guided": Guided,
    "grounded": Grounded,
}
"""Name in configs/<model>/pretrain.yaml -> objective.

sides: names of the data it needs. reads_more: whether it reads other sides, too. serves: classes of models it is for.
"""
