"""The contrastive loss of a whole effective batch that does not fit into one forward pass.

As GradCache (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021):
first compute the features of all micro-batches without a graph, then each micro-batch with a graph, its own features
replacing the collected ones. The gradient with respect to a feature is that of the large batch, and so is the gradient
of the weights, summed over micro-batches and processes.
    python retrieval.py --model xvlm-mini --dense --gather_negatives
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.common.gather import Gather, of_all_processes, place


class StepFeatures:
    """Features of all pairs of an optimizer step: collected first, then used by each micro-batch in turn."""

    def __init__(self) -> None:
        self._columns: list[list[Tensor]] = []
        """For each kind of tensor, those of all micro-batches, in the order of passes and then ranks."""
        self._handed = 0

    def collect(self, *tensors: Tensor) -> None:
        """Add this process's next micro-batch: tensors [b, ...], stored without a graph; same b everywhere."""
        if self._handed or not self._columns:  # another step begins
            self._columns, self._handed = [[] for _ in tensors], 0
        for parts, tensor in zip(self._columns, tensors, strict=True):
            parts += of_all_processes(tensor)

    def gather(self) -> Gather:
        """A function for the losses of this process's next micro-batch: its tensor [b, ...] -> all n, [n b, ...].

        It must be called once per tensor of `collect`, in the same order. The micro-batch's own part has a graph, and
        its gradient is multiplied by n, since means over passes and processes divide it by n later. Shared parameters
        (the temperature) have their full gradient in each micro-batch, so for them the mean is exact without a factor.
        RuntimeError when more is requested than was collected.
        """
        rank, world = place()
        own = self._handed * world + rank
        if not self._columns or own >= len(self._columns[0]):
            raise RuntimeError("features are requested of a micro-batch that was not rehearsed")
        self._handed += 1
        columns = iter(self._columns)

        def gather(tensor: Tensor) -> Tensor:
            parts = [*next(columns)]
            if tensor.requires_grad:
                tensor = tensor.view_as(tensor)  # the tensor has other uses, whose gradients must not be scaled
                tensor.register_hook(lambda gradient: gradient * len(parts))
            parts[own] = tensor
            return torch.cat(parts)

        return gather
