"""Describe a model's removable parts: one call per set of units, and readers for known blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import attrgetter

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.layers import is_conv1d
from models.library.finding import Skipped
from models.parts import Kind, Layers, Part, Slices, Units


def units_of(
    module: nn.Module,
    name: str,
    kind: Kind,
    *,
    feeds: Iterable[str],
    reads: str,
    block: int = 1,
    attributes: Mapping[str, int] | None = None,
) -> Units | Skipped:
    """A set of units; or, where they cannot be removed one by one, their consumer with the reason.

    feeds: paths of the layers and batch norms whose outputs the units are. reads: path of the layer that reads them,
    `block` inputs a unit. attributes: as of `Units`.
    """
    consumer = module.get_submodule(reads)
    axis = 0 if is_conv1d(consumer) else 1
    found: list[Slices] = []
    reason = None if type(consumer) in (nn.Linear, nn.Conv2d) or is_conv1d(consumer) else _unknown(consumer)
    if reason is None:
        inputs = consumer.weight.shape[axis]
        count, rest = divmod(inputs, block)
        if rest:
            reason = f"its {inputs} inputs do not divide into units of {block}"
        elif count == 0:
            reason = "none of the units that it read are left"
        found.append(Slices(f"{reads}.weight", axis, block, 1))
    made = 1 if kind == "channels" else block  # outputs per unit in the layers that make it: one per channel
    for path in (reads, *feeds) if reason is None else ():
        part = module.get_submodule(path)
        if getattr(part, "groups", 1) > 1:
            reason = "a convolution in groups makes or reads them"
        elif path == reads:
            continue
        elif type(part) not in (nn.Linear, nn.Conv2d) and not isinstance(part, _BatchNorm) and not is_conv1d(part):
            reason = f"they come out of {_unknown(part)}"
        else:
            for leaf, tensor in _own_tensors(part):
                axis_out = tensor.dim() - 1 if is_conv1d(part) else 0
                repeats, rest = divmod(tensor.shape[axis_out], count * made)
                if rest or not repeats:
                    reason = f"they are {count} of {made}, and {tensor.shape[axis_out]} outputs make them"
                found.append(Slices(f"{path}.{leaf}", axis_out, made, repeats))
    if reason is not None:
        weight = getattr(consumer, "weight", None)
        return Skipped(f"{reads}.weight", reason, weight.numel() if isinstance(weight, Tensor) else 0)
    counted = tuple((attributes or {}).items())
    return Units(name, kind, count, block, f"{reads}.weight", axis, tuple(found), counted)


def _own_tensors(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Of a layer: all but single numbers, such as the count of batches in a batch norm."""
    for leaf, tensor in (*part._parameters.items(), *part._buffers.items()):
        if tensor is not None and tensor.dim() > 0:
            yield leaf, tensor


def _unknown(part: nn.Module) -> str:
    return f"a {type(part).__name__}, which may not treat each unit by itself"


Reader = Callable[[str, nn.Module], Iterable[Part]]
"""Parts of a block: of the path to it, with a dot at the end unless it is the root, and of the root module."""


def rows_of(
    module: nn.Module, is_layer: Callable[[nn.Module], bool], count: str = "", numbers: tuple[str, ...] = ()
) -> Iterator[Layers]:
    """Rows of layers: every list all of whose members are. count: where the holder of a list has their number."""
    for path, part in module.named_modules():
        if type(part) in (nn.ModuleList, nn.Sequential) and len(part) and all(map(is_layer, part)):
            holder = path.rpartition(".")[0]
            counts = f"{holder}.{count}".lstrip(".")
            yield Layers(path, len(part), counts=(counts,) if count and _there(module, counts) else (), numbers=numbers)


def _there(module: nn.Module, path: str) -> bool:
    try:
        attrgetter(path)(module)
    except AttributeError:
        return False
    return True


def read(module: nn.Module, reader_of: Callable[[nn.Module], Reader | None]) -> Iterator[Part]:
    """The parts of all blocks in a module that there is a reader for."""
    for path, part in module.named_modules():
        if (reader := reader_of(part)) is not None:
            yield from reader(f"{path}." if path else "", module)
