"""Captioning as a finetuning task: next-word cross-entropy, and captions by beam search."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from configs.limits import at_least, probabilities
from console.errors import InputError
from console.words import counted
from data.captioning import ImagesToCaption
from data.evaluation_batches import check_files
from data.readers import Batch
from data.records import Id, check_same_kind
from data.sources import Files
from data.tokenizer import Tokenizer
from data.transforms import to_picture
from evaluation.captions import SLOW, caption_scores, read_ground_truth, write_results
from evaluation.contact_sheet import Line, Part, Sample, Shown, spread
from evaluation.generation import generate_captions
from evaluation.items import Groups, one_group
from evaluation.truthfulness import details, load_scenes, truth_of_images, truthfulness
from models.common.beam_search import SearchSettings
from training.epoch_weights import Metrics
from training.evaluating import Evaluation
from training.merge import gather_shares
from training.samples import IMAGES
from training.task import Finetuning, Task, check_positions


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """Images to caption, and the reference captions in COCO's format."""

    images: Files
    ground_truth: str  # file in COCO's caption format
    limit: int | None = None  # use only the first images

    def __post_init__(self) -> None:
        at_least(self, 1, "limit")


@dataclass(frozen=True, kw_only=True)
class CaptioningConfig(Finetuning):
    """COCO captioning."""

    reads = "captions"

    val: Captioned  # images with captions, evaluated after each epoch
    test: Captioned  # the same, evaluated in the end
    smoothing: float = 0.1  # label smoothing
    prompt: str = "a picture of "  # start of every caption
    search: SearchSettings = field(default_factory=SearchSettings)  # beam search
    eval_batch: int = 64  # images per forward pass in evaluation
    start_eval: int = 0  # first epoch that is evaluated, from 0
    leave_out: list[str] = field(default_factory=list)  # slow metrics not to compute: METEOR, SPICE

    def __post_init__(self) -> None:
        super().__post_init__()
        probabilities(self, "smoothing")
        at_least(self, 1, "eval_batch")
        at_least(self, 0, "start_eval")
        if not self.skip_val and self.start_eval >= self.epochs:
            raise InputError(
                f"start_eval is {self.start_eval}, so none of {counted(self.epochs, 'epoch')} is evaluated: lower it"
            )
        if self.train.prompt.strip() != self.prompt.strip():
            raise InputError(
                f"captions are trained after {self.train.prompt!r} (train: prompt) and written after {self.prompt!r} "
                "(prompt): give the same"
            )
        if strange := [name for name in self.leave_out if name not in SLOW]:
            raise InputError(f"leave_out: '{strange[0]}' cannot be left out, only {' and '.join(SLOW)} can")


class Captioning(Task):
    """Captioning with a prompt and beam search. The epoch with the best CIDEr on `val` is tested."""

    name = words = "captioning"
    main = ("CIDEr", "Bleu_4")
    metric_words: ClassVar = {f"Bleu_{n}": f"BLEU-{n}" for n in (1, 2, 3, 4)} | {
        "ROUGE_L": "ROUGE-L",
        "true": "wholly true",
        "present": "things there",
    }
    Config = CaptioningConfig

    def __init__(
        self,
        config: CaptioningConfig,
        model: nn.Module,
        tokenizer: Tokenizer,
        folder: Path,
        skip_eval: bool = False,
        limit: int | None = None,
    ):
        """skip_eval: write captions without scoring them; then the last epoch counts."""
        asked = {"train: max_tokens": config.train.max_tokens, "search: max_length": config.search.max_length}
        check_positions(model, asked)
        self.decides = None if skip_eval else "CIDEr"
        self._config, self._tokenizer, self._folder, self._skip = config, tokenizer, folder, skip_eval
        self._shape = model.image_shape
        self._prompt = len(tokenizer.encode(config.prompt.strip(), False, None))
        self._data, self._references, self._scenes = {}, {}, {}
        for split, captioned in (("val", config.val), ("test", config.test)):
            self._data[split] = ImagesToCaption(captioned.images, model.image_shape, limit or captioned.limit)
            check_files(self._data[split])
            truth = read_ground_truth(captioned.images.resolved().path(captioned.ground_truth))
            ids = self._data[split].image_ids
            check_same_kind(ids, truth, f"the images of {split}", f"those of {captioned.ground_truth}")
            if lacking := [image for image in ids if image not in truth]:
                raise InputError(
                    f"{captioned.ground_truth} has no caption of image {lacking[0]!r}: download the complete file"
                )
            self._references[split] = {image: truth[image] for image in ids}
            if captioned.images.miniworld:
                self._scenes[split] = load_scenes(captioned.images.resolved().root, ids)

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Cross-entropy of the caption's words after the prompt."""
        return model(batch, prompt=self._prompt, smoothing=self._config.smoothing)

    def evaluate(self, model: nn.Module, look: Evaluation) -> Metrics:
        """Write captions to result/; returns their scores."""
        config, split, fabric = self._config, look.split, look.fabric
        share = look.batches(self._data[split], config.eval_batch)
        written = generate_captions(model, share, self._tokenizer, config.prompt, config.search)
        written = self._written = gather_shares(fabric, written)
        scores: Metrics = {}
        self._single: dict[str, dict[Id, float]] = {}
        if fabric.is_global_zero:
            name = f"captioning_{split}_result_epoch{look.epoch or 'last'}.json"
            write_results(self._folder / "result" / name, written)
            if not self._skip:
                # The scorers reject an empty caption (of special tokens only); a full stop is valid and no word.
                worded = {number: caption.strip() or "." for number, caption in written.items()}
                scores, left_out = caption_scores(
                    self._references[split], worded, self._single.__setitem__, config.leave_out
                )
                scores |= {"left_out": left_out} if left_out else {}
                if self._scenes.get(split):
                    scores |= truthfulness(worded, self._scenes[split])
                    self._single |= truth_of_images(worded, self._scenes[split])
        return fabric.broadcast(scores)

    def items(self) -> Groups:
        """CIDEr of single images, and for the mini world the truth of their captions."""
        return one_group(self._single, None)

    def samples(self) -> list[Part]:
        """Images with the generated caption, a reference, and for the mini world the things in it that are there."""
        data, scenes, shown = self._data[self.split], self._scenes.get(self.split) or {}, []
        for i in spread(len(data), IMAGES):
            image, number = data[i]
            caption = self._written[number].strip()
            lines = [Line(caption or "(no word)", "strong")]
            if number in scenes:
                verdict = details(caption, scenes[number])
                lines.append(Line("wholly true", "right") if verdict.true else Line("not wholly true", "wrong"))
                for name, things in (("there", verdict.there), ("not there", verdict.not_there)):
                    lines += [Line(f"{name}: {listed(things)}")] if things else []
            lines.append(Line(f"reference: {self._references[self.split][number][0]}", "faint"))
            shown.append(Sample([Shown(to_picture(image, self._shape))], lines))
        return [Part(f"{counted(len(shown), f'{self.split} image', of=len(data))}, with the caption written", shown)]


def listed(things: list[str]) -> str:
    """`ring × 3, heart`: things in order, with their numbers."""
    return ", ".join(f"{thing} × {n}" if n > 1 else thing for thing, n in Counter(things).items())
