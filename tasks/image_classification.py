"""Image classification as a finetuning task: cross-entropy over a data set's classes, top-1 accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
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
from models.base import placed
from training.epoch_weights import Metrics
from training.evaluating import Evaluation
from training.merge import gather_shares
from training.samples import IMAGES
from training.task import Finetuning, Task


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(Finetuning):
    """test: the images that are classified after every epoch."""

    reads = "classification"

    test: LabelledSet
    eval_batch: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "eval_batch")


def config_for(settings: dict[str, Any], dataset: str | None, where: str) -> ClassificationConfig:
    """The configuration for one of the data sets in the section `datasets`, the first by default.

    The model gets as many classes as the set has. InputError for a name that is not there, and where training and test
    images have different classes.
    """
    datasets = settings.get("datasets")
    if not isinstance(datasets, dict) or not datasets:
        raise InputError(f"{where}: the section 'datasets' must name at least one data set with 'train' and 'test'")
    name = dataset or next(iter(datasets))
    if name not in datasets:
        raise InputError(f"unknown data set '{name}'{nearest(name, datasets)}: choose one of {', '.join(datasets)}")
    common = {key: value for key, value in settings.items() if key != "datasets"}
    each = {n: parse(ClassificationConfig, {**common, **own}, f"{where}: {n}") for n, own in datasets.items()}
    config = each[name]
    classes = same_classes(LabelledSet(config.train.files, config.train.splits).open(), config.test.open())
    config.model["classes"] = classes
    return config


class Classification(Task):
    """Class labels. The last epoch counts, as published."""

    name, words = "image_classification", "classification"
    main = ("top1",)
    metric_words: ClassVar = {"top1": "top-1"}
    Config = ClassificationConfig
    decides = None
    validates = False

    def __init__(
        self, config: ClassificationConfig, model: nn.Module, tokenizer: Any, folder: Path, limit: int | None = None
    ):
        self._config, self._shape = config, model.image_shape
        self._data = ImagesToClassify(config.test, model.image_shape, limit)
        check_files(self._data)

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Cross-entropy."""
        return model(batch)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, look: Evaluation) -> Metrics:
        """`top1`: percent of the test images whose class is found."""
        rank, size = look.fabric.global_rank, look.fabric.world_size
        found, batch_size = {}, self._config.eval_batch
        for number, batch in enumerate(look.batches(self._data, batch_size)):
            best = model.logits(placed(batch, model)["image"]).argmax(dim=1).tolist()
            first = (number * size + rank) * batch_size
            found |= {first + i: pair for i, pair in enumerate(zip(best, batch["label"].tolist(), strict=True))}
        self._found = gather_shares(look.fabric, found)
        right = [label == true for label, true in self._found.values()]
        return {"top1": round(100 * sum(right) / len(right), 2)}

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
