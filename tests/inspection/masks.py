"""Masks made by hand, for the tests of this folder."""

from pathlib import Path

import torch

from inspection.reading import MaskFile
from sparsity.mask import Mask


def mask_of(modalities=None, source=None, **layers):
    """A mask from nested lists of zeros and ones; `__` in a keyword stands for a dot, `.weight` is added."""
    kept = {f"{name.replace('__', '.')}.weight": torch.tensor(rows).bool() for name, rows in layers.items()}
    return Mask(kept, {f"{name}.weight": modality for name, modality in (modalities or {}).items()}, source)


def files_of(*masks, names="abcdefgh"):
    """The masks as if they had been read from a.safetensors, b.safetensors, ..."""
    return [MaskFile(name, Path(f"{name}.safetensors"), mask) for name, mask in zip(names, masks, strict=False)]
