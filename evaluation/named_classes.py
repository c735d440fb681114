"""Zero-shot classification by class names: an image is assigned to the class whose texts have the nearest mean feature.

As in CLIP (Radford et al., ICML 2021, section 3.1.4): each name is put into each template, and the features of a
class's texts are normalised, averaged and normalised again.
    python -m evaluation.zero_shot --model clip-mini --templates "a picture of a {}" "a small {}"
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.limits import at_least
from console.errors import InputError, explain_os_error
from console.words import counted
from data.classification import ImagesToClassify
from data.evaluation_batches import evaluation_batches
from data.labelled import LabelledSet
from data.tokenizer import Tokenizer
from models.base import ImageShape, placed
from models.tasks import Retriever


@dataclass(frozen=True)
class NamedClassSettings:
    """Zero-shot classification of images by texts that name the classes."""

    images: LabelledSet  # images with labels
    names: str | None = None  # file with a line per class: its folder or number, then its name; None: folder names
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])  # texts with a place {} for the name
    sep: bool = False  # whether [SEP] ends a text
    centre: float = 1.0  # centre crop as a share of an image's side
    batch: int = 128  # images or texts per forward pass

    def __post_init__(self) -> None:
        at_least(self, 1, "batch")
        check_templates(self.templates)
        if not 0 < self.centre <= 1:
            raise InputError(f"classes: centre is a share of the side, above 0 and at most 1, not {self.centre}")


def check_templates(templates: list[str]) -> None:
    """InputError unless there is at least one, and each has one place for a name."""
    for template in templates or [""]:
        if template.count("{}") != 1:
            raise InputError(f"the template {template!r} needs one place {{}} for a class's name")


def read_templates(given: list[str]) -> list[str]:
    """The templates of --templates: texts, or the lines of one file; InputError for invalid ones."""
    if len(given) == 1 and "{}" not in given[0]:
        try:
            given = [line for line in Path(given[0]).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"--templates {given[0]!r} is neither a text with a place {{}} for a class's name nor a file of such "
                "lines: give one of both"
            ) from error
    check_templates(given)
    return given


def names_of(path: str, classes: list[str]) -> list[str]:
    """The names of the classes, from the file's lines that begin with the class; InputError if one has no line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise explain_os_error(error, f"read the class names {path}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: give a file with a line a class") from error
    known, found = set(classes), {}
    for line in map(str.strip, lines):
        if ends := [gap.start() for gap in re.finditer(r"[,\s]", line) if line[: gap.start()] in known]:
            found[line[: ends[-1]]] = line[ends[-1] + 1 :].strip().partition(",")[0].strip('" ')
    if missing := [name for name in classes if not found.get(name)]:
        raise InputError(
            f"{path} names {counted(len(classes) - len(missing), 'class', of=len(classes))} and not '{missing[0]}': "
            f"give a line with it, a comma and its name"
        )
    return [found[name] for name in classes]


class NamedClasses:
    """Labelled images and texts that name their classes, opened once for any number of models."""

    def __init__(self, settings: NamedClassSettings, shape: ImageShape, tokenizer: Tokenizer):
        self._settings, self._tokenizer = settings, tokenizer
        self.images = ImagesToClassify(settings.images, shape, share=settings.centre)
        classes, files = self.images.source.classes, settings.images.files.resolved()
        self.names = (
            names_of(files.path(settings.names), classes)
            if settings.names
            else [name.replace("_", " ") for name in classes]
        )

    @torch.no_grad()
    def right(self, model: Retriever) -> Tensor:
        """Whether the nearest class of each image is its own, [n] bool."""
        classes = self.features(model)
        found = []
        for batch in evaluation_batches(self.images, self._settings.batch):
            batch = placed(batch, model)
            near = (model.image_entry(batch["image"])[1] @ classes.t()).argmax(dim=1)
            found.append(near == batch["label"])
        return torch.cat(found)

    def features(self, model: Retriever) -> Tensor:
        """One vector a class [c, e], L2-normalised."""
        device, length = next(model.parameters()).device, model.positions
        means = []
        for name in self.names:
            texts = [template.replace("{}", name) for template in self._settings.templates]
            rows = [self._tokenizer.encode(text, self._settings.sep, length) for text in texts]
            # SigLIP was trained to read padding up to the full length; other models mask it.
            ids, atts = (tensor.to(device) for tensor in self._tokenizer.pad_batch(rows, length))
            means.append(model.text_entry(ids, atts)[1].mean(dim=0))
        return F.normalize(torch.stack(means), dim=1)
