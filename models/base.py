"""What a model answers about itself: the Protocol between models and pruners.

Pruners and scripts never look at a model's name or class; they ask these questions.
Letters used in all shapes: b batch, t text tokens, p image tokens (patches + 1), d width, o/i out/in features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

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


@runtime_checkable
class PrunableModel(Protocol):
    """An nn.Module that pruners can work with. `models.check` tests an implementation."""

    sides: tuple[str, ...]
    """Kinds of batches that calibration steps through together: ("general", "region") or ("general",)."""

    stateful: bool
    """Whether the loss of a batch changes the loss of the next (queues, momentum); then `pass_by` is there too."""

    image_shape: ImageShape

    def prunable_layers(self) -> dict[str, nn.Module]:
        """Parameter name (`....weight`) -> its layer, in the state dict's order, each tied tensor once.

        Layers are those of models/layers.py.
        """
        ...

    def modality_of(self, name: str) -> str:
        """Modality of a prunable parameter: `vision`, `text`, `fusion`, ... (MULTIFLOW's prior works within one)."""
        ...

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses of pretraining on a batch, all of them."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """The scalar that gradient-based pruners differentiate: a sum of some of `losses`."""
        ...

    def observe(self, batch: Batch) -> None:
        """A forward pass without losses in which every prunable layer is met (MULTIFLOW's pass).

        Statistics are sums over all uses of a weight. With a true attribute `first_use_only` those by the
        module under whose name the weight goes count alone.
        """
        ...

    def real_tokens(self, name: str, batch: Batch) -> Tensor | None:
        """Which tokens of the layer's input are real in `observe(batch)`: [b, t], 1 real, 0 padding; None: all.

        name: of the parameter, as the module that reads has it, where several share one.
        """
        ...

    def example(self, size: int) -> dict[str, Batch]:
        """Made-up batches of `size` samples, one a side, with the real fields and some padding."""
        ...

    def moving_tensors(self) -> Iterable[Tensor]:
        """Tensors that computing a loss changes (temperature clamp, queues, momentum copies)."""
        ...
