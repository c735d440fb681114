"""Write a smaller model for other software, and check that its outputs are the same.

python shrink.py export shrunk/dino-mini_magnitude_seed42 --to onnx
"""

from __future__ import annotations

import importlib
import io
import json
import warnings
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.registry import Registry
from console.errors import InputError
from models import load_model
from models.base import Model
from models.common.checkpoint import shipped
from models.layers import form_of
from models.parts import Layers, Units, all_sets, masked
from models.small import PLAN, read_plan, whole_of
from models.surgery import cut, with_zeros
from models.tasks import Classifier, ImageEncoder
from sparsity.mask import Mask
from storage.atomic import atomic_path, write_json, write_text
from storage.tensors import write_safetensors

TEMPLATE = Path(__file__).parent / "templates" / "modeling_pruned.py.txt"

CLOSE = 1e-4
"""Largest difference of outputs, relative to the largest output, that counts as rounding."""


def to_hf(folder: Path, output: str | None) -> str:
    """Write a folder for transformers' own class; checked by reading it back."""
    target = _target(folder, output, "_hf")
    model = load_model(f"small:{folder}")
    with atomic_path(target) as temporary:
        temporary.mkdir(parents=True)
        model.write_stock(temporary)
        stock = load_model(f"hf:{temporary}")
        _check_same(model, stock)
    return f"{target}: read back by a stock {type(stock.inner).__name__}"


def to_hf_code(folder: Path, output: str | None) -> str:
    """Write a folder for transformers that includes its model code, for plans whose shapes no stock class has."""
    target = _target(folder, output, "_hf_code")
    small, whole = load_model(f"small:{folder}"), whole_of(folder)
    name = type(whole.inner).__name__
    with atomic_path(target) as temporary:
        temporary.mkdir(parents=True)
        whole.rebuilt(temporary)
        config = temporary / "config.json"
        if not config.is_file():
            raise InputError(f"{folder} is a {name}, not a Hugging Face class: give --to torch or onnx")
        auto = "AutoModelForImageClassification" if isinstance(small, Classifier) else "AutoModel"
        about = json.loads(config.read_text(encoding="utf-8"))
        about |= {"auto_map": {auto: f"modeling_pruned.Pruned{name}"}, "architectures": [f"Pruned{name}"]}
        write_json(config, about | {"pruned": sizes_left(whole, small)})
        write_text(temporary / "modeling_pruned.py", TEMPLATE.read_text().format(name=name, auto=auto))
        write_safetensors(temporary / "model.safetensors", shipped(small), {"format": "pt"})
    return f"{target}: {auto}.from_pretrained(FOLDER, trust_remote_code=True)"


def sizes_left(whole: Model, small: Model) -> dict[str, dict[str, Any]]:
    """The changes that turn a newly built dense model into the smaller one: kept layers, then shapes, then counts."""
    found, plan = all_sets(whole), small.plan
    stays = dict(plan.stays)
    rows = {
        path: stays[one.name].kept
        for one in found
        if isinstance(one, Layers) and one.name in stays
        for path in one.lists
    }
    shallow = cut(whole, {name: kept for name, kept in plan.kept(found).items() if stays[name].kind == "layers"})
    before = {name: tensor.shape for name, tensor in shallow.inner.named_parameters()}
    shapes = {n: list(t.shape) for n, t in small.inner.named_parameters() if t.shape != before[n]}
    attributes = {}
    for one in all_sets(shallow):
        for path, _ in one.attributes if isinstance(one, Units) else ():
            value = attrgetter(path)(small.inner)
            if value != attrgetter(path)(shallow.inner):
                attributes[path] = value
    return {"layers": rows, "shapes": shapes, "attributes": attributes}


def to_zeros(folder: Path, output: str | None) -> str:
    """Write the dense model's shapes, with zeros: readable by any software for it, without a gain in size or speed."""
    target = _target(folder, output, "_zeros")
    small, whole = load_model(f"small:{folder}"), whole_of(folder)
    try:
        with_zeros(whole, small.plan.kept(all_sets(whole)), small)
    except ValueError as error:
        raise InputError(
            f"{folder} cannot be written with zeros: {error}, and zeros cannot represent removed layers"
        ) from error
    _check_same(small, whole)
    with atomic_path(target) as temporary:
        temporary.mkdir(parents=True)
        whole.rebuilt(temporary)
        write_safetensors(temporary / "model.safetensors", shipped(whole), {"format": "pt"})
    return f"{target}: as large and as slow as the dense model"


def to_mask(folder: Path, output: str | None) -> str:
    """Write the removed units as a mask of the dense model, for comparison with masks of single weights."""
    target = _target(folder, output, ".safetensors")
    plan, whole = load_model(f"small:{folder}").plan, whole_of(folder)
    masks = masked(whole, plan.kept(all_sets(whole)))
    about = read_plan(folder / PLAN)
    source = {"model": whole.origin.name, "pruner": "units", "made_by": about.get("made_by")}
    modalities = {name: whole.modality_of(name) for name in masks}
    transposed = [name for name, layer in whole.prunable_layers().items() if form_of(layer).transposed]
    mask = Mask(masks, modalities, source, transposed)
    mask.save(target)
    return f"{target}: {100 * mask.sparsity():.2f} % of the prunable weights pruned; biases of removed units are kept"


class Images(nn.Module):
    """The exported module, a function of images [b, 3, H, W]."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Class logits, or the states of the image tower."""
        return self.model.logits(image) if isinstance(self.model, Classifier) else self.model.vision_tower()(image)


def _images(folder: Path) -> tuple[Images, Tensor]:
    model = load_model(f"small:{folder}").eval()
    if not isinstance(model, Classifier | ImageEncoder):
        raise InputError(f"{folder} is a {type(model.inner).__name__}, which has no image tower of its own to export")
    return Images(model).eval(), model.example(2)[model.sides[0]]["image"][:2]


def to_torch(folder: Path, output: str | None) -> str:
    """Write torch.export's program of the classifier or image tower, for any batch size; checked by reading it back."""
    target = _target(folder, output, ".pt2")
    module, image = _images(folder)
    with torch.no_grad():
        program = torch.export.export(module, (image,), dynamic_shapes=({0: torch.export.Dim("images")},))
        packed = io.BytesIO()  # torch refuses the temporary file's extension
        torch.export.save(program, packed)
        packed.seek(0)
        _check_close(module(image), torch.export.load(packed).module()(image), "the exported program")
    with atomic_path(target) as temporary:
        temporary.write_bytes(packed.getbuffer())
    return f"{target}: torch.export.load(FILE).module()(images)"


def to_onnx(folder: Path, output: str | None) -> str:
    """Write ONNX of the classifier or image tower, for any batch size; checked by running it in onnxruntime."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError("--to onnx needs more packages: pip install onnx onnxscript onnxruntime") from error
    import onnxruntime

    empty = [name for name, stay in load_model(f"small:{folder}").plan.stays if not stay.kept]
    if empty:
        raise InputError(f"ONNX has no empty matrix products, and {', '.join(empty)} would be empty: make another plan")
    target = _target(folder, output, ".onnx")
    module, image = _images(folder)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the exporter's own, about later torch versions
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.onnx.export(
            module, (image,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("images")},), verbose=False
        )
        expected = module(image)
    with atomic_path(target) as temporary:
        program.save(str(temporary), external_data=False)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
        _check_close(expected, torch.from_numpy(found), "ONNX Runtime")
    return f"{target}: run by ONNX Runtime, the same outputs"


def _target(folder: Path, output: str | None, ending: str) -> Path:
    place = folder if folder.name else folder.resolve()
    target = Path(output) if output else place.with_name(f"{place.name}{ending}")
    if target.exists():
        raise InputError(f"{target} exists already: give another name with --output, or remove it")
    return target


def _check_same(model: Model, other: Model) -> None:
    """InputError unless two models have equal losses on a made-up batch."""
    torch.manual_seed(0)
    batch = model.example(2)[model.sides[0]]
    losses = []
    with torch.no_grad():
        for one in (model, other):
            torch.manual_seed(0)
            losses.append(torch.stack(list(one.eval().losses(batch).values())))
    _check_close(*losses, "the exported model")


def _check_close(expected: Tensor, found: Tensor, who: str) -> None:
    apart = float((expected - found).abs().max())
    if not apart <= CLOSE * max(1.0, float(expected.abs().max())):
        raise InputError(f"{who} gives other outputs: they differ by {apart:.2g}; please report it")


EXPORTS: Registry[Callable[[Path, str | None], str]] = Registry(
    "export",
    {
        name: f"shrinking.export:to_{name.replace('-', '_')}"
        for name in ("hf", "hf-code", "zeros", "mask", "torch", "onnx")
    },
)
"""Format -> function that writes a smaller model in it, and returns a line for the user."""
