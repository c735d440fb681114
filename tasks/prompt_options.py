"""Options of a visual prompt: the section `prompts` of a configuration, and options of the script."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from configs.options import option
from console.errors import InputError, nearest
from sparsity.progressive_config import SEARCHES

NEW, NONE = "new", "none"
KINDS = ("pad", "fix", "random", "expand")
MAPPINGS = ("flm", "ilm", "head")
HALVES = ("both", "prompted", "plain")


@dataclass(frozen=True)
class PromptOptions:
    """Options of a prompt (Jin et al., AAAI 2025); sizes are in pixels of the model's pictures.

    freeze: only the prompt is trained, not the network (--freeze, with --dense or --mask).
    """

    prompt: str = option(
        NEW, "new: learn a prompt; none: no prompt; or the file of a prompt, to train further or to test"
    )
    prompt_kind: str = option(
        "pad", f"{', '.join(KINDS)}: a frame, a square at the top left or anywhere, a border around a small picture"
    )
    prompt_width: int = option(16, "pad: width of the frame in pixels")
    prompt_square: int = option(115, "fix, random: side of the square in pixels")
    picture: int | None = option(
        None, "side of the pictures in pixels; zeros surround smaller ones (default: the model's)"
    )
    mapping: str = option(
        "flm",
        "flm: map the checkpoint's classes to the data set's by how often they are predicted; ilm: remap each epoch; "
        "head: a new classifier",
    )
    halves: str = option(
        "both",
        "training pictures: prompted (not augmented, with the prompt), plain (augmented, without it), or both, which "
        "alternate by step",
    )
    prompt_lr: float | None = option(None, "learning rate of the prompt (default: the weights')")
    search_prompt_lr: float | None = option(
        None, "learning rate of the prompt during the search (default: the scores')"
    )
    freeze: bool = False

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

        if self.freeze and self.prompt == NONE:
            raise InputError("--freeze trains only the prompt, and --prompt none has none: leave one of them out")
        if self.halves == "plain" and self.prompt != NONE and not self.freeze:  # which has halves of its own
            raise InputError(
                "--halves plain never shows the prompt, so it cannot learn: add --prompt none, or leave --halves out"
            )

    @property
    def learns(self) -> bool:
        """Whether there is a prompt."""
        return self.prompt != NONE


def check_given(
    given: Iterable[str], options: PromptOptions, prune: str | None, evaluates: bool, teacher: str | None = None
) -> None:
    """InputError for an option of the command line that has no effect together with the others.

    given: names of those options. prune: the method of --prune. evaluates: whether nothing is trained. teacher: a
    model to learn from.
    """
    if teacher:
        raise InputError(
            "--teacher reads the pictures of a run without a prompt: leave it out, or take configs/<model>/"
            "image_classification.yaml, without --prompt and with --prune hydra"
        )
    kind, rates = options.prompt_kind, ("prompt_lr", "search_prompt_lr")
    sizes = {"prompt_kind", "prompt_width", "prompt_square"}
    if evaluates and (options.prompt == NEW or (options.prompt == NONE and options.mapping != "head")):
        raise InputError(
            "--evaluate needs the prompt and the label mapping of the weights: name their file with --prompt "
            "(prompt.safetensors in the run's folder, written also without a prompt)"
        )
    reasons = [
        (evaluates, {"halves", *rates}, "with --evaluate, which trains nothing"),
        (not options.learns, sizes | set(rates), "without a prompt (--prompt none)"),
        (options.prompt not in (NEW, NONE), sizes | {"picture"}, f"for {options.prompt}, which has its own"),
        (prune not in SEARCHES, {"search_prompt_lr"}, f"without a search (--prune {' or '.join(SEARCHES)})"),
        (kind != "pad", {"prompt_width"}, f"for --prompt_kind {kind}: it is for pad"),
        (kind not in ("fix", "random"), {"prompt_square"}, f"for --prompt_kind {kind}: it is for fix and random"),
        (options.freeze, {"halves"}, "with --freeze: a prompt learns from the pictures that show it"),
    ]
    for applies, names, why in reasons:
        if applies and (idle := sorted(names & set(given))):
            raise InputError(f"--{idle[0]} has no effect {why}")
