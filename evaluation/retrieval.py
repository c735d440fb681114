"""Image-text retrieval: contrastive similarity of all pairs (ITC), the best re-ranked by matching (ITM)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from configs.limits import at_least
from data.evaluation_batches import evaluation_batches
from data.retrieval import Gallery
from data.tokenizer import Tokenizer
from evaluation.recall import Candidates, Ranks, falling, ranks, recalls
from models.base import placed
from models.common.gather import add_processes, place
from models.tasks import Retriever

SORTED_AT_ONCE = 256
"""Rows whose best candidates are searched together: sorting all rows at once would take eight bytes per pair."""


@dataclass(frozen=True)
class RetrievalSettings:
    """Settings of the evaluation on a gallery."""

    k_test: int = 256  # candidates that are re-ranked; the others keep the order of similarity
    image_batch: int = 32  # images per forward pass of the tower
    text_batch: int = 64  # texts per forward pass of the tower
    max_tokens: int = 40  # length to which texts are cut and padded
    sep: bool = False  # whether [SEP] ends a text
    pairs: int = 256  # texts matched with an image in one forward pass

    def __post_init__(self) -> None:
        at_least(self, 1, "k_test", "image_batch", "text_batch", "pairs")
        at_least(self, 2, "max_tokens")


@torch.no_grad()
def evaluate_retrieval(
    model: Retriever,
    gallery: Gallery,
    tokenizer: Tokenizer,
    settings: RetrievalSettings,
    advance: Callable[..., None] = lambda *_: None,
    look: Callable[[Candidates, Candidates], None] = lambda *_: None,
    note: Callable[[str, Ranks], None] = lambda *_: None,
    workers: int = 0,
) -> dict[str, dict[str, float]]:
    """Recalls by contrastive similarity alone (`itc`) and, of models that re-rank, after re-ranking (`itm`).

    Candidates are re-ranked image by image: all texts among the image's best, and those that have the image among their
    best. A pair in both sets is matched once, and an image's keys and values are computed once for all its texts.

    All processes must call it: each matches a share of the images, in the same passes as a single process, so that the
    results are equal. Every process encodes all images and texts, which is cheap in comparison.

    advance: receives the number of images done. look: receives the candidates after re-ranking, texts [images, texts]
    and images [texts, images]. note: receives the ranks under `itc` and `itm`. workers: loader processes for the
    images.
    """
    device = next(model.parameters()).device
    image_states, image_features = _images(model, gallery, settings.image_batch, workers)
    ids = [tokenizer.encode(text, settings.sep, settings.max_tokens) for text in gallery.texts]
    ids, atts = (tensor.to(device) for tensor in tokenizer.pad_batch(ids, settings.max_tokens))
    text_states, text_features = _batched(model.text_entry, settings.text_batch, ids, atts)
    similarity = image_features @ text_features.t()
    result: dict[str, dict[str, float]] = {}

    def judge(kind: str, texts: Candidates, images: Candidates) -> None:
        places = ranks(texts, images, gallery.texts_of_image, gallery.image_of_text)
        result[kind] = recalls(places)
        note(kind, places)

    found = Candidates(similarity), Candidates(similarity.t())
    judge("itc", *found)
    if not model.reranks:
        advance(len(similarity))
        look(*found)
        return result

    asked = _best(similarity, settings.k_test), _best(similarity.t(), settings.k_test)  # of images, of texts
    wanted = asked[0] | asked[1].t()
    lengths = atts.sum(dim=1)

    def match(image: int, scores: Tensor) -> None:
        texts = wanted[image].nonzero().squeeze(1)
        texts = texts[lengths[texts].argsort(stable=True)]  # similar lengths in a pass need little padding
        for some in texts.split(settings.pairs):
            pairs = text_states[some], atts[some], image_states[image : image + 1], similarity[image, some]
            scores[image, some] = model.match(*pairs).to(scores.dtype)

    scores = _shared_out(match, similarity, advance)
    texts, images = Candidates(similarity, scores, asked[0]), Candidates(similarity.t(), scores.t(), asked[1])
    judge("itm", texts, images)
    look(texts, images)
    return result


def reranked(settings: RetrievalSettings, gallery: Gallery) -> str:
    """A note on the number of re-ranked candidates, shown with recalls: the others are ranked by similarity."""
    images, texts = len(gallery), len(gallery.texts)
    of_image, of_text = min(settings.k_test, texts), min(settings.k_test, images)
    return f"{of_image} of {texts} texts for each image, {of_text} of {images} images for each text"


def _shared_out(match: Callable[[int, Tensor], None], similarity: Tensor, advance: Callable[..., None]) -> Tensor:
    """Scores [images, texts] that `match(image, scores)` writes, a share of the images in each process; else zeros."""
    scores = torch.zeros_like(similarity, memory_format=torch.contiguous_format)  # contiguous, to be sent
    rank, world = place()
    for turn in range(0, len(scores), world):
        if turn + rank < len(scores):
            match(turn + rank, scores)
        advance(min(world, len(scores) - turn))
    return add_processes(scores)


def _best(similarity: Tensor, k: int) -> Tensor:
    """Which columns of [n, m] are among the k best of each row, of equal ones the first: bool [n, m]."""
    best = torch.zeros_like(similarity, dtype=torch.bool)
    for rows, found in zip(similarity.split(SORTED_AT_ONCE), best.split(SORTED_AT_ONCE), strict=True):
        found.scatter_(1, falling(rows)[:, :k], True)
    return best


def _images(model: nn.Module, gallery: Gallery, size: int, workers: int) -> tuple[Tensor, Tensor]:
    batches = evaluation_batches(gallery, size, num_workers=workers)
    return _collected(len(gallery), (model.image_entry(placed(batch, model)["image"]) for batch in batches))


def _batched(function: Callable[..., tuple[Tensor, Tensor]], batch: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    n = len(tensors[0])
    return _collected(n, (function(*(t[i : i + batch] for t in tensors)) for i in range(0, n, batch)))


def _collected(n: int, parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join parts into two tensors of n rows; not by `torch.cat`, which would hold everything twice."""
    whole: tuple[Tensor, ...] = ()
    done = 0
    for part in parts:
        whole = whole or tuple(tensor.new_empty(n, *tensor.shape[1:]) for tensor in part)
        for into, tensor in zip(whole, part, strict=True):
            into[done : done + len(tensor)] = tensor
        done += len(part[0])
    states, features = whole
    return states, features
