"""X-VLM for retrieval: the pretraining model without word prediction and boxes, finetuned with ITC + ITM.

Zeng, Zhang and Li, ICML 2022; several texts of one image are all positives, by image id.
    python retrieval.py --model xvlm
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.base import Batch
from models.common.bert import Embeddings, Encoder, plain_name
from models.common.checkpoint import KeyRules
from models.common.contrastive import hard_negatives, others, pairs_loss, same_image_targets
from models.common.gather import Gather, no_gather
from models.xvlm.clip_tower import CLIPTower
from models.xvlm.encoders import XVLMEncoders
from models.xvlm.model import XVLMConfig, mlp_head

UNUSED = ("text_encoder.cls.", "bbox_head.")


def retrieval_name(key: str, keys: set[str]) -> str | None:
    """Key of a pretraining or a retrieval file -> name in the retrieval model: the `bert` level goes."""
    name = plain_name(key, keys)
    if name is None or name.startswith(UNUSED):
        return None
    return name.replace("text_encoder.bert.", "text_encoder.", 1)


class XVLMRetrieval(XVLMEncoders):
    """Names are those of the published retrieval model."""

    Config = XVLMConfig
    key_rules = KeyRules(retrieval_name, positions=("vision_encoder.pos_embed.weight",))

    def __init__(self, config: XVLMConfig):
        super().__init__()
        self.config = config
        self.vision_encoder = CLIPTower(config.vision)
        self.text_encoder = nn.Module()
        self.text_encoder.embeddings = Embeddings(config.text, token_types=True)
        self.text_encoder.encoder = Encoder(config.text)
        self.vision_proj = nn.Linear(config.vision.width, config.embed_dim)
        self.text_proj = nn.Linear(config.text.width, config.embed_dim)
        self.itm_head = mlp_head(config.text.width, 2)
        self.temp = nn.Parameter(torch.empty(()))

    @property
    def bert(self) -> nn.Module:
        """Text and fusion layers."""
        return self.text_encoder

    def forward(self, batch: Batch, gather: Gather = no_gather) -> dict[str, Tensor]:
        """Losses itc and itm of pairs: image [b, 3, H, W], text_ids, text_atts [b, t], idx [b] (which image).

        Pairs of one image are positives of each other in ITC and no negatives in ITM. gather: features and ids of all
        pairs that are compared, asked for image features, text features and ids in this order. The temperature is not
        clamped here, as published.
        """
        ids, atts, idx = batch["text_ids"], batch["text_atts"], batch["idx"]
        # In this order, by which `tasks.retrieval` replays the dropout of these two.
        image, image_feature = self.image_entry(batch["image"])
        text, text_feature = self.text_entry(ids, atts)
        images, texts, targets = gather(image_feature), gather(text_feature), same_image_targets(gather(idx))
        similarity = images @ texts.t() / self.temp
        itm = self._itm_loss(image, text, atts, image_feature, text_feature, idx)
        return {"itc": pairs_loss(similarity, targets), "itm": itm}

    def _itm_loss(
        self, image: Tensor, text: Tensor, atts: Tensor, image_feature: Tensor, text_feature: Tensor, idx: Tensor
    ) -> Tensor:
        similarity = (image_feature @ text_feature.t() / self.temp).detach()
        wrong_image = hard_negatives(others(similarity.t().softmax(dim=1) + 1e-5, idx))
        wrong_text = hard_negatives(others(similarity.softmax(dim=1) + 1e-5, idx))
        seen = torch.ones(image.shape[:2], dtype=torch.long, device=image.device)
        return self._matching_loss(text, atts, image, seen, wrong_image, wrong_text)
