"""A mask: which weights are kept, by parameter name, and the pruning that made it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from console.errors import InputError, nearest
from console.words import counted
from models.base import Model
from models.common.checkpoint import own_names
from models.layers import Form, form_of
from models.plans import check_units
from sparsity.published import SUFFIX, masks_among, read_published, write_published
from sparsity.scores import Scores
from sparsity.threads import in_threads
from storage.tensors import check_seal, is_safetensors, parse_metadata, read_safetensors, sealed, write_safetensors

FORMAT = "vlm-pruning-mask-1"
VALUES = "values/"  # before the name of a layer: its kept weights


class Mask(Mapping[str, Tensor]):
    """Parameter name -> boolean tensor of the parameter's shape, True = kept.

    Kept in memory as on disk, one bit a weight; `mask[name]` unpacks one layer.
    modalities: parameter name -> modality. source: where the mask came from (model, pruner, seed, ...). transposed:
    names of parameters that keep their matrix [o, i] as [i, o] (GPT-2's layers). Methods that update the weights they
    keep (CHITA, SparseGPT) leave the new values in the mask.
    """

    def __init__(
        self,
        kept: Mapping[str, Tensor],
        modalities: Mapping[str, str] | None = None,
        source: Mapping[str, Any] | None = None,
        transposed: Iterable[str] = (),
    ):
        self._transposed = frozenset(transposed)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._bits: dict[str, np.ndarray] = {}
        self.modalities = dict(modalities or {})
        self.source = dict(source or {})
        self._values: dict[str, np.ndarray] = {}  # of the weights kept, where a method updated them
        for name, tensor in kept.items():
            self.add(name, tensor)

    def add(
        self, name: str, kept: Tensor, weights: Tensor | None = None, held: Callable[..., Any] = np.asarray
    ) -> None:
        """Add a layer, packed: boolean `kept` and, where a method updates them, `weights` of the same shape.

        A method can add each layer as soon as it is solved, and never holds all layers unpacked. held: what stores the
        values, for example in a file.
        """
        array = kept.detach().cpu().numpy()
        if array.dtype != np.bool_:
            raise InputError(f"the mask of '{name}' must be boolean, not {array.dtype}")
        self._shapes[name] = array.shape
        self._bits[name] = np.packbits(array)
        if weights is not None:
            self._values[name] = held(weights[kept].float().cpu().numpy())

    @classmethod
    def cut(
        cls,
        scores: Scores,
        cuts: Callable[[str, np.ndarray], Sequence[Any]],
        sparsities: Sequence[float],
        modalities: Mapping[str, str],
        forms: Mapping[str, Form],
    ) -> dict[float, Mask]:
        """Masks from the cuts of each layer, whose scores [o, i] are read once. forms: how parameters store their
        matrices.

        cuts: name and scores of a layer -> its cut at each sparsity (sparsity.allocation).
        """

        def packed(name: str) -> list[np.ndarray]:
            layer = scores[name]
            return [np.packbits(forms[name].parameter(cut.keep(layer))) for cut in cuts(name, layer)]

        transposed = [name for name in scores if forms[name].transposed]
        masks = {sparsity: cls({}, modalities, transposed=transposed) for sparsity in sparsities}
        for name, of_layer in zip(scores, in_threads(packed, scores), strict=True):
            for mask, bits in zip(masks.values(), of_layer, strict=True):
                mask._shapes[name], mask._bits[name] = tuple(forms[name].shape), bits
        return masks

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        bits = np.unpackbits(self._bits[name], count=int(np.prod(shape)))
        return torch.from_numpy(bits.view(np.bool_).reshape(shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __eq__(self, other: object) -> bool:
        """Equal when every bit is, and every updated weight; the source does not matter."""
        if not isinstance(other, Mask):
            return NotImplemented
        return (
            self._shapes == other._shapes
            and self._values.keys() == other._values.keys()
            and all(np.array_equal(bits, other._bits[name]) for name, bits in self._bits.items())
            and all(np.array_equal(values, other._values[name]) for name, values in self._values.items())
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """`<Mask of 168 layers at 75.00 %, by multiflow>`."""
        by = f", by {self.source['pruner']}" if "pruner" in self.source else ""
        return f"<Mask of {counted(len(self), 'layer')} at {100 * self.sparsity():.2f} %{by}>"

    # -- updated weights --------------------------------------------------------------------------------

    @property
    def has_values(self) -> bool:
        """Whether the mask carries updated weights."""
        return bool(self._values)

    def with_values(self, weights: Iterable[tuple[str, Tensor]]) -> Mask:
        """The same mask with updated values of the kept weights, from `weights` (name, tensor of its shape).

        They are taken one by one, since all of them together would be a second copy of the model.
        """
        mask = copy.copy(self)
        mask._values = {name: tensor.float().cpu().numpy()[self[name].numpy()] for name, tensor in weights}
        return mask

    def weights(self, name: str) -> np.ndarray:
        """The updated weights of a layer, float32 of its shape, zero where pruned."""
        full = np.zeros(self._shapes[name], dtype=np.float32)
        full[self[name].numpy()] = self._values[name]
        return full

    def pop_weights(self, name: str) -> np.ndarray:
        """`weights(name)`, which the mask then no longer carries."""
        full = self.weights(name)
        del self._values[name]
        return full

    # -- counting ---------------------------------------------------------------------------------------

    def size(self, name: str) -> int:
        """Number of weights of a layer."""
        return int(np.prod(self.shape(name)))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a layer's weight; InputError for a layer that the mask does not have."""
        if name not in self._shapes:
            raise InputError(
                f"the mask has no layer '{name}'{nearest(name, self)}: it has {', '.join(list(self)[:3])} ..."
            )
        return self._shapes[name]

    def bits(self, name: str) -> np.ndarray:
        """The packed bits of a layer: uint8, eight weights a byte, padded with zeros. Read-only."""
        return self._bits[name]

    def kept(self, name: str) -> int:
        """Number of kept weights of a layer."""
        return int(np.bitwise_count(self._bits[name]).sum())

    def sparsity(self, names: Iterator[str] | list[str] | None = None) -> float:
        """Share of weights pruned, over the given layers or all, counted from the bits."""
        names = list(self if names is None else names)
        return 1 - sum(map(self.kept, names)) / max(1, sum(map(self.size, names)))

    def layers_by_modality(self) -> dict[str, list[str]]:
        """Modality -> its layers, in the order of the model."""
        groups: dict[str, list[str]] = {}
        for name in self:
            groups.setdefault(self.modalities.get(name, "all"), []).append(name)
        return groups

    def sparsity_by_modality(self) -> dict[str, float]:
        """Share of weights pruned in each modality."""
        return {modality: self.sparsity(names) for modality, names in self.layers_by_modality().items()}

    def form(self, name: str) -> Form:
        """How the layer's parameter keeps its matrix."""
        return Form(self._shapes[name], name in self._transposed)

    def matrix(self, name: str) -> Tensor:
        """The kept weights of a layer as a matrix [o, i]; a convolution's inputs are channels x kernel."""
        return self.form(name).matrix(self[name])

    # -- models -----------------------------------------------------------------------------------------

    def fitted(self, model: nn.Module) -> Mask:
        """This mask under the model's own names and for its prunable layers only.

        Other known names of the same parameters are translated; layers that the model has but does not prune are
        left out. Raises InputError naming the first differing keys when anything else does not match.
        """
        if not isinstance(model, Model):
            raise InputError(
                f"a {type(model).__name__} does not say which of its layers can be pruned: wrap it as for pruning, "
                "mask.apply(wrap(module, ...)); the zeros are then in the module itself"
            )
        check_units(self.source, model.plan)
        layers = model.prunable_layers()
        transposed = frozenset(name for name, layer in layers.items() if form_of(layer).transposed)
        if list(self) == list(layers):
            self.check_fits(layers)
            mask = copy.copy(self)
            mask._transposed = transposed  # published files do not say which matrices are transposed
            return mask
        kept = model.with_fresh(own_names({name: self[name] for name in self}, model))
        for left in model.skipped:
            if left.name in kept:
                raise InputError(f"the mask prunes '{left.name}', but this model does not: {left.reason}")
        others = {name for name in model.state_dict() if name not in layers}
        mask = Mask({name: bits for name, bits in kept.items() if name not in others}, self.modalities, self.source)
        mask.check_fits(layers)
        modalities = {name: model.modality_of(name) for name in layers}
        mask = Mask({name: mask[name] for name in layers}, modalities, self.source, transposed)
        if not self.has_values:
            return mask
        updated = {name: layer.weight.detach() for name, layer in layers.items()}  # of layers that are fresh
        updated |= own_names({name: torch.from_numpy(self.weights(name)) for name in self}, model)
        return mask.with_values((name, tensor) for name, tensor in updated.items() if name in layers)

    def check_fits(self, layers: Mapping[str, nn.Module]) -> None:
        """InputError naming the first differing keys unless the mask covers exactly `layers`."""
        missing = [name for name in layers if name not in self._shapes]
        extra = [name for name in self._shapes if name not in layers]
        reshaped = [n for n in self if n in layers and self._shapes[n] != tuple(layers[n].weight.shape)]
        problems = []
        if missing:
            problems.append(f"it lacks {counted(len(missing), 'layer')} (first: {', '.join(missing[:3])})")
        if extra:
            unknown = counted(len(extra), "layer")
            problems.append(f"it has {unknown} that the model does not (first: {', '.join(extra[:3])})")
        if reshaped:
            name = reshaped[0]
            shapes = f"{name}, {self._shapes[name]} in the mask, {tuple(layers[name].weight.shape)} in the model"
            problems.append(f"{counted(len(reshaped), 'layer', 'has')} another shape (first: {shapes})")
        if problems:
            made_for = f", {self.source['model']}" if self.source.get("model") else ""
            raise InputError(f"the mask belongs to another model{made_for}: {'; '.join(problems)}")

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set the pruned weights of `model` to zero, in place, and the kept ones to updated values if there are any.

        Raises InputError when the mask does not fit.
        """
        mask = self.fitted(model)
        for name, layer in model.prunable_layers().items():
            if mask.has_values:
                layer.weight.copy_(torch.from_numpy(mask.weights(name)))
            else:
                layer.weight.masked_fill_(~mask[name].to(layer.weight.device), 0)

    @torch.no_grad()
    def merge(self, model: nn.Module, layout: str | None = None) -> dict[str, Tensor]:
        """A plain state dict of the model with the mask's zeros in it, which stock code loads; the model stays dense.

        layout: names of another library where the model offers them (`model.layouts`, for example "timm").
        """
        merged = copy.deepcopy(model)
        self.apply(merged)
        state = {name: tensor.detach() for name, tensor in merged.state_dict().items()}
        if layout is None:
            return state
        layouts = model.layouts
        if layout not in layouts:
            raise InputError(
                f"unknown layout '{layout}': this model offers {', '.join(layouts) or 'its own names only'}"
            )
        return layouts[layout](state)

    # -- files ------------------------------------------------------------------------------------------

    def save(self, path: Path | str, format: str = "safetensors", model: nn.Module | None = None) -> None:
        """Write the mask atomically.

        format: "safetensors", one bit a weight (and updated weights, if any); or "pth", what the published scripts
        read, which needs the model, since it also lists the layers that are not pruned.
        """
        if format == "pth":
            if model is None:
                raise InputError("a mask in the published format lists all layers of its model: give the model, too")
            fitted = self.fitted(model)
            for name in fitted._transposed:
                raise InputError(
                    f"'{name}' keeps its matrix transposed, which the published format cannot say: save the mask "
                    "as safetensors"
                )
            write_published(path, fitted, model)
            return
        if format != "safetensors":
            raise InputError(f"unknown mask format '{format}': choose safetensors or pth")
        about = {"shapes": self._shapes, "modalities": self.modalities, "source": self.source}
        if self._transposed:
            about["transposed"] = sorted(self._transposed)
        tensors = {name: torch.from_numpy(bits) for name, bits in self._bits.items()}
        tensors |= {f"{VALUES}{name}": torch.from_numpy(values) for name, values in self._values.items()}
        metadata = {"format": FORMAT, "sparsity": f"{self.sparsity():.6f}", "about": json.dumps(about)}
        write_safetensors(path, tensors, sealed(tensors, metadata))

    def inside_weights(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors, as in published files of weights, and metadata, which store this mask in a file of weights.

        `load` reads the mask from such a file. Updated weights are left out: the file has weights of its own.
        """
        about = {"modalities": self.modalities, "source": self.source, "transposed": sorted(self._transposed)}
        return {f"{name}{SUFFIX}": self[name] for name in self}, {"mask": json.dumps(about)}

    @classmethod
    def load(cls, path: Path | str) -> Mask:
        """Read a mask file: our own, a published `.pth`, or weights of either kind that contain their mask.

        InputError when the file is missing, corrupt or holds no mask.
        """
        if not is_safetensors(path):
            return cls(read_published(path), source={"file": str(path), "format": "published"})
        tensors, metadata = read_safetensors(path)
        if metadata.get("format") != FORMAT:
            inside = masks_among(tensors, path)
            if not inside:
                raise InputError(f"{path} is not a mask file: give one that prune.py wrote")
            needs = ("modalities", "source")
            about = parse_metadata(path, metadata, "mask", needs) if "mask" in metadata else dict.fromkeys(needs)
            source = about["source"] or {"file": str(path)}
            return cls(inside, about["modalities"], source, about.get("transposed", ()))
        check_seal(path, tensors, metadata, "bits")
        about = parse_metadata(path, metadata, "about", ("shapes", "modalities", "source"))
        mask = cls({}, about["modalities"], about["source"], about.get("transposed", ()))
        for name, shape in about["shapes"].items():
            if name not in tensors or tensors[name].numel() != (int(np.prod(shape)) + 7) // 8:
                raise InputError(f"{path} is damaged: the bits of '{name}' are missing or of the wrong length")
            mask._shapes[name] = tuple(shape)
            mask._bits[name] = tensors[name].numpy()
            if f"{VALUES}{name}" in tensors:
                mask._values[name] = tensors[f"{VALUES}{name}"].numpy()
        return mask
