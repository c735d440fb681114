"""Image classification as a finetuning task: cross-entropy over a data set's classes, top-1 accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from configs.limits import at_least
from configs.schema import parse
from console.errors import InputError, nearest
from console.words import counted
from data.classification import ImagesToClassify, hold_out, same_classes
from data.evaluation_batches import check_files
from data.labelled import LabelledSet
from data.readers import Batch
from data.sources import LabelledSource
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
    """Image classification."""

    reads = "classification"

    test: LabelledSet  # test images; without `validation` also evaluated after every epoch
    eval_batch: int = 128  # images per forward pass in evaluation
    validation: float | None = None  # share of each class held out of training, and evaluated after every epoch
    best_epoch: bool = False  # test the best epoch on the held-out images; else the last one

    @property
    def new_classifier(self) -> bool:
        """Whether the model gets a new classifier for the data set's classes."""
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "eval_batch")
        if not 0 <= (self.validation or 0) < 1:
            raise InputError(f"validation is a share of the training images, from 0 to below 1, not {self.validation}")
        if self.best_epoch and (self.skip_val or not self.validation):
            raise InputError(
                "best_epoch selects the epoch on held-out images: add validation, such as 0.1, without skip_val, or "
                "leave best_epoch out"
            )

    def training_part(self, source: LabelledSource) -> LabelledSource:
        """The training images without the held-out ones."""
        return hold_out(source, self.validation, self.seed)[0] if self.validation else source

    def check_classes(self, classes: list[str]) -> None:
        """InputError if the configuration names a file for other classes."""


def config_for(
    settings: dict[str, Any], dataset: str | None, where: str, kind: type[ClassificationConfig], seed: int | None = None
) -> ClassificationConfig:
    """The configuration for one of the data sets in the section `datasets`, the first by default; no data is opened.

    seed: overrides the configuration's. InputError for an unknown name.
    """
    datasets = settings.get("datasets")
    if not isinstance(datasets, dict) or not datasets:
        raise InputError(f"{where}: the section 'datasets' must name at least one data set with 'train' and 'test'")
    name = dataset or next(iter(datasets))
    if name not in datasets:
        raise InputError(f"unknown data set '{name}'{nearest(name, datasets)}: choose one of {', '.join(datasets)}")
    common = {key: value for key, value in settings.items() if key != "datasets"}
    in_turn = {name: datasets[name], **datasets}  # the requested one first, so that its errors are reported first
    each = {n: parse(kind, {**common, **own}, f"{where}: {n}") for n, own in in_turn.items()}
    return each[name] if seed is None else replace(each[name], seed=seed)


def count_classes(config: ClassificationConfig) -> None:
    """Set the model's number of classes to that of the images, if it gets a new classifier.

    InputError if training and test images have different classes (`same_classes`), or others than a given prompt.
    """
    training = LabelledSet(config.train.files, config.train.splits).open()
    classes = same_classes(training, config.test.open())
    config.check_classes(training.classes)
    if config.new_classifier:
        config.model["classes"] = classes


Found = dict[int, tuple[int, int]]
"""Number of a test image -> its predicted and its true class."""


def top1(found: Found) -> float:
    """Percent of the images that are classified correctly."""
    return round(100 * sum(label == true for label, true in found.values()) / len(found), 2)


class Classification(Task):
    """Class labels. The last epoch counts, as published, unless `best_epoch` says otherwise."""

    name, words = "image_classification", "classification"
    main = ("top1",)
    metric_words: ClassVar = {"top1": "top-1"}
    Config = ClassificationConfig

    def __init__(
        self,
        config: ClassificationConfig,
        model: nn.Module,
        tokenizer: Any,
        run: Run,
        shape: ImageShape | None = None,
        transform: Callable[[Image.Image], Tensor] | None = None,
    ):
        """shape, transform: of images to classify (None: the model's shape, and a centre crop)."""
        self._config, self._shape = config, shape or model.image_shape
        self.validates, self.decides = bool(config.validation), "top1" if config.best_epoch else None
        test = ImagesToClassify(config.test, self._shape, run.limit, transform=transform)
        self._data = {"test": test, "val": test}
        if config.validation:
            training = LabelledSet(config.train.files, config.train.splits).open()
            _, held = hold_out(training, config.validation, config.seed)
            self._data["val"] = ImagesToClassify(held, self._shape, run.limit, transform=transform)
            out = counted(len(held), "training image", "is", of=len(training))
            self.notices = [f"{out} held out for validation, {config.validation:.3g} of each class"]
        for data in dict.fromkeys(self._data.values()):
            check_files(data)

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Cross-entropy."""
        return model(batch)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, look: Evaluation) -> Metrics:
        """`top1`: percent of the split's images that are classified correctly."""
        self._found = self.classified(model, look, model.logits)
        return {"top1": top1(self._found)}

    def classified(self, model: nn.Module, look: Evaluation, logits: Callable[[Tensor], Tensor]) -> Found:
        """Predicted and true classes of the split's images, from all processes."""
        rank, size = look.fabric.global_rank, look.fabric.world_size
        found, batch_size = {}, self._config.eval_batch
        for number, batch in enumerate(look.batches(self._data[look.split], batch_size)):
            best = logits(placed(batch, model)["image"]).argmax(dim=1).tolist()
            first = (number * size + rank) * batch_size
            found |= {first + i: pair for i, pair in enumerate(zip(best, batch["label"].tolist(), strict=True))}
        return gather_shares(look.fabric, found)

    def items(self) -> Groups:
        """Whether each image was classified correctly, by its number."""
        right = {number: float(label == true) for number, (label, true) in self._found.items()}
        return one_group({"top1": right}, None)

    def samples(self) -> list[Part]:
        """Images with the predicted and the true class."""
        data, shown = self._data[self.split], []
        classes, kind = data.source.classes, "test" if self.split == "test" else "validation"
        for i in spread(len(data), IMAGES):
            label, true = self._found[i]
            mark = "right" if label == true else "wrong"
            lines = [Line(f"predicted: {classes[label]}", "strong"), Line(mark, mark), Line(f"true: {classes[true]}")]
            shown.append(Sample([Shown(to_picture(data[i][0], self._shape))], lines))
        images = counted(len(shown), f"{kind} image", of=len(data))
        return [Part(f"{images}, with the predicted and the true class", shown)]
