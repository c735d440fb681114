"""Today's generative vision-language models with random weights, small enough for tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn

WORDS = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS |= {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
SEES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWER = SEES | {"image_size": 32, "patch_size": 8}
IMAGE = 98


def _llava() -> transformers.PretrainedConfig:
    eye, words = transformers.CLIPVisionConfig(**TOWER), transformers.LlamaConfig(**WORDS)
    return transformers.LlavaConfig(vision_config=eye, text_config=words, image_token_index=IMAGE)


def _onevision() -> transformers.PretrainedConfig:
    eye, words = transformers.SiglipVisionConfig(**TOWER), transformers.Qwen2Config(**WORDS)
    return transformers.LlavaOnevisionConfig(
        vision_config=eye, text_config=words, image_token_index=IMAGE, image_grid_pinpoints=[[32, 64], [64, 32]]
    )


def _qwen(kind: str, **sees: object) -> transformers.PretrainedConfig:
    rope = ROPE | {"mrope_section": [2, 1, 1]} | ({"mrope_interleaved": True} if kind == "Qwen3VL" else {})
    words = WORDS | {"rope_parameters": rope}
    ids = {"image_token_id": IMAGE, "video_token_id": 97, "vision_start_token_id": 96, "vision_end_token_id": 95}
    return getattr(transformers, f"{kind}Config")(text_config=words, vision_config=sees, **ids)


def _qwen2() -> transformers.PretrainedConfig:
    return _qwen("Qwen2VL", depth=2, embed_dim=16, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=8)


def _qwen25() -> transformers.PretrainedConfig:
    sees = SEES | {"out_hidden_size": 32, "patch_size": 8, "window_size": 32, "fullatt_block_indexes": [1]}
    sees |= {"depth": sees.pop("num_hidden_layers"), "num_heads": sees.pop("num_attention_heads")}
    return _qwen("Qwen2_5_VL", **sees)


def _qwen3() -> transformers.PretrainedConfig:
    sees = SEES | {"out_hidden_size": 32, "patch_size": 8, "deepstack_visual_indexes": [0, 1]}
    sees |= {"depth": sees.pop("num_hidden_layers"), "num_heads": sees.pop("num_attention_heads")}
    return _qwen("Qwen3VL", num_position_embeddings=16, **sees)


def _internvl() -> transformers.PretrainedConfig:
    eye = transformers.InternVLVisionConfig(**(TOWER | {"image_size": [32, 32], "patch_size": [8, 8]}))
    words = transformers.Qwen2Config(**WORDS)
    return transformers.InternVLConfig(vision_config=eye, text_config=words, image_token_id=IMAGE, image_seq_length=4)


def _idefics3(kind: str = "Idefics3") -> transformers.PretrainedConfig:
    eye = getattr(transformers, f"{kind}VisionConfig")(**TOWER)
    words = transformers.LlamaConfig(**WORDS)
    made = getattr(transformers, f"{kind}Config")
    return made(vision_config=eye, text_config=words, image_token_id=IMAGE, scale_factor=2, pad_token_id=0)


def _smolvlm() -> transformers.PretrainedConfig:
    return _idefics3("SmolVLM")


def _paligemma() -> transformers.PretrainedConfig:
    eye, words = TOWER | {"vision_use_head": False, "projection_dim": 32}, WORDS | {"model_type": "gemma"}
    return transformers.PaliGemmaConfig(
        vision_config=eye, text_config=words, image_token_index=IMAGE, projection_dim=32, hidden_size=32
    )


def _gemma3() -> transformers.PretrainedConfig:
    words = WORDS | {
        "num_hidden_layers": 3,
        "sliding_window": 8,
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
    }
    return transformers.Gemma3Config(
        vision_config=TOWER | {"vision_use_head": False},
        text_config=words,
        image_token_index=IMAGE,
        mm_tokens_per_image=4,
    )


CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "Llava": _llava,
    "LlavaOnevision": _onevision,
    "Qwen2VL": _qwen2,
    "Qwen2_5_VL": _qwen25,
    "Qwen3VL": _qwen3,
    "InternVL": _internvl,
    "Idefics3": _idefics3,
    "SmolVLM": _smolvlm,
    "PaliGemma": _paligemma,
    "Gemma3": _gemma3,
}


def small(family: str) -> nn.Module:
    """A model of a family, by the start of its class's name, with weights from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, f"{family}ForConditionalGeneration")(CONFIGS[family]()).eval()


def processor(family: str) -> transformers.ProcessorMixin:
    """A processor of Llava or Qwen2VL over a handful of words."""
    picture = {"Llava": "<image>", "Qwen2VL": "<|image_pad|>"}[family]
    others = ["<pad>", "<s>", "</s>", "<unk>", "a", "red", "blue", "square", "Describe", "the", "image"]
    words = {word: number for number, word in enumerate(others)}
    words |= {f"w{number}": number for number in range(len(words), IMAGE - 1)}
    words |= {"<|video_pad|>": IMAGE - 1, picture: IMAGE}
    made = Tokenizer(WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, additional_special_tokens=["<|video_pad|>", picture], **special
    )
    if family == "Llava":
        eye = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        return transformers.LlavaProcessor(
            eye, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
        )
    eye = transformers.Qwen2VLImageProcessor(patch_size=8, min_pixels=16 * 16, max_pixels=32 * 32)
    talk = (
        "{% for turn in messages %}{{ turn.role }} {% for part in turn.content %}"
        "{% if part.type == 'image' %}<|image_pad|> {% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    )
    video = transformers.Qwen2VLVideoProcessor()
    return transformers.Qwen2VLProcessor(eye, tokenizer, video, chat_template=talk)


def saved(folder: Path, family: str, shard: str = "20KB", dtype: torch.dtype = torch.bfloat16) -> Path:
    """A folder as from the hub: shards, index, configuration and, for Llava and Qwen2VL, the processor's files."""
    small(family).to(dtype).save_pretrained(folder, max_shard_size=shard)
    if family in ("Llava", "Qwen2VL"):
        processor(family).save_pretrained(folder)
    return folder


def pairs(folder: Path, count: int = 6) -> Path:
    """An annotation file of pictures of one colour, next to them."""
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (40, 32), (40 * number, 90, 250 - 40 * number)).save(folder / f"{number}.png")
    records = [{"image": f"{n}.png", "caption": "a red square" if n % 2 else "blue"} for n in range(count)]
    (folder / "pairs.json").write_text(json.dumps(records))
    return folder / "pairs.json"
