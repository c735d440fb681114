"""The output files of a pruning: masks, scores, manifest, run times, picture; and which files they would replace."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
import re
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from calibration.stream import device_of
from console.errors import InputError
from data.records import read_json
from models import file_name
from pruners import PRUNERS
from pruners.base import OneShot, Pruner
from sparsity.mask import Mask
from sparsity.percents import percent
from sparsity.picture import draw_layers
from sparsity.saved_scores import write_scores
from storage.atomic import check_writable, write_text
from storage.hashing import hash_json
from storage.tensors import parse_metadata, read_metadata

MOST_CHARACTERS = 60
"""Most characters of a list of sparsities in a file name: file systems allow some 255 in all."""


@dataclass(frozen=True)
class Outputs:
    """Names of all files of a run: <output_dir>/<label>/<model>_<label>_..., label = pruner[-allocation]."""

    folder: Path
    model: str
    label: str
    seed: int
    cut: tuple[float, ...] | None = None  # percents of masks made from saved scores; None: a run
    left_out: tuple[str, ...] = ()  # parts of the score that were left out

    @classmethod
    def of(
        cls,
        output_dir: str,
        model: str,
        pruner: str,
        allocation: str | None,
        seed: int,
        left_out: Sequence[str] = (),
        ids: bool = False,
        repair: str | None = None,
    ) -> Outputs:
        """The files of a run; an allocation that is not the method's own is part of their names.

        left_out: parts of the method's score that are, too: `reached` makes multiflow-noreached. ids: whether intrinsic
        dimensions weight layers, as in omp-id. repair: the method that repaired the masks, as in wanda-dsnot.
        """
        special = [allocation.replace(":", "of")] if allocation is not None else []
        special += [f"no{part}" for part in left_out] + (["id"] if ids else []) + ([repair] if repair else [])
        label = "-".join([pruner, *special])
        return cls(Path(output_dir) / label, file_name(model), label, seed, left_out=tuple(left_out))

    @classmethod
    def of_scores(
        cls, path: Path, source: dict[str, Any], allocation: str, percents: Sequence[float], output_dir: str | None
    ) -> Outputs:
        """The files of masks made from the scores in `path`, which a run of `source` wrote.

        Without an `output_dir` they go where that run would put them, or next to a scores file that was moved.
        """

        def of(allocation: str) -> Outputs:
            special = allocation if allocation != PRUNERS[source["pruner"]].allocation else None
            folder, left_out = output_dir or str(path.absolute().parent.parent), source.get("left_out", ())
            return cls.of(folder, source["model"], source["pruner"], special, source["seed"], left_out, "ids" in source)

        outputs, own = dataclasses.replace(of(allocation), cut=tuple(percents)), of(source["allocation"]).label
        stays = path.absolute().parent.name == own and outputs.label != own  # in the run's folders, next to its own
        return outputs if output_dir or stays else dataclasses.replace(outputs, folder=path.parent)

    def mask(self, sparsity: float) -> Path:
        """The mask of a sparsity in (0, 1)."""
        return self.folder / f"{self.model}_{self.label}_{percent(sparsity)}_seed{self.seed}.safetensors"

    def sparse(self, sparsity: float) -> Path:
        """The folder of a streamed model with the zeros of that mask."""
        return self.mask(sparsity).with_suffix("")

    def masks(self) -> list[Path]:
        """The masks of this run's name that are there, of whatever sparsity."""
        name = re.compile(
            rf"{re.escape(f'{self.model}_{self.label}_')}[\d.]+{re.escape(f'_seed{self.seed}.safetensors')}"
        )
        return sorted(path for path in self.folder.glob("*.safetensors") if name.fullmatch(path.name))

    def _file(self, ending: str) -> Path:
        return self.folder / f"{self.model}_{self.label}_seed{self.seed}_{ending}"

    def scores(self, sparsity: float | None = None) -> Path:
        """Scores of all weights, from which masks are made; per sparsity for methods that train them."""
        if sparsity is None:
            return self._file("scores.safetensors")
        return self.mask(sparsity).with_name(self.mask(sparsity).stem + "_scores.safetensors")

    @property
    def manifest(self) -> Path:
        """What the run was calibrated on."""
        return self._file("calibration.json")

    @property
    def picture(self) -> Path:
        """Sparsity of every layer; a long list of sparsities is shortened to the first, the last and a fingerprint."""
        if self.cut is None:
            return self._file("layers.png")
        asked = [f"{percent:.10g}" for percent in self.cut]
        words = "-".join(asked)
        if len(words) > MOST_CHARACTERS:
            words = f"{asked[0]}-to-{asked[-1]}-{hash_json(words)[:8]}"
        return self._file(f"layers_{words}.png")

    @property
    def checkpoint(self) -> Path:
        """Checkpoint of a run that is not finished."""
        return self._file("unfinished.safetensors")

    @property
    def runtimes(self) -> Path:
        """Seconds of all runs in this folder."""
        return self.folder / "runtimes.csv"

    def check_folder(self, percents: Sequence[float]) -> None:
        """InputError, before the calibration, when the masks and their files cannot be written."""
        files = [self.picture, self.manifest, self.checkpoint, *(self.scores(percent / 100) for percent in percents)]
        longest = max((path.name for path in files), key=lambda name: len(name.encode()))
        check_writable(self.folder, longest)

    def replaces(self, sparsities: Sequence[float], source: dict[str, Any], data: dict[str, int]) -> str | None:
        """A sentence on files that will be replaced, since options and data are not part of file names. None: no file
        of other settings is there.

        source: options, weights and precision as masks keep them. data: number and size of the batches that one mask's
        calibration looks at (empty: no data).
        """
        asked = {self.mask(sparsity) for sparsity in sparsities}
        now = _made_with(source, data)
        for path in sorted(self.masks(), key=lambda path: path not in asked):
            try:
                about = parse_metadata(path, read_metadata(path), "about", ("source",))  # no bits, nor CHITA's weights
                seen = {}
                if self.manifest.is_file():
                    manifest = read_json(self.manifest)
                    seen["num_batches"] = manifest["steps"]
                    seen["batch_size"] = next(iter(manifest["sides"].values()))["batch_size"]  # that of every side
                before = _made_with(about["source"], seen)
            except (InputError, KeyError):  # no mask of such a run, or a damaged one: nothing to warn of
                continue
            for name, value in now.items():
                if name in before and before[name] != value:
                    goes = "it and" if path in asked else "it stays, but"
                    return (
                        f"{path} was made with other settings ({name}: {before[name]}, now {value}): {goes} the "
                        "scores, the picture and the calibration manifest next to it will be replaced; "
                        "--output_dir keeps both"
                    )
        return None

    def write(
        self, session: Any, masks: dict[float, Mask], source: dict[str, Any], save_scores: bool, processes: int
    ) -> None:
        """Write all files but the manifest; `source` is added to the source in the masks.

        The table first: a resumed run makes the missing masks only, and has no times of the others.
        """
        self._write_runtimes(masks, session.seconds, session.pruner, processes)
        for sparsity, mask in masks.items():
            mask.source = source | mask.source
            mask.save(self.mask(sparsity))
        if save_scores:
            common = {k: v for k, v in next(iter(masks.values())).source.items() if not k.startswith("sparsity_")}
            pruner = session.pruner
            weights = {n: pruner.matrix(n) for n in pruner.layers} if session.allocation == "multimodal" else {}
            of_pruner, of_layers = (pruner.modality, pruner.forms), (pruner.factors, pruner.importance)
            if isinstance(pruner, OneShot):
                write_scores(self.scores(), pruner.scores(), weights, *of_pruner, common, *of_layers)
            for sparsity, scores in pruner.scores_by_sparsity.items():
                about = common | {"trained_for": sparsity}
                write_scores(self.scores(sparsity), scores, weights, *of_pruner, about, *of_layers)
        draw_layers(masks, self.picture, f"{self.model}, {self.label}")

    def _write_runtimes(
        self, masks: dict[float, Mask], seconds: dict[str, float], pruner: Pruner, processes: int
    ) -> None:
        """One row per mask; rows of earlier runs are kept, those of the same mask are replaced."""
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        key = ("model", "pruner", "sparsity", "seed")
        if self.runtimes.is_file():
            with self.runtimes.open(newline="", encoding="utf-8") as file:
                rows = {tuple(row.get(k) for k in key): row for row in csv.DictReader(file)}
        for sparsity in masks:
            row = {
                "model": self.model,
                "pruner": self.label,
                "sparsity": percent(sparsity),
                "seed": str(self.seed),
                "seconds": f"{sum(seconds.values()):.3f}",
                "calibration_seconds": f"{seconds['calibration']:.3f}",
                "masks_in_this_run": len(masks),
                "device": str(device_of(pruner.model)),
                "processes": processes,
                "peak_memory_gb": f"{peak_memory() / 1e9:.3f}",
                "torch": torch.__version__,
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            }
            rows[tuple(row[k] for k in key)] = row
        text = io.StringIO()
        writer = csv.DictWriter(text, list(row), extrasaction="ignore")  # columns of other versions
        writer.writeheader()
        writer.writerows(rows.values())
        write_text(self.runtimes, text.getvalue())


def peak_memory() -> int:
    """Peak memory of this process so far, in bytes: the device's on CUDA, else the process's."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _made_with(source: dict[str, Any], data: dict[str, int]) -> dict[str, Any]:
    weights = {"weights": source["weights"]["file"], "sha256 of weights": source["weights"]["sha256"]}
    ids = {name: source[name] for name in ("ids", "id_power") if name in source}
    layers = {"conv": source.get("conv", False), "precision": source["precision"]}
    return {"model": source["model"]} | source["options"] | ids | weights | layers | data
