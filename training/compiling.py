"""torch.compile for finetuning (--compile), of each repeated block by itself.

A model's towers are rows of equal blocks, which take nearly all the time. One block's code serves the whole row, so
that compiling takes seconds and not minutes, and the rest (queues, random negatives, beam search) is not compiled.
Blocks are compiled in place: names of parameters, snapshots and weights files do not change.
"""

from __future__ import annotations

import os
import shutil
import sys

import torch
from torch import nn

from console.errors import InputError
from models.common.blocks import repeated_blocks

VARIANTS = 64  # recompilations of one frame, which all blocks share: with and without gradients and cross-attention


def compile_blocks(model: nn.Module, device: torch.device) -> int:
    """Compile the repeated blocks of `model` in place, the whole model where it has none; returns how many.

    InputError when this machine cannot compile for `device`.
    """
    check_compiler(device)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    blocks = repeated_blocks(model) or [model]
    for block in blocks:
        # Sizes are symbolic from the first batch on: otherwise the code would depend on which batches came before,
        # and a resumed run would not be bit-identical.
        block.compile(dynamic=True)
    return len(blocks)


def check_compiler(device: torch.device) -> None:
    """InputError when code cannot be compiled for `device`: look for the compiler, then compile a test function."""
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
            f"--compile does not work on this machine ({last}): fix its compiler, or leave --compile out"
        ) from error
