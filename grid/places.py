"""Where everything of a run lies.

results/<grid>/<run>/result.json      small, to keep and to commit
runs/experiments/<run>/               the work: log.txt, config.yaml, masks/, run/, lock, attempts.jsonl, failed.json
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from grid.schema import ZERO_SHOT
from grid.steps import PRUNE, Step, mask_file


@dataclass(frozen=True)
class Places:
    """results: folder of all grids' results. work: folder of the runs themselves. grid: the grid's name."""

    results: Path
    work: Path
    grid: str

    @property
    def folder(self) -> Path:
        """The grid's results."""
        return self.results / self.grid

    @property
    def hashes(self) -> Path:
        """Hashes of large weights files."""
        return self.work / "hashes.json"

    def result(self, run: str) -> Path:
        """The result of a run, by its id."""
        return self.folder / run / "result.json"

    def items(self, run: str) -> Path:
        """Scores of single test items, where the run writes them."""
        return self.folder / run / "items.json"

    def of(self, run: str) -> Path:
        """The working folder of a run."""
        return self.work / run

    def log(self, run: str) -> Path:
        """All that the run printed."""
        return self.of(run) / "log.txt"

    def lock(self, run: str) -> Path:
        """Held while the run is worked on."""
        return self.of(run) / "lock"

    def config(self, run: str) -> Path:
        """The configuration that it is given."""
        return self.of(run) / "config.yaml"

    def failed(self, run: str) -> Path:
        """How it failed last."""
        return self.of(run) / "failed.json"

    def attempts(self, run: str) -> Path:
        """When it was tried, and what that took."""
        return self.of(run) / "attempts.jsonl"

    def mask(self, prune: Step, sparsity: float) -> Path:
        """A mask of a prune step; sparsity in percent."""
        return mask_file(prune, self.of(prune.id) / "masks", sparsity)

    def missing_masks(self, prune: Step) -> list[float]:
        """Sparsities in percent whose masks are not there; masks are written whole, so those that are there stay."""
        return [sparsity for sparsity in prune.sparsities if not self.mask(prune, sparsity).is_file()]

    def output(self, step: Step) -> Path:
        """What the scripts of a task are given to write: a folder, or the file of a zero-shot evaluation."""
        assert step.kind != PRUNE
        return self.of(step.id) / ("zero_shot.json" if step.kind == ZERO_SHOT else "run")

    def run_folder(self, step: Step) -> Path:
        """Where a finetuning script then writes."""
        output = self.output(step)
        return output.with_name(output.name + "_debug") if step.debug else output


def short(path: Path) -> str:
    """A path as one would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
