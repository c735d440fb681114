"""Auxiliary losses for pretraining the minis of X-VLM and BLIP: masked words without images, and attention guidance.

Full-size models start from pretrained towers; the minis need these losses instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch

import torch
from torch import Tensor, nn

from console.errors import InputError, in_a_line
from models.base import Batch, Model
from models.blip.med import starting
from models.blip.model import BLIP
from models.common.attention_masks import cross_attention_mask, self_attention_mask
from models.common.bert import hidden_words_loss
from models.library.pairs import WrappedPairs
from models.xvlm.boxes import box_losses
from models.xvlm.model import XVLM

# -- masked words, without images -----------------------------------------------------------------------


def text_parameters(model: XVLM | BLIP) -> Iterator[nn.Parameter]:
    """The parameters that `masked_words` trains: the text side without cross-attention, and the word prediction."""
    parts = (model.text_encoder, model.text_decoder.cls) if isinstance(model, BLIP) else (model.text_encoder,)
    for part in parts:
        yield from (parameter for name, parameter in part.named_parameters() if "crossattention" not in name)


@singledispatch
def masked_words(model: Model, batch: Batch) -> Tensor:
    """Masked language modelling without images: all text layers, cross-attention skipped. Scalar."""
    raise NotImplementedError(type(model).__name__)


@masked_words.register
def _(model: XVLM, batch: Batch) -> Tensor:
    x = model.text_states(batch["text_ids_masked"], batch["text_atts"])
    mask = self_attention_mask(batch["text_atts"], x.dtype)
    for layer in model.bert.encoder.layer[model.config.text.fusion_layer :]:
        x = layer(x, mask)
    return hidden_words_loss(batch, x, model.text_encoder.cls)


@masked_words.register
def _(model: BLIP, batch: Batch) -> Tensor:
    states = model.text_states(batch["text_ids_masked"], batch["text_atts"])
    return hidden_words_loss(batch, states, model.text_decoder.cls)


@singledispatch
def tower_trained(model: Model, tower: str) -> None:
    """Update the model's copies of a tower (`vision` or `text`) after its stage. Default: there are none."""


@tower_trained.register
@torch.no_grad()
def _(model: BLIP, tower: str) -> None:
    """As in BLIP's start from ViT and BERT: momentum copies, and from the text tower the decoder's self-attention."""
    fast, slow = (
        (model.visual_encoder, model.visual_encoder_m)
        if tower == "vision"
        else (model.text_encoder, model.text_encoder_m)
    )
    slow.load_state_dict(fast.state_dict())
    if tower == "text":
        layers = zip(model.text_encoder.encoder.layer, model.text_decoder.bert.encoder.layer, strict=True)
        for encoder, decoder in layers:
            decoder.attention.load_state_dict(encoder.attention.state_dict())


@torch.no_grad()
def start_images(model: WrappedPairs, other: XVLM) -> None:
    """Initialise a CLIP's image tower and its projection with X-VLM's, which has CLIP's blocks.

    InputError for other models, and for towers of other sizes.
    """
    if not isinstance(model, WrappedPairs) or not isinstance(other, XVLM):
        raise InputError("start: only an X-VLM can start a model, and only one with two towers (CLIP): leave start out")
    names = {"class_embedding": "class_embedding", "patch_embed": "patch_embedding", "pos_embed": "position_embedding"}
    state = {}
    for name, tensor in other.vision_encoder.state_dict().items():
        first, _, rest = name.partition(".")
        state[f"embeddings.{names[first]}{rest and '.'}{rest}" if first in names else name] = tensor
    try:
        model.towers[0].load_state_dict(state)
        model.module.visual_projection.weight.copy_(other.vision_proj.weight)
    except (RuntimeError, AttributeError) as error:
        raise InputError(
            f"start: X-VLM's image tower does not fit the model's ({in_a_line(error)}): start from one of its sizes"
        ) from error


# -- where to look --------------------------------------------------------------------------------------


def first_token_looks(layer: nn.Module, states: Tensor, mask: Tensor, image: Tensor) -> Tensor:
    """Cross-attention [b, h, p] of the first token to image states [b, p, d], in a layer with inputs [b, t, d].

    mask: of the layer's self-attention. The attention of each head sums to 1.
    """
    asking = layer.attention(states, mask)[0][:, :1]
    cross = layer.crossattention.self
    query, key = (
        part.unflatten(-1, (-1, cross.attention_head_size)).transpose(1, 2)
        for part in (cross.query(asking), cross.key(image))
    )
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).squeeze(2)


def glance(model: XVLM, text: Tensor, text_atts: Tensor, image: Tensor) -> Tensor:
    """Attention [b, h, p] of the CLS of text states [b, t, d] to image states [b, p, d], in the first fusion layer."""
    layer = model.bert.encoder.layer[model.config.text.fusion_layer]
    return first_token_looks(layer, text, self_attention_mask(text_atts, text.dtype), image)


def grounding(model: BLIP, ids: Tensor, atts: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """The last state of [ENC], [b, d], and its cross-attention in the second layer, [b, h, p].

    In the first layer it has not seen the text before cross-attention. ids, atts [b, t]; image states [b, p, d].
    """
    encoder, mask = model.text_encoder, self_attention_mask(atts, image.dtype)
    seen = cross_attention_mask(torch.ones(image.shape[:2], dtype=torch.long, device=image.device), image.dtype)
    states = encoder.embeddings(starting(ids, model.enc))
    for number, layer in enumerate(encoder.encoder.layer):
        if number == 1:
            looks = first_token_looks(layer, states, mask, image)
        states = layer(states, mask, image, seen)
    return states[:, 0], looks


def guidance_loss(attention: Tensor, patches: Tensor) -> Tensor:
    """Mean of -log of the share of a text's attention that is on the region it describes.

    attention [n, h, p], softmax over image tokens; patches [n, p], 1 for CLS and the region's patches. Scalar.
    """
    region = patches[:, None, 1:].to(attention.dtype)
    share = (attention[:, :, 1:] * region).sum(dim=2)
    return -share.clamp(min=1e-6).log().mean()


def patch_box_loss(predicted: Tensor, target: Tensor, patches: Tensor) -> Tensor:
    """L1 + GIoU of the boxes that single patches predict, averaged over all patches of all regions.

    predicted [n, p, 4]; target [n, 4], the box of the region; patches [n, p], 1 for CLS and the region's patches.
    """
    inside = patches[:, 1:].bool()
    wanted = target[:, None].expand(-1, inside.shape[1], -1)[inside]
    losses = box_losses(predicted[:, 1:][inside], wanted, torch.zeros_like(wanted[:, 0]))
    return losses["bbox"] + losses["giou"]
