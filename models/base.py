"""What a model answers about itself: each question that pruning, training and evaluation ask, with its default.

Nothing outside of models/ looks at a model's name or class; it asks what stands here, and in models/tasks.py for what a
model does for a task. A family overrides the defaults that do not fit it; `models.check` tests the answers.
Letters used in all shapes: b batch, t text tokens, p image tokens (patches + 1), d width, o/i out/in features.
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
    """What a model takes: side and patch of its images in pixels, mean and deviation they are normalised with.

    None stands for CLIP's, which the published tools use for all their models.
    """

    image_size: int
    patch_size: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class Probe(NamedTuple):
    """One pass of a model over made-up inputs: the real shapes, noise for pixels and words.

    what: in words. run(model, batch): the pass, also of a copy of the model.
    """

    what: str
    batch: Batch
    run: Callable[[Any, Batch], object]


@dataclass(frozen=True)
class Origin:
    """What a model was built from: its name, family and settings, for which task, with which vocabulary.

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
    """What happened to each key of the file that filled it; None: the weights are random."""

    origin: Origin | None = None
    """What it was built from, where it was loaded by a name."""

    plan: Plan | None = None
    """What stayed of the model that it was cut from; None: nothing was removed."""

    tokenizer: Any = None
    """The vocabulary's path, or a tokenizer; None: it reads no text."""

    def tie(self) -> None:
        """Make one parameter of names that share a tensor (again, after parameters were replaced). Default: none do."""

    @torch.no_grad()
    def reset(self) -> None:
        """Random weights, from torch's global generator. Default: BERT's initialisation of layers and embeddings."""
        reset_weights(self)

    def loaded(self, fresh: list[str]) -> None:
        """Called once the weights are in. fresh: names that the file lacked and `key_rules` allows it to lack."""

    def rebuilt(self, folder: Path) -> dict[str, Any]:
        """Settings that build it again as it is now, beside those of `origin`, and files in `folder` that do.

        Default: none are needed.
        """
        return {}

    def write_stock(self, folder: Path) -> None:
        """Write it as its own library reads it, with no code of ours, also after units were removed; InputError where
        that has no such shapes. Default: there is no library.
        """
        raise InputError(f"a {type(self).__name__} is no class of Hugging Face: export it as torch, onnx or zeros")

    @property
    def inner(self) -> nn.Module:
        """The module by whose names the state dict goes: the model itself, or what a wrapper holds."""
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
        """Most tokens of a text that it can read. Default: as in `config.text`."""
        return self.config.text.positions

    def example(self, size: int) -> dict[str, Batch]:
        """Made-up batches of `size` samples, one a side, with the real fields and some padding."""
        raise InputError(f"a {type(self).__name__} has no example batch")

    def probe(self, size: int) -> Probe:
        """The pass that the model's task is about, on a batch of `size` made-up samples (evaluation/efficiency.py)."""
        raise InputError(f"a {type(self).__name__} is of no task: leave the task out to measure the pass of pruning")

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
        seen: set[int] = set()  # of a shared tensor the first name counts
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and not any(part in name for part in self.excluded):
                if id(module.weight) not in seen:
                    layers[f"{name}.weight"] = module
                seen.add(id(module.weight))
        return layers

    def parts(self) -> Iterable[Part]:
        """Heads, neurons, channels and layers that can be removed whole, and weights whose can not, with the reason.

        By the names of `inner`; `models.parts` is what to ask. Default: nothing is known.
        """
        return ()

    def layers_removed(self, path: str, kept: Sequence[int]) -> None:
        """Layers were taken out of the list at `path`, all but those of these numbers; called for each list.

        Where the model or its configuration counts them elsewhere, it counts anew. Default: nowhere.
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
        """Prunable parameter -> layer beside it that carries the same mask (a momentum copy). Default: none does."""
        return {}

    def with_fresh(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Masks of the pretraining model, by this one's names -> and of prunable layers that it lacks. Default: none.

        masks: bool, in the shape of each parameter.
        """
        return masks

    streamed: Streamed | None = None
    """What says which weights are in memory, of a model that is never there in one piece; None: all of them are."""

    # -- losses, and what calibration asks --------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses of a batch, all of them. Default: the forward pass."""
        return self(batch)

    def loss(self, batch: Batch) -> Tensor:
        """The scalar that gradient-based pruners differentiate. Default: the sum of `losses`."""
        return torch.stack(list(self.losses(batch).values())).sum()

    def observe(self, batch: Batch) -> None:
        """A forward pass without losses in which every prunable layer is met (MULTIFLOW's pass)."""
        raise InputError(
            f"a {type(self).__name__} has no pass for calibration: prune its pretraining model, or choose a pruner "
            "without data (omp, lamp, ...)"
        )

    first_use_only: bool = False
    """Whether `observe` counts a shared weight's inputs at the module that names it alone. Default: at all uses."""

    def real_tokens(self, name: str, batch: Batch) -> Tensor | None:
        """Which tokens of a layer's input are real in `observe(batch)`: [b, t], 1 real, 0 padding. Default: None, all.

        name: of the parameter, as the module that reads has it, where several share one.
        """
        return None

    def moving_tensors(self) -> Iterable[Tensor]:
        """Tensors that computing a loss changes (queues, momentum copies, running statistics). Default: none."""
        return ()

    follows_state: bool = False
    """Whether the loss of a batch depends on the batches before it, by way of the moving tensors."""

    def pass_by(self, batch: Batch) -> None:
        """What another process's batch does to the moving tensors, for models that follow them. Default: nothing."""

    def training_only(self) -> Iterable[Tensor]:
        """Tensors that losses need and predictions do not: not counted, not shipped. Default: none."""
        return ()

    def clamp_temperature(self) -> None:
        """Keep a learnt temperature in its range; called before each step of pretraining. Default: there is none."""

    def preliminary(self) -> Any:
        """A `calibration.statistics.Statistic` to gather before gradients mean something. Default: None."""
        return None

    def notes(self) -> dict[str, str]:
        """What a result that used the loss must say, for example where a classifier came from. Default: nothing."""
        return {}


def placed(batch: Batch, model: nn.Module) -> Batch:
    """The batch on the model's device, floating-point tensors in the type of its weights (bf16-true, 16-true).

    For evaluations, where no Fabric module does it. What is no tensor (ids of questions and images) stays as it is.
    """
    first = next(model.parameters())

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(first.device, first.dtype if value.is_floating_point() else None)

    return {name: moved(value) for name, value in batch.items()}
