"""X-VLM for VQA: all layers read the question and see the image; a six-layer decoder says the answer.

Zeng, Zhang and Li, ICML 2022. The decoder starts from the fusion layers; it is pruned only where asked.
    python vqa.py --model xvlm --inherit_mask
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.base import Batch
from models.common.answer_ranking import best_answers, first_word_probabilities, full_losses, pick
from models.common.attention_masks import cross_attention_mask, self_attention_mask
from models.common.bert import Embeddings, Encoder, MLMHead, plain_name
from models.common.checkpoint import KeyRules
from models.common.decoding import IGNORED, decoder_logits, for_texts, token_losses
from models.layers import PrunableLayer
from models.tasks import Answerer
from models.xvlm.captioning import UNUSED
from models.xvlm.clip_tower import CLIPTower
from models.xvlm.encoders import XVLMModel
from models.xvlm.model import XVLMConfig

LAYER = "text_encoder.bert.encoder.layer."


@dataclass(frozen=True)
class XVLMVQAConfig(XVLMConfig):
    """X-VLM for VQA."""

    inherit_mask: bool = False  # prune the decoder, too, with the masks of the fusion layers that it starts from


def with_decoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pretraining tensors (or masks) with those of the decoder: embeddings, word prediction, fusion layers from 0 on.

    Copies, since finetuning trains encoder and decoder separately. Files of a VQA model stay as they are.
    """
    if any(key.startswith("text_decoder.") for key in state):
        return state
    crossed = [int(key[len(LAYER) :].split(".")[0]) for key in state if key.startswith(LAYER) and "crossatt" in key]
    first = min(crossed, default=0)
    found = {}
    for key, tensor in state.items():
        if key.startswith("text_encoder.cls."):
            found[key.replace("text_encoder.", "text_decoder.", 1)] = tensor
            continue
        found[key] = tensor
        if key.startswith("text_encoder.bert.embeddings."):
            found[key.replace("text_encoder.", "text_decoder.", 1)] = tensor.clone()
        if key.startswith(LAYER):
            number, _, rest = key[len(LAYER) :].partition(".")
            if int(number) >= first:
                found[f"text_decoder.bert.encoder.layer.{int(number) - first}.{rest}"] = tensor.clone()
    return found


def vqa_name(key: str, keys: set[str]) -> str | None:
    """Key of a prepared pretraining file or a VQA file -> name in the VQA model."""
    name = plain_name(key, keys)
    if name is None or name.startswith(UNUSED):
        return None
    return name.replace("text_encoder.bert.", "text_encoder.", 1)


class XVLMVQA(XVLMModel, Answerer):
    """Names are those of the published VQA model."""

    Config = XVLMVQAConfig
    may_stay_dense = True
    key_rules = KeyRules(vqa_name, positions=("vision_encoder.pos_embed.weight",), prepare=with_decoder)

    def __init__(self, config: XVLMVQAConfig):
        super().__init__()
        self.config = config
        text = config.text
        self.vision_encoder = CLIPTower(config.vision)
        self.text_encoder = nn.Module()
        self.text_encoder.embeddings = Embeddings(text, token_types=True)
        self.text_encoder.encoder = Encoder(text)
        decoder = text.fused()
        self.text_decoder = nn.Module()
        self.text_decoder.bert = nn.Module()
        self.text_decoder.bert.embeddings = Embeddings(decoder, token_types=True)
        self.text_decoder.bert.encoder = Encoder(decoder)
        self.text_decoder.cls = MLMHead(decoder)
        self.tie()

    def tie(self) -> None:
        """Make the word prediction use the decoder's word table (again, after parameters were replaced)."""
        words = self.text_decoder.bert.embeddings.word_embeddings
        self.text_decoder.cls.predictions.decoder.weight = words.weight

    def question_states(self, image: Tensor, ids: Tensor, atts: Tensor, image_of: Tensor | None = None) -> Tensor:
        """Questions ids, atts [b, t] that look at images [i, 3, H, W] -> [b, t, d]; image_of [b], or one image each."""
        states = for_texts(self.vision_encoder(image), image_of)
        x = self.text_encoder.embeddings(ids)
        mask = self_attention_mask(atts, x.dtype)
        seen = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        image_mask = cross_attention_mask(seen, x.dtype)
        for number, layer in enumerate(self.text_encoder.encoder.layer):
            x = layer(x, mask) if number < self.config.text.fusion_layer else layer(x, mask, states, image_mask)
        return x

    def answer_losses(self, ids: Tensor, atts: Tensor, states: Tensor, states_atts: Tensor) -> Tensor:
        """Summed cross-entropy of each answer, ids, atts [n, t], over question states [n, s, d]: [n]."""
        logits = decoder_logits(self.text_decoder, ids, atts, states, states_atts)
        return token_losses(logits, ids.masked_fill(atts == 0, IGNORED), smoothing=0.0).sum(dim=1)

    def rank(self, batch: Batch, answer_ids: Tensor, answer_atts: Tensor, k: int) -> Tensor:
        """Number of the best answer of each question [b].

        batch: image, image_of (where images are shared), question_ids, question_atts; answer_ids, answer_atts [a, t]:
        the list, `[CLS] words [SEP]`. The first word counts twice, in both steps, as published.
        """
        atts = batch["question_atts"]
        states = self.question_states(batch["image"], batch["question_ids"], atts, batch.get("image_of"))
        start, ones = answer_ids[:1, :1].expand(len(states), 1), torch.ones_like(atts[:, :1])
        logits = decoder_logits(self.text_decoder, start, ones, states, atts)[:, 0]
        first, numbers = best_answers(first_word_probabilities(logits, answer_ids[:, 1]), k)
        losses = full_losses(self.answer_losses, answer_ids, answer_atts, numbers, states, atts)
        return pick(first.log() - losses, numbers)

    def prunable_layers(self) -> dict[str, PrunableLayer]:
        """Of the decoder only with `inherit_mask`."""
        layers = super().prunable_layers()
        if self.config.inherit_mask:
            return layers
        return {name: layer for name, layer in layers.items() if not name.startswith("text_decoder.")}

    def modality_of(self, name: str) -> str:
        """vision, text or fusion; the decoder comes from the fusion layers."""
        return "fusion" if name.startswith("text_decoder.") else super().modality_of(name)
