"""MED, BLIP's text half: one BERT used as text encoder, as image-grounded encoder and as decoder.

Li et al., "BLIP: Bootstrapping Language-Image Pre-training", ICML 2022, section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.common.attention_masks import cross_attention_mask
from models.common.bert import Embeddings, Encoder, MLMHead, TextConfig, layer_states


class TextEncoder(nn.Module):
    """Embeddings and layers; with image states it is the image-grounded encoder, with a causal mask the decoder."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.embeddings = Embeddings(config, token_types=False)
        self.encoder = Encoder(config)

    def forward(self, ids: Tensor, mask: Tensor, image: Tensor | None = None) -> Tensor:
        """ids [b, t]; mask additive [b, 1, 1 or t, t]; image [b, p, d], or [1, p, d] for all, or None (no
        cross-attention) -> [b, t, d].
        """
        x = self.embeddings(ids)
        if image is None:
            for layer in self.encoder.layer:
                x = layer(x, mask)
            return x
        seen = torch.ones(image.shape[:2], dtype=torch.long, device=image.device)
        image_mask = cross_attention_mask(seen, x.dtype)
        for layer in self.encoder.layer:
            x = layer_states(layer, x, mask, image, image_mask)
        return x


class TextDecoder(nn.Module):
    """The decoder under its checkpoint's names: `bert` and the word prediction `cls`."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.bert = TextEncoder(config)
        self.cls = MLMHead(config)


def share(encoder: TextEncoder, decoder: TextEncoder) -> None:
    """Let the decoder own the encoder's parameters, all but its self-attention: one Parameter, two names."""
    for name, parameter in list(encoder.named_parameters()):
        if ".attention." not in name:
            owner, _, leaf = name.rpartition(".")
            setattr(decoder.get_submodule(owner), leaf, parameter)


def starting(ids: Tensor, first: int) -> Tensor:
    """ids [b, t] with another first token; the given tensor stays as it is."""
    return torch.cat([torch.full_like(ids[:, :1], first), ids[:, 1:]], dim=1)
