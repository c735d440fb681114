"""Finetune and evaluate image classification, dense or under a mask of the pretraining model.

    python image_classification.py --model dino-mini --dense
    python image_classification.py --model dino-mini --evaluate -pre runs/image_classification/.../last.safetensors
    python image_classification.py --model resnet-mini --prune vpns -s 90 --dataset digits
    python image_classification.py --model resnet-mini --mask M.safetensors --prompt new
Killed at any moment, the same command resumes it.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from configs.options import add_options
from console.errors import run_command
from sparsity.progressive_config import PROMPTED
from tasks.prompt_options import PromptOptions, check_given
from training.options import finetuning_parser, task_settings

CONVOLUTION = 4  # axes of its weight


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = finetuning_parser(__doc__ or "", "image_classification")
    parser.add_argument("--dataset", help="a data set of the configuration (default: the first)")
    parser.add_argument(
        "--conv", action="store_true", help="also prune convolutions (timm:, hf:; default: as in the mask)"
    )
    group = parser.add_argument_group(
        "visual prompt", "with --prune vpns, or one of these: configs/<model>/prompts.yaml"
    )
    add_options(group, PromptOptions)
    return parser.parse_args(arguments)


def options_of_prompts(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a visual prompt."""
    offered = [f.name for f in fields(PromptOptions) if "help" in f.metadata]
    return {name: value for name in offered if (value := getattr(args, name)) is not None}


def override_prompt(settings: dict[str, Any], dataset: str | None, asked: dict[str, Any]) -> None:
    """Let the command line override the prompt's settings in the configuration and in its data set."""
    datasets = settings.get("datasets") or {}
    own = datasets.get(dataset or next(iter(datasets), None))
    for section in (settings, *([own] if own and "prompts" in own else [])):
        if isinstance(before := section.get("prompts") or {}, dict):  # `parse` rejects others
            section["prompts"] = {**before, **asked}


def convolutions_in(args: argparse.Namespace, given: bool) -> bool:
    """Whether convolutions of a library's model are prunable: by --conv, or as in the mask.

    given: by the configuration, which counts if there is no mask.
    """
    from sparsity.mask import Mask
    from training.run import mask_file

    if ":" not in args.model or (path := mask_file(args)) is None:
        return args.conv or given
    mask = Mask.load(path)
    return args.conv or any(len(mask.shape(name)) == CONVOLUTION for name in mask)


def main(arguments: list[str] | None = None) -> None:
    """Train, evaluate after every epoch, and test the last epoch, or the best one if configured."""
    args = parse_args(arguments)
    given = options_of_prompts(args)
    task_name = "prompts" if given or args.prune == PROMPTED else "image_classification"
    settings, where = task_settings(args, task_name)
    if "prompts" in settings or given:
        task_name = "prompts"
    if task_name == "prompts":
        asked = dict(given)
        if args.freeze is not None and (args.dense or args.mask) and not args.prune:
            asked["freeze"], args.freeze = args.freeze, None
        override_prompt(settings, args.dataset, asked)

    from tasks import TASKS  # heavy imports after parsing
    from tasks.image_classification import config_for, count_classes
    from training.finetuning import run_task

    Task = TASKS[task_name]
    config = config_for(settings, args.dataset, where, Task.Config, args.seed)
    if task_name == "prompts":  # before data and model are opened
        check_given(given, config.prompts, args.prune, args.evaluate, args.teacher)
        config.check_file()
    count_classes(config)
    if config.model.get("conv", False) != (conv := convolutions_in(args, config.model.get("conv", False))):
        config.model["conv"] = conv
    run_task(
        args, config, task_name, lambda model, tokenizer, run: Task(config, model, tokenizer, run),
        model_of="image_classification", dataset=args.dataset or next(iter(settings["datasets"])),
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main)
