"""BLIP for retrieval: the pretraining model without decoder; queues remember which image a feature belongs to.

Li et al., ICML 2022. The momentum copies move as the paper says, m = 0.995 m + 0.005 online, before each of their
forward passes; the published pruning code has the two factors exchanged.
    python retrieval.py --model blip
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from models.base import Batch
from models.blip.encoders import FRESH, BLIPEncoders
from models.blip.model import BLIPConfig
from models.common.attention_masks import without_padding
from models.common.bert import plain_name
from models.common.checkpoint import KeyRules
from models.common.contrastive import contrastive_features, hard_negatives, others, soft_cross_entropy
from models.common.gather import Gather, no_gather

UNKNOWN = -100  # image id of features that came with the pretraining file


def retrieval_name(key: str, keys: set[str]) -> str | None:
    """Key of a pretraining or a retrieval file -> name in the retrieval model."""
    name = plain_name(key, keys)
    return None if name is None or name.startswith("text_decoder.") or name == "queue_ptr" else name


class BLIPRetrieval(BLIPEncoders):
    """Names are those of the published retrieval model."""

    Config = BLIPConfig
    momentum_targets = True
    pointer = "ptr_queue"
    key_rules = KeyRules(
        retrieval_name,
        positions=("visual_encoder.pos_embed", "visual_encoder_m.pos_embed"),
        skip_resized=("image_queue", "text_queue", "idx_queue"),
        fresh=lambda name: name.split(".")[0] in FRESH,
    )

    def __init__(self, config: BLIPConfig):
        super().__init__()
        self._build_encoders(config)
        self.temp = nn.Parameter(torch.empty(()))
        self._build_queues(config)
        self.register_buffer("idx_queue", torch.empty(1, config.queue, dtype=torch.long))

    def moving_tensors(self) -> Iterator[Tensor]:
        """Queues and momentum copies, and whose features are in the queues."""
        yield from super().moving_tensors()
        yield self.idx_queue

    @torch.no_grad()
    def loaded(self, fresh: list[str]) -> None:
        """After the weights are in: the features in the queues belong to no image of the training set."""
        super().loaded(fresh)
        if "idx_queue" in fresh:
            self.idx_queue = torch.full((1, self.config.queue), UNKNOWN)

    def forward(
        self, batch: Batch, gather: Gather = no_gather, alpha: float = 0.4, move: bool = True
    ) -> dict[str, Tensor]:
        """Losses ita and itm of pairs: image [b, 3, H, W], text_ids, text_atts [b, t], idx [b] (which image).

        alpha: weight of the momentum model's soft targets, 0.4 after a ramp over the first epoch. gather: features and
        ids of all processes, for the queues. move: whether the momentum copies move, once an optimizer step.
        """
        self.clamp_temperature()
        ids, atts = without_padding(batch["text_ids"], batch["text_atts"])
        idx = batch["idx"]
        image, text = self.visual_encoder(batch["image"]), self.text_states(ids, atts)
        image_feature = contrastive_features(image, self.vision_proj)
        text_feature = contrastive_features(text, self.text_proj)
        with torch.no_grad():
            image_m, text_m = self.momentum_features(batch, move)
            same = (idx[:, None] == torch.cat([idx, self.idx_queue[0]])[None, :]).float()
            right = same / same.sum(dim=1, keepdim=True)
            images, texts, soft_i2t, soft_t2i = self._soft_targets(image_m, text_m, right, self.temp, alpha)
        i2t, t2i = image_feature @ texts / self.temp, text_feature @ images / self.temp
        losses = {"ita": (soft_cross_entropy(i2t, soft_i2t) + soft_cross_entropy(t2i, soft_t2i)) / 2}
        self._remember(gather(idx))
        self._enqueue(gather(image_m), gather(text_m))
        losses["itm"] = self._itm_loss(ids, atts, image, image_feature, text_feature, idx)
        return losses

    @torch.no_grad()
    def _remember(self, idx: Tensor) -> None:
        """Put image ids [b] into the places of the features that `_enqueue` writes next."""
        places = (self.ptr_queue + torch.arange(len(idx), device=idx.device)) % self.config.queue
        self.idx_queue[0, places] = idx

    def _itm_loss(
        self, ids: Tensor, atts: Tensor, image: Tensor, image_feature: Tensor, text_feature: Tensor, idx: Tensor
    ) -> Tensor:
        similarity = (image_feature @ text_feature.t() / self.temp).detach()
        wrong_image = hard_negatives(others(similarity.t().softmax(dim=1), idx))
        wrong_text = hard_negatives(others(similarity.softmax(dim=1), idx))
        return self._matching_loss(ids, atts, image, wrong_image, wrong_text)
