"""Image classification behind a visual prompt: VPNs, HYDRA, and the finetuning of any mask, with or without a prompt.

Jin et al., "Visual Prompting Upgrades Neural Network Sparsification: A Data-Model Perspective", AAAI 2025. Optimizer
steps alternate between two halves: pictures without augmentation and with the prompt, which train it, and augmented
ones without it. The prompt is a part of the final model; the accuracy without it is also reported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from console.errors import InputError
from data.classification import ImagesToClassify
from data.labelled import LabelledSet
from data.readers import Batch, ReaderConfig
from data.transforms import CLIP_MEAN, CLIP_STD, square_picture
from evaluation.contact_sheet import spread
from evaluation.prompt_picture import draw_prompt
from models.base import ImageShape, placed
from models.label_mapping import LabelMapping, answers, check_classes
from models.prompt_files import PromptFile, read_prompt, write_prompt
from models.prompts import Prompted, VisualPrompt
from tasks.image_classification import Classification, ClassificationConfig, top1
from tasks.prompt_options import NEW, NONE, PromptOptions
from training.epoch_weights import Metrics
from training.evaluating import Evaluation
from training.merge import gather_shares
from training.run import Run


@dataclass(frozen=True, kw_only=True)
class PromptsConfig(ClassificationConfig):
    """Classification of pictures in [0, 1] behind a visual prompt."""

    reads, prompted = "pictures", True

    prompts: PromptOptions = field(default_factory=PromptOptions)  # the prompt, the label mapping, the halves

    @property
    def new_classifier(self) -> bool:
        """Whether the model gets a new classifier instead of a label mapping."""
        return self.prompts.mapping == "head"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.best_epoch:
            raise InputError("best_epoch is not for runs with a prompt, where the last epoch counts: leave it out")
        if self.train.side is not None or self.train.clean:
            raise InputError("the prompt decides over side and clean of train: leave them out")
        if self.prompts.prompt_lr and not self.recipe.lr:
            raise InputError("recipe: lr must be above 0 with prompt_lr: raise it (--freeze trains only the prompt)")

    @cached_property
    def given(self) -> PromptFile | None:
        """The prompt of a given file; InputError for a file that is missing, damaged, or not a prompt."""
        return None if self.prompts.prompt in (NEW, NONE) else read_prompt(self.prompts.prompt)

    def check_file(self) -> None:
        """InputError if the file is not a prompt, or was trained with another kind of classifier."""
        if self.given is not None and (self.given.mapping is None) != self.new_classifier:
            mapped = self.given.mapping is not None
            words = ("a label mapping", "flm") if mapped else ("a new classifier", "head")
            raise InputError(f"{self.prompts.prompt} was trained with {words[0]}: add --mapping {words[1]}")

    def check_classes(self, classes: list[str]) -> None:
        """InputError if the file was trained for other classes."""
        if self.given is not None and self.given.classes != classes:
            theirs = self.given.classes
            raise InputError(
                f"{self.prompts.prompt} belongs to other classes ({len(theirs)}, first: {theirs[0]}) than the images "
                f"({len(classes)}, first: {classes[0]}): --prompt new fits another"
            )

    def sides(self) -> dict[str, ReaderConfig]:
        """The halves: clean pictures (not augmented) and augmented ones, each in its own order."""
        side = self.prompts.picture if self.given is None else self.given.shape["picture"]
        train = dataclasses.replace(self.train, side=side)
        halves = {"clean": dataclasses.replace(train, clean=True), "train": train}
        chosen = "prompted" if self.prompts.freeze else self.prompts.halves
        return {"both": halves, "prompted": {"clean": halves["clean"]}, "plain": {"train": train}}[chosen]


class Prompts(Classification):
    """Top-1 accuracy with the prompt (`top1`) and without it (`plain_top1`)."""

    name, words = "prompts", "classification behind a prompt"
    metric_words: ClassVar = {
        "top1": "top-1",
        "plain_top1": "without prompt",
        "search_top1": "before training",
        "search_plain_top1": "before training, without prompt",
    }
    Config = PromptsConfig
    script = "image_classification"
    tells_search = True

    def __init__(self, config: PromptsConfig, model: nn.Module, tokenizer: Any, run: Run):
        """InputError for a prompt that does not fit, and for classes that cannot be mapped."""
        self._options, self._run, given = config.prompts, run, config.given
        self._prompt = self._made(model.image_shape, given)
        picture, shape = self._prompt.picture, model.image_shape
        plain = ImageShape(picture, shape.patch_size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        super().__init__(config, model, tokenizer, run, shape=plain, transform=square_picture(picture))
        training = config.training_part(LabelledSet(config.train.files, config.train.splits).open())
        self._counted = ImagesToClassify(training, plain, transform=square_picture(picture))
        self._classes = training.classes
        if given is not None:
            given.check_network(self._options.prompt, model)
        mapping = self._mapping(model, given)
        self._prompted = Prompted(model, self._prompt, mapping)
        self._fitted = given is not None and self._options.prompt != NONE
        if given is not None and run.args.mask and not run.args.dense:
            given.restore_statistics(model)  # without a mask the checkpoint has its own statistics
        if self._options.freeze:
            self._freeze(model)
        self._last = ""  # the half of the latest step
        self.extra_modules: Mapping[str, nn.Module] = (
            {"prompt": self._prompt} if self._prompt.program is not None else {}
        )

    def _made(self, shape: ImageShape, given: PromptFile | None) -> VisualPrompt:
        """The prompt; a given file decides its kind and sizes."""
        asked, side = self._options, shape.image_size
        if given is not None:
            if given.shape["side"] != side:
                raise InputError(
                    f"{asked.prompt} is a prompt for {given.shape['side']} pixels, but the model takes {side}: give "
                    "the model it was trained with, or --prompt new"
                )
            return given.prompt()
        kind = asked.prompt_kind if asked.learns else "none"
        normal = {"mean": shape.mean or CLIP_MEAN, "std": shape.std or CLIP_STD}
        return VisualPrompt(kind, side, asked.picture, asked.prompt_width, asked.prompt_square, **normal)

    def _mapping(self, model: nn.Module, given: PromptFile | None) -> LabelMapping | None:
        """The file's mapping, or one to be fitted; None with a new classifier."""
        if self._options.mapping == "head":
            return None
        with torch.no_grad():
            blank = next(model.parameters()).new_zeros(1, 3, self._prompt.side, self._prompt.side)
            known = model.logits(blank).shape[1]
        if given is not None:
            assert given.mapping is not None  # otherwise `check_file` has rejected it
            if (most := int(given.mapping.max())) >= known:
                raise InputError(
                    f"{self._options.prompt} maps labels to class {most}, but the model has only {known}: give "
                    "--model and -pre as it was trained with, or --prompt new"
                )
            return LabelMapping(given.mapping)
        fresh = [] if model.load_report is None else model.load_report.fresh
        if fresh:
            raise InputError(
                f"the checkpoint has no classifier ({fresh[0]} is newly initialised), so labels cannot be mapped: add "
                "--mapping head"
            )
        check_classes(known, len(self._classes))
        return LabelMapping(torch.zeros(len(self._classes)))

    def _freeze(self, model: nn.Module) -> None:
        """Freeze the network."""
        if model.load_report is not None and (fresh := model.load_report.fresh):
            raise InputError(
                f"--freeze trains only the prompt, but {fresh[0]} is newly initialised and must be trained: leave "
                "--freeze out, or give weights with a classifier"
            )
        model.requires_grad_(False)

    # -- training ---------------------------------------------------------------------------------------

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Cross-entropy of the mapped logits, `prompted` or `plain`."""
        if self._options.freeze:
            model.eval()  # freezes running statistics, too
        prompted, program = bool(batch["prompted"]), self._prompt.program
        self._last = "prompted" if prompted else "plain"
        loss = F.cross_entropy(self._prompted(batch["image"], prompted).float(), batch["label"])
        if not prompted and program is not None and dist.is_initialized():
            loss = loss + 0.0 * program.sum()  # DDP waits for gradients of all parameters
        return {self._last: loss}

    def after_backward(self) -> None:
        """Leave a prompt that was not used unchanged: without a gradient there is neither decay nor momentum."""
        if self._last == "plain" and self._prompt.program is not None:
            self._prompt.program.grad = None

    def rates(self, search: float | None = None) -> dict[str, float]:
        """The learning rate of the prompt."""
        own = self._options.prompt_lr if search is None else self._options.search_prompt_lr or search
        return {"extra_modules.prompt.": own} if own is not None and self.extra_modules else {}

    def begin(self, model: nn.Module, look: Evaluation) -> None:
        """Fit the label mapping of the network under its first mask, unless a snapshot or a file has it."""
        self._prompted.to(next(model.parameters()).device)  # also buffers: means, the mapping
        if not self._fitted and self._prompted.mapping is not None:
            self._fit(model, look)

    def end_epoch(self, model: nn.Module, look: Evaluation) -> None:
        """Fit the mapping again, if it is iterative."""
        if self._options.mapping == "ilm" and self._prompted.mapping is not None:
            self._fit(model, look)

    @torch.no_grad()
    def _fit(self, model: nn.Module, look: Evaluation) -> None:
        """One pass over the training pictures without augmentation, in eval mode; counts do not depend on the order."""
        was = model.training
        self._prompted.to(next(model.parameters()).device).eval()
        mine = None
        for batch in look.batches(self._counted, self._config.eval_batch):
            logits = model.logits(self._prompt(placed(batch, model)["image"]))
            found = answers(logits, batch["label"], len(self._classes))
            mine = found if mine is None else mine + found
        parts = gather_shares(look.fabric, {look.fabric.global_rank: mine})
        fitted = LabelMapping.of_counts(sum(part for part in parts.values() if part is not None))
        self._prompted.mapping.mapping.copy_(fitted.mapping)
        self._fitted = True
        self._prompted.train(was)

    def state_dict(self) -> dict[str, Any]:
        """The mapping; the prompt is saved with the trained parameters."""
        mapping = self._prompted.mapping
        return {} if mapping is None else {"mapping": mapping.mapping}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of `state_dict`."""
        self._prompted.mapping.mapping.copy_(state["mapping"])
        self._fitted = True

    # -- results ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, model: nn.Module, look: Evaluation) -> Metrics:
        """`top1` with the prompt, and if there is one `plain_top1` without it: percent of the test images."""
        self._prompted.to(next(model.parameters()).device).eval()
        found = self.classified(model, look, lambda image: self._prompted(image))
        metrics = {"top1": top1(found)}
        if self.extra_modules:
            plain = self.classified(model, look, lambda image: self._prompted(image, prompted=False))
            metrics["plain_top1"] = top1(plain)
        self._found = found
        return metrics

    def keep(self, folder: Path, model: nn.Module) -> None:
        """Write prompt.safetensors and the picture prompt.png."""
        mapping = self._prompted.mapping
        file = PromptFile.of(self._prompt, None if mapping is None else mapping.mapping, self._classes, model)
        write_prompt(folder / "prompt.safetensors", file)
        if self.extra_modules and not self._run.args.no_samples:
            data = self._data["test"]
            pictures = [data[i][0] for i in spread(len(data), 3)]
            draw_prompt(self._prompt, pictures, folder / "prompt.png", f"{self._run.args.model}")
