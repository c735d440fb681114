"""timm's vision transformer as BLIP uses it: fused qkv, states of all tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from timm.layers import Attention, Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models.common.sizes import Stack


@dataclass(frozen=True)
class ViTConfig(Stack):
    """Sizes of the tower."""

    image_size: int  # pixels
    patch_size: int  # pixels
    drop_path: float = 0.0  # stochastic depth of the last block


def vision_transformer(config: ViTConfig) -> VisionTransformer:
    """A pre-LN ViT from pixels [b, 3, H, W] to layer-normalised states of all tokens [b, p, d]."""
    vit = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.layers,
        num_heads=1,
        num_classes=0,
        global_pool="",
        drop_path_rate=config.drop_path,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        weight_init="skip",
    )
    for number, block in enumerate(vit.blocks):
        heads, head_width, mlp = config.layer(number)
        block.attn = Attention(config.width, heads, attn_head_dim=head_width, qkv_bias=True)
        block.mlp = Mlp(config.width, mlp)
    return vit
