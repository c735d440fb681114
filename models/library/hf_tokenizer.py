"""A Hugging Face tokenizer under the interface of the toolkit's own."""

from __future__ import annotations

from collections.abc import Sequence
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from console.errors import InputError, in_a_line
from console.progress import console


def read_if_there(auto: Any, what: str, reference: str) -> Any | None:
    """What a class of transformers reads from a folder or hub id, or None; InputError for damaged files.

    A note says when a package is missing.
    """
    try:
        return auto.from_pretrained(reference)
    except JSONDecodeError as error:
        raise InputError(
            f"the {what} of {reference} cannot be read ({in_a_line(error)}): repair or remove its JSON files"
        ) from error
    except ImportError as error:
        console.print(f"note: the {what} of {reference} cannot be made ({in_a_line(error)})", markup=False)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


class HFTokenizer:
    """Adds the special tokens its model expects; `sep` has no meaning here.

    longest: tokens that the model can read. filled: whether all texts are padded to that, as the model learnt to read.
    """

    def __init__(self, tokenizer: Any, longest: int, filled: bool = False):
        self._tokenizer, self._longest, self._filled = tokenizer, longest, filled
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    @classmethod
    def load(cls, reference: str, longest: int, embedded: int, filled: bool = False) -> HFTokenizer | None:
        """The tokenizer of a folder or hub id; None when it has none (batches must then hold token ids).

        embedded: how many tokens the model has embeddings for. InputError if the tokenizer has more.
        """
        tokenizer = read_if_there(AutoTokenizer, "tokenizer", reference)
        # Where the files are missing, transformers makes a tokenizer that knows its special tokens only.
        if tokenizer is None or len(tokenizer) <= len(set(tokenizer.all_special_ids)):
            return None
        both = f"the tokenizer of {reference} has {len(tokenizer):,} tokens, and the model has {embedded:,} embeddings"
        if len(tokenizer) > embedded:
            raise InputError(
                f"{both}: put the tokenizer that the model was trained with next to the model's config.json"
            )
        if 2 * len(tokenizer) < embedded:
            console.print(f"note: {both}: is it the one that the model was trained with?", markup=False)
        return cls(tokenizer, longest, filled)

    def save(self, folder: Path) -> None:
        """Write the files that `load` reads."""
        self._tokenizer.save_pretrained(folder)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def encode(self, text: str, sep: bool, limit: int | None) -> list[int]:
        """Ids with the model's special tokens, cut to `limit` and to what the model can read."""
        return self._tokenizer(text, truncation=True, max_length=min(limit or self._longest, self._longest))[
            "input_ids"
        ]

    def pad_batch(self, rows: Sequence[Sequence[int]], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Rows of ids -> text_ids and text_atts [b, t] int64, padded to the longest row; `length` is not needed.

        The library's models would compute padding up to `length`: with short captions, most of a text tower's time.
        """
        t = self._longest if self._filled else max(map(len, rows))
        ids = torch.full((len(rows), t), self.pad, dtype=torch.long)
        atts = torch.zeros(len(rows), t, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
            atts[i, : len(row)] = 1
        return ids, atts
