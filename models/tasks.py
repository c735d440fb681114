"""The interfaces of models for tasks, between families and the code that trains and evaluates tasks.

A model derives from those that it supports; callers check with `isinstance`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from console.errors import InputError
from models.base import Batch, Model, Probe
from models.common import examples
from models.common.answer_ranking import weighted_answer_loss
from models.common.decoding import (
    Smoothing,
    caption_labels,
    decoder_logits,
    for_texts,
    library_smoothing,
    mean_token_loss,
)
from models.common.gather import Gather, no_gather

if TYPE_CHECKING:
    from transformers.cache_utils import EncoderDecoderCache

WORDS = 30  # tokens of a made-up text, padding included, if the model has that many positions
ANSWER = 6  # tokens of a made-up answer


class ImageEmbedder(Model):
    """A model with one vector per image, whose similarities compare images."""

    def embed_image(self, image: Tensor) -> Tensor:
        """Vectors [b, d] of images [b, 3, H, W]."""
        raise NotImplementedError


class TextEmbedder(Model):
    """A model with one vector per text, whose similarities compare texts."""

    def embed_text(self, ids: Tensor, atts: Tensor) -> Tensor:
        """Vectors [b, d] of texts [b, t]."""
        raise NotImplementedError


class ImageEncoder(ImageEmbedder):
    """A model with an image tower of its own, from pixels to tokens, which can be pretrained by itself."""

    def vision_tower(self) -> nn.Module:
        """The module from pixels [b, 3, H, W] to states of all image tokens [b, p, d], the class token first."""
        raise NotImplementedError

    @property
    def vision_width(self) -> int:
        """Width d of the states. Default: as in `config.vision`."""
        return self.config.vision.width

    def embed_image(self, image: Tensor) -> Tensor:
        """The class token's states [b, d] of images [b, 3, H, W]."""
        return self.vision_tower()(image)[:, 0]


class Retriever(Model):
    """A model that finds texts for images and images for texts, by similarity and then by matching pairs."""

    temp: Tensor
    """The temperature by which similarities are divided."""

    reranks: bool = True
    """Whether `match` says more than similarity."""

    compares_with_queue: bool = False
    """Whether its contrastive loss also compares with a queue of earlier features.

    A small batch then has about as many negatives as a large one.
    """

    momentum_targets: bool = False
    """Whether `forward` also takes `alpha`, the weight of a momentum copy's soft targets, and `move`: whether the copy
    moves, once an optimizer step."""

    def image_entry(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What a gallery keeps of images [b, 3, H, W]: what `match` needs, [b, ...]; features [b, e], L2-normalised."""
        raise NotImplementedError

    def text_entry(self, ids: Tensor, atts: Tensor) -> tuple[Tensor, Tensor]:
        """What a gallery keeps of texts [b, t]: what `match` needs, [b, t, ...]; features [b, e], L2-normalised."""
        raise NotImplementedError

    def match(self, text: Tensor, text_atts: Tensor, image: Tensor, similarity: Tensor) -> Tensor:
        """How well pairs of entries match, [b]; image: entries of b images, or [1, ...] of one for all texts.

        similarity: of the pairs' features [b]. A score depends on nothing but its pair.
        """
        raise NotImplementedError

    def probe(self, size: int) -> Probe:
        """An image, a text, and their match."""

        def run(model: Retriever, batch: Batch) -> Tensor:
            image, image_feature = model.image_entry(batch["image"])
            text, text_feature = model.text_entry(batch["text_ids"], batch["text_atts"])
            return model.match(text, batch["text_atts"], image, (image_feature * text_feature).sum(dim=1))

        return Probe("an image, a text, and how well they match", _pairs(self, size), run)


class Locator(Model):
    """A model that finds the region of an image that a text describes."""

    def boxes(self, batch: Batch) -> Tensor:
        """Where in its image is what each text of a region batch says? [n, 4] as (cx, cy, w, h) in [0, 1]."""
        raise NotImplementedError


class Captioner(Model):
    """A vision tower and a `text_decoder`, in the form that `models.common.decoding` calls."""

    smoothing_rule: Smoothing = staticmethod(library_smoothing)
    """How the labels of words are smoothed."""

    def image_states(self, image: Tensor) -> Tensor:
        """image [b, 3, H, W] -> states [b, p, d] that captions are generated from."""
        raise NotImplementedError

    def caption_start(self, ids: Tensor) -> Tensor:
        """Ids [b, t] as tokenised -> as the decoder wants them. Default: unchanged."""
        return ids

    def caption_logits(
        self, ids: Tensor, atts: Tensor, image: Tensor, past: EncoderDecoderCache | None = None
    ) -> Tensor:
        """Word logits [b, t, V] of ids [b, t] over image states [b, p, d]; past: see `decoder_logits`."""
        seen = torch.ones(image.shape[:2], dtype=torch.long, device=image.device)
        return decoder_logits(self.text_decoder, ids, atts, image, seen, past)

    def forward(
        self, batch: Batch, gather: Gather = no_gather, prompt: int = 4, smoothing: float = 0.1
    ) -> dict[str, Tensor]:
        """Loss lm of captions: image [i, 3, H, W], text_ids, text_atts [b, t]; image_of [b] where images are shared.

        prompt: how many first positions are given and not learnt, the start mark among them (X-VLM's first stage: 0).
        """
        ids = self.caption_start(batch["text_ids"])
        labels = caption_labels(ids, batch["text_atts"], prompt)
        states = for_texts(self.image_states(batch["image"]), batch.get("image_of"))
        logits = self.caption_logits(ids, batch["text_atts"], states)
        return {"lm": mean_token_loss(logits, labels, smoothing, self.smoothing_rule)}

    def probe(self, size: int) -> Probe:
        """An image and a caption."""

        def run(model: Captioner, batch: Batch) -> Tensor:
            ids = model.caption_start(batch["text_ids"])
            return model.caption_logits(ids, batch["text_atts"], model.image_states(batch["image"]))

        return Probe("an image and the words of one caption", _pairs(self, size), run)


class Answerer(Model):
    """A model that answers questions about images, from a list or (where it `writes_answers`) in words of its own."""

    writes_answers: bool = False
    """Whether it has `answer_start` and `answer_logits`."""

    may_stay_dense: bool = False
    """Whether its answer decoder is pruned only with `inherit_mask` in its configuration; else it always is."""

    def question_states(self, image: Tensor, ids: Tensor, atts: Tensor, image_of: Tensor | None = None) -> Tensor:
        """Questions ids, atts [b, s] that look at images [i, 3, H, W] -> [b, s, d].

        image_of: [b] int64, the image of each question; None: one of its own each.
        """
        raise NotImplementedError

    def answer_losses(self, ids: Tensor, atts: Tensor, states: Tensor, states_atts: Tensor) -> Tensor:
        """Summed cross-entropy of each answer, ids, atts [n, t], over question states [n, s, d], atts [n, s]: [n]."""
        raise NotImplementedError

    def rank(self, batch: Batch, answer_ids: Tensor, answer_atts: Tensor, k: int) -> Tensor:
        """Number of the best answer of each question [b].

        batch: image, image_of (where images are shared), question_ids, question_atts; answer_ids, answer_atts [a, t]:
        the list, `[CLS] words [SEP]`, of which the k whose first words are likeliest are scored in full.
        """
        raise NotImplementedError

    def answer_start(self, states: Tensor) -> Tensor:
        """What an answer to each of the question states [b, s, d] starts with, [b, 1] int64."""
        raise NotImplementedError

    def answer_logits(
        self, ids: Tensor, atts: Tensor, states: Tensor, states_atts: Tensor, past: EncoderDecoderCache | None = None
    ) -> Tensor:
        """Word logits [n, t, V] of answers so far, ids [n, t], over question states [n, s, d], atts [n, s].

        past: see `decoder_logits`.
        """
        raise NotImplementedError

    def forward(self, batch: Batch, gather: Gather = no_gather) -> dict[str, Tensor]:
        """Loss vqa, the weighted loss of the answers of all questions.

        batch: image [i, 3, H, W]; image_of [b] int64 where images are shared; question_ids, question_atts [b, s]; the
        answers of all questions in a row, answer_ids, answer_atts [n, t], answer_weights [n] float32; answer_counts
        [b] int64, which add up to n.
        """
        atts, counts = batch["question_atts"], batch["answer_counts"]
        states = self.question_states(batch["image"], batch["question_ids"], atts, batch.get("image_of"))
        losses = self.answer_losses(
            batch["answer_ids"],
            batch["answer_atts"],
            states.repeat_interleave(counts, dim=0),
            atts.repeat_interleave(counts, dim=0),
        )
        return {"vqa": weighted_answer_loss(losses, batch["answer_weights"], len(counts))}

    def probe(self, size: int) -> Probe:
        """An image, a question, an answer."""
        answers = examples.texts(size, ANSWER, self.config.text.vocab_size - 2)
        batch = _pairs(self, size) | {"answer_ids": answers["text_ids"], "answer_atts": answers["text_atts"]}

        def run(model: Answerer, batch: Batch) -> Tensor:
            states = model.question_states(batch["image"], batch["text_ids"], batch["text_atts"])
            return model.answer_losses(batch["answer_ids"], batch["answer_atts"], states, batch["text_atts"])

        return Probe("an image, a question and one answer", batch, run)


class Verifier(Model):
    """A model that says whether a statement about two images is true."""

    def logits(self, batch: Batch) -> Tensor:
        """[b, 2], class 1 is true, of image [i, 2, 3, H, W], text_ids, text_atts [b, t].

        image_of [b] int64 where pairs are shared: the pair of each statement; else i is b, one of its own each.
        """
        raise NotImplementedError

    def forward(self, batch: Batch, gather: Gather = no_gather) -> dict[str, Tensor]:
        """Cross-entropy `nlvr` of the fields of `logits` and label [b] int64."""
        return {"nlvr": F.cross_entropy(self.logits(batch).float(), batch["label"])}

    def probe(self, size: int) -> Probe:
        """Two images and a statement."""
        batch = _pairs(self, size)
        batch["image"] = torch.stack([batch["image"], torch.randn_like(batch["image"])], dim=1)

        def run(model: Verifier, batch: Batch) -> Tensor:
            if batch["image"].dim() != 5:  # of pretraining's data
                raise InputError(
                    "this model needs pairs of images, but the data has single ones: give data for the reader "
                    "'statements', or measure the pretraining model"
                )
            return model.logits(batch)

        return Probe("two images and a statement", batch, run)


class Classifier(Model):
    """A model that names the class of an image."""

    def logits(self, image: Tensor) -> Tensor:
        """Class logits [b, classes] of images [b, 3, H, W]."""
        raise NotImplementedError

    def forward(self, batch: Batch, gather: Gather = no_gather) -> dict[str, Tensor]:
        """Cross-entropy `classes` of image [b, 3, H, W] and label [b]."""
        return {"classes": F.cross_entropy(self.logits(batch["image"]).float(), batch["label"])}

    def probe(self, size: int) -> Probe:
        """An image."""
        (batch,) = self.example(size).values()
        return Probe("an image", batch, lambda model, batch: model.logits(batch["image"]))


def check_labels(labels: Tensor, classes: int) -> None:
    """InputError for labels beyond a classifier's classes."""
    if (highest := int(labels.max())) >= classes:
        raise InputError(
            f"the data has a class {highest}, but the model knows {classes}: "
            "choose the data set the classifier was trained on"
        )


class LanguageModel(Model):
    """A model that predicts the next token of a text, which may contain images."""

    @property
    def head(self) -> nn.Module:
        """The layer from states [..., d] to scores of the next token [..., v]."""
        raise NotImplementedError

    def next_tokens(self, batch: Batch) -> Tensor:
        """The next token at each position [b, t]; -100 where the next one is not of the text."""
        raise NotImplementedError

    def read(self, batch: Batch, positions: Tensor) -> None:
        """A forward pass that calls the head on the states [b, k, d] at positions [k]."""
        raise NotImplementedError


def _pairs(model: Model, size: int) -> Batch:
    """Noise images and random words."""
    text = model.config.text
    # BLIP's last two ids start the decoder and the grounded encoder; no text has them.
    words = examples.texts(size, min(WORDS, text.positions), text.vocab_size - 2)
    return examples.images(size, model.image_shape.image_size) | words
