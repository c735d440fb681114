"""Where masks were before sparsity/mask.py; the import still works."""

from sparsity.mask import Mask

__all__ = ["Mask"]
