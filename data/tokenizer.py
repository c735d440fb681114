"""BERT's WordPiece tokenizer over a vocabulary file, with or without `[SEP]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor

from configs.schema import CONFIGS
from console.errors import InputError


class Tokenizer:
    """Text to ids. Special ids are read from the vocabulary (bert-base-uncased: 0, 101, 102, 103)."""

    def __init__(self, vocabulary: Path):
        try:
            lines = vocabulary.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the vocabulary {vocabulary}: give a BERT vocab.txt") from error
        words = {word: index for index, word in enumerate(lines)}
        missing = [special for special in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if special not in words]
        if missing:
            raise InputError(f"{vocabulary} is not a BERT vocabulary: it lacks {', '.join(missing)}")
        self._tokenizer = BertWordPieceTokenizer(words, lowercase=True)
        self.words = lines
        self.pad, self.cls, self.sep, self.mask = (words[w] for w in ("[PAD]", "[CLS]", "[SEP]", "[MASK]"))

    def __len__(self) -> int:
        return len(self.words)

    def pieces(self, text: str) -> list[int]:
        """Word-piece ids of a text, without special tokens added (those spelled in the text count)."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode(self, text: str, sep: bool, limit: int | None) -> list[int]:
        """`[CLS] words` or `[CLS] words [SEP]`, cut to `limit` ids in all (the end mark stays)."""
        words = self.pieces(text)
        if limit is not None:
            words = words[: limit - 1 - int(sep)]
        return [self.cls, *words, *([self.sep] if sep else [])]

    def is_continuation(self, token: int) -> bool:
        """Whether the piece continues a word (`##...`)."""
        return self.words[token].startswith("##")

    def pad_batch(self, rows: Sequence[Sequence[int]], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Rows of ids -> text_ids [b, t] and text_atts [b, t] int64, padded to `length` or the longest row."""
        t = length or max(map(len, rows))
        ids = torch.full((len(rows), t), self.pad, dtype=torch.long)
        atts = torch.zeros(len(rows), t, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
            atts[i, : len(row)] = 1
        return ids, atts

    def text(self, ids: Sequence[int]) -> str:
        """Ids back to text without special tokens and without the blanks between pieces, as in "men ' s".

        transformers removed these by default when the published models were evaluated; since version 5 on request only.
        """
        from transformers import PreTrainedTokenizerBase  # here: most uses of a tokenizer do not decode

        text = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return PreTrainedTokenizerBase.clean_up_tokenization(self, text)  # looks at the text alone


def load_tokenizer(source: str | Any) -> Any:
    """The tokenizer of a model's configuration; None for models without text.

    source: a tokenizer (returned as it is), a vocabulary file, a folder with a vocab.txt, or a name such as
    bert-base-uncased, looked for under weights/<name>/vocab.txt and weights/<name>-vocab.txt. Relative paths are tried
    from the working directory, then from the repository. Raises InputError that says where the file belongs.
    """
    if not isinstance(source, str):
        return source
    names = [Path(source), Path(source) / "vocab.txt"]
    names += [Path("weights") / source / "vocab.txt", Path("weights") / f"{source}-vocab.txt"]
    for root in (Path(), CONFIGS.parent):
        for name in names:
            if (root / name).is_file():
                return Tokenizer(root / name)
    raise InputError(
        f"no vocabulary '{source}': put the vocab.txt of {source} at weights/{source}/vocab.txt "
        "(python -m data.download bert-vocab fetches that of BERT; the model 'xvlm-mini' needs none: "
        "its vocabulary is in the repository)"
    )
