"""Shared code of families: transformer blocks, losses, checkpoints, decoding."""
