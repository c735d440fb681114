"""Task models: what each family becomes for retrieval, captioning, VQA and classification, and how it starts."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.schema import parse
from console.errors import InputError, nearest
from models import read_config, weights_path

if TYPE_CHECKING:
    from torch import nn

TASKS = {
    "retrieval": {"xvlm": "models.xvlm.retrieval:XVLMRetrieval", "blip": "models.blip.retrieval:BLIPRetrieval"},
    "captioning": {"xvlm": "models.xvlm.captioning:XVLMCaptioning", "blip": "models.blip.captioning:BLIPCaptioning"},
    "captioning_pretrain": {"xvlm": "models.xvlm.captioning:XVLMCaptioning"},
    "vqa": {"xvlm": "models.xvlm.vqa:XVLMVQA", "blip": "models.blip.vqa:BLIPVQA"},
    "image_classification": {"dino": "models.dino.model:DINO"},
}
"""Task -> family -> class. A task for another family is one entry here and one file beside."""


def load_task_model(
    name: str,
    task: str,
    config: str | Path | dict[str, Any] | None = None,
    weights: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
) -> nn.Module:
    """The model `name` for a task, filled from a pretraining file (or one of the task); eval mode, CPU, float32.

    config, weights: as in `models.load_model`. overrides: what the task changes of the configuration, for example
    {"vision": {"image_size": 384}}. What happened to each key of the file is kept in `model.load_report`.
    Raises InputError as `load_model` does, and for a task that the family has no model for.
    """
    settings, where = read_config(name, config)
    family = settings.pop("family", name)
    if task not in TASKS:
        raise InputError(f"unknown task '{task}'{nearest(task, TASKS)}: choose one of {', '.join(TASKS)}")
    if family not in TASKS[task]:
        raise InputError(f"{name} has no model for {task}: choose a model of the families {', '.join(TASKS[task])}")
    extras = {key: settings.pop(key) for key in ("weights", "tokenizer") if key in settings}
    model_class = task_class(family, task)
    parsed = parse(model_class.Config, merged(settings, overrides or {}), where)

    from models.common.building import build  # torch only when a model is really built

    model = build(model_class, parsed, weights_path(name, weights, extras.get("weights")))
    model.tokenizer = extras.get("tokenizer")
    return model.eval()


def task_class(family: str, task: str) -> type[nn.Module]:
    """The class of a family's task model, both from `TASKS`."""
    module, _, class_name = TASKS[task][family].partition(":")
    return getattr(importlib.import_module(module), class_name)


def merged(settings: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with some values replaced; neither argument changes."""
    result = dict(settings)
    for key, value in overrides.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result
