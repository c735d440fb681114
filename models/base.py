"""The interface of models: each question that pruning, training and evaluation ask, with its default.

Code outside of models/ does not depend on a model's name or class; it asks these questions, and those of
models/tasks.py for tasks. A family overrides defaults that do not fit; `models.check` tests the answers. Letters used
in all shapes: b batch, t text tokens, p image tokens (patches + 1), d width, o/i out/in features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from console.errors import InputError
from models.common.building import reset_weights
from models.common.checkpoint import KeyRules, LoadReport

if TYPE_CHECKING:
    from models.layers import PrunableLayer
    from models.parts import Part
    from models.plans import Plan
    from models.streaming import Streamed

Batch = dict[str, Tensor]
"""Named tensors of one mini-batch (one side: general or region); names and shapes: docs/data.md."""


@dataclass(frozen=True)
class ImageShape:
    """The images of a model: side and patch in pixels, mean and standard deviation for normalisation.

    None stands for CLIP's, which the published tools use for all their models.
    """

    image_size: int
    patch_size: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class Probe(NamedTuple):
    """A forward pass of a model over synthetic inputs: real shapes, random pixels and words.

    what: its description. run(model, batch): the pass, also of a copy of the model.
    """

    what: str
    batch: Batch
    run: Callable[[Any, Batch], object]


@dataclass(frozen=True)
class Origin:
    """The origin of a model: name, family, settings, task and vocabulary.

    base_sha256: fingerprint of the weights that a smaller model was cut from, where that is known.
    """

    name: str
    family: str
    settings: Mapping[str, Any]
    task: str | None = None
    tokenizer: str | None = None
    base_sha256: str | None = None


class Model(nn.Module):
    """A model that can be loaded, pruned and trained. Its `forward(batch, gather)` gives named scalar losses."""

    # -- how it is built and filled (models/common/building.py) -----------------------------------------

    Config: ClassVar[type]
    """Dataclass of its sizes, which configs/<name>/model.yaml fills; the constructor takes one."""

    config: Any

    tasks: ClassVar[Mapping[str, type[Model]]] = {}
    """Task -> class that the family finetunes and tests for it."""

    key_rules: ClassVar[KeyRules] = KeyRules()
    """How the names in the family's files map to the model's own."""

    layouts: ClassVar[Mapping[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]]] = {}
    """Library -> function from a state dict of this model to that library's names."""

    load_report: LoadReport | None = None
    """What happened to each key of the checkpoint; None: random weights."""

    origin: Origin | None = None
    """Its origin, if it was loaded by name."""

    plan: Plan | None = None
    """The kept parts of the model that it was cut from; None: nothing was removed."""

    tokenizer: Any = None
    """The vocabulary's path, or a tokenizer; None: it reads no text."""

    def tie(self) -> None:
        """Tie the names that share a tensor to one parameter, also after parameters were replaced. Default: none do."""

    @torch.no_grad()
    def reset(self) -> None:
        """Random weights, from torch's global generator. Default: BERT's initialisation of layers and embeddings."""
        reset_weights(self)

    def loaded(self, fresh: list[str]) -> None:
        """Called after loading weights. fresh: names that the file lacked, as `key_rules` allows."""

    def rebuilt(self, folder: Path) -> dict[str, Any]:
        """Settings that rebuild it in its current form, besides those of `origin`; may write files to `folder`.

        Default: none are needed.
        """
        return {}

    def write_stock(self, folder: Path) -> None:
        """Write it in its library's own format, also after units were removed, to be loaded without our code.

        InputError if the library has no such shapes. Default: it belongs to no library.
        """
        raise InputError(f"a {type(self).__name__} is not a Hugging Face model: export it as torch, onnx or zeros")

    @property
    def inner(self) -> nn.Module:
        """The module whose names the state dict has: the model itself, or the wrapped one."""
        return self

    # -- inputs -----------------------------------------------------------------------------------------

    sides: tuple[str, ...] = ("general",)
    """Kinds of batches that calibration steps through together: ("general", "region") or ("general",)."""

    @property
    def image_shape(self) -> ImageShape:
        """Side, patch and normalisation of its images. Default: sizes as in `config.vision`."""
        return ImageShape(self.config.vision.image_size, self.config.vision.patch_size)

    @property
    def positions(self) -> int:
        """The longest text that it can read, in tokens. Default: as in `config.text`."""
        return self.config.text.positions

    def example(self, size: int) -> dict[str, Batch]:
        """Synthetic batches of `size` samples, one per side, with the real fields and some padding."""
        raise InputError(f"a {type(self).__name__} has no example batch")

    def probe(self, size: int) -> Probe:
        """The forward pass of the model's task, on a batch of `size` synthetic samples (evaluation/efficiency)."""
        raise InputError(f"a {type(self).__name__} has no task: leave the task out to measure the calibration pass")

    # -- what can be pruned -----------------------------------------------------------------------------

    excluded: tuple[str, ...] = ()
    """Parts that are never pruned (heads, momentum copies), as substrings of module names."""

    skipped: Sequence[Any] = ()
    """Weights in matrices that cannot be pruned, with the reason (`models.library.finding.Skipped`)."""

    def prunable_layers(self) -> dict[str, PrunableLayer]:
        """Parameter name (`....weight`) -> its layer, in the state dict's order, each tied tensor once.

        Layers are those of models/layers.py. Default: every linear layer outside of `excluded`.
        """
        layers: dict[str, PrunableLayer] = {}
        seen: set[int] = set()  # the first name of a shared tensor counts
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and not any(part in name for part in self.excluded):
                if id(module.weight) not in seen:
                    layers[f"{name}.weight"] = module
                seen.add(id(module.weight))
        return layers

    def parts(self) -> Iterable[Part]:
        """Heads, neurons, channels and layers that can be removed, and the weights whose units cannot, with reasons.

        Names are those of `inner`; use it through `models.parts`. Default: none.
        """
        return ()

    def layers_removed(self, path: str, kept: Sequence[int]) -> None:
        """Called for each list `path` from which layers were removed; these numbers were kept.

        Update other counts of layers in the model or its configuration. Default: there are none.
        """

    modalities: ClassVar[Mapping[str, str]] = {"": "all"}
    """Prefix of parameter names -> modality; the first that fits counts."""

    def modality_of(self, name: str) -> str:
        """Modality of a prunable parameter, `vision`, `text`, `fusion`, ...: MULTIFLOW's prior works within one."""
        for prefix, modality in self.modalities.items():
            if name.startswith(prefix):
                return modality
        raise InputError(f"no modality for '{name}': the mapping knows the prefixes {', '.join(self.modalities)}")

    def followers(self) -> dict[str, nn.Module]:
        """Prunable parameter -> layer that has the same mask (a momentum copy). Default: none."""
        return {}

    def with_fresh(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add masks of prunable layers that the pretraining model lacks. Default: none.

        masks: bool, in the shape of each parameter.
        """
        return masks

    streamed: Streamed | None = None
    """Which weights are in memory, of a model larger than that (`--stream`); None: all of them."""

    # -- losses, and what calibration asks --------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses of a batch, all of them. Default: the forward pass."""
        return self(batch)

    def loss(self, batch: Batch) -> Tensor:
        """The scalar that gradient-based pruners differentiate. Default: the sum of `losses`."""
        return torch.stack(list(self.losses(batch).values())).sum()

    def observe(self, batch: Batch) -> None:
        """A forward pass without losses that calls every prunable layer (MULTIFLOW's pass)."""
        raise InputError(
            f"a {type(self).__name__} has no calibration pass: prune its pretraining model, or choose a pruner "
            "without data (omp, lamp, ...)"
        )

    first_use_only: bool = False
    """Whether a shared weight is observed only at the module that names it. Default: at all uses."""

    def real_tokens(self, name: str, batch: Batch) -> Tensor | None:
        """Which tokens of a layer's input are real in `observe(batch)`: [b, t], 1 real, 0 padding. Default: None, all.

        name: of the parameter in the module that reads the input, if several share it.
        """
        return None

    image_tokens: Callable[[str, Batch], Tensor | None] | None = None
    """Like `real_tokens`: which tokens are of images, [b, t], in layers that read text and images as one sequence.

    It returns None for a layer that reads one kind only; it is None where all do.
    """

    mixed_blocks: Mapping[str, nn.Module] = {}
    """By name, the blocks that read text and images as one sequence [b, t, d], one after the other."""

    def last_attention(self, block: nn.Module, run: Callable[[], object], real: Tensor) -> Tensor:
        """How much the last token of each sequence attends to each token, in one of these blocks [b, t].

        The mean over heads. run: calls the block. real [b, t]: which tokens are no padding.
        """
        raise NotImplementedError

    def moving_tensors(self) -> Iterable[Tensor]:
        """Tensors that computing a loss changes (queues, momentum copies, running statistics). Default: none."""
        return ()

    follows_state: bool = False
    """Whether the loss of a batch depends on earlier batches, through the moving tensors."""

    def pass_by(self, batch: Batch) -> None:
        """Update the moving tensors for another process's batch, if `follows_state`. Default: nothing."""

    def training_only(self) -> Iterable[Tensor]:
        """Tensors for losses but not for predictions, which are not counted or exported. Default: none."""
        return ()

    def clamp_temperature(self) -> None:
        """Clamp a learnt temperature to its range; called before each step of pretraining. Default: there is none."""

    def preliminary(self) -> Any:
        """A `calibration.statistics.Statistic` to compute before gradients are meaningful. Default: None."""
        return None

    def notes(self) -> dict[str, str]:
        """Notes for results that used the loss, for example the source of a classifier. Default: none."""
        return {}


def placed(batch: Batch, model: nn.Module) -> Batch:
    """The batch on the model's device, floating-point tensors in the type of its weights (bf16-true, 16-true).

    For evaluations, which use no Fabric module. Values other than tensors (ids) are unchanged.
    """
    first = next(model.parameters())

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(first.device, first.dtype if value.is_floating_point() else None)

    return {name: moved(value) for name, value in batch.items()}
