"""The command of a step: one of the toolkit's scripts, as a user would type it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from sparsity.percents import percent
from storage.atomic import write_text
from studies.grid import ZERO_SHOT
from studies.places import Places, short
from studies.plan import DENSE, PRUNE, Step
from studies.rows import SHRINK
from studies.version import REPOSITORY

Commands = Callable[..., list[str]]
"""The command line of a step, with the arguments of `ScriptCommands`."""


@dataclass(frozen=True)
class ScriptCommands:
    """The command lines of steps with files in `places`. The other fields differ by machine and change no result."""

    places: Places
    accelerator: str | None = None
    num_workers: int | None = None

    def __call__(self, step: Step, prune: Step | None, others: Sequence[tuple[Step, Step]] = ()) -> list[str]:
        """The command line of a step. prune: the step whose mask or smaller model it uses.

        others: the same zero-shot evaluation of other masks, each with its pruning; one command does all.
        """
        places = self.places
        named = {"accelerator": self.accelerator, "num_workers": self.num_workers}
        named |= {"devices": step.devices} if step.devices > 1 else {}
        machine = [text for name, value in named.items() if value is not None for text in (f"--{name}", str(value))]
        small = prune is not None and prune.kind == SHRINK
        model = f"small:{short(places.made(prune, step.sparsity or 0))}" if small else step.model
        common = ["--model", model, "--config", short(places.config(step.id))]
        ids = [] if step.ids is None else ["--ids", step.ids]
        if step.kind == SHRINK:
            texts = {name: v if isinstance(v, str) else json.dumps(v) for name, v in step.options.items()}
            options = [word for name, text in texts.items() for word in ("--set", f"{name}={text}")]
            machine = [] if self.accelerator is None else ["--accelerator", self.accelerator]
            return [
                sys.executable, script("shrink.py"), "series", *common, *options, "--seed", str(step.seed), *machine,
                "--output", short(places.series(step)), "--sparsities",
                *(percent(sparsity / 100) for sparsity in step.sparsities),
            ]  # fmt: skip
        if step.kind == PRUNE:
            missing = places.missing(step) or step.sparsities
            allocation = [] if step.allocation is None else ["--allocation", step.allocation]
            return [
                sys.executable, script("prune.py"), *common, "--pruner", step.pruner, *allocation, *ids,
                "--seed", str(step.seed), "--output_dir", short(places.of(step.id) / "masks"),
                "--no-save_scores", "--resume", *machine, "--sparsities",
                *(percent(sparsity / 100) for sparsity in missing),
            ]  # fmt: skip
        mask = None if prune is None or small else short(places.made(prune, step.sparsity or 0))
        if step.kind == ZERO_SHOT:
            each = [(step, prune), *others]
            masks = [short(places.made(of, one.sparsity or 0)) for one, of in each if of is not None and not small]
            which = ["--no-dense", "--masks", *masks] if masks else []
            which += [] if step.weights is None else ["--weights", step.weights]
            outputs = [short(places.output(one)) for one, _ in each]
            return [sys.executable, "-m", "evaluation.zero_shot", *common, *which, "--json", *outputs]
        dataset = step.kind.partition(":")[2]
        how = ["--dense"] if mask is None else ["--mask", mask]
        how += [] if step.weights is None else ["-pre", step.weights]
        if step.while_training:
            how = ["--prune", step.pruner, "-s", percent((step.sparsity or 0) / 100), *ids]
        if step.teacher is not None:
            of_teacher = replace(step, id=step.teacher)  # the teacher's run is of the same task
            how += ["--teacher", step.model, "--teacher_weights", short(places.weights(of_teacher))]
            how += [word for name, value in step.losses.items() for word in (f"--{name}", str(value))]
        return [
            sys.executable, script(f"{step.script}.py"), *common,
            *how,
            *(["--dataset", dataset] if dataset else []),
            "--seed", str(step.seed), "--output_dir", short(places.output(step)), "--no_samples",
            *(["--debug"] if step.debug else []), *machine,
        ]  # fmt: skip


def write_config(step: Step, places: Places) -> None:
    """Write the step's configuration, which its command reads."""
    about = f"# {step.kind} of {step.model}" + ("" if step.label == DENSE else f", {step.label}") + "\n"
    write_text(places.config(step.id), about + yaml.safe_dump(step.config, sort_keys=False, allow_unicode=True))


def script(name: str) -> str:
    """The path of a script of the repository."""
    return short(Path(REPOSITORY) / name)
