"""The contrastive loss of a whole effective batch that does not fit into one forward pass.

As GradCache (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021):
first the features of all micro-batches without graph, then each micro-batch with graph, its own features put in the
place of the collected ones. The loss's gradient with respect to a feature is that in the large batch, and summed over
micro-batches and processes so is that of the weights.
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
        """A list for each kind of tensor; in it, by pass and then rank, that of each micro-batch."""
        self._handed = 0

    def collect(self, *tensors: Tensor) -> None:
        """Take in this process's next micro-batch: tensors [b, ...], kept without graph; same b everywhere."""
        if self._handed or not self._columns:  # another step begins
            self._columns, self._handed = [[] for _ in tensors], 0
        for parts, tensor in zip(self._columns, tensors, strict=True):
            parts += of_all_processes(tensor)

    def gather(self) -> Gather:
        """For the losses of this process's next micro-batch: its tensors [b, ...] -> those of all n, [n b, ...].

        It must be called as often as there were tensors in `collect`, in the same order. The micro-batch's own part
        has the graph; its gradient comes n times as large, since the means over passes and processes divide it by n
        later. What all micro-batches share (the temperature) has its exact gradient in each, so the mean is right.
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
