"""Names of DINO's weights in the original files, timm, and transformers 4 and 5."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from console.errors import InputError
from models.common.nesting import inner_state

# the original code and timm -> published (transformers 4.31)
_ORIGINAL = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "head": "classifier",
}
_ORIGINAL_BLOCK = {
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.query": "attention.attention.query",
    "attn.key": "attention.attention.key",
    "attn.value": "attention.attention.value",
}
# transformers 5 -> published
_NEW_BLOCK = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "layernorm_before": "layernorm_before",
    "layernorm_after": "layernorm_after",
}


def unify(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix of DINO's training files and split fused qkv matrices into three (rows q, then k, then v)."""
    unified = {}
    for key, tensor in state.items():
        key = key.removeprefix("backbone.")
        if ".attn.qkv." in key:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                unified[key.replace(".qkv.", f".{part}.")] = rows
        else:
            unified[key] = tensor
    return unified


def official_name(key: str, keys: set[str]) -> str | None:
    """Any known name -> the published one; None for what is not needed (projection head, pooler, an old classifier)."""
    if re.match(r"head\.(mlp|last_layer)", key) or key.startswith(("fc_norm.", "vit.pooler.", "pooler.")):
        return None
    if key.startswith(("embeddings.", "encoder.layer.", "layers.", "layernorm.")):
        key = f"vit.{key}"  # transformers' bare ViTModel
    if match := re.match(r"vit\.layers\.(\d+)\.(.+)\.(weight|bias)$", key):
        return _block(match, _NEW_BLOCK, key)
    if match := re.match(r"blocks\.(\d+)\.(.+)\.(weight|bias)$", key):
        return _block(match, _ORIGINAL_BLOCK, key)
    if key in _ORIGINAL:
        return _ORIGINAL[key]
    stem, _, leaf = key.rpartition(".")
    return f"{_ORIGINAL[stem]}.{leaf}" if stem in _ORIGINAL else key


def _block(match: re.Match[str], table: dict[str, str], key: str) -> str:
    layer, part, leaf = match.groups()
    return f"vit.encoder.layer.{layer}.{table[part]}.{leaf}" if part in table else key


def to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> those of timm and the original code, q, k and v fused again."""
    back = {new: old for old, new in _ORIGINAL.items()}
    blocks = {new: old for old, new in _ORIGINAL_BLOCK.items()}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = re.match(r"vit\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)$", name)
        if match is None:
            stem, _, leaf = name.rpartition(".")
            renamed[back[name] if name in back else f"{back[stem]}.{leaf}"] = tensor
            continue
        layer, part, leaf = match.groups()
        if part.endswith(".query"):
            parts = [state[name.replace(".query.", f".{kind}.")] for kind in ("query", "key", "value")]
            renamed[f"blocks.{layer}.attn.qkv.{leaf}"] = torch.cat(parts)
        elif not part.endswith((".key", ".value")):
            renamed[f"blocks.{layer}.{blocks[part]}.{leaf}"] = tensor
    return renamed


def to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> those of transformers 5."""
    blocks = {new: old for old, new in _NEW_BLOCK.items()}
    renamed = {}
    for name, tensor in state.items():
        match = re.match(r"vit\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)$", name)
        layer, part, leaf = match.groups() if match else ("", "", "")
        renamed[f"vit.layers.{layer}.{blocks[part]}.{leaf}" if match else name] = tensor
    return renamed


def classifier_of(content: object, config: object) -> tuple[nn.Linear, str]:
    """The official linear probe from its file's content, and what to call it.

    Its keys are `module.linear.{weight,bias}` under `state_dict`, [classes, d] or [classes, 2 d].
    """
    content, _ = inner_state(content)
    found = {}
    if isinstance(content, dict):
        found = {key.rpartition(".")[2]: tensor for key, tensor in content.items() if "linear." in key}
    weight, bias = found.get("weight"), found.get("bias")
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor):
        raise InputError(f"{config.head} holds no linear classifier: give DINO's official linear-probe file")
    classes, width = weight.shape
    if classes != config.classes or width not in (config.width, 2 * config.width):
        raise InputError(
            f"{config.head} holds a classifier of shape {tuple(weight.shape)}, but {config.classes} classes over "
            f"{config.width} or {2 * config.width} features are needed: give the file that fits, or put "
            "`model: {head: null}` into the task's configuration for a new classifier"
        )
    head = nn.Linear(width, classes)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head, f"the official linear probe ({config.head})"
