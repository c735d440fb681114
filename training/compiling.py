"""torch.compile for finetuning, on request: each repeated block by itself.

A model's towers are rows of equal blocks, in which nearly all the time goes. One block's code serves the whole row, so
starting takes seconds and not minutes, and what is hard to compile (queues, negatives drawn at random, beam search)
stays as it is. Blocks are compiled in place: names of parameters, snapshots and weights files do not change.
"""

from __future__ import annotations

import os
import shutil
import sys

import torch
from torch import nn

from console.errors import InputError
from models.common.blocks import repeated_blocks

VARIANTS = (
    64  # of one compiled frame: all blocks share it, with and without gradients, with and without cross-attention
)


def compile_blocks(model: nn.Module, device: torch.device) -> int:
    """Compile the repeated blocks of `model` in place, the whole model where it has none; returns how many.

    InputError when this machine cannot compile for `device`.
    """
    check_compiler(device)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    blocks = repeated_blocks(model) or [model]
    for block in blocks:
        # Sizes are variables from the first batch on: otherwise the code would depend on which batches came before,
        # and a resumed run would end with other last bits.
        block.compile(dynamic=True)
    return len(blocks)


def check_compiler(device: torch.device) -> None:
    """InputError when code cannot be compiled for `device`: by looking for the compiler, then by a trial."""
    way_out = "install one (for example the package g++), name it in the variable CXX, or leave --compile out"
    if device.type == "cpu":
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            raise InputError(f"--compile needs a C++ compiler, but there is no '{compiler}' here: {way_out}")
    try:
        torch.compile(torch.nn.functional.gelu, dynamic=True)(torch.ones(8, device=device))
    except RuntimeError as error:  # what every stage of the compiler raises
        last = str(error).strip().splitlines()[0].rstrip(".:")
        raise InputError(
            f"--compile does not work on this machine ({last}): mend its compiler or leave it out"
        ) from error
