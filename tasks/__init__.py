"""Tasks, one file each: configuration, losses, evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from configs.registry import Registry

if TYPE_CHECKING:
    from training.task import Task

TASKS: Registry[type[Task]] = Registry(
    "task",
    {
        "retrieval": "tasks.retrieval:Retrieval",
        "captioning": "tasks.captioning:Captioning",
        "captioning_pretrain": "tasks.captioning_pretrain:FirstStage",
        "vqa": "tasks.vqa:VQA",
        "nlvr": "tasks.nlvr:NLVR",
        "image_classification": "tasks.image_classification:Classification",
        "prompts": "tasks.prompts:Prompts",
    },
)
"""Name -> class, which has its name in tables and its main metric. Its script has the same name, unless it names
another.
"""
