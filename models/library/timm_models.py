"""Any timm model as a thing to prune: `--model timm:vit_small_patch16_224`, calibrated on labelled images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from torch import nn

from console.errors import InputError, in_a_line, nearest
from console.words import counted
from models import check_task, weights_path
from models.base import Batch, ImageShape
from models.common.checkpoint import KeyRules, LoadReport, load_state, read_state, unwrap
from models.library.hub import hub_or_cache
from models.library.timm_parts import timm_parts
from models.tasks import ImageEmbedder
from models.wrap import WrappedClassifier

TASKS = ("image_classification",)

PREFERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which timm's training files keep the weights to use."""

Filter = Callable[[dict[str, torch.Tensor], nn.Module], dict[str, torch.Tensor]]


def load_timm(
    name: str, weights: str | Path | None, settings: dict[str, Any], task: str | None = None, seed: int = 0
) -> TimmClassifier:
    """A timm classifier, wrapped; fused qkv matrices stay fused, the classifier is not pruned.

    weights: a checkpoint, "random" (drawn from `seed`), or None for timm's own pretrained weights (from its cache or
    the network). settings: keyword arguments of timm.create_model, for example {"img_size": 64, "num_classes": 10}.
    Keys of our own: `conv`, whether convolutions are pruned; `prune_head`, whether the classifier is; `classes`, an
    alias of num_classes; `in_order`, as of `named_by_order`. task: for image_classification the weights may have a
    classifier of other classes, or none; then it is drawn from `seed`.
    Without a task the model has the classes that the checkpoint has, or no classifier where it has none.
    """
    if not timm.is_model(name):
        raise InputError(f"timm has no model '{name}'{nearest(name, timm.list_models())}")
    if task is not None:
        check_task(f"timm:{name}", task, TASKS)
    settings = dict(settings)
    own = {"conv": settings.pop("conv", False), "head": settings.pop("prune_head", False)}
    in_order = settings.pop("in_order", False)
    if "classes" in settings:
        settings["num_classes"] = settings.pop("classes")
    checkpoint = weights_path(f"timm:{name}", weights, None)
    if checkpoint is not None:
        module, convert = _with_filter(name, settings, seed)
        rules = key_rules(module, another_classifier=task is not None)
        state, report = read_state(checkpoint, rules)
        own_classes = task is None and "num_classes" not in settings
        report = _fill(module, state, named_by_order if in_order else convert, rules, report, own_classes)
        model = wrap_timm(module, settings.get("img_size"), **own)
        model.load_report = report
        return model if task else model.with_layers()
    pretrained = weights is None
    with hub_or_cache() if pretrained else contextlib.nullcontext():
        way_out = "give a file with --weights, or --weights random" if pretrained else "check the settings"
        module = _built(name, pretrained, settings, seed, way_out)
    model = wrap_timm(module, settings.get("img_size"), **own)
    if pretrained:
        about = module.pretrained_cfg
        source = f"timm's weights {about.get('hf_hub_id') or about.get('url') or name}"
        fresh = about.get("num_classes") != module.num_classes
        names = [key for key in module.state_dict() if fresh and in_classifier(module, key)]
        model.load_report = LoadReport(source, loaded=len(module.state_dict()) - len(names), fresh=names)
    return model if task else model.with_layers()


def in_classifier(module: nn.Module, name: str) -> bool:
    """Whether a parameter or module of a timm model belongs to its classifier."""
    heads = (module.pretrained_cfg or {}).get("classifier") or ()
    return any(f"{name}.".startswith(f"{head}.") for head in ((heads,) if isinstance(heads, str) else heads))


def key_rules(module: nn.Module, another_classifier: bool) -> KeyRules:
    """How timm's files are read. another_classifier: whether theirs may be missing or of other classes."""
    if not another_classifier:
        return KeyRules(prefers=PREFERS)
    heads = tuple(name for name in module.state_dict() if in_classifier(module, name))
    return KeyRules(prefers=PREFERS, fresh=heads.__contains__, skip_resized=heads)


def _built(
    name: str, pretrained: bool, settings: dict[str, Any], seed: int, way_out: str = "check the settings"
) -> nn.Module:
    """A model as timm makes it; InputError with a way out where it cannot."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return timm.create_model(name, pretrained=pretrained, **settings)
    except (AssertionError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"timm cannot build '{name}' ({in_a_line(error)}): {way_out}") from error


def _with_filter(name: str, settings: dict[str, Any], seed: int) -> tuple[nn.Module, Filter | None]:
    """A model with random weights, and timm's filter function for checkpoints of its kind (None: it has none).

    timm passes that function to `load_pretrained` and exposes it nowhere else. So the call is replaced here, and no
    file is fetched or loaded.
    """
    filters: list[Filter | None] = []

    def taken_over(model: nn.Module, *arguments: Any, filter_fn: Filter | None = None, **keywords: Any) -> None:
        filters.append(filter_fn)

    with mock.patch.object(timm.models._builder, "load_pretrained", taken_over):
        module = _built(name, True, settings, seed)
    return module, filters[-1] if filters else None  # a model's backbone may be built before it


def _fill(
    module: nn.Module,
    state: dict[str, torch.Tensor],
    convert: Filter | None,
    rules: KeyRules,
    report: LoadReport,
    own_classes: bool,
) -> LoadReport:
    """Load a file of timm's names, or of those that timm knows for this model, and say what happened to its keys.

    own_classes: whether the module takes on as many classes as the file has.
    """
    wanted = module.state_dict()
    state = unwrap(state, rules, wanted, report)
    fits = state.keys() == wanted.keys() and all(state[name].shape == wanted[name].shape for name in state)
    converted = state if fits or convert is None else _converted(module, state, convert)
    if converted is not state:
        _account(state, converted, report)
    if own_classes:
        head = next((name for name in wanted if name.endswith(".weight") and in_classifier(module, name)), None)
        classes = len(converted[head]) if head in converted else 0
        if head is not None and classes != module.num_classes:
            module.reset_classifier(classes)
    return load_state(module, converted, rules, report)


def _converted(module: nn.Module, state: dict[str, torch.Tensor], convert: Filter) -> dict[str, torch.Tensor]:
    """The file's tensors as the model needs them, by timm's own rules; as they are where those do not fit them.

    What does not fit then is refused when it is loaded, by its shape in the file.
    """
    wanted = module.state_dict()
    try:
        converted = convert(dict(state), module)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return state  # of another model
    return {
        name: state.get(name, tensor) if name in wanted and tensor.shape != wanted[name].shape else tensor
        for name, tensor in converted.items()
    }


def named_by_order(state: dict[str, torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a file that another port of the model wrote, under this module's names, by their order.

    Of each pair the last part of the name (weight, bias, running_mean, ...) and the shape must be the same; InputError
    naming the first that is not.
    """
    wanted = module.state_dict()
    if len(state) != len(wanted):
        raise InputError(
            f"in_order: the file has {counted(len(state), 'tensor')}, and the model {len(wanted)}: leave in_order out, "
            "or give the file of this model"
        )
    for (key, tensor), (name, own) in zip(state.items(), wanted.items(), strict=True):
        if key.rpartition(".")[2] != name.rpartition(".")[2] or tensor.shape != own.shape:
            raise InputError(
                f"in_order: '{key}' {tuple(tensor.shape)} is where the model has '{name}' {tuple(own.shape)}: leave "
                "in_order out, or give the file of this model"
            )
    return dict(zip(wanted, state.values(), strict=True))


def _account(state: dict[str, torch.Tensor], converted: dict[str, torch.Tensor], report: LoadReport) -> None:
    """Note in the report what a conversion did to each key: tensors that it did not touch are the same memory."""
    old = {_memory(tensor): key for key, tensor in reversed(state.items())}
    used = set()
    for name, tensor in converted.items():
        source = name if name in state else old.get(_memory(tensor))
        if source is None:
            report.resized[name] = "composed by timm of dropped tensors"
            continue
        used.add(source)
        if source != name:
            report.renamed[source] = name
        if tensor.shape != state[source].shape:
            report.resized[name] = f"{tuple(state[source].shape)} -> {tuple(tensor.shape)}, by timm"
        elif _memory(tensor) != _memory(state[source]):
            report.resized[name] = f"{tuple(tensor.shape)}, changed by timm"
    report.dropped += [key for key in state if key not in used]


def _memory(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()


class TimmClassifier(WrappedClassifier, ImageEmbedder):
    """A timm model, wrapped."""

    def embed_image(self, image: torch.Tensor) -> torch.Tensor:
        """What the classifier reads [b, d] of images [b, 3, H, W]."""
        return self.module.forward_head(self.module.forward_features(image), pre_logits=True)


def wrap_timm(module: nn.Module, side: int | None = None, conv: bool = False, head: bool = False) -> TimmClassifier:
    """A model made by timm.create_model, wrapped. side: of its images, where it was made for another than usual.

    conv, head: whether convolutions, and the classifier, are pruned.
    """
    about = module.pretrained_cfg or {}
    for part in module.modules():
        if hasattr(part, "qkv_bias_separate"):
            part.qkv_bias_separate = True  # BEiT, EVA, Swin v2 else use the layer's weight without calling the layer
    patches = getattr(module, "patch_embed", None)
    side = _first(getattr(patches, "img_size", None) or side or (about.get("input_size") or (224,))[-1])
    patch = _first(getattr(patches, "patch_size", None) or 1)
    classes = module.num_classes

    def example(size: int) -> Batch:
        return {"image": torch.randn(size, 3, side, side), "label": torch.randint(0, max(1, classes), (size,))}

    return TimmClassifier(
        module,
        logits=lambda module, image: module(image),
        exclude=(lambda name: False) if head else partial(in_classifier, module),
        conv=conv,
        image_shape=ImageShape(side, patch, tuple(about.get("mean", ())) or None, tuple(about.get("std", ())) or None),
        example=example,
        parts=timm_parts,
        rebuilt=lambda model, folder: {"num_classes": model.module.num_classes},
        **({} if classes else {"loss": no_loss}),
    )


def no_loss(module: nn.Module, batch: Batch) -> torch.Tensor:
    """Of a model without a classifier: InputError."""
    raise InputError(
        f"this {type(module).__name__} has no classifier, so there is no loss to differentiate: choose a pruner "
        "without gradients (multiflow, wanda, lamp, ...) or weights with a classifier"
    )


def _first(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]
