"""What can be asked of a visual prompt: the section `prompts` of a configuration, and options of the script."""

from __future__ import annotations

from dataclasses import dataclass

from configs.options import option
from console.errors import InputError, nearest

NEW, NONE = "new", "none"
KINDS = ("pad", "fix", "random", "expand")
MAPPINGS = ("flm", "ilm", "head")
HALVES = ("both", "prompted", "plain")


@dataclass(frozen=True)
class PromptOptions:
    """Jin et al. (AAAI 2025): kind, sizes in pixels of the model's pictures, label mapping, halves of a step, rates."""

    prompt: str = option(NEW, "new: learn one; none: without; or the file of one, to go on with or to test")
    prompt_kind: str = option(
        "pad", f"{', '.join(KINDS)}: a frame, a square at the top left or anywhere, all around a small picture"
    )
    prompt_width: int = option(16, "pad: pixels of the frame, on each side")
    prompt_square: int = option(115, "fix, random: side of the square in pixels")
    picture: int | None = option(
        None, "side of the pictures in pixels; zeros surround smaller ones (default: the model's)"
    )
    mapping: str = option(
        "flm",
        "flm: classes of the checkpoint stand for those of the data set, by how often they are the answer; ilm: "
        "renewed each epoch; head: a new classifier",
    )
    halves: str = option(
        "both",
        "of a step: prompted (pictures as they are, with the prompt), plain (varied ones without), or both in turn",
    )
    prompt_lr: float | None = option(None, "learning rate of the prompt (default: the weights')")
    search_prompt_lr: float | None = option(None, "the same while scores are trained (default: the scores')")

    def __post_init__(self) -> None:
        for name, known in (("prompt_kind", KINDS), ("mapping", MAPPINGS), ("halves", HALVES)):
            if (value := getattr(self, name)) not in known:
                raise InputError(f"unknown {name} '{value}'{nearest(value, known)}: choose one of {', '.join(known)}")
        for name in ("prompt_width", "prompt_square", "picture"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        for name in ("prompt_lr", "search_prompt_lr"):
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise InputError(f"{name} must be a number above 0, not {value}")

    @property
    def learns(self) -> bool:
        """Whether there is a prompt."""
        return self.prompt != NONE
