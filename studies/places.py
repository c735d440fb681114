"""Where everything of a run lies.

results/<grid>.jsonl.xz                      all results of a grid in one file, to keep and to commit
runs/experiments/results/<grid>/<run>.jsonl  a result until it is packed, and after
runs/experiments/<run>/                      the work: config.yaml, log.txt, masks/, small/ or run/, lock,
                                             attempts.jsonl, failed.json
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from models import file_name
from sparsity.percents import percent
from studies.grid import PACKED, ZERO_SHOT
from studies.plan import Step, mask_label
from studies.rows import SHRINK


@dataclass(frozen=True)
class Places:
    """results: folder of all grids' packed results. work: folder of the runs themselves. grid: the grid's name."""

    results: Path
    work: Path
    grid: str

    @property
    def pack(self) -> Path:
        """The grid's results in one file."""
        return self.results / f"{self.grid}{PACKED}"

    @property
    def origin(self) -> Path:
        """What to name as the place of results: the packed file, or the folder that another tool wrote to."""
        folder = self.results / self.grid
        return folder if folder.is_dir() and not self.pack.exists() else self.pack

    @property
    def loose(self) -> Path:
        """Folder of single results."""
        return self.work / "results" / self.grid

    def result(self, run: str) -> Path:
        """The result of a run, by its id, until it is packed."""
        return self.loose / f"{run}.jsonl"

    @property
    def hashes(self) -> Path:
        """Hashes of large weights files."""
        return self.work / "hashes.json"

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

    def series(self, step: Step) -> Path:
        """Where a shrink step writes: a folder."""
        return self.of(step.id) / "small"

    def made(self, prune: Step, sparsity: float) -> Path:
        """Where the mask, or the smaller model, of a step lies that makes them; sparsity in percent."""
        if prune.kind == SHRINK:
            return self.series(prune) / percent(sparsity / 100)
        label = mask_label(prune.pruner, prune.allocation, prune.ids)
        name = f"{file_name(prune.model)}_{label}_{percent(sparsity / 100)}_seed{prune.seed}.safetensors"
        return self.of(prune.id) / "masks" / label / name

    def missing(self, prune: Step) -> list[float]:
        """Sparsities in percent that are not there yet; all is written whole, so what is there stays."""
        return [sparsity for sparsity in prune.sparsities if not self.made(prune, sparsity).exists()]

    def output(self, step: Step) -> Path:
        """What the scripts of a task are given to write: a folder, or the file of a zero-shot evaluation."""
        assert not step.makes
        return self.of(step.id) / ("zero_shot.json" if step.kind == ZERO_SHOT else "run")

    def run_folder(self, step: Step) -> Path:
        """Where a finetuning script then writes."""
        output = self.output(step)
        return output.with_name(output.name + "_debug") if step.debug else output

    def weights(self, step: Step) -> Path:
        """Where a finetuning script leaves its last weights."""
        return self.run_folder(step) / "last.safetensors"

    def made_mask(self, step: Step) -> Path:
        """Where a finetuning script that prunes leaves its mask."""
        return self.run_folder(step) / "mask.safetensors"

    def items(self, step: Step) -> Path:
        """Where the scripts of a task leave the scores of single test items."""
        return (self.of(step.id) if step.kind == ZERO_SHOT else self.run_folder(step)) / "items.json"


def short(path: Path) -> str:
    """A path as one would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
