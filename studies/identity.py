"""The identity of a run: the contents of its configuration and of its weights, not names or dates of files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from configs.schema import library_of, read_yaml, task_file
from console.errors import InputError
from models import merged, read_config, weights_path
from pruners import PRUNERS
from sparsity.progressive_config import ProgressiveConfig
from storage.atomic import write_json
from storage.hashing import hash_files
from storage.shards import weight_files
from studies.grid import Grid
from studies.rows import Row
from studies.version import version

NOT_DEFINING = (
    "pruner", "allocation", "seed", "sparsities", "output_dir", "save_every", "save_scores", "num_workers",
    "accelerator", "devices", "num_nodes", "max_missing", "ids", "id_power",
)  # fmt: skip
"""Keys of a prune.yaml that do not change masks, or that the plan sets itself."""


class Sources:
    """Reads each configuration and each weights file once. hashes: a file that caches hashes of unchanged weights."""

    def __init__(self, hashes: Path | None = None):
        self.version = version()
        self.missing: dict[str, str] = {}
        """Model -> message on its missing weights."""
        self.weights: dict[str, int] = {}
        """Model -> bytes of its weights."""
        self._hashes = hashes
        self._models: dict[str, dict[str, Any]] = {}
        self._yaml: dict[Path, dict[str, Any]] = {}

    def model(self, name: str) -> dict[str, Any]:
        """The model's configuration, and the hash of its weights."""
        if name not in self._models:
            self._models[name] = {"name": name, **self._content(name)}
        return self._models[name]

    def prune_config(self, grid: Grid, model: str, row: Row) -> tuple[dict[str, Any], dict[str, Any]]:
        """The configuration of a pruning, and the part of it that defines its masks."""
        config = self._config(grid, model, "prune", row)
        own = merged(config.get("methods", {}).get(row.pruner, {}), row.options)
        config = {**config, "methods": {row.pruner: own} if own else {}}
        of_grid = ("pruner", "allocation", "sparsities", "ids")
        config = {key: value for key, value in config.items() if key not in of_grid}
        telling = _telling(row.pruner, own, row.uses_data)
        methods = {"methods": {row.pruner: telling} if telling else {}}
        methods |= self.ids(grid, model, row, config.get("id_power", 1.0))
        if not row.uses_data:  # settings of a calibration that does not happen define nothing
            return config, methods | ({"conv": True} if config.get("conv") else {})
        return config, {key: value for key, value in config.items() if key not in NOT_DEFINING} | methods

    def shrink_config(self, grid: Grid, model: str, row: Row) -> tuple[dict[str, Any], dict[str, Any]]:
        """The configuration that names the data of smaller models, and the part of it and of options defining them."""
        from shrinking.series import telling_options, uses_data

        config = self._config(grid, model, "prune", row)
        config = {key: value for key, value in config.items() if key not in ("pruner", "methods", "sparsities", "ids")}
        telling = {"options": telling_options(row.options)}
        if not uses_data(row.options):
            return config, telling
        return config, {key: value for key, value in config.items() if key not in NOT_DEFINING} | telling

    def progressive(self, grid: Grid, model: str, task: str, row: Row) -> tuple[dict[str, Any], dict[str, Any]]:
        """The section `progressive` of a task's configuration, and the part of it that defines masks."""
        of_grid = ("prune", "sparsity", "ids")
        section = self._config(grid, model, task.partition(":")[0], row).get("progressive") or {}
        section = {key: value for key, value in merged(section, row.options).items() if key not in of_grid}
        telling = {key: value for key, value in section.items() if value != getattr(ProgressiveConfig, key, None)}
        weights = self.ids(grid, model, row, telling.pop("id_power", ProgressiveConfig.id_power))
        return section, {"prune": row.pruner, **telling, **weights}

    def ids(self, grid: Grid, model: str, row: Row, power: float) -> dict[str, Any]:
        """The identity of the intrinsic dimensions that weight a row's layers; empty if none do.

        InputError if they were measured on another model.
        """
        if not row.ids:
            return {}
        from sparsity.weighting import read_ids

        try:
            found = read_ids(row.ids[model], power)
        except InputError as error:
            raise InputError(f"{grid.path}: ids: {error}") from error
        if (of := found.about.get("model")) != model:
            raise InputError(f"{grid.path}: ids: {row.ids[model]} was measured on {of}, not on {model}")
        return found.identity

    def task_config(self, grid: Grid, model: str, task: str, row: Row | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """The configuration of a task, and the part of it that defines results, with the chosen data set only.

        Both are without the section `progressive`, which not every row has.
        """
        name, _, dataset = task.partition(":")
        config = self._config(grid, model, name, row)
        config = {key: value for key, value in config.items() if key != "progressive"}
        defining = {key: value for key, value in config.items() if key != "seed"}
        if "datasets" in config:
            chosen = dataset or next(iter(config["datasets"]))
            defining = {**defining, "datasets": {chosen: config["datasets"][chosen]}}
        return config, defining

    def _config(self, grid: Grid, model: str, task: str, row: Row | None) -> dict[str, Any]:
        path = task_file(model, task)
        if path not in self._yaml:
            self._yaml[path] = read_yaml(path)
        config = self._yaml[path]
        for overrides in (grid.file.overrides, {} if row is None else row.overrides):
            for key in (task, f"{model}/{task}"):
                config = _overridden(config, overrides.get(key, {}))
        return config

    def _content(self, name: str) -> dict[str, Any]:
        if library_of(name):
            place = name.partition(":")[2]  # a local folder, perhaps
            files = sorted(Path(place).glob("*")) if place else []
            weights = {path.name: self._hash(path) for path in files if path.is_file()}
            return {"config": "the library's", "weights": weights or "the library's"}
        config, _ = read_config(name, None)
        default = config.pop("weights", None)
        try:
            path = weights_path(name, None, default)
        except InputError as error:
            self.missing[name] = str(error)
            return {"config": config, "weights": f"missing: {default}"}
        if path is None:
            return {"config": config, "weights": "random"}
        files = weight_files(path)
        self.weights[name] = sum(file.stat().st_size for file in files)
        return {"config": config, "weights": self._hash(*files)}

    def _hash(self, *files: Path) -> str:
        """SHA-256 of a file, or of shards in order; cached by size and time, since full models take seconds."""
        stats = [(file.resolve(), file.stat()) for file in files]
        key = " ".join(f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats)
        known: dict[str, str] = {}
        if self._hashes is not None and self._hashes.is_file():
            try:
                known = json.loads(self._hashes.read_text(encoding="utf-8"))
            except ValueError:  # a truncated cache only costs time
                known = {}
        if key not in known:
            known[key] = hash_files(files)
            if self._hashes is not None and sum(stat.st_size for _, stat in stats) > 100e6:
                write_json(self._hashes, known)
        return known[key]


def _telling(pruner: str, options: dict[str, Any], uses_data: bool) -> dict[str, Any]:
    """Options without those that change no mask: explicit defaults, scratch folders, batches if no data is used."""
    fields = {field.name: field for field in dataclasses.fields(PRUNERS[pruner].Options)}
    known = {key: value for key, value in options.items() if key in fields}
    of_data = {key: value for key, value in options.items() if key not in fields} if uses_data else {}
    return of_data | {
        key: value for key, value in known.items() if fields[key].compare and value != fields[key].default
    }


def _overridden(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the grid's overrides, which also replace values that one of its data sets has."""
    config = merged(config, overrides)
    if isinstance(sets := config.get("datasets"), dict):
        config["datasets"] = {
            name: merged(own, {key: overrides[key] for key in own if key in overrides})
            if isinstance(own, dict)
            else own
            for name, own in sets.items()
        }
    return config
