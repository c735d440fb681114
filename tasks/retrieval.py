"""Retrieval as a finetuning task: contrastive and matching losses, recalls by similarity and after re-ranking.

X-VLM's contrastive loss compares the pairs of one forward pass of all processes. With `gather_negatives` it compares
the whole effective batch (training/negatives.py); BLIP has its queue instead. The matching loss always draws hard
negatives from the batch of one process and pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from console.errors import InputError
from console.words import counted
from data.evaluation_batches import check_files
from data.readers import Batch
from data.retrieval import Gallery
from data.sources import Files
from data.tokenizer import Tokenizer
from data.transforms import to_picture
from evaluation.contact_sheet import Line, Part, Sample, Shown, spread
from evaluation.items import Groups
from evaluation.recall import RECALL_WORDS, Candidates, Ranks, found_early
from evaluation.retrieval import RetrievalSettings, evaluate_retrieval, reranked
from models.common.gather import gather_processes, place
from training.epoch_weights import Metrics
from training.evaluating import Evaluation
from training.negatives import StepFeatures
from training.samples import IMAGES, TEXTS
from training.task import Finetuning, Task, check_positions

FOUND = 4  # images that are shown of those found for a text


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(Finetuning):
    """Image-text retrieval."""

    reads = "retrieval_pairs"

    val: Files  # validation gallery (one annotation file)
    test: Files  # test gallery
    evaluation: RetrievalSettings = field(default_factory=RetrievalSettings)  # how galleries are evaluated
    max_words: int = 30  # words kept of a caption
    alpha: float = 0.4  # weight of the momentum targets (BLIP), ramped up in the first epoch
    gather_negatives: bool = False  # contrastive loss over the effective batch; the encoders run twice (X-VLM)


class Retrieval(Task):
    """Contrastive and matching losses, recalls."""

    name = words = "retrieval"
    main = ("r_mean",)
    metric_words = RECALL_WORDS
    Config = RetrievalConfig
    decides = "r_mean"

    def __init__(self, config: RetrievalConfig, model: nn.Module, tokenizer: Tokenizer, limit: int | None = None):
        if config.gather_negatives and model.compares_with_queue:
            raise InputError(
                "gather_negatives is for models that compare the pairs of a batch, but this one has a queue of "
                "earlier features: leave it out"
            )
        asked = {"train: max_tokens": config.train.max_tokens, "evaluation: max_tokens": config.evaluation.max_tokens}
        check_positions(model, asked)
        self._config, self._tokenizer, self._shape = config, tokenizer, model.image_shape
        self._galleries = {
            split: Gallery(files, model.image_shape, config.max_words, limit)
            for split, files in (("val", config.val), ("test", config.test))
        }
        for gallery in self._galleries.values():
            check_files(gallery)
        world = place()[1]
        passes = config.accumulation(world)
        self.rehearses = config.gather_negatives and passes * world > 1
        self._features = StepFeatures()
        self._moved: float | None = None
        matched = self._galleries.items() if model.reranks else ()
        notices = [capped(config.evaluation.k_test, split, found) for split, found in matched]
        if passes > 1 and not (self.rehearses or model.compares_with_queue):
            notices.append(fewer_negatives(config.batch_size * world, passes))
        self.notices = [notice for notice in notices if notice]

    def begin(self, model: nn.Module, look: Evaluation) -> None:
        """A stage starts or resumes: its first pass moves the momentum copies."""
        self._moved = None

    def rehearse(self, model: nn.Module, batch: Batch) -> None:
        """Collect the features of a batch, computed in the same order as in `forward`."""
        image = model.image_entry(batch["image"])[1]
        text = model.text_entry(batch["text_ids"], batch["text_atts"])[1]
        self._features.collect(image, text, batch["idx"])

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Contrastive loss against the features of all processes (and passes), and matching loss."""
        if model.momentum_targets:  # the weight of the momentum model's targets is ramped up over the first epoch
            first, self._moved = progress != self._moved, progress  # of the forward passes of an optimizer step
            return model(batch, gather=gather_processes, alpha=self._config.alpha * min(1.0, progress), move=first)
        return model(batch, gather=self._features.gather() if self.rehearses else gather_processes)

    def evaluate(self, model: nn.Module, look: Evaluation) -> Metrics:
        """Recalls after re-ranking under the published names, by similarity alone under `itc`, and `reranked` (a note).

        Models that do not re-rank have recalls by similarity under the published names.
        """
        gallery = self._galleries[look.split]

        def keep(texts: Candidates, images: Candidates) -> None:  # only a few rows: the whole matrix is large
            self._rows = (
                {i: Found.of(texts, i) for i in spread(len(gallery), IMAGES)},
                {j: Found.of(images, j) for j in spread(len(gallery.texts), TEXTS)},
            )

        ranks = self._ranks = dict[str, Ranks]()
        settings, note = self._config.evaluation, ranks.__setitem__
        with look.bar(len(gallery)) as advance:
            found = evaluate_retrieval(model, gallery, self._tokenizer, settings, advance, keep, note, look.workers)
        if not model.reranks:
            return found["itc"]
        return {**found["itm"], "itc": found["itc"], "reranked": reranked(settings, gallery)}

    def items(self) -> Groups:
        """Recall of each text and of each image."""
        image_of_text = self._galleries[self.split].image_of_text
        kinds = {"": self._ranks["itc"]}
        if "itm" in self._ranks:
            kinds = {"": self._ranks["itm"], "itc ": self._ranks["itc"]}
        return found_early(kinds, image_of_text)

    def samples(self) -> list[Part]:
        """Images with their first caption, and texts with their first images, after re-ranking."""
        gallery = self._galleries[self.split]
        by_image, by_text = self._rows
        images, texts = [], []
        for i, row in by_image.items():
            first = row.order[0]
            right = first in gallery.texts_of_image[i]
            mark = "right" if right else "wrong"
            lines = [Line(gallery.texts[first], "strong"), Line(mark, mark)]
            if not right:
                own = min(gallery.texts_of_image[i], key=row.order.index)
                lines.append(Line(f"its own, {row.standing(own)}: {gallery.texts[own]}", "faint"))
            images.append(Sample([self._shown(i)], lines))
        for j, row in by_text.items():
            own = gallery.image_of_text[j]
            found = [self._shown(i, row.standing(i)) for i in row.order[:FOUND] if i != own]
            where = row.order.index(own)
            if where < FOUND:
                found.insert(where, self._shown(own, f"{row.standing(own)}, its own", "right"))
            else:
                found.append(self._shown(own, f"its own, {row.standing(own)}", "wrong"))
            mark = Line(f"wrong, its own: {row.standing(own)}", "wrong") if where else Line("right", "right")
            texts.append(Sample(found, [Line(gallery.texts[j], "strong"), mark]))
        pictures = counted(len(images), f"{self.split} image", of=len(gallery))
        words = counted(len(texts), "text", of=len(gallery.texts))
        return [
            Part(f"{pictures}, with the caption found for them", images),
            Part(f"{words}, with the images found for them (framed: its own)", texts),
        ]

    def _shown(self, image: int, label: str = "", frame: str = "") -> Shown:
        return Shown(to_picture(self._galleries[self.split][image], self._shape), label, frame)


@dataclass(frozen=True)
class Found:
    """The candidates of one query in order; only the first `reranked` of them were matched."""

    order: list[int]
    reranked: int

    @classmethod
    def of(cls, candidates: Candidates, query: int) -> Found:
        """The candidates of a query; without re-ranking, all count as matched."""
        order, matched = candidates.order(query).tolist(), candidates.reranked
        return cls(order, len(order) if matched is None else int(matched[query].sum()))

    def standing(self, number: int) -> str:
        """The place of a candidate, in words."""
        place = self.order.index(number)
        return f"place {place + 1}" if place < self.reranked else "not re-ranked"


def fewer_negatives(seen: int, passes: int) -> str:
    """Notice that the contrastive loss compares fewer pairs than the effective batch has."""
    return (
        f"the contrastive loss compares {counted(seen, 'pair')}, the effective batch has {seen * passes}: with "
        f"--gather_negatives it compares all {seen * passes}, and the encoders run once more"
    )


def capped(k_test: int, split: str, gallery: Gallery) -> str:
    """Notice that a gallery is smaller than the number of candidates to re-rank; otherwise empty."""
    images, texts = len(gallery), len(gallery.texts)
    if k_test <= min(images, texts):
        return ""
    there = f"{counted(images, 'image')} and {counted(texts, 'text')}"
    return f"k_test is {k_test}, but the {split} gallery has {there}: all of them are ranked"
