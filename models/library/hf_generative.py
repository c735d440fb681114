"""Records of Hugging Face's generative vision-language models: images become tokens between the words of a text.

Batches have the fields that the model's own processor gives (input_ids, attention_mask, pixel_values, and what else a
class reads). A new class is a record here and a line in `models.library.hf_classes`.
    python prune.py --model hf:<folder> --config configs/hf/prune_generative.yaml
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from console.errors import InputError
from models.base import Batch, ImageShape
from models.library.hf_classes import HFClass
from models.library.hf_processor import HFProcessor
from models.tasks import LanguageModel
from models.wrap import WrappedModel, called_by_name, own_loss

PADDING, TEXT, IMAGE = 0, 1, 2
"""Kinds of tokens in a sequence."""


class Generative(HFClass):
    """An image tower, a projector, and a language model that reads both. Its loss is that of the text's tokens."""

    exclude = ("lm_head", "vision_tower.head")
    vision: tuple[str, ...] = ("model.vision_tower.",)
    projector: tuple[str, ...] = ("model.multi_modal_projector.",)
    text = ("model.language_model.",)
    blocks = ("model.vision_tower.encoder.layers", "model.language_model.layers")
    smaller = False  # whether images may be smaller than the table of positions
    type_field, type_one = "", IMAGE
    """The batch's field of token types, if the class reads one; and the kind of token that is 1 in it."""

    @classmethod
    def kinds(cls, config: Any, batch: Batch) -> Tensor:
        """PADDING, TEXT or IMAGE of each token [b, t] of the language model."""
        return torch.where(batch["input_ids"] == _image_token(config), IMAGE, TEXT) * batch["attention_mask"]

    @classmethod
    def labels(cls, config: Any, batch: Batch) -> Tensor:
        """Labels [b, t]: the processor's own where it makes them, else the text's tokens; -100 elsewhere."""
        ids = batch["input_ids"]
        return batch["labels"] if "labels" in batch else ids.masked_fill(cls.kinds(config, batch) != TEXT, -100)

    @classmethod
    def loss(cls, module: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of the next token, of texts alone."""
        cls.check_size(module.config, batch)
        return own_loss(module, batch | {"labels": cls.labels(module.config, batch)})

    @classmethod
    def forward(cls, module: nn.Module, batch: Batch, keep: int | Tensor = 1) -> Any:
        """A forward pass that calls every layer. keep: positions [k] at which the head, which is never pruned, is
        called; by default the last one.
        """
        cls.check_size(module.config, batch)
        asked = {name: value for name, value in batch.items() if name != "labels"}
        return called_by_name(module, asked, "forward", use_cache=False, logits_to_keep=keep)

    @classmethod
    def check_size(cls, config: Any, batch: Batch) -> None:
        """InputError for images of another size than the tower's table of positions, where it has one."""
        side = getattr(config.vision_config, "image_size", None)
        images = batch.get("pixel_values")
        if side is None or images is None or images.dim() < 4:  # Qwen's are rows of patches
            return
        sides, given = (side, side) if isinstance(side, int) else tuple(side), tuple(images.shape[-2:])
        if any(a > b if cls.smaller else a != b for a, b in zip(given, sides, strict=True)):
            raise InputError(
                f"the processor makes images of {given[0]}x{given[1]} pixels, and the model has positions for "
                f"{sides[0]}x{sides[1]}: take the model's own processor files, or set their size"
            )

    @classmethod
    def seen(cls, config: Any, name: str, batch: Batch) -> Tensor | None:
        """Which tokens of a layer's input count: those of the language model that are no padding."""
        return batch["attention_mask"] if name.startswith(cls.text) else None

    @classmethod
    def images(cls, config: Any, name: str, batch: Batch) -> Tensor | None:
        """Which tokens of a layer's input are of images; None where all are, in the tower and the projector."""
        return cls.kinds(config, batch) == IMAGE if name.startswith(cls.text) else None

    @classmethod
    def wrapped(cls, module: nn.Module, tokenizer: Any, **options: Any) -> WrappedModel:
        """A model of three modalities."""
        options |= {"loss": cls.loss, "forward": cls.forward, "tokens": partial(cls.seen, module.config)}
        options["images"] = partial(cls.images, module.config)
        parts = (("projector", cls.projector), ("vision", cls.vision), ("language", cls.text))  # mergers lie in towers
        options["modality"] = {prefix: modality for modality, prefixes in parts for prefix in prefixes}
        return GenerativeModel(cls, module, tokenizer=tokenizer, **options)

    @classmethod
    def reads(cls, reference: str, config: Any) -> HFProcessor | None:
        """The model's own processor, which makes batches; None where the folder has none."""
        return HFProcessor.load(reference, cls.inputs)

    @classmethod
    def inputs(cls, processor: Any, images: list[Any], texts: list[str]) -> Batch:
        """The processor's inputs for images with a text each, as question and answer where it has a chat template."""
        if processor.chat_template is None:
            prompts = [f"{processor.image_token}{text}" for text in texts]
        else:
            prompts = processor.apply_chat_template([_chat(text) for text in texts])
        return processor(images=[[image] for image in images], text=prompts, padding=True, return_tensors="pt")

    @classmethod
    def pictures(cls, config: Any, size: int) -> Batch:
        """Noise images under the names of the class's arguments, one a sample."""
        side = config.vision_config.image_size
        height, width = (side, side) if isinstance(side, int) else side
        return {"pixel_values": torch.randn(size, 3, height, width)}

    @classmethod
    def example(cls, module: nn.Module, shape: ImageShape, size: int) -> Batch:
        """Noise images, as many image tokens as the class needs, then random words and padding."""
        config, device = module.config, next(module.parameters()).device
        batch = cls.pictures(config, size)
        with torch.no_grad():
            on_device = {name: value.to(device) for name, value in batch.items()}
            found = module.model.get_image_features(**on_device).pooler_output
        features = [found] if isinstance(found, Tensor) else list(found)
        places = sum(one.numel() // one.shape[-1] for one in features) // size
        words = torch.randint(5, 90, (size, 12))
        atts = torch.arange(12) < torch.randint(4, 13, (size, 1))
        before = torch.full((size, places), _image_token(config))
        ids = torch.cat([before, words * atts], dim=1)
        batch |= {"input_ids": ids, "attention_mask": torch.cat([torch.ones_like(before), atts.long()], dim=1)}
        return batch | ({cls.type_field: (cls.kinds(config, batch) == cls.type_one).long()} if cls.type_field else {})


class GenerativeModel(LanguageModel, WrappedModel):
    """A wrapped model of one of these classes."""

    def __init__(self, record: type[Generative], module: nn.Module, **options: Any):
        """record: of the class; options: as of `WrappedModel`."""
        super().__init__(module, **options)
        self._record = record

    @property
    def head(self) -> nn.Module:
        """The class's own."""
        return self.module.get_output_embeddings()

    def next_tokens(self, batch: Batch) -> Tensor:
        """The tokens of the loss."""
        return F.pad(self._record.labels(self.module.config, batch)[:, 1:], (0, 1), value=-100)

    def read(self, batch: Batch, positions: Tensor) -> None:
        """The calibration's forward pass."""
        self._record.forward(self.module, batch, positions)

    @property
    def mixed_blocks(self) -> Mapping[str, nn.Module]:
        """Those of the language model."""
        rows = [path for path in self._record.blocks if path.startswith(self._record.text)]
        return {f"{path}.{n}": block for path in rows for n, block in enumerate(self.module.get_submodule(path))}

    def last_attention(self, block: nn.Module, run: Callable[[], object], real: Tensor) -> Tensor:
        """Found where transformers chooses the function that attends: it gets queries and keys as they are compared."""
        configs = {id(c): c for part in block.modules() if hasattr(c := getattr(part, "config", None), ATTENTION)}
        before = {key: getattr(config, ATTENTION) for key, config in configs.items()}
        try:
            for config in configs.values():
                setattr(config, ATTENTION, LAST)
            run()
        except _Attends as found:
            return found.last_row(real)
        finally:
            for key, config in configs.items():
                setattr(config, ATTENTION, before[key])
        raise InputError(
            f"the attention of {type(block).__name__} cannot be seen, which --tokens amia asks for: use atv"
        )


ATTENTION, LAST = "_attn_implementation", "last_row"


class _Attends(BaseException):
    """Raised to end a pass, with a block's queries [b, h, t, d] and keys [b, g, t, d]; h / g heads share their keys."""

    def __init__(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None):
        super().__init__()
        self._query, self._key, self._mask, self._scaling = query, key, mask, scaling

    def last_row(self, real: Tensor) -> Tensor:
        """The mean over heads of the last token's attention to each token [b, t]. real [b, t]: no padding."""
        places = torch.arange(real.shape[1], device=real.device)
        last = torch.where(real, places, 0).argmax(dim=1)
        rows = torch.arange(len(real), device=real.device)
        query, heads = self._query[rows, :, last].float(), self._query.shape[1] // self._key.shape[1]
        key = self._key.float().repeat_interleave(heads, dim=1)
        scale = query.shape[-1] ** -0.5 if self._scaling is None else self._scaling
        scores = torch.einsum("bhd,bhtd->bht", query, key) * scale
        seen = (real & (places <= last[:, None]))[:, None] if self._mask is None else self._of(rows, last)
        scores = scores.masked_fill(~seen, -torch.inf) if seen.dtype == torch.bool else scores + seen
        return scores.softmax(dim=-1).mean(dim=1)

    def _of(self, rows: Tensor, last: Tensor) -> Tensor:
        """The mask [b, 1 or h, t] at the last tokens: true where they may look, or what is added to scores."""
        assert self._mask is not None
        return self._mask.expand(len(rows), -1, -1, -1)[rows, :, last]


def _attends(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    raise _Attends(query, key, mask, scaling)


AttentionInterface.register(LAST, _attends)


def _image_token(config: Any) -> int:
    """Id of the token that stands for images; older configs call it an index."""
    found = getattr(config, "image_token_id", None)
    return config.image_token_index if found is None else found


def _chat(text: str) -> list[dict[str, Any]]:
    """A chat about an image, with the text as the answer."""
    asked = [{"type": "image"}, {"type": "text", "text": "Describe the image."}]
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": [{"type": "text", "text": text}]}]


class Llava(Generative):
    """LLaVA: layers of its CLIP tower after the one that is read have no effect."""

    @classmethod
    def dense(cls, module: nn.Module) -> tuple[str, ...]:
        """Those layers, too."""
        config = module.config
        read = config.vision_feature_layer
        read, count = read if isinstance(read, list) else [read], config.vision_config.num_hidden_layers
        last = max(layer if layer >= 0 else count + 1 + layer for layer in read)
        return cls.exclude + tuple(f"vision_tower.encoder.layers.{layer}." for layer in range(last, count))


class LlavaOnevision(Generative):
    """LLaVA-OneVision: an image in tiles of one size, and the whole of it as one more."""

    @classmethod
    def pictures(cls, config: Any, size: int) -> Batch:
        """The whole of each and a row of two tiles."""
        side = config.vision_config.image_size
        sizes = torch.tensor([[side, 2 * side]] * size)
        return {"pixel_values": torch.randn(size, 3, 3, side, side), "image_sizes": sizes}


class Qwen(Generative):
    """Qwen2-VL and those after it: images of any shape, as one long row of patches."""

    vision = ("model.visual.",)
    projector = ("model.visual.merger.", "model.visual.deepstack_merger_list.")
    blocks = ("model.visual.blocks", "model.language_model.layers")
    type_field = "mm_token_type_ids"

    @classmethod
    def pictures(cls, config: Any, size: int) -> Batch:
        """Patches [p, c t s s] of images of 4 x 4 patches, and their grids."""
        vision = config.vision_config
        channels = getattr(vision, "in_channels", 3)
        width = channels * vision.temporal_patch_size * vision.patch_size**2
        return {"pixel_values": torch.randn(16 * size, width), "image_grid_thw": torch.tensor([[1, 4, 4]] * size)}


class InternVL(Generative):
    """InternVL, the class of transformers."""

    blocks = ("model.vision_tower.encoder.layer", "model.language_model.layers")


class Idefics3(Generative):
    """Idefics3 and SmolVLM: an image in tiles, which may be padded."""

    smaller = True
    vision = ("model.vision_model.",)
    projector = ("model.connector.",)
    text = ("model.text_model.",)
    blocks = ("model.vision_model.encoder.layers", "model.text_model.layers")

    @classmethod
    def pictures(cls, config: Any, size: int) -> Batch:
        """A tile each."""
        side = config.vision_config.image_size
        return {"pixel_values": torch.randn(size, 1, 3, side, side)}

    @classmethod
    def seen(cls, config: Any, name: str, batch: Batch) -> Tensor | None:
        """Text tokens without padding; in the tower, patches with a pixel of the image."""
        if not name.startswith(cls.vision) or "pixel_attention_mask" not in batch:
            return super().seen(config, name, batch)
        tiles, side = batch["pixel_values"].flatten(0, 1), config.vision_config.patch_size
        there = batch["pixel_attention_mask"].flatten(0, 1)[(tiles != 0).flatten(1).any(dim=1)]  # others are left out
        return there.unfold(1, side, side).unfold(2, side, side).sum(dim=(-1, -2)).gt(0).flatten(1).long()


class PaliGemma(Generative):
    """PaliGemma: attention is bidirectional over image and prompt, causal over the answer."""

    type_field, type_one = "token_type_ids", TEXT

    @classmethod
    def inputs(cls, processor: Any, images: list[Any], texts: list[str]) -> Batch:
        """The text is the suffix; the prompt is the image alone."""
        prompts = [processor.image_token] * len(texts)
        return processor(images=images, text=prompts, suffix=texts, padding=True, return_tensors="pt")


class Gemma3(Generative):
    """Gemma 3: attention is bidirectional within an image."""

    type_field = "token_type_ids"
