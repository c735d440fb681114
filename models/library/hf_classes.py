"""Records of Hugging Face's classes: the loss, the modalities, and the layers that read text.

Batches have the toolkit's own fields (image, text_ids, text_atts, label). A record is a class without instances:
`models.library.hf_models` hands its attributes and static methods to the wrapper.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.registry import Registry
from models.base import Batch, ImageShape
from models.common.contrastive import matching_loss, pairs_loss, same_image_targets
from models.library.hf_tokenizer import HFTokenizer
from models.library.pairs import WrappedPairs
from models.wrap import WrappedClassifier, WrappedEmbedder, WrappedModel, WrappedTextEmbedder

HALF = (0.5, 0.5, 0.5)

VIEWS_TEMPERATURE = 0.07
"""Of the similarities of two views, as of Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020."""


class HFClass:
    """The record of a class with two towers, and the defaults of all."""

    sees: bool = True
    """Whether it reads images."""

    labelled: bool = False
    """Whether its loss is about labels."""

    exclude: tuple[str, ...] = ()
    """Parts of names that are never pruned."""

    head: str = ""
    """The one of `exclude` that can be pruned on request: an image classifier's last layer."""

    text: tuple[str, ...] = ("text_model.",)
    """Prefixes of parameters whose layers read text tokens."""

    lead: int = 0
    """Rows of its position table that no token uses: RoBERTa starts after the padding id."""

    padded: bool = True
    """Whether padding is masked; SigLIP reads it like any other token."""

    normalised: tuple[float, ...] | None = None
    """Mean and standard deviation of images, without a preprocessor; None: CLIP's."""

    apart: bool = False
    """Whether it has two separate towers, whose features `image` and `text_features` return."""

    max_logit_scale: float | None = None
    """Largest logit_scale (a logarithm) of classes with two towers; None: any."""

    blocks: tuple[str, ...] = ()
    """Paths of the lists of blocks, in the order in which a pass calls them; none: it is not for `--stream`."""

    @classmethod
    def dense(cls, module: nn.Module) -> tuple[str, ...]:
        """Parts of names that are never pruned in this module. Default: `exclude`."""
        return cls.exclude

    @classmethod
    def reads(cls, reference: str, config: Any) -> Any:
        """The tokenizer (or processor) of a folder or hub id; None where it has none."""
        if not cls.text:
            return None
        words = cls.words(config)
        return HFTokenizer.load(reference, words.max_position_embeddings - cls.lead, words.vocab_size, not cls.padded)

    @staticmethod
    def words(config: Any) -> Any:
        """The config of the text tower; the model's own if it reads texts alone."""
        return getattr(config, "text_config", config)

    @classmethod
    def example(cls, module: nn.Module, shape: ImageShape, size: int) -> Batch:
        """A batch of `size` samples of what the class reads: noise images, labels, random words."""
        batch: Batch = {}
        if cls.sees:
            batch["image"] = torch.randn(size, 3, shape.image_size, shape.image_size)
        if cls.labelled:
            batch["label"] = torch.randint(0, module.config.num_labels, (size,))
        if cls.text:
            text = cls.words(module.config)
            t = min(12, text.max_position_embeddings - cls.lead)
            length = torch.randint(3, t, (size, 1)) if cls.padded else torch.full((size, 1), t)
            atts = (torch.arange(t) < length).long()
            ids = torch.where(atts > 0, torch.randint(3, text.vocab_size - 3, (size, t)), text.pad_token_id or 0)
            end = getattr(text, "eos_token_id", None)
            if end is not None and end < text.vocab_size:
                ids.scatter_(1, length - 1, end)  # CLIP reads its text feature at the end mark
            batch |= {"text_ids": ids, "text_atts": atts}
        return batch

    @staticmethod
    def pixels(module: nn.Module, image: Tensor) -> dict[str, Tensor]:
        """Images [b, 3, H, W] under the names of the class's arguments."""
        return {"pixel_values": image}

    @classmethod
    def arguments(cls, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """A batch under the names of the class's arguments."""
        image = cls.pixels(module, batch["image"]) if cls.sees else {}
        atts = {"attention_mask": batch["text_atts"]} if cls.text and cls.padded else {}
        return image | ({"input_ids": batch["text_ids"]} if cls.text else {}) | atts

    @classmethod
    def image(cls, module: nn.Module, image: Tensor) -> Tensor:
        """Features [b, e] of images [b, 3, H, W], of classes whose towers are apart."""
        return module.get_image_features(**cls.pixels(module, image)).pooler_output

    @classmethod
    def text_features(cls, module: nn.Module, ids: Tensor, atts: Tensor) -> Tensor:
        """Features [b, e] of texts [b, t], of the same."""
        seen = {"attention_mask": atts} if cls.padded else {}
        return module.get_text_features(input_ids=ids, **seen).pooler_output

    @staticmethod
    def contrast(module: nn.Module, similarity: Tensor, targets: Tensor) -> Tensor:
        """Loss of scaled similarities [b, b] of images and texts; targets: which belong together, rows sum to 1."""
        return pairs_loss(similarity, targets)

    @classmethod
    def loss(cls, module: nn.Module, batch: Batch) -> Tensor:
        """The scalar that pruners differentiate. Default: the module's own contrastive loss."""
        return module(**cls.arguments(module, batch), return_loss=True).loss

    @classmethod
    def forward(cls, module: nn.Module, batch: Batch) -> Any:
        """A forward pass that calls every layer."""
        return module(**cls.arguments(module, batch))

    @classmethod
    def tokens(cls, name: str, batch: Batch) -> Tensor | None:
        """Which tokens of a layer's input are words, [b, t]; None where all count, or where it reads images."""
        reads_image = ".crossattention." in name and (".key." in name or ".value." in name)
        return batch["text_atts"] if cls.padded and name.startswith(cls.text) and not reads_image else None

    @classmethod
    def wrapped(cls, module: nn.Module, tokenizer: Any, **options: Any) -> WrappedModel:
        """The module wrapped; options: of `WrappedModel`, but for what the record says."""
        options |= {"loss": cls.loss, "forward": cls.forward, "tokens": cls.tokens, "tokenizer": tokenizer}
        options["modality"] = dict.fromkeys(cls.text, "text") | ({"": "vision"} if cls.sees else {})
        if not cls.sees:
            return WrappedTextEmbedder(module, cls.text_features, **options)
        return WrappedPairs(module, cls, **options) if cls.apart else WrappedModel(module, **options)


class CLIP(HFClass):
    """Contrastive loss over a batch."""

    exclude = ("visual_projection", "text_projection")
    apart = True
    max_logit_scale = math.log(100)


class SigLIP(HFClass):
    """Sigmoid loss; its text tower was trained on padding, which no mask hides."""

    exclude = ("text_model.head",)
    padded = False
    apart = True
    normalised = HALF

    @staticmethod
    def contrast(module: nn.Module, similarity: Tensor, targets: Tensor) -> Tensor:
        """Sigmoid loss: each pair by itself, matching or not (Zhai et al., ICCV 2023)."""
        signs = 2 * (targets > 0).to(similarity.dtype) - 1
        return -F.logsigmoid(signs * (similarity + module.logit_bias)).sum(dim=1).mean()


class SigLIP2(SigLIP):
    """SigLIP over patches of images of any shape, here of squares; its fixed-size checkpoints are SiglipModel."""

    @staticmethod
    def pixels(module: nn.Module, image: Tensor) -> dict[str, Tensor]:
        """Images [b, 3, H, W] cut into patches [b, p, s s 3], each from the top left, colours innermost."""
        side = getattr(module.config, "vision_config", module.config).patch_size
        patches = F.unfold(image, side, stride=side)  # [b, 3 s s, p], colours outermost
        patches = patches.unflatten(1, (3, side * side)).permute(0, 3, 2, 1).flatten(2)
        grid = torch.tensor([[image.shape[2] // side, image.shape[3] // side]], device=image.device)
        seen = torch.ones(patches.shape[:2], dtype=torch.long, device=image.device)
        return {"pixel_values": patches, "pixel_attention_mask": seen, "spatial_shapes": grid.expand(len(image), 2)}


class DualEncoder(CLIP):
    """Any image tower and any text tower; what comes after their states, poolers too, belongs to the projections."""

    exclude = ("visual_projection", "text_projection", "pooler")


class BLIPRetrieval(HFClass):
    """ITC over the batch, and ITM with the neighbour's image as the wrong one (transformers offers no loss)."""

    exclude = ("vision_proj", "text_proj", "itm_head", "pooler")
    text = ("text_encoder.",)

    @classmethod
    def loss(cls, module: nn.Module, batch: Batch) -> Tensor:
        """The sum of both."""
        named = cls.arguments(module, batch)
        similarity = module(**named, use_itm_head=False).itm_score / 0.07
        target = torch.arange(len(similarity), device=similarity.device)
        contrastive = (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.t(), target)) / 2
        right = module(**named).itm_score
        wrong = module(**(named | {"pixel_values": named["pixel_values"].roll(1, dims=0)})).itm_score
        return contrastive + matching_loss(torch.cat([right, wrong]), pairs=len(right))


class ImageClassifier(HFClass):
    """Any `...ForImageClassification`: cross-entropy over its logits."""

    exclude = ("classifier", "pooler")
    head = "classifier"
    text = ()
    labelled = True

    @classmethod
    def logits(cls, module: nn.Module, image: Tensor) -> Tensor:
        """Class logits [b, classes]."""
        return module(**cls.pixels(module, image)).logits

    @classmethod
    def wrapped(cls, module: nn.Module, tokenizer: Any, **options: Any) -> WrappedModel:
        """A classifier, which can be finetuned."""
        return WrappedClassifier(module, cls.logits, **options)


class HalvedClassifier(ImageClassifier):
    """A classifier whose images are normalised to [-1, 1]."""

    normalised = HALF


class SigLIP2Classifier(HalvedClassifier):
    """A classifier of images cut into patches."""

    pixels = SigLIP2.pixels


class ImageTower(HFClass):
    """An image encoder without a head. Positives are an image and its mirror image, or images of one class.

    The states of the class token are its features, which `evaluation.zero_shot` compares, too.
    """

    exclude = ("pooler",)
    text = ()
    labelled = True

    @classmethod
    def image(cls, module: nn.Module, image: Tensor) -> Tensor:
        """Features [b, d] of images [b, 3, H, W]."""
        return module(**cls.pixels(module, image)).last_hidden_state[:, 0]

    @classmethod
    def loss(cls, module: nn.Module, batch: Batch) -> Tensor:
        """Of two views of image [b, 3, H, W]; positives share a label [b] int64, where there is one."""
        image = batch["image"]
        alike = batch.get("label", torch.arange(len(image), device=image.device))
        return views_loss(cls.image(module, image), cls.image(module, image.flip(-1)), alike)

    @classmethod
    def wrapped(cls, module: nn.Module, tokenizer: Any, **options: Any) -> WrappedModel:
        """A model whose images have neighbours."""
        options |= {"loss": cls.loss, "forward": cls.forward, "modality": {"": "vision"}}
        return WrappedEmbedder(module, cls.image, **options)


class TextTower(HFClass):
    """A text encoder without a head. Positives are the two halves of a text, every other word.

    After Gao et al., "SimCSE", EMNLP 2021; hidden words need no randomness, unlike dropout. Features are mean states.
    """

    sees = False
    exclude = ("pooler",)
    text = ("",)

    @classmethod
    def text_features(cls, module: nn.Module, ids: Tensor, atts: Tensor) -> Tensor:
        """Features [b, d] of texts [b, t]."""
        states = module(input_ids=ids, attention_mask=atts).last_hidden_state
        return (states * atts[:, :, None]).sum(dim=1) / atts.sum(dim=1, keepdim=True).clamp(min=1)

    @classmethod
    def loss(cls, module: nn.Module, batch: Batch) -> Tensor:
        """Contrastive loss of text_ids, text_atts [b, t]; the first token, a start mark, is in both halves."""
        ids, atts = batch["text_ids"], batch["text_atts"]
        place = torch.arange(ids.shape[1], device=ids.device)
        halves = [atts * ((place % 2 == odd) | (place == 0)) for odd in (0, 1)]
        alike = torch.unique(ids * atts, dim=0, return_inverse=True)[1]  # a caption may come twice
        return views_loss(*(cls.text_features(module, ids, half) for half in halves), alike)


class RobertaTower(TextTower):
    """A text encoder whose positions start at 2, after the padding id."""

    lead = 2


def views_loss(one: Tensor, other: Tensor, alike: Tensor) -> Tensor:
    """Contrastive loss of features [b, e] of two views. alike [b] int64: equal numbers are positives."""
    similarity = F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).t() / VIEWS_TEMPERATURE
    return pairs_loss(similarity, same_image_targets(alike))


GENERATIVE = dict.fromkeys(("Qwen2VL", "Qwen2_5_VL", "Qwen3VL"), "Qwen") | {"SmolVLM": "Idefics3"}
GENERATIVE |= {own: own for own in ("Llava", "LlavaOnevision", "InternVL", "Idefics3", "PaliGemma", "Gemma3")}
"""Name of a generative model's class, without its ending -> its record."""

HF_CLASSES: Registry[type[HFClass]] = Registry(
    "class",
    {
        "CLIPModel": "models.library.hf_classes:CLIP",
        "SiglipModel": "models.library.hf_classes:SigLIP",
        "Siglip2Model": "models.library.hf_classes:SigLIP2",
        "VisionTextDualEncoderModel": "models.library.hf_classes:DualEncoder",
        "BlipForImageTextRetrieval": "models.library.hf_classes:BLIPRetrieval",
        "Dinov2Model": "models.library.hf_classes:ImageTower",
        "Dinov2WithRegistersModel": "models.library.hf_classes:ImageTower",
        "DINOv3ViTModel": "models.library.hf_classes:ImageTower",
        "BertModel": "models.library.hf_classes:TextTower",
        "DistilBertModel": "models.library.hf_classes:TextTower",
        "RobertaModel": "models.library.hf_classes:RobertaTower",
        "ViTForImageClassification": "models.library.hf_classes:HalvedClassifier",
        "SiglipForImageClassification": "models.library.hf_classes:HalvedClassifier",
        "Siglip2ForImageClassification": "models.library.hf_classes:SigLIP2Classifier",
        **{
            f"{name}ForConditionalGeneration": f"models.library.hf_generative:{own}" for name, own in GENERATIVE.items()
        },
    },
)
"""Class name (the first of `architectures` in config.json) -> its record. A new one is a line here and a class."""

CLASSIFIER = "ForImageClassification"
"""Ending of the names of all classes that `ImageClassifier` describes, in HF_CLASSES or not."""


def record_of(name: str) -> type[HFClass] | None:
    """The record of a class; None where the toolkit has none."""
    return HF_CLASSES[name] if name in HF_CLASSES else ImageClassifier if name.endswith(CLASSIFIER) else None
