"""BLIP for VQA: the image-grounded encoder reads the question, the decoder (not tied to it here) says the answer.

Li et al., ICML 2022.
    python vqa.py --model blip
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

from models.base import Batch
from models.blip.decoder import BLIPDecoderModel, decoder_name, with_decoder
from models.blip.med import TextDecoder, TextEncoder, starting
from models.blip.model import BLIPConfig
from models.common.answer_ranking import best_answers, first_word_probabilities, full_losses, pick
from models.common.attention_masks import self_attention_mask
from models.common.checkpoint import KeyRules
from models.common.decoding import IGNORED, decoder_logits, for_texts, token_losses
from models.common.vit import vision_transformer
from models.tasks import Answerer

SMOOTHING = 0.1


class BLIPVQA(BLIPDecoderModel, Answerer):
    """Names are those of the published VQA model."""

    Config = BLIPConfig
    writes_answers = True
    key_rules = KeyRules(decoder_name, positions=("visual_encoder.pos_embed",), prepare=with_decoder)

    def __init__(self, config: BLIPConfig):
        super().__init__()
        self.config = config
        self.visual_encoder = vision_transformer(config.vision)
        self.text_encoder = TextEncoder(config.text)
        self.text_decoder = TextDecoder(config.text)
        self.tie()

    def question_states(self, image: Tensor, ids: Tensor, atts: Tensor, image_of: Tensor | None = None) -> Tensor:
        """Questions ids, atts [b, t] (the first id becomes [ENC]) that look at images [i, 3, H, W] -> [b, t, d].

        image_of: [b], the image of each question; None: one of its own each.
        """
        states = for_texts(self.visual_encoder(image), image_of)
        return self.text_encoder(starting(ids, self.enc), self_attention_mask(atts, states.dtype), states)

    def answer_losses(self, ids: Tensor, atts: Tensor, states: Tensor, states_atts: Tensor) -> Tensor:
        """Summed smoothed cross-entropy of each answer, ids, atts [n, t], over question states [n, s, d]: [n]."""
        ids = starting(ids, self.dec)
        logits = decoder_logits(self.text_decoder, ids, atts, states, states_atts)
        return token_losses(logits, ids.masked_fill(atts == 0, IGNORED), SMOOTHING).sum(dim=1)

    def answer_start(self, states: Tensor) -> Tensor:
        """What an answer to each of the question states [b, s, d] starts with: [DEC], [b, 1] int64."""
        return torch.full((len(states), 1), self.dec, device=states.device)

    def answer_logits(
        self, ids: Tensor, atts: Tensor, states: Tensor, states_atts: Tensor, past: EncoderDecoderCache | None = None
    ) -> Tensor:
        """Word logits [n, t, V] of answers so far, ids [n, t], over question states [n, s, d], atts [n, s].

        past: see `decoder_logits`.
        """
        return decoder_logits(self.text_decoder, ids, atts, states, states_atts, past)

    def rank(self, batch: Batch, answer_ids: Tensor, answer_atts: Tensor, k: int) -> Tensor:
        """Number of the best answer of each question [b].

        batch: image, image_of (where images are shared), question_ids, question_atts; answer_ids, answer_atts [a, t]:
        the list, `[CLS] words [SEP]`. The answer with the lowest smoothed loss among the k whose first words
        are likeliest.
        """
        atts = batch["question_atts"]
        states = self.question_states(batch["image"], batch["question_ids"], atts, batch.get("image_of"))
        start = self.answer_start(states)
        logits = self.answer_logits(start, torch.ones_like(start), states, atts)[:, -1]
        _, numbers = best_answers(first_word_probabilities(logits, answer_ids[:, 1]), k)
        return pick(-full_losses(self.answer_losses, answer_ids, answer_atts, numbers, states, atts), numbers)
