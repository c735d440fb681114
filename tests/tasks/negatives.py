"""Labelled images as photographic negatives: a whole reader in one file. Its line in data/readers.py names it."""

from __future__ import annotations

from data.classification import Classification


class Negatives(Classification):
    """Normalised pixels with the other sign, and labels."""

    def collate(self, samples, size, rng):
        """image [b, 3, H, W], label [b] int64."""
        batch = super().collate(samples, size, rng)
        return batch | {"image": -batch["image"]}
