"""The settings of a pruning: a configuration, overridden by the command line."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field
from typing import Any

from configs.precisions import known_precision
from configs.schema import parse
from console.errors import InputError
from data.readers import ReaderConfig
from pruners import PRUNERS, REPAIRS
from pruners.measuring import check_measures
from sparsity.allocation import check_allocation
from sparsity.percents import parse_percents
from sparsity.weighting import check_competition


@dataclass(frozen=True)
class PruneConfig:
    """configs/<model>/prune.yaml."""

    sides: dict[str, ReaderConfig]  # side of the model -> reader of its calibration data
    pruner: str = "multiflow"  # a key of PRUNERS
    sparsities: list[float] = field(default_factory=lambda: [63.0, 75.0, 90.0])  # percent of the prunable weights
    ids: str | None = None  # file of intrinsic dimensions, which weight the scores of layers
    id_power: float = 1.0  # exponent of the intrinsic dimension
    conv: bool = False  # whether to prune convolutions of timm and Hugging Face models
    allocation: str | None = None  # how the sparsity is shared among layers; None: the method's own
    repair: str | None = None  # a key of REPAIRS: exchanges weights of the masks afterwards
    seed: int = 42  # of samples, augmentation and random scores
    num_batches: int = 3000  # calibration steps; per round for methods in rounds
    batch_size: int = 32  # samples per batch of each side
    num_workers: int = 8  # data loader processes
    max_missing: float = 0.05  # share of images that may be missing
    output_dir: str = "pruned_weights"  # folder of all output files
    save_every: float = 60.0  # seconds between checkpoints
    save_scores: bool = True  # whether to write the scores file
    accelerator: str = "auto"  # cpu, gpu, mps or auto
    devices: int = 1  # processes on each machine
    num_nodes: int = 1  # machines
    precision: int | str = "32-true"  # of computations; YAML reads 16 as a number
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)  # pruner -> its own options and num_batches

    def __post_init__(self) -> None:
        for what, value, least in (
            ("num_batches", self.num_batches, 1),
            ("the batch size", self.batch_size, 1),
            ("num_workers", self.num_workers, 0),
            ("save_every", self.save_every, 0),
            ("seed", self.seed, 0),
        ):
            if not value >= least:  # nor NaN
                raise InputError(f"{what} must be at least {least}, not {value}")
        known_precision(str(self.precision))
        if not 0 <= self.max_missing <= 1:
            raise InputError(f"max_missing is a share of the images, from 0 to 1, not {self.max_missing}")


@dataclass(frozen=True)
class Settings:
    """The settings of a pruning.

    given: the method's own options, as given; options: all of them. switched_off: options that the command line turned
    off (--no-...), which become part of file names.
    """

    config: PruneConfig
    percents: list[float]
    given: dict[str, Any]
    options: Any
    switched_off: list[str]

    @property
    def sparsities(self) -> list[float]:
        """Shares of weights to prune, in (0, 1)."""
        return [percent / 100 for percent in self.percents]


def settings_of(args: argparse.Namespace) -> Settings:
    """The configuration `args.content` of the file `args.where`, overridden by the command line; InputError for bad
    values.
    """
    config = parse(PruneConfig, args.content, args.where)
    name = args.pruner or config.pruner
    method = PRUNERS[name]
    PRUNERS.check(config.pruner)
    for known, section in config.methods.items():
        PRUNERS.check(known)
        shared, own = _parted(section)
        where = f"{args.where}: methods: {known}"
        parse(PRUNERS[known].Options, own, where)
        parse(PruneConfig, args.content | shared, where)
    shared, own = _parted(config.methods.get(name, {}))
    typed = {key: value for key, value in vars(args).items() if value is not None}
    percents = parse_percents(typed.pop("sparsities", config.sparsities))
    above = {f.name: typed[f.name] for f in dataclasses.fields(PruneConfig) if f.name in typed}
    config = dataclasses.replace(config, **(shared | above | {"pruner": name}))
    if config.allocation == method.allocation:
        config = dataclasses.replace(config, allocation=None)
    own |= {f.name: typed[f.name] for f in dataclasses.fields(method.Options) if f.name in typed}
    check_allocation(config.allocation or method.allocation, [percent / 100 for percent in percents])
    if config.repair is not None:
        REPAIRS.check(config.repair)
    options = parse(method.Options, own, f"pruner '{name}'")
    check_measures(name, config.allocation or method.allocation, config.repair, options)
    if config.ids:
        check_competition(config.allocation or method.allocation)
    switched_off = [key for key in own if typed.get(key) is False]
    return Settings(config, percents, own, options, switched_off)


def _parted(section: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a method's section into general settings and the method's own options."""
    shared = {key: section[key] for key in section if key in ("num_batches", "batch_size")}
    return shared, {key: value for key, value in section.items() if key not in shared}
