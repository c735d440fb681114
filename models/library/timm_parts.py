"""Removable parts of timm's models: heads, neurons, channels inside residual blocks and of VGGs, layers.

The residual stream stays: every block reads and writes it. Classes must match exactly, since a subclass may compute
something else.
"""

from __future__ import annotations

from collections.abc import Iterator

from timm.layers import Attention, GluMlp, Mlp, SwiGLU
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.vgg import VGG, ConvMlp
from timm.models.vision_transformer import Block
from torch import nn

from models.library.finding import Skipped
from models.library.parts import Reader, read, rows_of, units_of
from models.parts import Part

EACH_BY_ITSELF = (nn.Identity, nn.AvgPool2d)
"""Layers between two convolutions, besides activations, that treat channels separately and have no tensors."""


def timm_parts(module: nn.Module) -> Iterator[Part]:
    """The parts of all blocks of a timm model."""
    yield from read(module, lambda part: READERS.get(type(part)))
    yield from rows_of(module, lambda part: type(part) is Block)


def _attention(at: str, root: nn.Module) -> Iterator[Part]:
    attention = root.get_submodule(at[:-1])
    if not isinstance(attention.norm, nn.Identity):
        yield _left(root, f"{at}proj", "its inputs are normalised over all heads together")
        return
    feeds = [f"{at}qkv"] + ([f"{at}gate"] if attention.gate is not None else [])
    width = attention.head_dim
    own = {f"{at}num_heads": 1, f"{at}attn_dim": width}
    yield units_of(root, at[:-1], "heads", feeds=feeds, reads=f"{at}proj", block=width, attributes=own)


def _mlp(at: str, root: nn.Module) -> Iterator[Part]:
    mlp = root.get_submodule(at[:-1])
    if not isinstance(mlp.norm, nn.Identity):
        yield _left(root, f"{at}fc2", "its inputs are normalised over all neurons together")
        return
    feeds = [f"{at}fc1"] if hasattr(mlp, "fc1") else [f"{at}fc1_g", f"{at}fc1_x"]
    yield units_of(root, at[:-1], "neurons", feeds=feeds, reads=f"{at}fc2")


def _residual(at: str, root: nn.Module) -> Iterator[Part]:
    """conv1 of a BasicBlock, conv1 and conv2 of a Bottleneck: what the block's last convolution does not write."""
    block = root.get_submodule(at[:-1])
    last = 3 if isinstance(block, Bottleneck) else 2
    for number in range(1, last):
        reads = f"{at}conv{number + 1}"
        if number == last - 1 and not isinstance(block.aa, EACH_BY_ITSELF):
            yield _left(root, reads, f"a {type(block.aa).__name__} before it has a fixed number of channels")
            continue
        feeds = [f"{at}conv{number}", f"{at}bn{number}"]
        yield units_of(root, f"{at}conv{number}", "channels", feeds=feeds, reads=reads)


def _vgg(at: str, root: nn.Module) -> Iterator[Part]:
    """All convolutions, each read by the next one; the last of the features, and those of the head, by the head."""
    vgg = root.get_submodule(at.rstrip("."))
    chain: list[list[str]] = []  # a convolution, and what with tensors of its own comes before the next one
    for number, part in enumerate(vgg.features):
        if isinstance(part, nn.Conv2d):
            chain.append([])
        if chain and (part._parameters or part._buffers):
            chain[-1].append(f"{at}features.{number}")
    last = len(chain) - 1
    if isinstance(vgg.pre_logits, ConvMlp):
        chain += [[f"{at}pre_logits.fc1"], [f"{at}pre_logits.fc2"]]
    if isinstance(vgg.head.fc, nn.Linear):
        chain.append([f"{at}head.fc"])
    for number, (feeds, reads) in enumerate(zip(chain[:-1], (after[0] for after in chain[1:]), strict=True)):
        counts = ["num_features"] if number == last else []
        if reads == f"{at}head.fc":
            counts += ["head_hidden_size", "head.in_features", "head.num_features"]
        own = {f"{at}{name}": 1 for name in counts}
        yield units_of(root, feeds[0], "channels", feeds=feeds, reads=reads, attributes=own)


def _left(root: nn.Module, layer: str, reason: str) -> Skipped:
    return Skipped(f"{layer}.weight", reason, root.get_submodule(layer).weight.numel())


READERS: dict[type[nn.Module], Reader] = {
    Attention: _attention,
    Mlp: _mlp,
    GluMlp: _mlp,
    SwiGLU: _mlp,
    BasicBlock: _residual,
    Bottleneck: _residual,
    VGG: _vgg,
}
"""Class of a block -> its reader. A new one is a line here and a function."""
