"""Base of BLIP's captioning and VQA models: loading the tower and the text decoder from a pretraining file."""

from __future__ import annotations

from torch import Tensor

from models.blip.encoders import BLIPModel
from models.common.bert import plain_name

UNUSED = ("temp", "vision_proj", "text_proj", "itm_head.", "visual_encoder_m.", "text_encoder_m.")
QUEUES = ("image_queue", "text_queue", "queue_ptr")


def with_decoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights or masks with the decoder's shared tensors under their own names.

    A file may name a tensor that encoder and decoder share in pretraining once, under the encoder (masks always do).
    """
    found = dict(state)
    for key, tensor in state.items():
        if key.startswith("text_encoder.") and ".attention." not in key:
            name = key.replace("text_encoder.", "text_decoder.bert.", 1)
            if name not in state:
                found[name] = tensor.clone()  # finetuning no longer shares them
    word_table = "text_decoder.bert.embeddings.word_embeddings.weight"
    if word_table in found and any(key.startswith("text_decoder.cls.") for key in state):
        found.setdefault("text_decoder.cls.predictions.decoder.weight", found[word_table])
    return found


def decoder_name(key: str, keys: set[str]) -> str | None:
    """Key of a prepared file -> name, without contrastive and matching parts, momentum copies and queues."""
    name = plain_name(key, keys)
    return None if name is None or name.startswith(UNUSED) or name in QUEUES else name


class BLIPDecoderModel(BLIPModel):
    """A subclass builds `visual_encoder`, `text_decoder` and sets `config`."""

    def tie(self) -> None:
        """Make the word prediction use the decoder's word table (again, after parameters were replaced)."""
        words = self.text_decoder.bert.embeddings.word_embeddings
        self.text_decoder.cls.predictions.decoder.weight = words.weight
