"""Lightning Fabric as every script starts it: any accelerator, any number of devices and machines."""

from __future__ import annotations

import atexit
import os
import subprocess
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn

from configs.precisions import known_precision
from console.cores import usable_cores
from console.errors import InputError
from console.words import counted
from models.common.repeatable import repeat_on_cpu

if TYPE_CHECKING:
    from lightning.fabric import Fabric

MOST_LOADERS = 8

PATIENCE = 10.0
"""Seconds that the other processes have to end after the first one."""

RENDEZVOUS = ("MASTER_ADDR", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID", "LSB_JOBID", "KUBERNETES_SERVICE_HOST")
"""Environment variables; a launcher of several machines sets at least one."""

ALWAYS_ALLOWED = 8
"""Number of CPU processes that is allowed even with fewer cores, to test several processes."""


class OneProcess:
    """The part of Fabric's interface that calibration needs, for one process at full precision."""

    is_global_zero, world_size, autocast = True, 1, nullcontext

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def to_device(self, module: nn.Module) -> nn.Module:
        """The module, on the device."""
        return module.to(self.device)


def without_training(accelerator: str, devices: int, num_nodes: int, precision: str) -> Fabric | OneProcess:
    """`make_fabric` for commands that do not train: a single process does not import Lightning, which takes seconds."""
    if devices * num_nodes > 1 or precision != "32-true" or any(name in os.environ for name in RENDEZVOUS):
        return make_fabric(accelerator, devices, num_nodes, precision)
    accelerator = _prepared(accelerator, devices, num_nodes, precision)
    return OneProcess("cuda" if accelerator == "gpu" else accelerator)


def make_fabric(accelerator: str, devices: int, num_nodes: int, precision: str) -> Fabric:
    """A launched Fabric; InputError for devices that are missing and precisions that they do not support."""
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    accelerator = _prepared(accelerator, devices, num_nodes, precision)
    # Buffers (BLIP's large queues) hold gathered features, and so are equal on all processes without a broadcast.
    strategy = DDPStrategy(find_unused_parameters=False, broadcast_buffers=False) if devices * num_nodes > 1 else "auto"
    fabric = Fabric(
        accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy, precision=precision
    )
    fabric.launch()
    if fabric.is_global_zero:
        atexit.register(_end_children, getattr(fabric.strategy.launcher, "procs", []))
    return fabric


def _prepared(accelerator: str, devices: int, num_nodes: int, precision: str) -> str:
    """Check the options, set the threads, and return the accelerator."""
    known_precision(precision)
    if accelerator not in ("auto", "cpu", "gpu", "cuda", "mps"):
        raise InputError(f"unknown accelerator '{accelerator}': choose auto, cpu, gpu or mps")
    if devices < 1 or num_nodes < 1:
        raise InputError(f"devices and num_nodes must be at least 1, not {devices} and {num_nodes}")
    gpus = torch.cuda.device_count()
    if gpus < devices and (accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus)):
        raise InputError(
            f"{counted(devices, 'GPU')} requested, but {gpus} found: use --accelerator cpu or fewer devices"
        )
    if accelerator == "mps" and (devices > 1 or not torch.backends.mps.is_available()):
        raise InputError(
            f"{counted(devices, 'MPS device')} requested: only Apple's machines have one, and none has more; use cpu"
        )
    if accelerator in ("auto", "cuda"):
        accelerator = "gpu" if gpus else "cpu"
    if accelerator == "cpu" and precision.startswith("16"):
        raise InputError(f"precision {precision} needs a GPU: use 32-true or bf16-mixed on the CPU")
    cores = usable_cores()
    if accelerator == "cpu" and devices > max(ALWAYS_ALLOWED, cores):
        raise InputError(
            f"{counted(devices, 'process')} requested on {counted(cores, 'CPU core')}, each with a model of its own: "
            "use fewer"
        )
    if num_nodes > 1 and not any(name in os.environ for name in RENDEZVOUS):
        raise InputError(
            f"{num_nodes} machines requested, but they cannot find each other: start the command by srun or "
            "torchrun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK on each of them"
        )
    if accelerator == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        # Processes share the cores: more threads than cores would slow all of them down.
        torch.set_num_threads(max(1, cores // devices))
    if accelerator == "cpu":
        repeat_on_cpu()
    return accelerator


def loader_processes(fabric: Fabric, asked: int | None, devices: int) -> int:
    """Data loader processes per device: as requested; else up to 8 for a GPU, none on a CPU."""
    if asked is not None:
        return asked
    return 0 if fabric.device.type == "cpu" else max(1, min(MOST_LOADERS, usable_cores() // devices - 1))


def _end_children(children: list[subprocess.Popen[bytes]]) -> None:
    """End the child processes with the first one, since they would wait for it forever."""
    for child in children:
        try:
            child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
