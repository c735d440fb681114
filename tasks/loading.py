"""The model and the data of a shrink.py command: of pretraining, or of a task."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from configs.overrides import read_settings
from configs.schema import base_name, library_of, models_with, parse, read_yaml, task_file
from console.errors import InputError
from data.retrieval import Gallery
from data.tokenizer import load_tokenizer
from evaluation.retrieval import evaluate_retrieval
from models import load_model, load_task_model
from models.base import Model
from pruners.settings import PruneConfig
from tasks import TASKS
from tasks.image_classification import config_for, count_classes
from tasks.retrieval import RetrievalConfig
from training.task import Finetuning

DISTILLED_TASKS = ("retrieval", "image_classification")
"""Tasks that support distillation."""


def load(args: argparse.Namespace) -> Model:
    """The named model; for a task, with its number of classes."""
    changes = {"conv": True} if args.conv else {}
    if args.task:
        changes = (of_task(args).model if args.weights else {}) | changes
        return load_task_model(args.model, args.task, weights=args.weights, overrides=changes)
    return load_model(args.model, weights=args.weights, overrides=changes)


def of_task(args: argparse.Namespace) -> Finetuning:
    """The configuration of the task, with --set where a command has it; the first of several data sets."""
    settings, where = read_settings(task_file(args.model, args.task), getattr(args, "set", []))
    kind = TASKS[args.task].Config
    if "datasets" not in settings:
        return parse(kind, settings, where)
    config = config_for(settings, None, where, kind)
    count_classes(config)
    return config


def data_of(args: argparse.Namespace) -> PruneConfig:
    """The data to measure on: calibration data, or a task's training data; InputError for a test split."""
    if args.task and not args.config:
        config = PruneConfig(sides={"general": of_task(args).train}, num_workers=0)
    else:
        changes = getattr(args, "set", [])
        config = parse(PruneConfig, *read_settings(args.config or task_file(args.model, "prune"), changes))
    if not getattr(args, "on_test", False):
        for reader in config.sides.values():
            own = _read(vars(reader.files), getattr(reader, "splits", [])) if hasattr(reader, "files") else {}
            if tested := [name for name, splits in own.items() if _is_tested(name, splits, _tested_on(args.model))]:
                raise InputError(
                    f"{tested[0]} is test data, and a plan measured on it would bias the test: give training or "
                    "calibration data with --config, or --on_test"
                )
    return config


def _read(files: Mapping[str, Any], splits: Sequence[str]) -> dict[str, set[str]]:
    """The files and folders that `Files` names, each with the splits that are read from it (none: all)."""
    names = [*files.get("annotations", ()), *files.get("shards", ()), files.get("folder"), files.get("torchvision")]
    return {str(Path(files.get("root") or "", name)): set(splits) for name in names if name}


def _tested_on(model: str) -> list[dict[str, set[str]]]:
    """The files and folders of all test splits in the model's configurations, as of `_read`."""
    found, left = [], [read_yaml(task_file(model, task)) for task in TASKS if _has(model, task)]
    for settings in left:
        left += settings.get("datasets", {}).values()
        test = settings.get("test")
        if isinstance(test, Mapping):
            found.append(_read(test.get("files", test), test.get("splits", ())))
    return found


def _has(model: str, task: str) -> bool:
    return (library_of(model) or base_name(model)) in {name.removesuffix(":NAME") for name in models_with(task)}


def _is_tested(name: str, splits: set[str], tests: list[dict[str, set[str]]]) -> bool:
    """Whether a file or folder is in a test split, or has `test` in its name."""
    if "test" in splits or (not splits and "test" in re.split(r"[^a-z]+", Path(name).name.lower())):
        return True
    return any(name in own and (not splits or not own[name] or splits & own[name]) for own in tests)


def has_gallery(name: str) -> bool:
    """Whether a model has a retrieval configuration, with a test split for zero-shot evaluation."""
    return base_name(name) in models_with("retrieval")


def gallery_config(args: argparse.Namespace) -> RetrievalConfig:
    """The model's retrieval configuration. args: model, set."""
    return parse(RetrievalConfig, *read_settings(task_file(args.model, "retrieval"), args.set))


def zero_shot(args: argparse.Namespace, model: Model) -> dict[str, float]:
    """Zero-shot recalls by similarity on the test split of the model's retrieval configuration.

    args: model, set.
    """
    config = gallery_config(args)
    gallery = Gallery(config.test, model.image_shape, config.max_words, config.samples)
    tokenizer = load_tokenizer(model.tokenizer)
    with torch.no_grad():
        return evaluate_retrieval(model.eval(), gallery, tokenizer, config.evaluation)["itc"]


def task_for(name: str, task: str | None) -> str:
    """The requested task, or the model's first task that supports distillation; of a library's model, its only one."""
    if task is not None:
        TASKS.check(task)
        if task not in DISTILLED_TASKS:
            raise InputError(f"distillation is for {' and '.join(DISTILLED_TASKS)}, not for {task}: choose one of them")
        return task
    found = [task for task in DISTILLED_TASKS if _has(name, task)]
    if len(found) > 1 and library_of(name):
        raise InputError(f"a model of {library_of(name)} may be for {' or '.join(found)}: name its task with --task")
    if found:
        return found[0]
    raise InputError(f"{name} has no task with distillation ({', '.join(DISTILLED_TASKS)}): choose another model")
