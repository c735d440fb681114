"""DINO's ViT-B/16 as an image classifier, with separate q, k and v matrices as MULTIFLOW prunes it.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021.
    python prune.py --model dino --pruner multiflow
The blocks are our own few lines because the names of published masks (transformers 4.31) are part of the format,
and libraries have renamed or fused these layers since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.registry import Registry
from models.base import Batch, ImageShape, Model
from models.common import examples
from models.common.checkpoint import KeyRules
from models.common.sizes import Stack
from models.dino.head_fit import HeadFit
from models.dino.keys import classifier_of, official_name, to_timm, to_transformers, unify
from models.library.parts import rows_of, units_of
from models.parts import Part
from models.tasks import Classifier, ImageEncoder, check_labels
from storage.tensors import read_tensors

FITTED = "fitted on the calibration features (linear discriminant analysis)"


@dataclass(frozen=True)
class DINOConfig(Stack):
    """Sizes of a DINO."""

    image_size: int  # pixels
    patch_size: int  # pixels
    classes: int  # outputs of the classifier
    eps: float = 1e-12  # of layer norms: 1e-12 as in transformers; the original code has 1e-6
    head: str | None = None  # file with the official linear classifier; None: fit one before gradients are taken
    pooled: bool = False  # whether the classifier also reads the mean patch state, as some official ones do

    @property
    def tokens(self) -> int:
        """Image tokens p: patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


class SelfAttention(nn.Module):
    """Multi-head self-attention: `attention.{query,key,value}` and `output.dense`."""

    def __init__(self, width: int, heads: int, head_width: int):
        super().__init__()
        self.head_width, inside = head_width, heads * head_width
        self.attention = nn.ModuleDict({name: nn.Linear(width, inside) for name in ("query", "key", "value")})
        self.output = nn.ModuleDict({"dense": nn.Linear(inside, width)})

    def forward(self, x: Tensor) -> Tensor:
        """x [b, p, d] -> [b, p, d]."""
        q, k, v = (
            self.attention[name](x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.output["dense"](mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-LN transformer block with exact GELU."""

    def __init__(self, config: DINOConfig, number: int):
        """number: of the layer, from 0."""
        super().__init__()
        d, (heads, head_width, mlp) = config.width, config.layer(number)
        self.attention = SelfAttention(d, heads, head_width)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(d, mlp)})
        self.output = nn.ModuleDict({"dense": nn.Linear(mlp, d)})
        self.layernorm_before = nn.LayerNorm(d, eps=config.eps)
        self.layernorm_after = nn.LayerNorm(d, eps=config.eps)

    def forward(self, x: Tensor) -> Tensor:
        """x [b, p, d] -> [b, p, d]."""
        x = x + self.attention(self.layernorm_before(x))
        return x + self.output["dense"](F.gelu(self.intermediate["dense"](self.layernorm_after(x))))


class Embeddings(nn.Module):
    """Patches, class token and positions."""

    def __init__(self, config: DINOConfig):
        super().__init__()
        d = config.width
        self.cls_token = nn.Parameter(torch.empty(1, 1, d))
        self.position_embeddings = nn.Parameter(torch.empty(1, config.tokens, d))
        self.patch_embeddings = nn.Module()
        self.patch_embeddings.projection = nn.Conv2d(3, d, config.patch_size, stride=config.patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """image [b, 3, H, W] -> [b, p, d]; positions are interpolated for another size (DINO's small crops)."""
        patches = self.patch_embeddings.projection(image)
        b, d, rows, columns = patches.shape
        positions = self.position_embeddings
        side = round((positions.shape[1] - 1) ** 0.5)
        if (rows, columns) != (side, side):
            grid = positions[:, 1:].reshape(1, side, side, d).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
            positions = torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
        x = torch.cat([self.cls_token.expand(b, -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        return x + positions


class ViT(nn.Module):
    """The backbone: pixels to layer-normalised states of all tokens."""

    def __init__(self, config: DINOConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(Block(config, number) for number in range(config.layers))
        self.layernorm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, image: Tensor) -> Tensor:
        """image [b, 3, H, W] -> [b, p, d]."""
        x = self.embeddings(image)
        for block in self.encoder.layer:
            x = block(x)
        return self.layernorm(x)


class DINO(Classifier, ImageEncoder):
    """Backbone and linear classifier. State dict names are those of transformers 4.31, as in published masks."""

    Config = DINOConfig
    tasks: ClassVar[Registry[type[Model]]] = Registry(
        "task of DINO", {"image_classification": "models.dino.model:DINO"}
    )
    excluded = ("classifier",)
    modalities: ClassVar[Mapping[str, str]] = {"": "vision"}
    layouts: ClassVar[Mapping[str, Any]] = {"timm": to_timm, "transformers": to_transformers}
    key_rules = KeyRules(
        official_name,
        positions=("vit.embeddings.position_embeddings",),
        skip_resized=("classifier.weight", "classifier.bias"),  # of another data set
        fresh=lambda name: name.startswith("classifier."),
        prepare=unify,
        prefers=("teacher", "student", "state_dict", "model"),
    )

    def __init__(self, config: DINOConfig):
        super().__init__()
        self.config = config
        self.vit = ViT(config)
        self.classifier = nn.Linear((1 + config.pooled) * config.width, config.classes)
        self.classifier_origin: str | None = None  # source of the classifier; None: there is none yet

    @torch.no_grad()
    def reset(self) -> None:
        """Random weights (from torch's global generator)."""
        super().reset()
        self.vit.embeddings.cls_token.normal_(std=0.02)
        self.vit.embeddings.position_embeddings.normal_(std=0.02)

    @torch.no_grad()
    def loaded(self, fresh: list[str]) -> None:
        """Load the official head if one is named; else `preliminary` fits a missing one."""
        if self.config.head is not None:
            self.classifier, self.classifier_origin = classifier_of(read_tensors(self.config.head), self.config)
        elif fresh:
            self.classifier = nn.Linear(self.classifier.in_features, self.config.classes)
            nn.init.zeros_(self.classifier.weight)
            nn.init.zeros_(self.classifier.bias)
        else:
            self.classifier_origin = "the checkpoint's own" if self.load_report else "random, as all weights"

    def rebuilt(self, folder: Path) -> dict[str, Any]:
        """Settings of the present classifier, which needs no file of its own any more."""
        return {"head": None, "classes": len(self.classifier.weight), "pooled": self.pools}

    @property
    def pools(self) -> bool:
        """Whether the classifier reads the mean patch state, too."""
        return self.classifier.in_features == 2 * self.config.width

    @property
    def image_shape(self) -> ImageShape:
        """Side and patch of the images."""
        return ImageShape(self.config.image_size, self.config.patch_size)

    @property
    def vision_width(self) -> int:
        """Width d of the image states."""
        return self.config.width

    def vision_tower(self) -> nn.Module:
        """The module from pixels [b, 3, H, W] to states of all image tokens [b, p, d]."""
        return self.vit

    def features(self, image: Tensor) -> Tensor:
        """What the classifier reads, [b, d]; the official head reads [b, 2 d]: CLS state and mean patch state."""
        states = self.vit(image)
        if self.pools:
            return torch.cat([states[:, 0], states[:, 1:].mean(dim=1)], dim=1)
        return states[:, 0]

    def logits(self, image: Tensor) -> Tensor:
        """Class logits [b, classes]."""
        return self.classifier(self.features(image))

    def parts(self) -> Iterator[Part]:
        """Heads and hidden neurons of every block, and the blocks."""
        for number, block in enumerate(self.vit.encoder.layer):
            at, width = f"vit.encoder.layer.{number}", block.attention.head_width
            feeds = [f"{at}.attention.attention.{name}" for name in ("query", "key", "value")]
            yield units_of(
                self, f"{at}.attention", "heads", feeds=feeds, reads=f"{at}.attention.output.dense", block=width
            )
            name = f"{at}.intermediate"
            yield units_of(self, name, "neurons", feeds=[f"{name}.dense"], reads=f"{at}.output.dense")
        yield from rows_of(self, lambda part: isinstance(part, Block))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The loss of `forward`; InputError for labels beyond the classes."""
        check_labels(batch["label"], len(self.classifier.weight))
        return self(batch)

    def observe(self, batch: Batch) -> None:
        """One ordinary forward pass; all tokens count."""
        self.vit(batch["image"])

    def example(self, size: int) -> dict[str, Batch]:
        """Noise images with random labels."""
        labels = torch.randint(0, self.config.classes, (size,))
        return {"general": examples.images(size, self.config.image_size) | {"label": labels}}

    def notes(self) -> dict[str, str]:
        """The source of the classifier, for results that used the loss."""
        return {"classifier": self.classifier_origin or FITTED}

    def preliminary(self) -> HeadFit | None:
        """The fit of the classifier, without which gradients are meaningless; None where there is a classifier."""
        return None if self.classifier_origin is not None else HeadFit(self.features, self.classifier)
