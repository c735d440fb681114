"""X-VLM's vision tower: CLIP's ViT with a region mode, built from transformers' CLIP blocks.

Radford et al., ICML 2021 (architecture); Zeng et al., ICML 2022 (region mode: the last blocks see only
the patches under a box). Parameter names are those of the official X-VLM checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from models.common.attention_masks import self_attention_mask
from models.common.sizes import Stack


@dataclass(frozen=True)
class VisionConfig(Stack):
    """Sizes of the vision tower."""

    image_size: int  # pixels
    patch_size: int  # pixels
    region_layers: int  # number of last layers that see only the region

    def only(self, kept: Sequence[int], **changes: Any) -> VisionConfig:
        """Of a tower with these of its layers."""
        shared = self.layers - self.region_layers
        return super().only(kept, region_layers=sum(number >= shared for number in kept), **changes)

    @property
    def tokens(self) -> int:
        """Image tokens p: patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


def clip_layer(config: VisionConfig, number: int) -> CLIPEncoderLayer:
    """Layer `number` of the tower, from 0, with its own sizes."""
    width, (heads, head_width, mlp) = config.width, config.layer(number)
    block = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=mlp,
        num_attention_heads=1,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        attention_dropout=0.0,
    )
    block._attn_implementation = "sdpa"
    layer = CLIPEncoderLayer(block)
    attention, inside = layer.self_attn, heads * head_width
    attention.num_heads, attention.head_dim, attention.scale = heads, head_width, head_width**-0.5
    attention.k_proj, attention.v_proj, attention.q_proj = (nn.Linear(width, inside) for _ in range(3))
    attention.out_proj = nn.Linear(inside, width)
    return layer


class CLIPTower(nn.Module):
    """Pixels to image states; with regions, also the states of image parts."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        d = config.width
        self.config = config
        self.class_embedding = nn.Parameter(torch.empty(d))
        self.patch_embed = nn.Conv2d(3, d, config.patch_size, stride=config.patch_size, bias=False)
        self.pos_embed = nn.Embedding(config.tokens, d)
        self.pre_layrnorm = nn.LayerNorm(d, eps=1e-5)  # sic: the checkpoints' spelling
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(clip_layer(config, number) for number in range(config.layers))
        self.post_layernorm = nn.LayerNorm(d, eps=1e-5)

    def forward(self, image: Tensor) -> Tensor:
        """image [b, 3, H, W] float -> states of all tokens [b, p, d], layer-normalised."""
        x = self._embed(image)
        for block in self.encoder.layers:
            x = block(x, None)
        return self.post_layernorm(x)

    def regions(self, image: Tensor, image_of_region: Tensor, patch_mask: Tensor) -> tuple[Tensor, Tensor]:
        """States of n regions of g images, and of the full images they lie in.

        image [g, 3, H, W]; image_of_region [n] int64; patch_mask [n, p], 1 for CLS and patches under the box.
        Returns region states [n, p, d] (CLS is the region's embedding) and full-image states [n, p, d].
        The last `region_layers` blocks run on n + g rows: the regions, then the images.
        """
        n = image_of_region.shape[0]
        shared = self.config.layers - self.config.region_layers
        x = self._embed(image)
        for block in self.encoder.layers[:shared]:
            x = block(x, None)
        x = torch.cat([x[image_of_region], x])
        seen = torch.cat([patch_mask, patch_mask.new_ones(image.shape[0], patch_mask.shape[1])])
        mask = self_attention_mask(seen, x.dtype)
        for block in self.encoder.layers[shared:]:
            x = block(x, mask)
        x = self.post_layernorm(x)
        return x[:n], x[n:][image_of_region]

    def _embed(self, image: Tensor) -> Tensor:
        b = image.shape[0]
        patches = self.patch_embed(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(b, 1, -1), patches], dim=1) + self.pos_embed.weight
        return self.pre_layrnorm(x)
