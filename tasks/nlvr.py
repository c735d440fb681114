"""NLVR2 as a finetuning task: is a statement about two images true? Accuracy, and consistency over a sentence's pairs.

Suhr et al., ACL 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from configs.limits import at_least
from console.words import counted
from data.evaluation_batches import check_files
from data.image_pairs import StatementsToJudge, sentence_of
from data.readers import Batch
from data.records import Id
from data.sources import Files
from data.tokenizer import Tokenizer
from data.transforms import to_picture
from evaluation.contact_sheet import Line, Part, Sample, Shown, spread
from evaluation.items import Groups, one_group
from models.base import placed
from training.epoch_weights import Metrics
from training.evaluating import Evaluation
from training.merge import gather_shares
from training.samples import TEXTS
from training.task import Finetuning, Task, check_positions

WORDS = ("false", "true")
"""Names of the labels."""


@dataclass(frozen=True, kw_only=True)
class NLVRConfig(Finetuning):
    """NLVR2."""

    reads = "statements"

    val: Files  # dev, which selects the epoch
    test: Files  # test-P
    eval_batch: int = 64  # statements per forward pass in evaluation

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "eval_batch")


class NLVR(Task):
    """NLVR2. The epoch with the best accuracy on dev is tested."""

    name, words = "nlvr", "NLVR2"
    main = ("accuracy",)
    Config = NLVRConfig
    decides = "accuracy"

    def __init__(self, config: NLVRConfig, model: nn.Module, tokenizer: Tokenizer, limit: int | None = None):
        if config.train.max_tokens is not None:
            check_positions(model, {"train: max_tokens": config.train.max_tokens})
        self._config, self._shape = config, model.image_shape
        self._data = {}
        for split, files in (("val", config.val), ("test", config.test)):
            self._data[split] = StatementsToJudge(files, model.image_shape, tokenizer, config.train, limit)
            check_files(self._data[split])

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Cross-entropy of true and false."""
        return model(batch)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, look: Evaluation) -> Metrics:
        """`accuracy`: percent of statements judged correctly; `consistency`: of sentences, correct on all their pairs.

        The latter if the records have identifiers.
        """
        data = self._data[look.split]
        found: dict[int, int] = {}
        for batch in look.batches(data, self._config.eval_batch):
            judged = model.logits(placed(batch, model)).argmax(dim=1).tolist()
            found |= dict(zip(batch["number"], judged, strict=True))
        self._judged = gather_shares(look.fabric, found)
        right = [self._judged[number] == one.label for number, one in enumerate(data.statements)]
        metrics: Metrics = {"accuracy": round(100 * sum(right) / len(right), 2)}
        if data.identified:
            whole: dict[str, bool] = {}
            for one, is_right in zip(data.statements, right, strict=True):
                sentence = sentence_of(str(one.identifier))
                whole[sentence] = is_right and whole.get(sentence, True)
            metrics["consistency"] = round(100 * sum(whole.values()) / len(whole), 2)
        return metrics

    def items(self) -> Groups:
        """Whether each statement was judged correctly, and its two images, in either order."""
        data, pairs = self._data[self.split], {}
        scores: dict[Id, float] = {}
        picture: dict[Id, Id] = {}
        for number, one in enumerate(data.statements):
            name: Id = one.identifier if data.identified and one.identifier is not None else number
            scores[name] = float(self._judged[number] == one.label)
            picture[name] = pairs.setdefault(frozenset(one.images), len(pairs))
        return one_group({"accuracy": scores}, picture)

    def samples(self) -> list[Part]:
        """Statements with both images, the model's answer, and whether it is right."""
        data, shown = self._data[self.split], []
        for i in spread(len(data), TEXTS):
            one, judged = data.statements[i], self._judged[i]
            mark = "right" if judged == one.label else "wrong"
            lines = [Line(one.sentence), Line(f"judged {WORDS[judged]}", "strong"), Line(mark, mark)]
            pictures = [to_picture(image, self._shape) for image in data.picture(i)]
            sides = zip(pictures, ("left", "right"), strict=True)
            shown.append(Sample([Shown(picture, side) for picture, side in sides], lines))
        return [Part(f"{counted(len(shown), f'{self.split} statement', of=len(data))}, as judged", shown)]
