"""Load a checkpoint into a model and account for every key: renamed, dropped, missing or unknown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from console.errors import InputError
from console.words import agreed, counted
from models.common.nesting import inner_state, named_tensors, uncompiled, unwrapped
from storage.hashing import hash_files, hash_tensors
from storage.shards import weight_files
from storage.tensors import read_tensors

if TYPE_CHECKING:
    from models.base import Model

MASK_SUFFIX = "_pruning_mask"
"""Suffix of a parameter's name: its mask, in mask files and in weights files that contain their masks."""

FEW = 5
"""Keys of a checkpoint that are reported with a line each; more of them are grouped."""


@dataclass
class LoadReport:
    """What happened to the keys of a checkpoint when it was loaded into a model.

    source: the path or name that was given. files: the files read by this toolkit, none where a library read them.
    unwrapped: descriptions of the wrappers around the weights that were removed.
    """

    source: str
    loaded: int = 0
    files: list[Path] = field(default_factory=list)
    unwrapped: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """A line per key where the same happened to a few; else one line that counts the keys by module.

        All of them are in the fields.
        """
        absent = [name for name in self.fresh if name not in self.resized]
        said = {
            "renamed": {old: f"{old} -> {new}" for old, new in self.renamed.items()},
            "dropped": {name: name for name in self.dropped},
            "resized": {name: f"{name} {change}" for name, change in self.resized.items()},
            "fresh": {name: f"{name} (not in the file, newly initialised)" for name in absent},
        }
        lines = [f"{self.source}: {counted(self.loaded, 'tensor')} loaded"]
        lines += [f"  found    {'; '.join(self.unwrapped)}"] if self.unwrapped else []
        for what, entries in said.items():
            shown = list(entries.values())
            if len(shown) > FEW:
                about = {"dropped": "", "fresh": " (not in the file, newly initialised)"}.get(
                    what, f" (first: {shown[0]})"
                )
                shown = [f"{len(entries)} keys{about}: {_grouped(entries)}"]
            lines += [f"  {what:8} {line}" for line in shown]
        return "\n".join(lines)


@dataclass(frozen=True)
class KeyRules:
    """How the keys of a family's files map to a model's names.

    rename: key -> name (itself when unchanged) or None to drop it. positions: names of position tables,
    resized when the image size differs. fresh: names that a file may lack. skip_resized: names whose
    tensors are newly initialised when the shapes differ (queues of another length). prepare: what to do
    with a state dict before its keys are renamed. prefers: keys under which this family's training files keep the
    weights to use, before those of `models.common.nesting.PLACES`.
    """

    rename: Callable[[str, set[str]], str | None] = lambda key, keys: key
    positions: tuple[str, ...] = ()
    fresh: Callable[[str], bool] = lambda name: False
    skip_resized: tuple[str, ...] = ()
    prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda state: state
    prefers: tuple[str, ...] = ()

    def names(self, state: dict[str, Tensor]) -> dict[str, str | None]:
        """Key of a prepared state dict -> the model's name for it; None for what is dropped."""
        keys = set(state)
        return {key: self.rename(key, keys) for key in state}


def read_state(path: Path | str, rules: KeyRules) -> tuple[dict[str, Tensor], LoadReport]:
    """The named tensors of a checkpoint (`storage.shards.weight_files`), whichever layout it has, as they are named.

    The report says where in the file they were; entries among them that are no tensors are dropped. InputError when
    there are no tensors.
    """
    report = LoadReport(str(path), files=weight_files(path))
    if len(report.files) > 1:
        report.unwrapped.append(f"in {len(report.files)} shards")
    content, where = inner_state(read_tensors(path), rules.prefers)
    state, report.dropped = named_tensors(content, str(path))
    report.unwrapped += where
    return state, report


def load_state(model: nn.Module, state: dict[str, Tensor], rules: KeyRules, report: LoadReport) -> LoadReport:
    """Put `state` into `model` (built without memory, or not); the report is filled with what happened to each key.

    Prefixes of wrappers are removed. Tied parameters may come once or under several names. Raises InputError when a
    key is unknown, a name is missing, a shape differs, a value is NaN, or tied names hold different values.
    """
    source = report.source
    wanted = dict(model.state_dict(keep_vars=True))
    state = unwrap(state, rules, wanted, report)
    state = rules.prepare(state)
    found: dict[str, Tensor] = {}
    unknown = []
    for key, name in rules.names(state).items():
        if name is None or key.endswith(MASK_SUFFIX):  # masks of these weights: see sparsity/published.py
            report.dropped.append(key)
            continue
        if name not in wanted:
            unknown.append(key)
            continue
        if name != key:
            report.renamed[key] = name
        found[name] = state[key]
    _fill_ties(wanted, found)
    missing = [name for name in wanted if name not in found]
    report.fresh = [name for name in missing if rules.fresh(name)]
    lacking = [name for name in missing if not rules.fresh(name)]
    if unknown or lacking:
        raise InputError(_mismatch(source, type(model).__name__, lacking, unknown, len(wanted)))
    for name in list(found):
        if name in rules.skip_resized and found[name].shape != wanted[name].shape:
            change = f"{tuple(found.pop(name).shape)} -> {tuple(wanted[name].shape)}"
            report.resized[name] = f"{change}, newly initialised"
            report.fresh.append(name)
        else:
            found[name] = _fit(name, found[name], wanted[name], rules, report)
    check_values(source, found)
    _assign(model, found, wanted)
    report.loaded = len(found)
    return report


def unwrap(
    state: dict[str, Tensor], rules: KeyRules, wanted: Mapping[str, Tensor], report: LoadReport
) -> dict[str, Tensor]:
    """A state dict without the prefixes of wrappers, which the report lists with the keys outside of them.

    wanted: the model's own names.
    """

    def met(state: dict[str, Tensor]) -> set[str]:
        shapes = {key: tensor.to("meta") for key, tensor in state.items()}  # only names matter here: nothing is copied
        return {name for name in rules.names(rules.prepare(shapes)).values() if name in wanted}

    state, removed, outside = unwrapped(state, met)
    report.unwrapped += removed
    report.dropped += outside
    return state


def _fill_ties(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Give every name of a tied tensor the value that came under one of its names."""
    groups: dict[int, list[str]] = {}
    for name, tensor in wanted.items():
        groups.setdefault(id(tensor), []).append(name)
    for names in groups.values():
        given = [name for name in names if name in found]
        for other in given[1:]:
            if not torch.equal(found[other], found[given[0]]):
                raise InputError(f"'{given[0]}' and '{other}' are one tensor in this model but differ in the file")
        for name in names:
            if given:
                found.setdefault(name, found[given[0]])


def _fit(name: str, tensor: Tensor, target: Tensor, rules: KeyRules, report: LoadReport) -> Tensor:
    """Bring a tensor to the model's shape and dtype."""
    if tensor.shape != target.shape:
        change = f"{tuple(tensor.shape)} -> {tuple(target.shape)}"
        if name not in rules.positions:
            raise other_shape(report.source, name, tensor.shape, target.shape)
        tensor = resize_positions(tensor, target.shape[-2])
        report.resized[name] = f"{change}, bicubic"
    return tensor.to(target.dtype)


def other_shape(source: str, name: str, there: Iterable[int], wanted: Iterable[int]) -> InputError:
    """The error for a tensor that the model has in another shape."""
    return InputError(
        f"{source}: '{name}' has shape {tuple(there)} but the model needs {tuple(wanted)}: the file belongs to a model "
        "of another size"
    )


def resize_positions(table: Tensor, tokens: int) -> Tensor:
    """Resize a ViT position table to another image size: CLS row kept, the square grid bicubic.

    table [..., p, d] (a leading 1 is kept) -> [..., tokens, d].
    """
    *lead, p, d = table.shape
    old, new = round((p - 1) ** 0.5), round((tokens - 1) ** 0.5)
    if old * old != p - 1 or new * new != tokens - 1:
        raise InputError(f"position tables of {p} and {tokens} rows are not square grids with a class token")
    rows = table.reshape(p, d).float()
    grid = rows[1:].reshape(1, old, old, d).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    rows = torch.cat([rows[:1], grid.permute(0, 2, 3, 1).reshape(new * new, d)])
    return rows.reshape(*lead, tokens, d).to(table.dtype)


def check_values(source: str, state: Mapping[str, Tensor]) -> None:
    """InputError for values that are NaN or infinite: a sum is if any element is; only then look closer."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum()):
            bad = int((~torch.isfinite(tensor)).sum())
            if bad == 0:  # the sum alone overflowed
                continue
            values = counted(bad, "value")
            raise InputError(
                f"{source}: '{name}' has {values} that {agreed(bad, 'is')} NaN or infinite: the file is damaged"
            )


def _assign(model: nn.Module, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Replace parameters and buffers by the file's tensors, without a second copy, and tie them again."""
    modules = dict(model.named_modules())
    placed: dict[int, nn.Parameter] = {}
    for name, tensor in found.items():
        owner, _, leaf = name.rpartition(".")
        target = wanted[name]
        if isinstance(target, nn.Parameter):
            if id(target) not in placed:
                placed[id(target)] = nn.Parameter(tensor.contiguous(), requires_grad=target.requires_grad)
            modules[owner]._parameters[leaf] = placed[id(target)]
        else:
            modules[owner]._buffers[leaf] = tensor.contiguous()


def _mismatch(source: str, model: str, lacking: list[str], unknown: list[str], wanted: int) -> str:
    parts = []
    if lacking:
        missing, some = agreed(len(lacking), "is"), ", ".join(lacking[:3])
        parts.append(f"{len(lacking)} of the model's {counted(wanted, 'tensor')} {missing} missing (first: {some})")
    if unknown:
        parts.append(f"{counted(len(unknown), 'key', 'is')} unknown (first: {', '.join(unknown[:3])})")
    return f"{source} does not fit {model}: {' and '.join(parts)}; give a file of this model"


def _grouped(names: Iterable[str]) -> str:
    """Names counted by their first part: 'body.* (2), head.weight'."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.split(".")[0], []).append(name)
    return ", ".join(f"{start}.* ({len(group)})" if len(group) > 1 else group[0] for start, group in groups.items())


def own_names(tensors: dict[str, Tensor], model: Model) -> dict[str, Tensor]:
    """Tensors under the model's own names, as its checkpoints are read, without wrappers' prefixes."""
    layers = model.prunable_layers()
    own = {name: name for name in model.state_dict()}
    own = uncompiled(own) or own  # partly compiled models: names without torch.compile's prefix

    def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = model.key_rules.prepare(tensors)
        names = model.key_rules.names(tensors)
        return {own.get(name, name): tensors[key] for key, name in names.items() if name is not None}

    return renamed(unwrapped(tensors, lambda state: [name for name in renamed(state) if name in layers])[0])


def fingerprint(model: Model) -> str:
    """SHA-256 of the file of the weights, of all shards in order; of the tensors, where a library read them."""
    files = model.load_report.files if model.load_report else ()
    return hash_files(files) if files else hash_tensors(model.state_dict())


def shipped(model: Model) -> dict[str, Tensor]:
    """Name -> tensor of what a forward pass may need, shared ones once, under their first name.

    What only losses need (BLIP's momentum copies and queues) is left out.
    """
    seen = {id(tensor) for tensor in model.training_only()}
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            found[name] = tensor
        seen.add(id(tensor))
    return found
