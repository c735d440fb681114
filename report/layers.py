"""Which share of every layer is pruned, by pruner: from the results, or from the masks where those are still there."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from grid.layers import Layers, count_layers
from report.reading import Results
from sparsity.percents import percent


@dataclass(frozen=True)
class LayerShares:
    """Pruner -> layer -> share pruned, mean over seeds; modalities: modality -> its layers, in the model's order."""

    modalities: dict[str, list[str]]
    sizes: dict[str, int]
    pruned: dict[str, dict[str, float]]

    def of_modality(self, pruner: str, modality: str) -> float:
        """Share of a modality's weights pruned."""
        names = self.modalities[modality]
        gone = sum(self.pruned[pruner][name] * self.sizes[name] for name in names)
        return gone / sum(self.sizes[name] for name in names)


def layer_shares(results: Results, model: str, pruners: list[str], sparsity: float) -> LayerShares | None:
    """Of all pruners of a model at a sparsity in percent; None where no layer is known."""
    found = {pruner: _counts(results, model, pruner, sparsity) for pruner in pruners}
    found = {pruner: counts for pruner, counts in found.items() if counts}
    if not found:
        return None
    first = next(iter(found.values()))[0]
    modalities = {modality: list(layers) for modality, layers in first.items()}
    sizes = {name: size for layers in first.values() for name, (_, size) in layers.items()}
    pruned: dict[str, dict[str, float]] = {}
    for pruner, seeds in found.items():
        shares: dict[str, list[float]] = defaultdict(list)
        for counts in seeds:
            for layers in counts.values():
                for name, (kept, size) in layers.items():
                    shares[name].append(1 - kept / size)
        if shares.keys() == sizes.keys():
            pruned[pruner] = {name: sum(values) / len(values) for name, values in shares.items()}
    return LayerShares(modalities, sizes, pruned)


def _counts(results: Results, model: str, pruner: str, sparsity: float) -> list[Layers]:
    """By seed; results of earlier versions of the toolkit do not carry them."""
    runs = results.prunings_of(model, pruner)
    recorded = [(run.result.get("layers") or {}).get(percent(sparsity / 100)) for run in runs]
    if any(recorded):
        return [counts for counts in recorded if counts]
    masks = {
        run.result.get("mask")
        for run in results.tasks
        if (run.model, run.pruner, run.sparsity) == (model, pruner, sparsity)
    }
    read = [count_layers(Path(mask)) for mask in sorted(filter(None, masks))]
    return [counts for counts in read if counts]
