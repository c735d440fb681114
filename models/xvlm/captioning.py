"""X-VLM for captioning: the vision tower, and all text and fusion layers as one causal language model.

Zeng, Zhang and Li, ICML 2022. One class serves both stages: the first one without prompt and smoothing.
    python captioning.py --model xvlm
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from models.common.bert import Embeddings, Encoder, MLMHead, plain_name
from models.common.checkpoint import KeyRules
from models.common.decoding import xvlm_smoothing
from models.tasks import Captioner
from models.xvlm.clip_tower import CLIPTower
from models.xvlm.encoders import XVLMModel
from models.xvlm.model import XVLMConfig

UNUSED = ("temp", "vision_proj.", "text_proj.", "itm_head.", "bbox_head.")


def captioning_name(key: str, keys: set[str]) -> str | None:
    """Key of a pretraining or a captioning file -> name in the captioning model."""
    name = plain_name(key, keys)
    if name is None or name.startswith(UNUSED):
        return None
    return name.replace("text_encoder.", "text_decoder.", 1) if name.startswith("text_encoder.") else name


@dataclass(frozen=True)
class XVLMCaptioningConfig(XVLMConfig):
    """X-VLM for captioning."""

    own_head: bool = False  # word prediction untied from the word embeddings, as in the published finetuned files


class XVLMCaptioning(XVLMModel, Captioner):
    """Names are those of the published captioning model."""

    Config = XVLMCaptioningConfig
    smoothing_rule = staticmethod(xvlm_smoothing)
    key_rules = KeyRules(captioning_name, positions=("vision_encoder.pos_embed.weight",))

    def __init__(self, config: XVLMCaptioningConfig):
        super().__init__()
        self.config = config
        self.vision_encoder = CLIPTower(config.vision)
        self.text_decoder = nn.Module()
        self.text_decoder.bert = nn.Module()
        self.text_decoder.bert.embeddings = Embeddings(config.text, token_types=True)
        self.text_decoder.bert.encoder = Encoder(config.text)
        self.text_decoder.cls = MLMHead(config.text)
        self.tie()

    def tie(self) -> None:
        """Make the word prediction use the word table (again, after parameters were replaced), if it is to."""
        if self.config.own_head:
            return
        words = self.text_decoder.bert.embeddings.word_embeddings
        self.text_decoder.cls.predictions.decoder.weight = words.weight

    def image_states(self, image: Tensor) -> Tensor:
        """image [b, 3, H, W] -> states [b, p, d] that captions are generated from."""
        return self.vision_encoder(image)
