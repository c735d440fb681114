"""The rows of a grid: pruners, smaller models, methods that prune while training, their variants, weighted layers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from configs.limits import at_least
from configs.schema import parse
from console.errors import InputError, nearest
from pruners import PRUNERS
from sparsity.percents import parse_percents
from sparsity.progressive_config import CHOICES, ProgressiveConfig

if TYPE_CHECKING:
    from studies.grid import GridFile

SHRINK = "shrink"
"""The pruner of rows of smaller models (shrink.py). Sparsities are shares removed, by default of heads and neurons."""

DENSE, UNTRAINED = "dense", "random weights"
UNPRUNED = (DENSE, UNTRAINED)
"""Rows without a pruner: upper and lower reference of all others."""

WITH_IDS = " + ID"
"""Suffix of the name of a row whose layers are weighted by intrinsic dimensions."""


@dataclass(frozen=True)
class Teacher:
    """Distillation of a row from the dense model (training/distillation.py): losses and weights; None: the defaults."""

    distil: str | None = None
    sim: float | None = None
    feat: float | None = None
    hidden: float | None = None

    def __post_init__(self) -> None:
        at_least(self, 0, "sim", "feat", "hidden")


@dataclass(frozen=True)
class Variant:
    """A row with a name of its own: a pruner, or a method that prunes while training, with other settings.

    models, tasks: None for all of the grid. teacher: its runs are distilled from the dense row's. overrides: as the
    grid's, for this row only.
    """

    pruner: str
    allocation: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    sparsities: list[Any] | None = None
    models: list[str] | None = None
    tasks: list[str] | None = None
    teacher: Teacher | None = None
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A row of the tables: a pruner, a method that prunes while training, or a variant of one.

    sparsities: percents. models: those that have the row. tasks: of the grid, None for all. teacher, overrides: as in
    `Variant`. ids: model -> the file of its layers' intrinsic dimensions.
    """

    label: str
    pruner: str
    allocation: str | None
    options: dict[str, Any]
    sparsities: tuple[float, ...]
    models: tuple[str, ...]
    tasks: tuple[str, ...] | None = None
    teacher: Teacher | None = None
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    @property
    def trains_otherwise(self) -> bool:
        """Whether only its training differs: before it there is nothing of its own to evaluate."""
        return self.teacher is not None or bool(self.overrides.keys() - {"prune"})

    @property
    def while_training(self) -> bool:
        """Whether its masks are made by the runs of tasks."""
        return self.pruner in CHOICES

    @property
    def uses_data(self) -> bool:
        """Whether its masks depend on calibration data: by the method, or by an allocation that ranks layers."""
        from sparsity.allocation import allocation_named

        method = PRUNERS[self.pruner]
        return method.uses_data or allocation_named(self.allocation or method.allocation).ranked


def row_labels(settings: dict[str, Any]) -> list[str]:
    """All possible names of the rows of a grid's file, in the order of tables."""
    names = [name for key in ("pruners", "progressive", "variants") for name in settings.get(key) or ()]
    return [label for name in names for label in (name, name + WITH_IDS)]


def rows_of(file: GridFile, models: list[str], tasks: Collection[str], where: str) -> list[Row]:
    """All rows of a grid with these models and tasks.

    InputError for unknown methods, options and allocations, and for intrinsic dimensions that have no effect.
    """
    for key, known in (("pruners", (*PRUNERS, SHRINK)), ("progressive", CHOICES)):
        for name in getattr(file, key):
            _check_method(name, known, f"{where}: {key}")
    for name in (*file.options, *(variant.pruner for variant in file.variants.values())):
        _check_method(name, (*PRUNERS, *CHOICES, SHRINK), where)
    return _with_ids(_rows(file, models, tasks, where), file, models, where)


def _rows(file: GridFile, models: list[str], tasks: Collection[str], where: str) -> list[Row]:
    shared = in_file(where, parse_percents, file.sparsities) if file.sparsities else []
    rows = []
    for name in unlike([*file.pruners, *file.progressive], f"{where}: pruners"):
        rows.append(Row(name, name, None, file.options.get(name, {}), tuple(shared), tuple(models)))
    for label, variant in file.variants.items():
        if label in (*PRUNERS, *CHOICES, SHRINK, *UNPRUNED):
            raise InputError(f"{where}: the variant '{label}' has the name of a pruner: give it another one")
        own = shared if variant.sparsities is None else in_file(where, parse_percents, variant.sparsities)
        options = {**file.options.get(variant.pruner, {}), **variant.options}
        allocation, some = variant.allocation, models if variant.models is None else variant.models
        if strangers := [model for model in some if model not in models]:
            raise InputError(
                f"{where}: variants: '{strangers[0]}'{nearest(strangers[0], models)} is none of the models"
            )
        if strangers := [task for task in variant.tasks or () if task not in tasks]:
            raise InputError(f"{where}: variants: '{strangers[0]}'{nearest(strangers[0], tasks)} is none of the tasks")
        if variant.pruner in PRUNERS and allocation == PRUNERS[variant.pruner].allocation:
            allocation = None  # naming the pruner's own allocation does not make another run
        own_tasks = None if variant.tasks is None else tuple(variant.tasks)
        training = (own_tasks, variant.teacher, variant.overrides)
        rows.append(Row(label, variant.pruner, allocation, options, tuple(own), tuple(some), *training))
    for row in rows:
        if not row.sparsities:
            raise empty(where, "sparsities")
        _check_row(row, where)
    return rows


def _with_ids(rows: list[Row], file: GridFile, models: list[str], where: str) -> list[Row]:
    """Rows with weighted layers, once for each entry of `ids`, and all others, once and without."""
    files = [_files_of(entry, models, where) for entry in unlike(file.ids, f"{where}: ids")]
    if sum(map(bool, files)) > 1 or not files:
        raise InputError(f"{where}: ids: give none, a file (or a mapping from models to files), or both")
    if not any(files) and file.weighted:
        raise InputError(f"{where}: weighted: no file is named under 'ids': name one, or leave it out")
    labels = [row.label for row in rows]
    usual = [] if not any(files) else [row.label for row in rows if row.label not in file.variants and _competes(row)]
    found = []
    for name in file.weighted or ():
        if name not in labels:
            raise InputError(f"{where}: weighted: {unknown('row', name, labels)}")
    for row in rows:
        if row.label not in (usual if file.weighted is None else file.weighted):
            found.append(row)
            continue
        in_file(f"{where}: weighted", _check_competition, row)
        for by_model in files:
            found.append(replace(row, label=row.label + WITH_IDS, ids=by_model) if by_model else row)
    unlike([row.label for row in found], f"{where}: rows")
    return found


def _files_of(entry: Any, models: list[str], where: str) -> dict[str, str]:
    """Model -> file for an entry of `ids`; empty for none."""
    if entry in (None, "none"):
        return {}
    found = dict.fromkeys(models, entry) if isinstance(entry, str) else entry
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise InputError(f"{where}: ids: give none, a file, or a mapping from models to files, not {entry!r}")
    for model in (model for model in models if model not in found):
        raise InputError(
            f"{where}: ids: there is no file for {model}: name one that inspection.intrinsic_dimension wrote"
        )
    return found


def _competes(row: Row) -> bool:
    """Whether weights of several layers compete, so that factors on layers have an effect."""
    try:
        _check_competition(row)
    except InputError:
        return False
    return True


def _check_competition(row: Row) -> None:
    """InputError if factors on layers have no effect."""
    if row.while_training:
        return
    if row.pruner == SHRINK:
        raise InputError(f"ids have no effect on {row.label}, which removes heads and neurons: leave it out")
    from sparsity.weighting import check_competition

    method = PRUNERS[row.pruner]
    if not method.takes_ids:
        raise InputError(f"ids have no effect on {row.label}, which solves each layer by itself: leave it out")
    check_competition(row.allocation or method.allocation)


def _check_method(name: str, known: Collection[str], where: str) -> None:
    """InputError for a method that is not in `known`, with the key that it belongs to."""
    if name in known:
        return
    if name in CHOICES:
        raise InputError(f"{where}: {name} prunes while training: name it under 'progressive'")
    if name in PRUNERS:
        raise InputError(f"{where}: {name} prunes before training: name it under 'pruners'")
    raise InputError(f"{where}: {unknown('pruner', name, known)}")


def _check_row(row: Row, where: str) -> None:
    """InputError for options or an allocation that the method does not take."""
    if row.while_training:
        for key in ("prune", "sparsity", "ids"):
            if key in row.options:
                raise InputError(f"{where}: options of {row.label}: '{key}' is set by the grid: leave it out")
        if row.allocation is not None:
            raise InputError(f"{where}: {row.label} prunes while training, which has no allocation: leave it out")
        parse(ProgressiveConfig, {"prune": row.pruner, **row.options}, f"{where}: options of {row.label}", inner=True)
        return
    if row.pruner == SHRINK:
        if row.allocation is not None:
            raise InputError(
                f"{where}: {row.label} makes smaller models, which have no allocation: give scope in options"
            )
        from shrinking.series import check_options

        in_file(f"{where}: options of {row.label}", check_options, row.options)
        return
    if row.allocation is not None:
        from sparsity.allocation import check_allocation

        in_file(where, check_allocation, row.allocation, [percent / 100 for percent in row.sparsities])
    own = {key: value for key, value in row.options.items() if key not in ("num_batches", "batch_size")}
    if own:
        parse(PRUNERS[row.pruner].Options, own, f"{where}: options of {row.label}")


def unknown(what: str, name: str, known: Any) -> str:
    """The message on an unknown name."""
    return f"unknown {what} '{name}'{nearest(name, known)}: choose one of {', '.join(known)}"


def empty(where: str, axis: str) -> InputError:
    """The error on an axis without values."""
    return InputError(f"{where}: the grid has no runs, since '{axis}' is empty: name at least one there")


def unlike(values: list[Any], where: str) -> list[Any]:
    """The values; InputError if one is given twice."""
    for value in values:
        if values.count(value) > 1:
            raise InputError(f"{where}: {value} is given twice")
    return values


def in_file(where: str, check: Any, *arguments: Any) -> Any:
    """The result of `check`, whose InputError gets `where` in front."""
    try:
        return check(*arguments)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
