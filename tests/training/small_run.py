"""A pretraining run of seconds: a mini world of some twenty pictures and a configuration with a few steps a stage."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import pretrain
from console.interrupt import interrupt
from data.miniworld import ensure
from models import load_model

TOGETHER = "3-together"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # on a busy machine, threads that wait for each other cost more than the steps


def small_config(root: Path) -> dict[str, Any]:
    """configs/xvlm-mini/pretrain.yaml with a few tiny steps; the world is generated below `root`."""
    world = ensure("calibration", root / "world", workers=1, show=False, scale=0.01)
    recipe = {"lr": 1.0e-3, "weight_decay": 0.05, "betas": [0.9, 0.98], "schedule": {"warmup": 0.2, "decay": "late"}}
    pairs = {
        "root": str(world),
        "annotations": ["data/pretrain/cc3m_pretrain.json"],
        "image_roots": {"cc3m": "images/cc3m"},
    }
    regions = {"root": str(world), "annotations": ["data/pretrain/vg_regions.json"]}
    common = {"batch_size": 4, "recipe": recipe}
    return {
        "seed": 0,
        "stages": [
            {
                "name": "vision", "objective": "dense_labels", "steps": 4, **common,
                "sides": {"scenes": {"reader": "dense_scenes"}},
            },
            {
                "name": "text", "objective": "masked_text", "steps": 2, **common,
                "sides": {"texts": {"reader": "masked_texts", "max_tokens": 28, "files": pairs}},
            },
            {
                "name": "together", "objective": "together", "steps": 5, **common,
                "sides": {
                    "general": {"reader": "mlm_pairs", "max_tokens": 28, "files": pairs},
                    "region": {"reader": "mlm_regions", "max_tokens": 16, "files": regions, "regions": {"most": 2}},
                },
            },
        ],
    }  # fmt: skip


def options(config: Path, out: Path, *more: str) -> list[str]:
    """The command line after `pretrain.py`."""
    return ["--model", "xvlm-mini", "--config", str(config), "--output_dir", str(out), "--accelerator", "cpu", *more]


def write_config(path: Path, config: dict[str, Any], **changes: dict[str, Any]) -> Path:
    """Write a configuration to `path`; changes: stage name -> values that replace its own."""
    config = copy.deepcopy(config)
    for stage in config["stages"]:
        stage |= changes.get(stage["name"], {})
    path.write_text(yaml.safe_dump(config))
    return path


def untrained(seed: int = 0) -> nn.Module:
    """The model as a run of `seed` starts with it."""
    model = load_model("xvlm-mini", weights="random")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.reset()
    return model


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """`pretrain.main` in this process, which is left as it was: no signal handlers, as many threads as before."""
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *arguments])
    monkeypatch.setattr(interrupt, "listen", lambda: None)
    for name, value in ONE_THREAD.items():
        monkeypatch.setenv(name, value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pretrain.main()
    finally:
        torch.set_num_threads(threads)
