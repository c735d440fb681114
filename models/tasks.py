"""Task models: what each family becomes for retrieval, captioning, VQA and classification, and how it starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.schema import parse
from console.errors import InputError, nearest
from models import FAMILIES, read_config, weights_path

if TYPE_CHECKING:
    from torch import nn


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
    known = FAMILIES[family].tasks
    if task not in known:
        raise InputError(
            f"{name} has no model for '{task}'{nearest(task, known)}: it has models for {', '.join(known)}"
        )
    extras = {key: settings.pop(key) for key in ("weights", "tokenizer") if key in settings}
    model_class = known[task]
    parsed = parse(model_class.Config, merged(settings, overrides or {}), where)

    from models.common.building import build  # torch only when a model is really built

    model = build(model_class, parsed, weights_path(name, weights, extras.get("weights")))
    model.tokenizer = extras.get("tokenizer")
    return model.eval()


def merged(settings: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with some values replaced; neither argument changes."""
    result = dict(settings)
    for key, value in overrides.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result
