"""A Hugging Face processor, which makes a generative model's inputs from images and texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from models.base import Batch
from models.library.hf_tokenizer import read_if_there

Inputs = Callable[[Any, list[Any], list[str]], Batch]


class HFProcessor:
    """A processor. inputs: the record's function that calls it."""

    def __init__(self, processor: Any, inputs: Inputs):
        self._processor, self._inputs = processor, inputs

    @classmethod
    def load(cls, reference: str, inputs: Inputs) -> HFProcessor | None:
        """The processor of a folder or hub id; None when it has none (batches must then have the model's own fields).

        A folder with a tokenizer alone, or with what prepares images alone, has none.
        """
        processor = read_if_there(AutoProcessor, "processor", reference)
        whole = hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")
        return cls(processor, inputs) if whole else None

    def save(self, folder: Path) -> None:
        """Write the files that `load` reads."""
        self._processor.save_pretrained(folder)

    def batch(self, images: list[Any], texts: list[str]) -> Batch:
        """The fields that the model reads, of pictures (PIL) with a text each, padded to the longest."""
        tokenizer = self._processor.tokenizer
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return dict(self._inputs(self._processor, images, texts))
