"""A generative model of Hugging Face whose blocks stay in the memory-mapped shards of its folder.

Names in files are translated as transformers does it, so that folders of older versions are read, too.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from console.errors import InputError, in_a_line
from console.words import agreed, counted
from models.common.checkpoint import LoadReport, other_shape
from models.library.finding import FLOATS
from models.streaming import Change, Streamed
from storage.atomic import atomic_path
from storage.shards import ENDINGS, INDEX, weight_files
from storage.tensors import read_tensors, write_like

PLAIN = ".safetensors"


def load_streamed(model_class: type, folder: Path, config: Any, blocks: tuple[str, ...]) -> tuple[nn.Module, Streamed]:
    """A model of a folder with safetensors, with `Streamed`, which loads its blocks.

    blocks: paths of the lists of its blocks. Parameters outside of the blocks, or shared by several, are in memory in
    float32; not those of the head, since passes end before it. InputError for weights that cannot be streamed.
    """
    module = _without_weights(model_class, config)
    stored, _ = tensors_of(module, folder)
    groups: dict[nn.Parameter, list[str]] = {}  # tied ones have several names
    for name, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(parameter, []).append(name)
    lacking = [names[0] for names in groups.values() if not any(name in stored for name in names)]
    if lacking:
        raise InputError(
            f"the weights of {folder} do not fit {model_class.__name__}: {len(lacking)} of its "
            f"{counted(len(groups), 'tensor')} {agreed(len(lacking), 'is')} missing (first: {lacking[0]}); give "
            "weights of this model"
        )
    for name, buffer in module.named_buffers():
        if name in stored:
            buffer.copy_(stored[name])
    rows = [module.get_submodule(path) for path in blocks]
    places = [f"{path}.{number}." for path, row in zip(blocks, rows, strict=True) for number in range(len(row))]
    head = module.get_output_embeddings()
    heads = [f"{path}." for path, part in module.named_modules() if part is head]
    views: dict[nn.Parameter, Tensor] = {}
    for parameter, names in groups.items():
        tensor = stored[next(name for name in names if name in stored)]
        if tensor.shape != parameter.shape:
            raise other_shape(str(folder), names[0], tensor.shape, parameter.shape)
        of = {next((place for place in [*places, *heads] if name.startswith(place)), "") for name in names}
        alone = len(of) == 1 and of != {""}
        own = nn.Parameter(tensor if alone else tensor.to(torch.float32, copy=True), requires_grad=False)
        if alone:
            views[own] = tensor
        for name in names:
            path, _, leaf = name.rpartition(".")
            module.get_submodule(path)._parameters[leaf] = own
    size = sum(file.stat().st_size for file in weight_files(folder))
    write = partial(_write, module, folder)
    return module.eval(), Streamed(rows, views, head, write, size)


def _without_weights(model_class: type, config: Any) -> nn.Module:
    """A model whose parameters take no memory; its buffers, which follow from the configuration, are there."""
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            module = model_class(config)
        for part in module.modules():
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = torch.empty_like(buffer, device="cpu")
        module.initialize_weights()  # fills buffers; on parameters without memory it has no effect
    return module


def tensors_of(module: nn.Module, folder: Path, streaming: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a folder's shards by the module's names, memory-mapped; and names in the files -> the module's.

    InputError where there are no safetensors, and where a shard is missing. streaming: whether for --stream, which
    computes with FLOATS only.
    """
    files = weight_files(folder)
    if pickled := [file.name for file in files if file.suffix != PLAIN]:
        raise InputError(
            f"{folder} has its weights as {pickled[0]}, which cannot be read in parts: "
            f"{'leave out --stream, or ' if streaming else ''}write them as safetensors (save_pretrained does)"
        )
    stored = read_tensors(folder)
    transforms = get_model_conversion_mapping(module)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    wanted = module.state_dict()
    found: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for old, tensor in stored.items():
        new, converted = rename_source_key(old, renamings, converters, module.base_model_prefix, wanted)
        if converted is not None:
            raise InputError(
                f"transformers puts '{old}' of {folder} together with other tensors, or takes it apart: such a folder "
                f"cannot be read tensor by tensor{'; leave out --stream' if streaming else ''}"
            )
        if streaming and new in wanted and tensor.dtype not in FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(f"'{old}' in {folder} is stored as {kind}: prune the model before it is quantised")
        names[old] = new
        if new in wanted:
            found[new] = tensor
    return found, names


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder, of whatever type, by the names of the class that its config.json names.

    InputError where transformers has no such class.
    """
    if not (Path(folder) / "config.json").is_file():
        raise InputError(f"there is no {Path(folder) / 'config.json'}: give a folder of a Hugging Face model")
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise InputError(
            f"{folder} is no folder of a Hugging Face model ({in_a_line(error)}): check its config.json"
        ) from error
    name = (config.architectures or ["model of no class"])[0]
    if not hasattr(transformers, name):
        raise InputError(
            f"{folder} is a {name}, which transformers does not have: its tensors' names mean nothing here"
        )
    return tensors_of(_without_weights(getattr(transformers, name), config), folder, streaming=False)[0]


def report_of(module: nn.Module, folder: Path) -> LoadReport:
    """What happened to the keys of a folder."""
    found, names = tensors_of(module, folder)
    files = weight_files(folder)
    return LoadReport(
        str(folder), len(found), files, dropped=sorted(old for old, new in names.items() if new not in found)
    )


def _write(module: nn.Module, folder: Path, target: Path, change: Change) -> None:
    """Copy the folder with changed tensors: same shards, names and types; all other files are unchanged."""
    _, names = tensors_of(module, folder)
    with atomic_path(target) as temporary:
        temporary.mkdir()
        for file in weight_files(folder):
            write_like(file, temporary / file.name, lambda name, tensor: change(names[name], tensor))
        for other in sorted(folder.iterdir()):
            if other.is_file() and not _is_weights(other):
                shutil.copyfile(other, temporary / other.name)
        for index in folder.glob(f"*{PLAIN}{INDEX}"):
            shutil.copyfile(index, temporary / index.name)
        if target.exists():  # of an earlier run: a folder can be renamed onto an empty one only
            shutil.rmtree(target)


def _is_weights(file: Path) -> bool:
    """Whether a file is of weights: pickled ones next to the shards would not have the zeros."""
    return file.name.endswith((*ENDINGS, INDEX))
