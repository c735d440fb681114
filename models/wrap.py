"""Prune any module: `prune(wrap(module, ...), batches, "multiflow")`. The tutorial is docs/add-a-model.md."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from console.errors import InputError
from models.base import Batch, ImageShape
from models.library.finding import find_layers, spoken, told_skipped

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
    """A module as a `models.base.PrunableModel`.

    loss(module, batch) -> scalar, for methods with gradients (default: `module(**batch).loss`). forward(module,
    batch): the pass in which every layer is met once (default: `module(**batch)`). modality: parameter name ->
    modality, as a function or as a mapping of name prefixes (default: all one). exclude: substrings of names that
    are never pruned (heads). tokens(name, batch) -> [b, t], 1 for real tokens of that layer's input, None where all
    are (default: all). conv: also prune nn.Conv2d without groups.
    more: image_shape, tokenizer, sides and example, for use from the command line and by models.check.
    A module that torch.compile, DataParallel or DistributedDataParallel holds is taken out of it: names, and so masks,
    are those of the plain module. Weights in matrices that cannot be pruned are in `skipped`, with the reason. Raises
    InputError when none is left.
    """
    module = unwrapped(module)
    if not isinstance(module, nn.Module) or isinstance(module, WrappedModel):
        what = "a wrapped module" if isinstance(module, WrappedModel) else repr(module)
        raise InputError(f"wrap takes a torch.nn.Module, not {what}")
    if isinstance(modality, str):
        raise InputError(f"modality must be a function of the parameter's name or a mapping, not '{modality}'")
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    names = [name for name, _ in module.named_modules()] + [spoken(name) for name, _ in module.named_parameters()]
    for part in exclude:
        if not any(part in name for name in names):
            raise InputError(f"exclude: '{part}' is in no name of a module: check its spelling")
    return WrappedModel(module, loss, forward, modality, exclude, tokens, conv, **more)


class WrappedModel(nn.Module):
    """Answers pruners' questions for a module it holds. Parameter names are those of the module itself."""

    stateful = False

    def __init__(
        self,
        module: nn.Module,
        loss: Loss | None,
        forward: Forward | None,
        modality: Callable[[str], str] | Mapping[str, str] | None,
        exclude: tuple[str, ...],
        tokens: Tokens | None,
        conv: bool,
        sides: tuple[str, ...] = ("general",),
        image_shape: ImageShape | None = None,
        tokenizer: Any = None,
        example: Callable[[int], Batch] | None = None,
    ):
        super().__init__()
        self.module = module
        self.sides = sides
        self.image_shape = image_shape or ImageShape(0, 1)
        self.tokenizer = tokenizer
        self.load_report = None
        self._loss = loss or own_loss
        self._forward = forward or (lambda module, batch: called_by_name(module, batch, "forward"))
        self._modality, self._tokens, self._example = modality, tokens, example
        self._layers, self.skipped = find_layers(module, exclude, conv)
        if not self._layers:
            why = "; ".join(told_skipped(self.skipped)) or "it has no weights in matrices"
            raise InputError(
                f"{type(module).__name__} has no layer to prune: {why}{' (after `exclude`)' * bool(exclude)}"
            )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The named losses of a batch."""
        return {"loss": self.loss(batch)}

    losses = forward

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
        with _layers_called():
            self._forward(self.module, batch)

    def prunable_layers(self) -> dict[str, nn.Module]:
        """Every linear layer (and convolution, if asked for) that is not excluded, each tied tensor once."""
        return self._layers

    def modality_of(self, name: str) -> str:
        """As the wrapper was told; `all` without."""
        if self._modality is None:
            return "all"
        if callable(self._modality):
            found = self._modality(name)
            if not isinstance(found, str):
                raise InputError(f"no modality for '{name}': the function gives {found!r}, not a name")
            return found
        for prefix, modality in self._modality.items():
            if name.startswith(prefix):
                return modality
        raise InputError(f"no modality for '{name}': the mapping knows the prefixes {', '.join(self._modality)}")

    def real_tokens(self, name: str, batch: Batch) -> Tensor | None:
        """As the wrapper was told; None (all) without."""
        return None if self._tokens is None else self._tokens(name, batch)

    def moving_tensors(self) -> Iterator[Tensor]:
        """Every buffer: running statistics and the like."""
        return self.module.buffers()

    def example(self, size: int) -> dict[str, Batch]:
        """Batches of `size` made-up samples a side, for models.check; InputError when the wrapper was given none."""
        if self._example is None:
            raise InputError("this wrapped module has no example batch: give wrap(..., example=...)")
        return {side: self._example(size) for side in self.sides}

    def state_dict(self, *arguments: Any, **keywords: Any) -> dict[str, Tensor]:
        """The module's own names, without the wrapper's prefix."""
        return self.module.state_dict(*arguments, **keywords)

    def load_state_dict(self, *arguments: Any, **keywords: Any) -> Any:
        """The counterpart of `state_dict`."""
        return self.module.load_state_dict(*arguments, **keywords)


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


def called_by_name(module: nn.Module, batch: Batch, argument: str) -> Any:
    """`module(**batch)`; InputError naming the argument of `wrap` that is missing where the fields do not fit.

    Fields that are no tensors (ids, file names, raw texts) are left out where the module does not ask for them.
    """
    signature = inspect.signature(module.forward)
    asked = signature.parameters
    fields = {name: value for name, value in batch.items() if isinstance(value, Tensor) or name in asked}
    try:
        signature.bind(**fields)
    except TypeError as error:
        raise InputError(
            f"{type(module).__name__} cannot be called with the fields {', '.join(fields)} of a batch ({error}): give "
            f"wrap(module, {argument}=...), a function of module and batch"
        ) from error
    return module(**fields)


@contextlib.contextmanager
def _layers_called() -> Iterator[None]:
    """Have layers called one by one on whole batches, so that what they read can be seen.

    The fused path of nn.TransformerEncoder, taken without gradients, calls none of them and packs padded batches into
    nested tensors; compiled parts of a module run code in which hooks made later do not exist.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    compiled = "torch._dynamo" in sys.modules  # its import takes a second
    try:
        with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
