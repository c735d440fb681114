"""Image classification as a finetuning task: cross-entropy over a data set's classes, top-1 accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from configs.limits import at_least
from configs.schema import parse
from console.errors import InputError, nearest
from console.words import counted
from data.classification import ImagesToClassify, same_classes
from data.evaluation_batches import check_files
from data.labelled import LabelledSet
from data.readers import Batch
from data.transforms import to_picture
from evaluation.contact_sheet import Line, Part, Sample, Shown, spread
from evaluation.items import Groups, one_group
from models.base import ImageShape, placed
from training.epoch_weights import Metrics
from training.evaluating import Evaluation
from training.merge import gather_shares
from training.run import Run
from training.samples import IMAGES
from training.task import Finetuning, Task


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(Finetuning):
    """test: the images that are classified after every epoch."""

    reads = "classification"

    test: LabelledSet
    eval_batch: int = 128

    @property
    def new_classifier(self) -> bool:
        """Whether the model gets one of the data set's classes."""
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "eval_batch")


def config_for(
    settings: dict[str, Any],
    dataset: str | None,
    where: str,
    kind: type[ClassificationConfig],
) -> ClassificationConfig:
    """The configuration for one of the data sets in the section `datasets`, the first by default.

    The model gets as many classes as the set has, unless it keeps its own. InputError for a name that is not there,
    and where training and test images have different classes.
    """
    datasets = settings.get("datasets")
    if not isinstance(datasets, dict) or not datasets:
        raise InputError(f"{where}: the section 'datasets' must name at least one data set with 'train' and 'test'")
    name = dataset or next(iter(datasets))
    if name not in datasets:
        raise InputError(f"unknown data set '{name}'{nearest(name, datasets)}: choose one of {', '.join(datasets)}")
    common = {key: value for key, value in settings.items() if key != "datasets"}
    each = {n: parse(kind, {**common, **own}, f"{where}: {n}") for n, own in datasets.items()}
    config = each[name]
    classes = same_classes(LabelledSet(config.train.files, config.train.splits).open(), config.test.open())
    if config.new_classifier:
        config.model["classes"] = classes
    return config


Found = dict[int, tuple[int, int]]
"""Number of a test image -> the class found for it, and its own."""


def top1(found: Found) -> float:
    """Percent of the images whose class was found."""
    return round(100 * sum(label == true for label, true in found.values()) / len(found), 2)


class Classification(Task):
    """Class labels. The last epoch counts, as published."""

    name, words = "image_classification", "classification"
    main = ("top1",)
    metric_words: ClassVar = {"top1": "top-1"}
    Config = ClassificationConfig
    decides = None
    validates = False

    def __init__(
        self,
        config: ClassificationConfig,
        model: nn.Module,
        tokenizer: Any,
        run: Run,
        shape: ImageShape | None = None,
        transform: Callable[[Image.Image], Tensor] | None = None,
    ):
        """shape, transform: of test images (None: the model's, its centre cut out)."""
        self._config, self._shape = config, shape or model.image_shape
        self._data = ImagesToClassify(config.test, self._shape, run.limit, transform=transform)
        check_files(self._data)

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Cross-entropy."""
        return model(batch)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, look: Evaluation) -> Metrics:
        """`top1`: percent of the test images whose class is found."""
        self._found = self.classified(model, look, model.logits)
        return {"top1": top1(self._found)}

    def classified(self, model: nn.Module, look: Evaluation, logits: Callable[[Tensor], Tensor]) -> Found:
        """The test images on all processes."""
        rank, size = look.fabric.global_rank, look.fabric.world_size
        found, batch_size = {}, self._config.eval_batch
        for number, batch in enumerate(look.batches(self._data, batch_size)):
            best = logits(placed(batch, model)["image"]).argmax(dim=1).tolist()
            first = (number * size + rank) * batch_size
            found |= {first + i: pair for i, pair in enumerate(zip(best, batch["label"].tolist(), strict=True))}
        return gather_shares(look.fabric, found)

    def items(self) -> Groups:
        """Whether the class of each test image was found, by its number."""
        right = {number: float(label == true) for number, (label, true) in self._found.items()}
        return one_group({"top1": right}, None)

    def samples(self) -> list[Part]:
        """Images with the class found and the true one."""
        classes, shown = self._data.source.classes, []
        for i in spread(len(self._data), IMAGES):
            label, true = self._found[i]
            mark = "right" if label == true else "wrong"
            lines = [Line(f"found: {classes[label]}", "strong"), Line(mark, mark), Line(f"true: {classes[true]}")]
            shown.append(Sample([Shown(to_picture(self._data[i][0], self._shape))], lines))
        return [
            Part(
                f"{counted(len(shown), 'test image', of=len(self._data))}, with the class found and the true class",
                shown,
            )
        ]
