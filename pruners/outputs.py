"""The files that one pruning leaves: masks, scores, manifest, run times, picture."""

from __future__ import annotations

import csv
import datetime
import io
import json
import re
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import file_name
from pruners.base import OneShot, Pruner
from sparsity.mask import Mask
from sparsity.percents import percent
from sparsity.picture import draw_layers
from sparsity.scores import Scores
from storage.atomic import check_writable, write_json, write_text
from storage.hashing import hash_json
from storage.tensors import sealed, write_safetensors

SCORES_FORMAT = "vlm-pruning-scores-1"

MOST_WORDS = 60
"""Letters of sparsities in the name of a picture; a file system has room for some 255 in all."""


@dataclass(frozen=True)
class Outputs:
    """Names of all files of a run: <output_dir>/<label>/<model>_<label>_..., label = pruner[-allocation]."""

    folder: Path
    model: str
    label: str
    seed: int
    cut: tuple[float, ...] | None = None  # percents that were cut later from saved scores
    left_out: tuple[str, ...] = ()  # parts of the method's score

    @classmethod
    def of(
        cls, output_dir: str, model: str, pruner: str, allocation: str | None, seed: int, left_out: Sequence[str] = ()
    ) -> Outputs:
        """The files of a run; an allocation that is not the method's own is part of their names.

        left_out: parts of the method's score that are, too: `reached` makes multiflow-noreached.
        """
        parts = [allocation.replace(":", "of")] if allocation is not None else []
        label = "-".join([pruner, *parts, *(f"no{part}" for part in left_out)])
        return cls(Path(output_dir) / label, file_name(model), label, seed, left_out=tuple(left_out))

    def mask(self, sparsity: float) -> Path:
        """The mask of a sparsity in (0, 1)."""
        return self.folder / f"{self.model}_{self.label}_{percent(sparsity)}_seed{self.seed}.safetensors"

    def masks(self) -> list[Path]:
        """The masks of this run's name that are there, of whatever sparsity."""
        name = re.compile(
            rf"{re.escape(f'{self.model}_{self.label}_')}[\d.]+{re.escape(f'_seed{self.seed}.safetensors')}"
        )
        return sorted(path for path in self.folder.glob("*.safetensors") if name.fullmatch(path.name))

    def _beside(self, ending: str) -> Path:
        return self.folder / f"{self.model}_{self.label}_seed{self.seed}_{ending}"

    def scores(self, sparsity: float | None = None) -> Path:
        """Scores of all weights, from which masks are cut; those of one sparsity for methods that train them."""
        if sparsity is None:
            return self._beside("scores.safetensors")
        return self.mask(sparsity).with_name(self.mask(sparsity).stem + "_scores.safetensors")

    @property
    def manifest(self) -> Path:
        """What the run was calibrated on."""
        return self._beside("calibration.json")

    @property
    def picture(self) -> Path:
        """Sparsity of every layer; of many that were cut later, the name has the first, the last and a fingerprint."""
        if self.cut is None:
            return self._beside("layers.png")
        asked = [f"{percent:.10g}" for percent in self.cut]
        words = "-".join(asked)
        if len(words) > MOST_WORDS:
            words = f"{asked[0]}-to-{asked[-1]}-{hash_json(words)[:8]}"
        return self._beside(f"layers_{words}.png")

    @property
    def checkpoint(self) -> Path:
        """Statistics of a run that is not finished."""
        return self._beside("unfinished.safetensors")

    @property
    def runtimes(self) -> Path:
        """Seconds of all runs in this folder."""
        return self.folder / "runtimes.csv"

    def check_folder(self, percents: Sequence[float]) -> None:
        """InputError now, not after the calibration, when these masks and what goes with them cannot be written."""
        files = [self.picture, self.manifest, self.checkpoint, *(self.scores(percent / 100) for percent in percents)]
        longest = max((path.name for path in files), key=lambda name: len(name.encode()))
        check_writable(self.folder, longest)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """The calibration manifest."""
        write_json(self.manifest, manifest)

    def write(
        self, session: Any, masks: dict[float, Mask], source: dict[str, Any], save_scores: bool, processes: int
    ) -> None:
        """Everything but the manifest; `source` is added to what the masks say of themselves."""
        for sparsity, mask in masks.items():
            mask.source = source | mask.source
            mask.save(self.mask(sparsity))
        if save_scores:
            common = {k: v for k, v in next(iter(masks.values())).source.items() if not k.startswith("sparsity_")}
            if isinstance(session.pruner, OneShot):
                write_scores(self.scores(), session.pruner, session.pruner.scores(), session.allocation, common)
            for sparsity, scores in session.pruner.scores_by_sparsity.items():
                about = common | {"trained_for": sparsity}
                write_scores(self.scores(sparsity), session.pruner, scores, session.allocation, about)
        self._write_runtimes(masks, session.seconds, session.pruner, processes)
        draw_layers(masks, self.picture, f"{self.model}, {self.label}")

    def _write_runtimes(
        self, masks: dict[float, Mask], seconds: dict[str, float], pruner: Pruner, processes: int
    ) -> None:
        """One row a mask; rows of earlier runs stay, those of the same mask are replaced."""
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        key = ("model", "pruner", "sparsity", "seed")
        if self.runtimes.is_file():
            with self.runtimes.open(newline="", encoding="utf-8") as file:
                rows = {tuple(row[k] for k in key): row for row in csv.DictReader(file)}
        for sparsity in masks:
            row = {
                "model": self.model,
                "pruner": self.label,
                "sparsity": percent(sparsity),
                "seed": str(self.seed),
                "seconds": f"{sum(seconds.values()):.3f}",
                "calibration_seconds": f"{seconds['calibration']:.3f}",
                "masks_in_this_run": len(masks),
                "device": str(next(iter(pruner.layers.values())).weight.device),
                "processes": processes,
                "peak_memory_gb": f"{peak_memory() / 1e9:.3f}",
                "torch": torch.__version__,
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            }
            rows[tuple(row[k] for k in key)] = row
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(row))
        writer.writeheader()
        writer.writerows(rows.values())
        write_text(self.runtimes, text.getvalue())


def peak_memory() -> int:
    """Largest memory this process held so far, in bytes: the device's on CUDA, else the process's."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_scores(path: Path, pruner: Pruner, scores: Scores, allocation: str, source: dict[str, Any]) -> None:
    """Scores of all layers, and the weights where the allocation needs their magnitudes (the multimodal prior)."""
    tensors: dict[str, Tensor] = {f"score.{name}": torch.from_numpy(layer) for name, layer in scores.items()}
    if allocation == "multimodal":
        tensors |= {f"weight.{name}": pruner.matrix(name) for name in pruner.layers}
    about = {"modality": pruner.modality, "shapes": {n: f.shape for n, f in pruner.forms.items()}, "source": source}
    if transposed := [name for name, form in pruner.forms.items() if form.transposed]:
        about["transposed"] = transposed
    write_safetensors(path, tensors, sealed(tensors, {"format": SCORES_FORMAT, "about": json.dumps(about)}))
