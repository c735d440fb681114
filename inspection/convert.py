"""Masks from our own files to the published format and back, bit for bit."""

from __future__ import annotations

from pathlib import Path

from console.errors import InputError
from console.progress import console
from inspection.reading import fit
from sparsity.mask import Mask
from storage.atomic import check_writable

OURS, PUBLISHED = ".safetensors", ".pth"


def target_of(file: Path, output: str | None, force: bool) -> Path:
    """Where the converted mask goes: the other format's ending, in place of the first one's unless told otherwise.

    InputError when it is of the same format, or there already and not to be overwritten.
    """
    wanted = PUBLISHED if file.suffix == OURS else OURS
    target = Path(output) if output else file.with_suffix(wanted)
    if target.suffix != wanted:
        raise InputError(f"{file} is converted to a {wanted} file, which {target} is not: name it so")
    if target.is_dir():
        raise InputError(f"{target} is a folder: name the file to write, or leave --output out")
    if target.exists() and not force:
        raise InputError(f"{target} exists: give --force to overwrite it, or another name with --output")
    return target


def convert(
    file: Path, output: str | None = None, model: str | None = None, force: bool = False, without_values: bool = False
) -> tuple[Path, Mask]:
    """Write the mask of `file` in the other format; returns where, and the mask.

    model: whose layers the mask is about. The published format lists all of a model's linear layers, so it is needed
    on the way there, where the mask's source does not name it; on the way back it leaves out the layers that are never
    pruned and says which modality the others belong to. without_values: drop updated weights, which the published
    format has no place for.
    """
    target = target_of(file, output, force)
    mask = Mask.load(file)
    if target.suffix == PUBLISHED:
        model = model or mask.source.get("model")
        if not model:
            raise InputError(f"{file} does not say which model it is a mask of: name it with --model")
        if mask.has_values and not without_values:
            raise InputError(
                f"{file} carries updated weights, which the published format has no place for: "
                "keep it as it is, or drop them with --without_values"
            )
        from models import RANDOM, load_model

        check_writable(target.parent)
        mask.save(target, format="pth", model=load_model(model, weights=RANDOM))
        return target, mask
    check_writable(target.parent)
    if model is None:
        console.print(
            "note: without --model, layers that are never pruned stay in the mask, and modalities are unknown"
        )
    else:
        mask = fit([mask], model)[0]
        mask.source |= {"model": model}
    mask.source |= {"sparsity_reached": mask.sparsity()}
    mask.save(target)
    return target, mask
