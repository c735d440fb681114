"""BLIP for NLVR2: one text encoder reads a statement, looks at two images, and says whether it is true of the pair.

Li et al., ICML 2022, section 5.5. Each cross-attention of pretraining becomes two, one an image. The lower layers
average what the two saw, the upper ones (`text.merge_from`) merge it by a layer that pretraining does not have.
    python nlvr.py --model blip
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertAttention

from models.base import Batch
from models.blip.decoder import decoder_name
from models.blip.encoders import BLIPModel
from models.blip.med import starting
from models.blip.model import BLIPConfig, BLIPTextConfig
from models.common.attention_masks import cross_attention_mask, self_attention_mask, without_padding
from models.common.bert import Embeddings, bert_layer
from models.common.checkpoint import KeyRules
from models.common.decoding import for_texts
from models.common.vit import vision_transformer
from models.library.parts import rows_of, units_of
from models.parts import Part
from models.tasks import Verifier

DOUBLED = (
    (".crossattention.self.", ".crossattention.self{}."),
    (".crossattention.output.dense.", ".crossattention.output.dense{}."),
)
"""Part of a name in pretraining -> its two names here, one per image."""

MERGE, HEAD = ".merge_layer.", "cls_head."


@dataclass(frozen=True)
class BLIPNLVRConfig(BLIPConfig):
    """BLIP for NLVR2."""

    inherit_mask: bool = False  # prune merge layers, too: each with the mask of its output layer, once per image


def doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights or masks of pretraining with every cross-attention twice; files of an NLVR2 model stay as they are."""
    found = {}
    for key, tensor in state.items():
        name = next((key.replace(once, twice) for once, twice in DOUBLED if once in key), None)
        if name is None or not key.startswith("text_encoder."):
            found[key] = tensor
        else:  # copies: finetuning trains the two separately
            found |= {name.format(number): tensor.clone() for number in range(2)}
    return found


def nlvr_name(key: str, keys: set[str]) -> str | None:
    """Key of a prepared file -> name in the NLVR2 model; decoders, heads, queues and momentum copies go."""
    name = decoder_name(key, keys)
    return None if name is None or name.startswith("text_decoder.") else name


class PairAttention(nn.Module):
    """Cross-attention to two images, each with its own queries, keys, values and output layer; one norm for both."""

    def __init__(self, one: BertAttention, width: int, merges: bool):
        """one: of pretraining, whose sizes both get. merges: whether a layer [d, 2d] merges the two outputs."""
        super().__init__()
        self.self0, self.self1 = one.self, copy.deepcopy(one.self)
        dense = one.output.dense
        self.output = nn.Module()
        self.output.LayerNorm = one.output.LayerNorm
        self.output.dropout = one.output.dropout
        self.output.dense0, self.output.dense1 = dense, copy.deepcopy(dense)
        self.output.merge_layer = nn.Linear(2 * width, width) if merges else None

    def forward(self, x: Tensor, image0: Tensor, image1: Tensor, image_mask: Tensor) -> Tensor:
        """States x [b, t, d] that look at image states, both [b, p, d], additive mask [b, 1, 1, p] -> [b, t, d]."""
        out = self.output
        seen0 = out.dense0(self.self0(x, image0, image_mask)[0])
        seen1 = out.dense1(self.self1(x, image1, image_mask)[0])
        merges = out.merge_layer is not None
        seen = out.merge_layer(torch.cat([seen0, seen1], dim=-1)) if merges else (seen0 + seen1) / 2
        return out.LayerNorm(x + out.dropout(seen))


class PairLayer(nn.Module):
    """A BERT layer whose cross-attention looks at two images."""

    def __init__(self, config: BLIPTextConfig, number: int):
        super().__init__()
        one = bert_layer(config, number)
        self.attention = one.attention
        self.crossattention = PairAttention(one.crossattention, config.width, number >= config.first_merge)
        self.intermediate, self.output = one.intermediate, one.output

    def forward(self, x: Tensor, mask: Tensor, image0: Tensor, image1: Tensor, image_mask: Tensor) -> Tensor:
        """x [b, t, d], its additive mask [b, 1, 1, t]; the rest as in `PairAttention` -> [b, t, d]."""
        x = self.crossattention(self.attention(x, mask)[0], image0, image1, image_mask)
        return self.output(self.intermediate(x), x)


class PairEncoder(nn.Module):
    """MED's text encoder, looking at two images."""

    def __init__(self, config: BLIPTextConfig):
        super().__init__()
        self.embeddings = Embeddings(config, token_types=False)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(PairLayer(config, number) for number in range(config.layers))

    def forward(self, ids: Tensor, atts: Tensor, image0: Tensor, image1: Tensor) -> Tensor:
        """ids, atts [b, t] over image states, both [b, p, d] -> [b, t, d]."""
        x = self.embeddings(ids)
        mask = self_attention_mask(atts, x.dtype)
        seen = torch.ones(image0.shape[:2], dtype=torch.long, device=x.device)
        image_mask = cross_attention_mask(seen, x.dtype)
        for layer in self.encoder.layer:
            x = layer(x, mask, image0, image1, image_mask)
        return x


class BLIPNLVR(BLIPModel, Verifier):
    """Names are those of the published NLVR2 model."""

    Config = BLIPNLVRConfig
    excluded = (*BLIPModel.excluded, HEAD.rstrip("."))
    key_rules = KeyRules(
        nlvr_name,
        positions=("visual_encoder.pos_embed",),
        fresh=lambda name: MERGE in name or name.startswith(HEAD),
        prepare=doubled,
    )

    def __init__(self, config: BLIPNLVRConfig):
        super().__init__()
        self.config = config
        d = config.text.width
        self.visual_encoder = vision_transformer(config.vision)
        self.text_encoder = PairEncoder(config.text)
        self.cls_head = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 2))

    def parts(self) -> Iterator[Part]:
        """As in pretraining, with two sets of heads per layer, one for each image."""
        yield from super().parts()
        row = "text_encoder.encoder.layer"
        for number, layer in enumerate(self.text_encoder.encoder.layer):
            at = f"{row}.{number}"
            feeds = [f"{at}.intermediate.dense"]
            yield units_of(self, f"{at}.intermediate", "neurons", feeds=feeds, reads=f"{at}.output.dense")
            for image in range(2):
                inner = f"{at}.crossattention.self{image}"
                width = getattr(layer.crossattention, f"self{image}").attention_head_size
                yield units_of(
                    self,
                    inner,
                    "heads",
                    feeds=[f"{inner}.{name}" for name in ("query", "key", "value")],
                    reads=f"{at}.crossattention.output.dense{image}",
                    block=width,
                    attributes={f"{inner}.num_attention_heads": 1, f"{inner}.all_head_size": width},
                )
        yield from rows_of(self, lambda part: isinstance(part, PairLayer))

    @torch.no_grad()
    def reset(self) -> None:
        """Random weights, from torch's global generator; the head as torch has it."""
        super().reset()
        self.cls_head.apply(lambda module: getattr(module, "reset_parameters", lambda: None)())

    @torch.no_grad()
    def loaded(self, fresh: list[str]) -> None:
        """Initialise the layers that pretraining lacks, from a separate generator. Biases of merge layers are zero."""
        made = [name.removesuffix(".weight") for name in fresh if name.endswith(".weight")]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for name in made:
                layer = self.get_submodule(name).to_empty(device="cpu")
                if name.startswith(HEAD):
                    layer.reset_parameters()
                else:
                    layer.weight.normal_(std=0.02)
                    layer.bias.zero_()

    def logits(self, batch: Batch) -> Tensor:
        """[b, 2], class 1 is true: image [i, 2, 3, H, W]; text_ids, text_atts [b, t], whose first id becomes [ENC].

        image_of [b] where pairs are shared: the pair of each statement; else one of its own each.
        """
        ids, atts = without_padding(batch["text_ids"], batch["text_atts"])
        # rows of one sample stay together, so that layer outputs can be assigned to samples
        seen = self.visual_encoder(batch["image"].flatten(0, 1)).unflatten(0, (-1, 2))
        image0, image1 = (for_texts(states, batch.get("image_of")) for states in seen.unbind(dim=1))
        states = self.text_encoder(starting(ids, self.enc), atts, image0, image1)
        return self.cls_head(states[:, 0])

    def real_tokens(self, name: str, batch: Batch) -> Tensor | None:
        """Text tokens as the attention mask says, without columns of padding; image tokens all."""
        of_images = ".crossattention." in name and (".key." in name or ".value." in name)
        if name.startswith("visual_encoder.") or of_images:
            return None
        return without_padding(batch["text_ids"], batch["text_atts"])[1]

    def with_fresh(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Merge layers stay dense, unless `inherit_mask` prunes them like the layers before them."""
        found = dict(masks)
        for name, layer in self.prunable_layers().items():
            before = [name.replace(MERGE, f".dense{number}.") for number in range(2)]
            if MERGE not in name or name in masks or not set(before) <= set(masks):
                continue
            inherited = torch.cat([masks[one] for one in before], dim=1) if self.config.inherit_mask else None
            found[name] = torch.ones(layer.weight.shape, dtype=torch.bool) if inherited is None else inherited
        return found
