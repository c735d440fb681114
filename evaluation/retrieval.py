"""Image-text retrieval: contrastive similarity of all pairs (ITC), the best re-ranked by matching (ITM)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from configs.limits import at_least
from data.retrieval import Gallery
from data.tokenizer import Tokenizer
from evaluation.recall import Ranks, ranks, recalls

UNSCORED = -100.0  # of pairs that were not among the best k by similarity


@dataclass(frozen=True)
class RetrievalSettings:
    """k_test: candidates re-ranked. max_tokens: length texts are cut and padded to. sep: whether [SEP] ends a text.

    pairs: how many pairs of text and image are matched in one forward pass (at least one row's candidates).
    """

    k_test: int = 256
    image_batch: int = 32
    text_batch: int = 64
    max_tokens: int = 40
    sep: bool = False
    pairs: int = 256

    def __post_init__(self) -> None:
        at_least(self, 1, "k_test", "image_batch", "text_batch", "pairs")
        at_least(self, 2, "max_tokens")


@torch.no_grad()
def evaluate_retrieval(
    model: nn.Module,
    gallery: Gallery,
    tokenizer: Tokenizer,
    settings: RetrievalSettings,
    advance: Callable[..., None] = lambda *_: None,
    look: Callable[[Tensor, Tensor], None] = lambda *_: None,
    note: Callable[[str, Ranks], None] = lambda *_: None,
) -> dict[str, dict[str, float]]:
    """Recalls by contrastive similarity alone (`itc`) and after re-ranking (`itm`).

    model: answers `image_entry(image)` and `text_entry(ids, atts)` -> (what `match` needs of each, feature), and
    `match(text_entries, text_atts, image_entries, similarity)` -> one score a pair. look: is shown the scores after
    re-ranking, [images, texts] and [texts, images]. note: is told the ranks under `itc` and under `itm`.
    """
    device = next(model.parameters()).device
    image_states, image_features = _images(model, gallery, settings.image_batch, device)
    ids = [tokenizer.encode(text, settings.sep, settings.max_tokens) for text in gallery.texts]
    ids, atts = (tensor.to(device) for tensor in tokenizer.pad_batch(ids, settings.max_tokens))
    text_states, text_features = _batched(model.text_entry, settings.text_batch, ids, atts)
    similarity = image_features @ text_features.t()
    result: dict[str, dict[str, float]] = {}

    def judge(kind: str, by_image: Tensor, by_text: Tensor) -> None:
        found = ranks(by_image, by_text, gallery.texts_of_image, gallery.image_of_text)
        result[kind] = recalls(found)
        note(kind, found)

    judge("itc", similarity, similarity.t())

    def rerank(similarity: Tensor, pick: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        scores = torch.full_like(similarity, UNSCORED)
        n, k = similarity.shape[0], min(settings.k_test, similarity.shape[1])
        best, candidates = similarity.topk(k, dim=1)
        together = max(1, settings.pairs // k)
        for start in range(0, n, together):
            columns = candidates[start : start + together].flatten()
            rows = torch.arange(start, min(start + together, n), device=device).repeat_interleave(k)
            found = model.match(*pick(rows, columns), best[start : start + together].flatten())
            scores[rows, columns] = found.to(scores.dtype)
            advance(len(rows) // k)
        return scores

    by_image = rerank(similarity, lambda images, texts: (text_states[texts], atts[texts], image_states[images]))
    by_text = rerank(similarity.t(), lambda texts, images: (text_states[texts], atts[texts], image_states[images]))
    judge("itm", by_image, by_text)
    look(by_image, by_text)
    return result


def _images(model: nn.Module, gallery: Gallery, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    parts = []
    for start in range(0, len(gallery), batch):
        images = torch.stack([gallery[i] for i in range(start, min(start + batch, len(gallery)))])
        parts.append(model.image_entry(images.to(device)))
    states, features = zip(*parts, strict=True)
    return torch.cat(states), torch.cat(features)


def _batched(function: Callable[..., tuple[Tensor, Tensor]], batch: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    parts = [function(*(t[i : i + batch] for t in tensors)) for i in range(0, len(tensors[0]), batch)]
    states, features = zip(*parts, strict=True)
    return torch.cat(states), torch.cat(features)
