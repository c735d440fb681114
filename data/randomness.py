"""Random numbers of a sample or a batch as a pure function of seed, epoch and position.

Nothing depends on which worker or process loads it, nor on what was loaded before.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import torch

CPU = torch.device("cpu")


def derive_seed(*path: int | str) -> int:
    """A 63-bit seed from a path such as (42, "general", epoch, index)."""
    text = "/".join(map(str, path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@contextlib.contextmanager
def seeded(*path: int | str, device: torch.device = CPU) -> Iterator[random.Random]:
    """Start torch's global generators of the CPU and of `device` from the path; yields Python's of the same seed.

    torch's generators are restored afterwards. Those of other devices are not changed.
    """
    seed = derive_seed(*path)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_generators(seed, device)
        yield random.Random(seed)


def seed_generators(seed: int, device: torch.device) -> None:
    """Start torch's global generators of the CPU and of `device`, as `torch.manual_seed` does.

    `torch.manual_seed` seeds all devices, and records the call and its stack for unused ones, which on a CPU is a
    hundred times slower, for every sample.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def permutation(n: int, *path: int | str) -> list[int]:
    """A permutation of range(n) drawn from the path."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(derive_seed(*path))).tolist()
