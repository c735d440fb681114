"""Map each class of a data set to a classifier's class, by how often it is predicted.

"flm" (Jin et al., AAAI 2025) fits the mapping once, before training. "ilm" (Chen et al., "Understanding and Improving
Visual Prompting: A Label-Mapping Perspective", CVPR 2023) fits it again after every epoch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from console.errors import InputError
from console.words import counted


class LabelMapping(nn.Module):
    """mapping [C] int64: the source class of each class of the task; as a module, logits [b, S] to [b, C]."""

    mapping: Tensor

    def __init__(self, mapping: Tensor):
        super().__init__()
        self.register_buffer("mapping", mapping.long())

    def forward(self, logits: Tensor) -> Tensor:
        """The logits of the mapped classes."""
        return logits[:, self.mapping]

    @classmethod
    def fit(cls, logits: Tensor, labels: Tensor, classes: int) -> LabelMapping:
        """The mapping of pictures with logits [n, S] and labels [n] of C `classes`."""
        return cls.of_counts(answers(logits, labels, classes))

    @classmethod
    def of_counts(cls, counts: Tensor) -> LabelMapping:
        """From counts [S, C]. C times, the class of the largest count gets its source; both are then out.

        Of equal counts the first in row-major order is the largest. InputError for more classes than the source has.
        """
        source, classes = counts.shape
        check_classes(source, classes)
        left, mapping = counts.clone(), torch.zeros(classes, dtype=torch.long)
        for _ in range(classes):
            row, column = divmod(int(left.flatten().argmax()), classes)  # the first of equal ones
            mapping[column] = row
            left[row, :] = -1  # below every count, so that a class that was never predicted also gets a source
            left[:, column] = -1
        return cls(mapping)


def answers(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Counts [S, C] int64 on the CPU, from logits [n, S] and labels [n]: pictures of class c whose largest logit is s.

    Counts of batches add up.
    """
    counts = torch.zeros(logits.shape[1], classes, dtype=torch.long)
    best, labels = logits.argmax(dim=1).cpu(), labels.cpu()
    return counts.index_put_((best, labels), torch.ones_like(best), accumulate=True)


def check_classes(source: int, classes: int) -> None:
    """InputError for more classes than source logits."""
    if classes > source:
        raise InputError(
            f"{counted(classes, 'class')} cannot be mapped to the model's {source} classes: add --mapping head for a "
            "new classifier"
        )
