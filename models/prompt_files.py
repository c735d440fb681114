"""Files of visual prompts: the prompt, label mapping, class names, and running statistics of the network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from console.errors import InputError
from models.base import Model
from models.prompts import VisualPrompt
from storage.hashing import hash_json
from storage.tensors import check_seal, parse_metadata, read_safetensors, sealed, write_safetensors

BUFFER = "network."
"""Before the names of the network's buffers."""


@dataclass(frozen=True)
class PromptFile:
    """shape: the prompt's constructor arguments. program: P [3, o, o]. frame: what is added to a picture, [3, o, o].

    mapping [C] int64: source class of each class; None with a new classifier. classes: their names. buffers: running
    statistics of the network (batch normalisation): a mask without them is not the network that was measured.
    network: hash of its parameters' names.
    """

    shape: dict[str, Any]
    program: Tensor
    frame: Tensor
    mapping: Tensor | None
    classes: list[str]
    buffers: dict[str, Tensor]
    network: str

    @classmethod
    def of(cls, prompt: VisualPrompt, mapping: Tensor | None, classes: list[str], network: Model) -> PromptFile:
        """The present state of a prompt and its network."""
        state = network.state_dict()
        buffers = {name: state[name].detach() for name, _ in network.inner.named_buffers() if name in state}
        was, frame = prompt.training, prompt.eval().frame().detach()
        prompt.train(was)
        return cls(prompt.shape(), prompt.full_program(), frame, mapping, list(classes), buffers, named(network))

    def prompt(self) -> VisualPrompt:
        """The prompt itself."""
        prompt = VisualPrompt(**self.shape)
        prompt.load_program(self.program)
        return prompt

    def check_network(self, path: str, network: Model) -> None:
        """InputError where the prompt was trained with another network."""
        own = dict(network.inner.named_buffers())
        differ = [n for n, tensor in self.buffers.items() if n not in own or own[n].shape != tensor.shape]
        if differ or self.network != named(network):
            raise InputError(
                f"{path} belongs to another network, with other layers: give --model the one it was trained with, or "
                "--prompt new"
            )

    @torch.no_grad()
    def restore_statistics(self, network: Model) -> None:
        """Give the network the buffers it had."""
        own = dict(network.inner.named_buffers())
        for name, tensor in self.buffers.items():
            own[name].copy_(tensor)


def named(network: Model) -> str:
    """A hash that distinguishes networks by their layers, not by their weights."""
    return hash_json(sorted(name for name, _ in network.inner.named_parameters()))


def write_prompt(path: Path, file: PromptFile) -> None:
    """Write a prompt's file atomically."""
    tensors = {"program": file.program, "frame": file.frame} | {BUFFER + n: t for n, t in file.buffers.items()}
    if file.mapping is not None:
        tensors["mapping"] = file.mapping
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {"shape": file.shape, "classes": file.classes, "network": file.network}
    metadata = {"prompt": json.dumps(about), "format": "pt"}
    write_safetensors(path, tensors, sealed(tensors, metadata))


def read_prompt(path: str) -> PromptFile:
    """The counterpart of `write_prompt`; InputError for a file that is missing, damaged, or no prompt."""
    if not Path(path).exists():
        raise InputError(f"--prompt {path}: there is no such file; new learns a fresh prompt, none goes without")
    tensors, metadata = read_safetensors(path)
    if "prompt" not in metadata or not {"program", "frame"} <= tensors.keys():
        raise InputError(f"{path} holds no prompt: give the prompt.safetensors of a run's folder")
    about = parse_metadata(path, metadata, "prompt", ("shape", "classes", "network"))
    check_seal(path, tensors, metadata, "tensors")
    buffers = {name.removeprefix(BUFFER): t for name, t in tensors.items() if name.startswith(BUFFER)}
    mapping = tensors.get("mapping")
    described = about["shape"], tensors["program"], tensors["frame"], mapping, about["classes"]
    return PromptFile(*described, buffers, about["network"])
