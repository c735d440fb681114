"""Read masks, and check that they can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from console.errors import InputError
from sparsity.mask import Mask
from sparsity.percents import percent


@dataclass(frozen=True)
class MaskFile:
    """A mask with the file it was read from and a short name among the others."""

    label: str
    path: Path
    mask: Mask

    @property
    def origin(self) -> str:
        """The mask's source in a few words; empty if the file has none."""
        source = self.mask.source
        parts = [str(source[key]) for key in ("model", "pruner") if key in source]
        if source.get("allocation"):
            parts.append(f"{source['allocation']} allocation")
        if source.get("repair"):
            parts.append(f"repaired by {source['repair']}")
        if "sparsity_asked" in source:
            parts.append(f"{percent(source['sparsity_asked'])} % asked")
        if "seed" in source:
            parts.append(f"seed {source['seed']}")
        if source.get("weights_in_matrices"):
            parts.append(
                f"{100 * source['prunable_weights'] / source['weights_in_matrices']:.1f} % of the model's matrices"
            )
        if source.get("format") == "published":
            parts.append("in the published format")
        return ", ".join(parts)


def read_masks(paths: Sequence[str], model: str | None = None) -> list[MaskFile]:
    """The masks of some files, fitted to `model` if one is named; InputError for a file that is not a mask."""
    files = [Path(path) for path in paths]
    masks = [Mask.load(path) for path in files]
    for path, mask in zip(files, masks, strict=True):
        if not len(mask):
            raise InputError(f"{path} is a mask of no layer: give one that prune.py wrote")
    if model is not None:
        masks = fit(masks, model)
    return [MaskFile(*parts) for parts in zip(labels(files), files, masks, strict=True)]


def labels(paths: Sequence[Path]) -> list[str]:
    """Short, distinct labels of the files: their names without common prefixes and suffixes.

    [.../xvlm-mini_omp_75_seed42.safetensors, .../xvlm-mini_lamp_75_seed42.safetensors] -> [omp, lamp]
    """
    if len(paths) < 2:
        return [path.stem for path in paths]
    stems = [path.stem for path in paths]
    if len(set(stems)) < len(stems):  # the same name in several folders: add the folders
        stems = [str(path.with_suffix("")) for path in paths]
    words = [stem.replace("/", "_").split("_") for stem in stems]
    shortest = min(map(len, words))
    start = next((k for k in range(shortest) if len({w[k] for w in words}) > 1), shortest)
    rest = [w[start:] for w in words]
    shortest = min(map(len, rest))
    end = next((k for k in range(shortest) if len({w[-1 - k] for w in rest}) > 1), shortest)
    short = ["_".join(w[: len(w) - end]) for w in rest]
    return short if all(short) and len(set(short)) == len(short) else numbered(stems)


def numbered(stems: Sequence[str]) -> list[str]:
    """The names themselves, numbered where two are the same."""
    return [s if stems.count(s) == 1 else f"{s} ({stems[: i + 1].count(s)})" for i, s in enumerate(stems)]


def fit(masks: Sequence[Mask], model: str) -> list[Mask]:
    """The masks under the model's own names, for its prunable layers only, with their modalities.

    Only names and shapes matter, so the model is built with random weights and needs no file.
    """
    from models import RANDOM, load_model

    conv = any(  # of models of other libraries; published files do not say
        mask.source.get("conv") or (":" in model and any(len(mask.shape(name)) == 4 for name in mask)) for mask in masks
    )
    built = load_model(model, weights=RANDOM, overrides={"conv": True} if conv else {})
    fitted = [mask.fitted(built) for mask in masks]
    for mask in fitted:
        mask.modalities = {name: built.modality_of(name) for name in mask}
        mask.source |= {"conv": True} if conv else {}
    return fitted


def check_same_layers(files: Sequence[MaskFile]) -> None:
    """InputError naming the first layer that another mask lacks, or has in another shape."""
    first = files[0]
    for other in files[1:]:
        problem = _difference(first, other) or _difference(other, first)
        if problem:
            raise InputError(
                f"{problem}: give masks of one model, or fit files in the published format to it with --model"
            )


def _difference(a: MaskFile, b: MaskFile) -> str | None:
    for name in a.mask:
        if name not in b.mask:
            return f"the masks are of different layers: {a.path} has '{name}', {b.path} has not"
        if a.mask.shape(name) != b.mask.shape(name):
            shapes = f"{a.mask.shape(name)} in {a.path} and {b.mask.shape(name)} in {b.path}"
            return f"the masks are of different layers: '{name}' is {shapes}"
    return None
