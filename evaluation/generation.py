"""Write captions for images with a captioning model: beam search from a prompt."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

from data.readers import Batch
from data.records import Id
from data.tokenizer import Tokenizer
from models.base import placed
from models.common.beam_search import SearchSettings, beam_search
from models.common.decoding import NextWords
from models.tasks import Captioner


@torch.no_grad()
def generate_captions(
    model: Captioner, batches: Iterable[Batch], tokenizer: Tokenizer, prompt: str, settings: SearchSettings
) -> dict[Id, str]:
    """Image id -> caption, without the prompt, for batches with `image` [b, 3, H, W] and `image_id`, b ids."""
    device = next(model.parameters()).device
    start = torch.tensor([tokenizer.encode(prompt.strip(), False, None)], device=device)
    written: dict[Id, str] = {}
    for batch in batches:
        states = model.image_states(placed(batch, model)["image"]).repeat_interleave(settings.beams, dim=0)

        def logits(ids: Tensor, atts: Tensor, past: EncoderDecoderCache, states: Tensor = states) -> Tensor:
            return model.caption_logits(ids, atts, states, past)

        first = model.caption_start(start.expand(len(batch["image"]), -1))
        found = beam_search(NextWords(logits), first, tokenizer.sep, tokenizer.pad, settings)
        for image, ids in zip(batch["image_id"], found[:, start.shape[1] :].tolist(), strict=True):
            written[image] = tokenizer.text(ids)
    return written
