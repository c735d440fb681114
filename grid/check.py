"""Check the configurations of a plan, with its overrides, before the first of its runs starts.

The classes that say which keys there are import torch; a process of its own does it, so that the runner, which may
wait for days, stays small.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from typing import Any

from configs.schema import parse
from console.errors import InputError, run_command
from grid.execute import environment
from grid.steps import Plan, Step
from storage.hashing import hash_json

CLASSES = {
    "prune": "pruners.settings:PruneConfig",
    "zero_shot": "evaluation.zero_shot_table:ZeroShotConfig",
    "retrieval": "tasks.retrieval:RetrievalConfig",
    "captioning": "tasks.captioning:CaptioningConfig",
    "vqa": "tasks.vqa:VQAConfig",
    "image_classification": "tasks.image_classification:ClassificationConfig",
}
"""Kind of step -> the class of its configuration."""


def check_configs(plan: Plan, steps: list[Step]) -> None:
    """InputError for the first configuration among the steps' that its script would refuse."""
    asked = {}
    for step in steps:
        where = f"{plan.grid.path}: {step.kind} of {step.model}"
        asked[hash_json([step.kind, step.config])] = [step.kind, step.config, where]
    command = [sys.executable, "-m", "grid.check"]
    text = json.dumps(list(asked.values()))
    done = subprocess.run(command, input=text, env=environment(1), capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["the configurations cannot be checked"]
        raise InputError(last[0].removeprefix("error: "))


def check_config(kind: str, settings: dict[str, Any], where: str) -> None:
    """InputError for a key that there is not, or a value that it cannot have."""
    name, _, dataset = kind.partition(":")
    module, _, class_name = CLASSES[name].partition(":")
    if "datasets" in settings:
        chosen = settings["datasets"][dataset or next(iter(settings["datasets"]))]
        settings = {key: value for key, value in settings.items() if key != "datasets"} | chosen
    parse(getattr(importlib.import_module(module), class_name), settings, where, inner=True)


def main() -> None:
    """Check what comes on standard input: a list of kind, settings, and how to call them."""
    for kind, settings, where in json.load(sys.stdin):
        check_config(kind, settings, where)


if __name__ == "__main__":
    run_command(main)
