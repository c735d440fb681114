"""Prune any module: `prune(wrap(module, ...), batches, "multiflow")`. The tutorial is docs/add-a-model.md."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from console.errors import InputError
from models.base import Batch, ImageShape, Model
from models.common.gather import Gather, from_first_process, no_gather
from models.layers import PrunableLayer
from models.library.finding import find_layers, short_name, skipped_lines
from models.parts import Part
from models.tasks import Classifier, ImageEmbedder, TextEmbedder, check_labels

Loss = Callable[[nn.Module, Batch], Tensor]
Forward = Callable[[nn.Module, Batch], Any]
Tokens = Callable[[str, Batch], Tensor | None]


def wrap(
    module: nn.Module,
    loss: Loss | None = None,
    forward: Forward | None = None,
    modality: Callable[[str], str] | Mapping[str, str] | None = None,
    exclude: Iterable[str] = (),
    tokens: Tokens | None = None,
    conv: bool = False,
    **more: Any,
) -> WrappedModel:
    """A module as a `models.base.Model`.

    loss(module, batch) -> scalar, for methods with gradients (default: `module(**batch).loss`). forward(module, batch):
    the pass that calls every layer (default: `module(**batch)`). modality: parameter name -> modality, as a function or
    as a mapping of name prefixes (default: all one). exclude: substrings of names that are never pruned (heads).
    tokens(name, batch) -> [b, t], 1 for real tokens of that layer's input, None where all are (default: all). conv:
    also prune nn.Conv2d without groups. more: images, as tokens, 1 for those of images in layers that also read text;
    image_shape, tokenizer, sides and example, for use from the command line and by models.check; parts(module), the
    heads, neurons and channels that can be removed whole (`models.parts`). A module that torch.compile, DataParallel or
    DistributedDataParallel holds is taken out of it: names, and so masks, are those of the plain module. Weights in
    matrices that cannot be pruned are in `skipped`, with the reason. Raises InputError when none is left.
    """
    module = unwrapped(module)
    if not isinstance(module, nn.Module) or isinstance(module, WrappedModel):
        what = "a wrapped module" if isinstance(module, WrappedModel) else repr(module)
        raise InputError(f"wrap takes a torch.nn.Module, not {what}")
    if isinstance(modality, str):
        raise InputError(f"modality must be a function of the parameter's name or a mapping, not '{modality}'")
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    names = [name for name, _ in module.named_modules()] + [short_name(name) for name, _ in module.named_parameters()]
    for part in exclude:
        if not any(part in name for name in names):
            raise InputError(f"exclude: '{part}' is in no name of a module: check its spelling")
    more |= {"loss": loss, "forward": forward, "modality": modality, "tokens": tokens, "conv": conv}
    return WrappedModel(module, exclude=lambda name: any(part in name for part in exclude), **more).with_layers()


class WrappedModel(Model):
    """A model that answers pruners' questions for a wrapped module. Parameter names are those of the module."""

    def __init__(
        self,
        module: nn.Module,
        *,
        loss: Loss | None = None,
        forward: Forward | None = None,
        modality: Callable[[str], str] | Mapping[str, str] | None = None,
        exclude: Callable[[str], bool] = lambda name: False,
        tokens: Tokens | None = None,
        images: Tokens | None = None,
        conv: bool = False,
        sides: tuple[str, ...] = ("general",),
        image_shape: ImageShape | None = None,
        tokenizer: Any = None,
        example: Callable[[int], Batch] | None = None,
        parts: Callable[[nn.Module], Iterable[Part]] = lambda module: (),
        rebuilt: Callable[[WrappedModel, Path], dict[str, Any]] = lambda model, folder: {},
        write_stock: Callable[[WrappedModel, Path], None] | None = None,
    ):
        """As of `wrap`; exclude: whether the weight of a name, without the word weight, is never pruned."""
        super().__init__()
        self.module = module
        self.sides = sides
        self.tokenizer = tokenizer
        self._image_shape = image_shape or ImageShape(0, 1)
        self._loss = loss or own_loss
        self._forward = forward or (lambda module, batch: called_by_name(module, batch, "forward"))
        self._named_modality = modality if callable(modality) else None
        if isinstance(modality, Mapping):
            self.modalities = modality
        self.image_tokens = images
        self._tokens, self._example, self._parts, self._rebuilt = tokens, example, parts, rebuilt
        self._exclude, self._conv, self._write_stock = exclude, conv, write_stock
        self._layers, self.skipped = find_layers(module, exclude, conv)

    def with_layers(self) -> WrappedModel:
        """The model itself; InputError where it has no layer to prune, as one that is only trained may."""
        if not self._layers:
            why = "; ".join(skipped_lines(self.skipped)) or "it has no weights in matrices outside of `exclude`"
            raise InputError(f"{type(self.module).__name__} has no layer to prune: {why}")
        return self

    def in_head(self, name: str) -> bool:
        """Whether a parameter is of an excluded part, which a file for another data set may lack."""
        return self._exclude(name)

    def rebuilt(self, folder: Path) -> dict[str, Any]:
        """By the function given to the wrapper."""
        return self._rebuilt(self, folder)

    def write_stock(self, folder: Path) -> None:
        """By the function given to the wrapper."""
        super().write_stock(folder) if self._write_stock is None else self._write_stock(self, folder)

    @property
    def inner(self) -> nn.Module:
        """The module that is held."""
        return self.module

    @property
    def image_shape(self) -> ImageShape:
        """As given to the wrapper."""
        return self._image_shape

    def forward(self, batch: Batch, gather: Gather = no_gather) -> dict[str, Tensor]:
        """The loss of a batch by name."""
        return {"loss": self.loss(batch)}

    def loss(self, batch: Batch) -> Tensor:
        """The scalar that gradient-based pruners differentiate."""
        with _layers_called():
            value = self._loss(self.module, batch)
        if not isinstance(value, Tensor) or value.dim() != 0:
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise InputError(f"the loss of {type(self.module).__name__} must be a scalar tensor, not {what}")
        return value

    def observe(self, batch: Batch) -> None:
        """The forward pass."""
        # The switches of `_layers_called` are global, and passes of a streamed model run in threads.
        with _layers_called() if self.streamed is None else contextlib.nullcontext():
            self._forward(self.module, batch)

    def prunable_layers(self) -> dict[str, PrunableLayer]:
        """Every linear layer (and convolution, if asked for) that is not excluded, each tied tensor once."""
        return self._layers

    def parts(self) -> Iterable[Part]:
        """By the function given to the wrapper."""
        return self._parts(self.module)

    def layers_removed(self, path: str, kept: Sequence[int]) -> None:
        """Find the layers again: the kept ones have other numbers in their names."""
        self._layers, self.skipped = find_layers(self.module, self._exclude, self._conv)

    def modality_of(self, name: str) -> str:
        """By the function or mapping given to the wrapper."""
        if self._named_modality is None:
            return super().modality_of(name)
        found = self._named_modality(name)
        if not isinstance(found, str):
            raise InputError(f"no modality for '{name}': the function gives {found!r}, not a name")
        return found

    def real_tokens(self, name: str, batch: Batch) -> Tensor | None:
        """By the function that the wrapper was given; None (all) without."""
        return None if self._tokens is None else self._tokens(name, batch)

    def moving_tensors(self) -> Iterator[Tensor]:
        """Every buffer: running statistics and the like."""
        return self.module.buffers()

    def example(self, size: int) -> dict[str, Batch]:
        """Batches of `size` made-up samples a side, for models.check; InputError when the wrapper was given none."""
        if self._example is None:
            raise InputError("this wrapped module has no example batch: add wrap(..., example=...)")
        return {side: self._example(size) for side in self.sides}

    def state_dict(self, *arguments: Any, **keywords: Any) -> dict[str, Tensor]:
        """The module's own names, without the wrapper's prefix."""
        return self.module.state_dict(*arguments, **keywords)

    def load_state_dict(self, *arguments: Any, **keywords: Any) -> Any:
        """The counterpart of `state_dict`."""
        return self.module.load_state_dict(*arguments, **keywords)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """The same where the wrapper is a submodule of the loaded one, as in a run's snapshot."""
        for key in [key for key in state if key.startswith(prefix)]:
            state[f"{prefix}module.{key.removeprefix(prefix)}"] = state.pop(key)
        super()._load_from_state_dict(state, prefix, *rest)


class WrappedClassifier(Classifier, WrappedModel):
    """A wrapped classifier of images, which can be finetuned and tested, too.

    Of several processes the first one's running statistics (batch normalisation) count, as in DistributedDataParallel.
    """

    _trained = False  # since the statistics were last made equal

    def __init__(self, module: nn.Module, logits: Callable[[nn.Module, Tensor], Tensor], **more: Any):
        """logits(module, image [b, 3, H, W]) -> [b, classes]; more: as of `WrappedModel`."""
        options = {"loss": partial(classification_loss, logits), "modality": {"": "vision"}} | more
        super().__init__(module, forward=lambda module, batch: logits(module, batch["image"]), **options)
        self._logits = logits

    def logits(self, image: Tensor) -> Tensor:
        """Class logits [b, classes] of images [b, 3, H, W]."""
        self._share_statistics()
        return self._logits(self.module, image)

    def _share_statistics(self) -> None:
        if self.training:
            from_first_process(self.module.buffers())  # before the pass: its backward pass needs them as they are then
            self._trained = True

    def train(self, mode: bool = True) -> WrappedClassifier:
        """As of any module; all processes call it together once a pass has trained."""
        if self._trained and not mode:
            from_first_process(self.module.buffers())
            self._trained = False
        return super().train(mode)


class WrappedEmbedder(ImageEmbedder, WrappedModel):
    """A wrapped image encoder, whose features can be compared."""

    def __init__(self, module: nn.Module, features: Callable[[nn.Module, Tensor], Tensor], **more: Any):
        """features(module, image [b, 3, H, W]) -> [b, d]; more: as of `WrappedModel`."""
        super().__init__(module, **more)
        self._features = features

    def embed_image(self, image: Tensor) -> Tensor:
        """Features [b, d] of images [b, 3, H, W]."""
        return self._features(self.module, image)


class WrappedTextEmbedder(TextEmbedder, WrappedModel):
    """A wrapped text encoder, whose features can be compared."""

    def __init__(self, module: nn.Module, features: Callable[[nn.Module, Tensor, Tensor], Tensor], **more: Any):
        """features(module, ids [b, t], atts [b, t]) -> [b, d]; more: as of `WrappedModel`."""
        super().__init__(module, **more)
        self._features = features

    @property
    def positions(self) -> int:
        """As its config says."""
        return self.module.config.max_position_embeddings

    def embed_text(self, ids: Tensor, atts: Tensor) -> Tensor:
        """Features [b, d] of texts [b, t]."""
        return self._features(self.module, ids, atts)


def classification_loss(logits: Callable[[nn.Module, Tensor], Tensor], module: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of image [b, 3, H, W] and label [b]; InputError for labels beyond the model's classes."""
    found = logits(module, batch["image"])
    check_labels(batch["label"], found.shape[1])
    return F.cross_entropy(found.float(), batch["label"])


def unwrapped(module: nn.Module) -> nn.Module:
    """The plain module inside torch's wrappers, which call it by another name or run a compiled copy of its code."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(module, nn.Module) and "_orig_mod" in module._modules:  # torch.compile's
            module = module._orig_mod
        else:
            return module


def own_loss(module: nn.Module, batch: Batch) -> Tensor:
    """The loss that a module computes itself, as those of Hugging Face do; InputError where it does not."""
    loss = getattr(called_by_name(module, batch, "loss"), "loss", None)
    if loss is None:
        raise InputError(
            f"the output of {type(module).__name__} has no loss: give wrap(module, loss=...), a function of module and "
            "batch, or batches with what the module's own loss needs"
        )
    return loss


def called_by_name(module: nn.Module, batch: Batch, argument: str, **settings: Any) -> Any:
    """`module(**batch)`; InputError naming the argument of `wrap` that is missing where the fields do not fit.

    Fields that the module does not accept are dropped if they are no tensors (file names, raw texts), one number, or
    one number per sample (ids, labels). A tensor of more axes is kept, and so an error: its name may be misspelt.
    settings: passed on in any case.
    """
    signature = inspect.signature(module.forward)
    asked = signature.parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in asked.values())
    fields = {
        name: value
        for name, value in batch.items()
        if name in asked or (isinstance(value, Tensor) and (takes_any or value.dim() > 1))
    } | settings
    try:
        signature.bind(**fields)
    except TypeError as error:
        raise InputError(
            f"{type(module).__name__} cannot be called with the fields {', '.join(batch)} of a batch ({error}): give "
            f"wrap(module, {argument}=...), a function of module and batch"
        ) from error
    return module(**fields)


@contextlib.contextmanager
def _layers_called() -> Iterator[None]:
    """Make modules call their layers one by one on whole batches, so that inputs can be observed.

    The fused path of nn.TransformerEncoder (without gradients) calls no layer and packs padded batches into nested
    tensors; compiled parts of a module ignore hooks that were added later.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    compiled = "torch._dynamo" in sys.modules  # its import takes a second
    try:
        with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
