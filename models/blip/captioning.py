"""BLIP for captioning: the vision tower and the text decoder.

Li et al., ICML 2022.
    python captioning.py --model blip
"""

from __future__ import annotations

from torch import Tensor

from models.blip.decoder import BLIPDecoderModel, decoder_name, with_decoder
from models.blip.med import TextDecoder, starting
from models.blip.model import BLIPConfig
from models.common.checkpoint import KeyRules
from models.common.vit import vision_transformer
from models.tasks import Captioner


def captioning_name(key: str, keys: set[str]) -> str | None:
    """Key of a pretraining or a captioning file -> name in the captioning model."""
    name = decoder_name(key, keys)
    return None if name is None or name.startswith("text_encoder.") else name


class BLIPCaptioning(BLIPDecoderModel, Captioner):
    """Names are those of the published captioning model."""

    Config = BLIPConfig
    key_rules = KeyRules(captioning_name, positions=("visual_encoder.pos_embed",), prepare=with_decoder)

    def __init__(self, config: BLIPConfig):
        super().__init__()
        self.config = config
        self.visual_encoder = vision_transformer(config.vision)
        self.text_decoder = TextDecoder(config.text)
        self.tie()

    def image_states(self, image: Tensor) -> Tensor:
        """image [b, 3, H, W] -> states [b, p, d] that captions are generated from."""
        return self.visual_encoder(image)

    def caption_start(self, ids: Tensor) -> Tensor:
        """Ids [b, t] as tokenised -> as the decoder wants them: [DEC] first."""
        return starting(ids, self.dec)
