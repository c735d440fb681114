"""Runs that take no time: shell commands that leave what the scripts would leave, and say in a journal that they ran.

    python -m tests.studies.fakes GRID RESULTS WORK JOURNAL SECONDS
is a runner of such runs, to be killed.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from sparsity.percents import percent
from studies.grid import read_grid
from studies.places import Places
from studies.plan import PRUNE, Plan, Step, expand
from studies.runner import Runner, Summary

SMALL = {
    "models": ["dino-mini"],
    "pruners": ["omp", "snip"],
    "sparsities": [50, 75],
    "tasks": ["zero_shot", "image_classification"],
    "seeds": [0, 1],
}
"""By hand: prunings omp 1 + snip 2; zero-shot omp 2 + snip 4; finetuning 2 x 2 x 2 = 8. In all 17."""

COUNT = 17


SERIES = {
    "layers": {"vision": {"0": [10, 20], "1": [5, 20]}}, "parameters": [4000, 1000], "flops": [80, 20],
    "ms 1": [4.0, 2.0], "ms 32": [9.0, 3.0], "peak_memory_gb": 0.5,
}  # fmt: skip
"""What a shrink step says of each share: [dense, small], and [kept, all] of layers."""


@dataclass(frozen=True)
class Fake:
    """places: of the runs. journal: a line when one starts and when it ends. fail: parts of ids that fail."""

    places: Places
    journal: Path
    seconds: float = 0
    fail: tuple[str, ...] = ()

    def __call__(self, step: Step, need: Step | None, others: Sequence[tuple[Step, Step]] = ()) -> list[str]:
        """A shell command; it fails where the mask, smaller model or teacher that it needs is not there."""
        if others:  # one after another, until one fails
            each = [self(one, made)[-1] for one, made in ((step, need), *others)]
            return ["sh", "-c", "\n".join(f"( {lines}\n) || exit $?" for lines in each)]
        lines = [f"echo start {step.id} >> {quoted(self.journal)}", "echo working"]
        if need is not None:
            lines.append(f"test -e {quoted(self.places.made(need, step.sparsity or 0))} || exit 9")
        if step.teacher is not None:
            lines.append(f"test -f {quoted(self.places.weights(replace(step, id=step.teacher)))} || exit 8")
        lines += [f"sleep {self.seconds}"] * (self.seconds > 0)
        if any(part in step.id for part in self.fail):
            lines += ["echo 'error: no luck today' >&2", "exit 2"]
        elif step.kind == PRUNE:
            masks = [self.places.made(step, sparsity) for sparsity in step.sparsities]
            table = masks[0].with_name("runtimes.csv")
            lines += [f"mkdir -p {quoted(table.parent)}", *(f"echo mask > {quoted(mask)}" for mask in masks)]
            rows = ["sparsity,seconds,calibration_seconds,masks_in_this_run,peak_memory_gb"]
            rows += [f"{percent(sparsity / 100)},2.5,1.5,2,0.25" for sparsity in step.sparsities]
            lines.append(written(table, "\n".join(rows)))
        elif step.kind == "shrink":
            folders = [self.places.made(step, sparsity) for sparsity in step.sparsities]
            lines += [f"mkdir -p {quoted(folder)}" for folder in folders]
            shares = {folder.name: SERIES for folder in folders}
            series = {"seconds": {"errors.safetensors": 4.5}, "shares": shares}
            lines.append(written(self.places.series(step) / "series.json", json.dumps(series)))
        elif step.kind == "zero_shot":
            lines.append(written(self.places.output(step), '[{"mask": "x", "20-NN": 40.0}]'))
        else:
            folder = self.places.run_folder(step)
            lines += [f"mkdir -p {quoted(folder)}", f"echo heavy > {quoted(folder / 'last.safetensors')}"]
            lines += [f"echo mask > {quoted(self.places.made_mask(step))}"] * step.while_training
            counts = {"vision": {"kept": 3, "of": 10, "share": 0.3}}
            result = {"metrics": {"top1": 62.5}, "epoch": None, "kept": {"after_training": {"by_modality": counts}}}
            lines.append(written(folder / "results.json", json.dumps(result)))
        lines.append(f"echo end {step.id} >> {quoted(self.journal)}")
        return ["sh", "-c", "\n".join(lines)]


def quoted(path: Path) -> str:
    return shlex.quote(str(path))


def written(path: Path, text: str) -> str:
    """Whole or not at all, as the scripts write."""
    return f"printf '%s\\n' {shlex.quote(text)} > {quoted(path)}.part && mv {quoted(path)}.part {quoted(path)}"


def make(tmp_path: Path, name: str = "small", **changes: object) -> tuple[Plan, Places]:
    """The plan of the small grid with some keys changed, and its places in a temporary folder."""
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}))
    places = Places(tmp_path / "results", tmp_path / "work", name)
    return expand(read_grid(path)), places


def work(plan: Plan, places: Places, journal: Path, jobs: int = 4, **fake: object) -> Summary:
    """Run a plan with fakes."""
    commands = Fake(places, journal, **fake)  # type: ignore[arg-type]
    return Runner(plan, places, commands, jobs, pause=0.02, show=False).run()


def told(journal: Path, word: str = "start") -> list[str]:
    """The ids that a journal tells of."""
    lines = journal.read_text().splitlines() if journal.is_file() else []
    return [line.split()[1] for line in lines if line.startswith(word)]


def main() -> None:
    grid, results, folder, journal, seconds = sys.argv[1:]
    places = Places(Path(results), Path(folder), Path(grid).stem)
    commands = Fake(places, Path(journal), float(seconds))
    Runner(expand(read_grid(grid)), places, commands, jobs=2, pause=0.02, show=False).run()


if __name__ == "__main__":
    main()
