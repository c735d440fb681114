"""Base classes of BLIP's models: prunable parts; for pretraining and retrieval encoders, momentum copies, queues.

Li et al., "BLIP: Bootstrapping Language-Image Pre-training", ICML 2022.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.base import Batch, Model
from models.blip.med import TextEncoder, starting
from models.common.attention_masks import self_attention_mask, without_padding
from models.common.contrastive import TEMP_RANGE, contrastive_features, matching_loss
from models.common.vit import vision_transformer
from models.library.hf_parts import hf_parts
from models.library.timm_parts import timm_parts
from models.parts import Part
from models.tasks import Retriever

COPIED = ("visual_encoder", "vision_proj", "text_encoder", "text_proj")
"""Parts with a momentum copy, which has the part's name and `_m`."""

MOMENTUM = 0.995

FRESH = (
    *(f"{name}_m" for name in COPIED),
    *("image_queue", "text_queue", "queue_ptr", "idx_queue", "ptr_queue"),
)
"""What a file may lack: momentum copies are then copied from the originals, queues drawn at random."""


class BLIPModel(Model):
    """A `visual_encoder` and a text half with the ids [DEC] and [ENC] at the end of its vocabulary."""

    config: Any  # a BLIPConfig
    excluded = ("vision_proj", "text_proj", "itm_head", "visual_encoder_m", "text_encoder_m", "cls.predictions")
    modalities: ClassVar[Mapping[str, str]] = {"visual_encoder.": "vision", "": "text"}  # encoder and decoder together

    @torch.no_grad()
    def reset(self) -> None:
        """Random weights (from torch's global generator)."""
        super().reset()
        for tower in self.children():
            if isinstance(tower, VisionTransformer):
                tower.cls_token.normal_(std=0.02)
                tower.pos_embed.normal_(std=0.02)

    def parts(self) -> Iterator[Part]:
        """Of timm's tower and BERT's blocks; `models.parts.inventory` joins those that share their tensors."""
        yield from timm_parts(self)
        yield from hf_parts(self)

    @property
    def dec(self) -> int:
        """Id of [DEC], which starts what the decoder reads."""
        return self.config.text.vocab_size - 2

    @property
    def enc(self) -> int:
        """Id of [ENC], which starts what the image-grounded encoder reads."""
        return self.config.text.vocab_size - 1


class BLIPEncoders(BLIPModel, Retriever):
    """Online encoders and heads, their momentum copies, and the queues of the copies' features."""

    follows_state = True
    compares_with_queue = True
    pointer = "queue_ptr"  # name of the buffer with the place in the queues

    def _build_encoders(self, config: Any) -> None:
        """Build the modules under the official checkpoint's names, in its order."""
        text, d, e = config.text, config.text.width, config.embed_dim
        self.config = config
        self.visual_encoder = vision_transformer(config.vision)
        self.text_encoder = TextEncoder(text)
        self.vision_proj = nn.Linear(config.vision.width, e)
        self.text_proj = nn.Linear(d, e)
        self.itm_head = nn.Linear(d, 2)
        self.visual_encoder_m = vision_transformer(config.vision)
        self.vision_proj_m = nn.Linear(config.vision.width, e)
        self.text_encoder_m = TextEncoder(text)
        self.text_proj_m = nn.Linear(d, e)
        for _, slow in self._momentum_pairs():
            slow.requires_grad_(False)

    def _build_queues(self, config: Any) -> None:
        """Features [e, queue] of the last texts and images, and where the next ones go."""
        self.register_buffer("image_queue", torch.empty(config.embed_dim, config.queue))
        self.register_buffer("text_queue", torch.empty(config.embed_dim, config.queue))
        self.register_buffer(self.pointer, torch.empty(1, dtype=torch.long))

    @torch.no_grad()
    def reset(self) -> None:
        """Random weights and queues; momentum copies equal the originals."""
        super().reset()
        self.temp.fill_(self.config.temp)
        self.loaded(list(FRESH))

    @torch.no_grad()
    def loaded(self, fresh: list[str]) -> None:
        """After the weights are in: make what the file lacked. Queues come from a generator of their own."""
        lacking = {name.split(".")[0] for name in fresh}
        for name in COPIED:
            if f"{name}_m" in lacking:
                setattr(self, f"{name}_m", copy.deepcopy(getattr(self, name)).requires_grad_(False))
        generator = torch.Generator().manual_seed(0)
        for name in ("image_queue", "text_queue"):
            if name in lacking:
                random = torch.randn(self.config.embed_dim, self.config.queue, generator=generator)
                setattr(self, name, F.normalize(random, dim=0))
        if self.pointer in lacking:
            setattr(self, self.pointer, torch.zeros(1, dtype=torch.long))

    # -- states -----------------------------------------------------------------------------------------

    def text_states(self, ids: Tensor, atts: Tensor) -> Tensor:
        """Text alone: ids [b, t] as tokenised, atts [b, t] -> [b, t, d]."""
        return self.text_encoder(ids, self_attention_mask(atts, self.temp.dtype))

    def grounded_states(self, ids: Tensor, atts: Tensor, image: Tensor) -> Tensor:
        """Text that looks at image states [b, p, d], or [1, p, d] for all -> [b, t, d]; the first id becomes [ENC]."""
        return self.text_encoder(starting(ids, self.enc), self_attention_mask(atts, image.dtype), image)

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the learnt temperature in its range, between optimizer steps."""
        self.temp.clamp_(*TEMP_RANGE)

    @torch.no_grad()
    def momentum_features(self, batch: Batch, move: bool = True) -> tuple[Tensor, Tensor]:
        """Update the momentum copies once, and encode the batch with them: two [b, e].

        move: False where an optimizer step has several passes, for all but its first.
        """
        for original, slow in self._momentum_pairs() if move else ():
            slow.mul_(MOMENTUM).add_(original, alpha=1 - MOMENTUM)
        ids, atts = without_padding(batch["text_ids"], batch["text_atts"])
        image = self.visual_encoder_m(batch["image"])
        text = self.text_encoder_m(ids, self_attention_mask(atts, image.dtype))
        return contrastive_features(image, self.vision_proj_m), contrastive_features(text, self.text_proj_m)

    def _soft_targets(
        self, image_m: Tensor, text_m: Tensor, right: Tensor, temp: Tensor, alpha: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features to compare with, images and texts [e, b + queue], and targets, i2t and t2i [b, b + queue].

        image_m, text_m [b, e]: momentum features. right [b, b + queue]: the true pairs. alpha: weight of the momentum
        model's own similarities.
        """
        images = torch.cat([image_m.t(), self.image_queue], dim=1)
        texts = torch.cat([text_m.t(), self.text_queue], dim=1)
        soft_i2t = alpha * (image_m @ texts / temp).softmax(dim=1) + (1 - alpha) * right
        soft_t2i = alpha * (text_m @ images / temp).softmax(dim=1) + (1 - alpha) * right
        return images, texts, soft_i2t, soft_t2i

    def _matching_loss(
        self, ids: Tensor, atts: Tensor, image: Tensor, wrong_image: Tensor, wrong_text: Tensor
    ) -> Tensor:
        """ITM loss of the pairs of a batch, and of each text and each image with a wrong partner.

        Arguments as of `grounded_states`; wrong_image, wrong_text [b] int64: those partners.
        """
        right = self.grounded_states(ids, atts, image)
        wrong = self.grounded_states(
            torch.cat([ids, ids[wrong_text]]),
            torch.cat([atts, atts[wrong_text]]),
            torch.cat([image[wrong_image], image]),
        )
        return matching_loss(self.itm_head(torch.cat([right[:, 0], wrong[:, 0]])), pairs=len(ids))

    @torch.no_grad()
    def _enqueue(self, image: Tensor, text: Tensor) -> None:
        """Put features [b, e] into the queues in place of the oldest; a batch may wrap around the end."""
        pointer = getattr(self, self.pointer)
        places = (pointer + torch.arange(len(image), device=image.device)) % self.config.queue
        self.image_queue[:, places] = image.t().to(self.image_queue.dtype)
        self.text_queue[:, places] = text.t().to(self.text_queue.dtype)
        pointer.copy_((pointer + len(image)) % self.config.queue)

    def _momentum_pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each original parameter with its momentum copy."""
        for name in COPIED:
            copies = getattr(self, f"{name}_m").parameters()
            yield from zip(getattr(self, name).parameters(), copies, strict=True)

    def moving_tensors(self) -> Iterator[Tensor]:
        """Queues and momentum copies."""
        yield from (self.image_queue, self.text_queue, getattr(self, self.pointer))
        yield from (slow for _, slow in self._momentum_pairs())

    def training_only(self) -> Iterator[Tensor]:
        """All moving tensors: predictions need none."""
        return self.moving_tensors()

    # -- retrieval --------------------------------------------------------------------------------------

    def image_entry(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What a gallery keeps of images [b, 3, H, W]: states [b, p, d] and features [b, e]."""
        states = self.visual_encoder(image)
        return states, contrastive_features(states, self.vision_proj)

    def text_entry(self, ids: Tensor, atts: Tensor) -> tuple[Tensor, Tensor]:
        """What a gallery keeps of texts [b, t]: the ids, which the grounded encoder reads, and features [b, e]."""
        return ids, contrastive_features(self.text_states(ids, atts), self.text_proj)

    def match(self, ids: Tensor, atts: Tensor, image: Tensor, similarity: Tensor) -> Tensor:
        """How well pairs of ids and image states match: the ITM logit of "matches" plus the cosine similarity [b].

        image: states [b, p, d], or [1, p, d] of one image for all texts.
        """
        ids, atts = without_padding(ids, atts)
        return self.itm_head(self.grounded_states(ids, atts, image)[:, 0])[:, 1] + similarity

    def followers(self) -> dict[str, nn.Linear]:
        """The momentum copies of prunable layers, by the names of the originals, whose mask they carry."""
        found = {}
        for name in self.prunable_layers():
            part, _, rest = name.removesuffix(".weight").partition(".")
            if part in COPIED:
                found[name] = self.get_submodule(f"{part}_m.{rest}")
        return found

    def real_tokens(self, name: str, batch: Batch) -> Tensor | None:
        """Text tokens as the attention mask says; image tokens (tower, cross-attention keys and values) all."""
        if name.startswith("visual_encoder.") or ".crossattention.self.key." in name:
            return None
        return None if ".crossattention.self.value." in name else batch["text_atts"]
