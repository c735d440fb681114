"""The paths of a run's files.

results/<grid>.jsonl.xz                      all results of a grid in one file, to keep and to commit
runs/experiments/results/<grid>/<run>.jsonl  a single result, before and after it is packed
runs/experiments/<run>/                      config.yaml, log.txt, lock, attempts.jsonl, failed.json; masks/ and
                                             asked.json, small/, run/, or zero_shot.json and items.json
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
        """The path to show to users: the packed file, or the output folder of another tool."""
        folder = self.results / self.grid
        return folder if folder.is_dir() and not self.pack.exists() else self.pack

    @property
    def loose(self) -> Path:
        """Folder of single results."""
        return self.work / "results" / self.grid

    def result(self, run: str) -> Path:
        """The single result of a run, by its id."""
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
        """Locked while the run runs."""
        return self.of(run) / "lock"

    def config(self, run: str) -> Path:
        """The run's configuration."""
        return self.of(run) / "config.yaml"

    def failed(self, run: str) -> Path:
        """The run's last failure."""
        return self.of(run) / "failed.json"

    def attempts(self, run: str) -> Path:
        """Start, end and cost of each attempt."""
        return self.of(run) / "attempts.jsonl"

    def series(self, step: Step) -> Path:
        """The output folder of a shrink step."""
        return self.of(step.id) / "small"

    def made(self, prune: Step, sparsity: float) -> Path:
        """The mask or smaller model of a step that makes them; sparsity in percent."""
        if prune.kind == SHRINK:
            return self.series(prune) / percent(sparsity / 100)
        label = mask_label(prune.pruner, prune.allocation, prune.ids)
        name = f"{file_name(prune.model)}_{label}_{percent(sparsity / 100)}_seed{prune.seed}.safetensors"
        return self.of(prune.id) / "masks" / label / name

    def missing(self, prune: Step) -> list[float]:
        """Sparsities in percent without a file yet; files are written atomically, so an existing one is complete."""
        return [sparsity for sparsity in prune.sparsities if not self.made(prune, sparsity).exists()]

    def output(self, step: Step) -> Path:
        """The output path passed to a task's script: a folder, or the file of a zero-shot evaluation."""
        assert not step.makes
        return self.of(step.id) / ("zero_shot.json" if step.kind == ZERO_SHOT else "run")

    def run_folder(self, step: Step) -> Path:
        """The folder in which a finetuning script then writes."""
        output = self.output(step)
        return output.with_name(output.name + "_debug") if step.debug else output

    def weights(self, step: Step) -> Path:
        """The last weights of a finetuning run."""
        return self.run_folder(step) / "last.safetensors"

    def made_mask(self, step: Step) -> Path:
        """The mask of a finetuning run that prunes."""
        return self.run_folder(step) / "mask.safetensors"

    def items(self, step: Step) -> Path:
        """The scores of single test items."""
        return (self.of(step.id) if step.kind == ZERO_SHOT else self.run_folder(step)) / "items.json"


def short(path: Path) -> str:
    """A path relative to the current folder, if it is below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
