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


TALK = (
    "{% for turn in messages %}{{ turn.role }} {% for part in turn.content %}"
    "{% if part.type == 'image' %}PICTURE {% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
)
PICTURES = {"InternVL": "<IMG_CONTEXT>", "Gemma3": "<image_soft_token>"}
PICTURES |= dict.fromkeys(("Qwen2VL", "Qwen2_5_VL", "Qwen3VL"), "<|image_pad|>")
"""Family -> the token in whose places its images stand, where it is not <image>."""


def _tokenizer(family: str) -> transformers.PreTrainedTokenizerFast:
    """A handful of words and all special tokens that processors ask for."""
    picture = PICTURES.get(family, "<image>")
    special = ["<video>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<start>", "<end>", picture]
    special = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *special]
    plain = ["<pad>", "<s>", "</s>", "<unk>", "a", "red", "blue", "square", "Describe", "the", "image."]
    plain += [f"w{number}" for number in range(IMAGE + 1 - len(plain) - len(special))]
    made = Tokenizer(WordLevel({word: number for number, word in enumerate(plain + special)}, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    named = {"start_image_token": "<start>", "end_image_token": "<end>", "context_image_token": picture}
    named |= {"video_token": "<video>"} if family == "InternVL" else {}
    named |= {"boi_token": "<start>", "eoi_token": "<end>", "image_token": picture} if family == "Gemma3" else {}
    known = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    known |= {"extra_special_tokens": named} if family in ("InternVL", "Gemma3") else {}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, additional_special_tokens=special, **known)


def processor(family: str) -> transformers.ProcessorMixin:
    """A family's own processor, over a handful of words and with images of the small model's size."""
    t, whole, square = transformers, {"height": 32, "width": 32}, {"shortest_edge": 32}
    words = _tokenizer(family)
    of_tower = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    if family == "Llava":
        return t.LlavaProcessor(t.CLIPImageProcessor(size=square, crop_size=whole), words, **of_tower)
    if family == "LlavaOnevision":
        eye = t.LlavaOnevisionImageProcessor(size=whole, image_grid_pinpoints=[[32, 64], [64, 32]])
        video = t.LlavaOnevisionVideoProcessor(size=whole)
        return t.LlavaOnevisionProcessor(eye, words, video, 16, "full", vision_aspect_ratio="anyres_max_9")
    if family.startswith("Qwen"):
        eye = t.Qwen2VLImageProcessor(patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 32 * 32})
        video = (t.Qwen3VLVideoProcessor if family == "Qwen3VL" else t.Qwen2VLVideoProcessor)()
        talk = TALK.replace("PICTURE", "<|image_pad|>")
        return getattr(t, f"{family}Processor")(eye, words, video, chat_template=talk)
    if family == "InternVL":
        eye = t.GotOcr2ImageProcessor(size=whole, crop_to_patches=False)
        return t.InternVLProcessor(eye, words, t.InternVLVideoProcessor(size=whole), image_seq_length=4)
    if family in ("Idefics3", "SmolVLM"):
        sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
        eye = getattr(t, f"{family}ImageProcessor")(**sizes)
        video = [t.SmolVLMVideoProcessor(**sizes)] if family == "SmolVLM" else []
        return getattr(t, f"{family}Processor")(eye, words, *video, image_seq_len=4)
    eye = t.SiglipImageProcessor(size=whole)
    if family == "PaliGemma":
        eye.image_seq_length = 16
        return t.PaliGemmaProcessor(eye, words)
    return t.Gemma3Processor(t.Gemma3ImageProcessor(size=whole), words, image_seq_length=4)


def saved(folder: Path, family: str, shard: str = "20KB", dtype: torch.dtype = torch.bfloat16) -> Path:
    """A folder as from the hub: shards, index, configuration and the processor's files."""
    small(family).to(dtype).save_pretrained(folder, max_shard_size=shard)
    if family != "SmolVLM":  # its processor needs num2words, and is Idefics3's otherwise
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
