"""Models, one folder per family; `load_model` builds a model by name and loads its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.registry import Registry
from configs.schema import CONFIGS, SMALL, base_name, model_names, parse, read_yaml, task_file
from console.errors import InputError, nearest
from storage.shards import weight_files

if TYPE_CHECKING:
    from models.base import Model

FAMILIES: Registry[type[Model]] = Registry(
    "model family",
    {
        "xvlm": "models.xvlm.model:XVLM",
        "blip": "models.blip.model:BLIP",
        "dino": "models.dino.model:DINO",
    },
)
"""Family -> class of its pretraining model. A new family is one line here, a folder here and one in configs/."""

LIBRARIES: Registry[Callable[..., Model]] = Registry(
    "library",
    {
        "timm": "models.library.timm_models:load_timm",
        "hf": "models.library.hf_models:load_hf",
        SMALL: "models.small:load_small",
    },
)
"""Prefix of a model's name -> function that loads any model of that library, or of a folder, with layers to prune."""

RANDOM = "random"
"""Value of `weights` that asks for fresh random weights instead of a file."""


def load_model(
    name: str,
    config: str | Path | dict[str, Any] | None = None,
    weights: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    seed: int = 0,
) -> Model:
    """Build the model `name` and fill it with weights; returns it in eval mode, on the CPU, float32.

    name: a shipped model (a folder of configs/), a family, timm:<name>, hf:<id or folder>, or small:<folder> of one
    that units were removed from. config: another model's name, a YAML path or a dict; default
    configs/<name>/model.yaml. weights: a checkpoint (a file, a folder with it, an index of shards or a shard), or
    "random" (drawn from `seed`); default: the configuration's, or random weights when it names none. overrides: values
    that replace the configuration's, for example {"vision": {"image_size": 384}}.
    `model.load_report` records what happened to each key of the file.
    Raises InputError for unknown names, a missing or unfitting file, and broken configurations.
    """
    return _load(name, None, config, weights, overrides or {}, seed)


def load_task_model(
    name: str,
    task: str,
    config: str | Path | dict[str, Any] | None = None,
    weights: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
) -> Model:
    """The model `name` for a task, filled from a pretraining file (or one of the task).

    The other arguments, and what is raised, as of `load_model`; InputError for a task that there is no model for, too.
    """
    return _load(name, task, config, weights, overrides or {}, seed=0)


def _load(
    name: str,
    task: str | None,
    config: str | Path | dict[str, Any] | None,
    weights: str | Path | None,
    overrides: dict[str, Any],
    seed: int,
) -> Model:
    from models.base import Origin  # torch is imported only when a model is built

    settings, where = read_config(name, config)
    family = settings.pop("family", name)
    if ":" in name and family != name:
        raise InputError(f"{where} is of the family {family}, not of {name}: give its model, or leave it out")
    extras = {key: settings.pop(key) for key in ("weights", "tokenizer") if key in settings}
    settings = merged(settings, overrides)
    library, _, reference = family.partition(":")
    if library in LIBRARIES:
        if weights is None and "weights" in extras:
            weights = weights_path(name, None, extras["weights"])
        model = LIBRARIES[library](reference, weights, settings, task=task, seed=seed)
    else:
        model_class = FAMILIES[family]
        if settings.pop("conv", False):
            raise InputError(f"conv is for timm: and hf: models, not for {name}: leave it out")
        if task is not None:
            check_task(name, task, model_class.tasks)
            model_class = model_class.tasks[task]
        parsed = parse(model_class.Config, settings, where)

        from models.common.building import build

        model = build(model_class, parsed, weights_path(name, weights, extras.get("weights")), seed)
    model.tokenizer = extras.get("tokenizer", model.tokenizer)
    model.origin = model.origin or Origin(name, family, settings, task, extras.get("tokenizer"))
    return model.eval()


def check_task(name: str, task: str, known: Iterable[str]) -> None:
    """InputError unless there is a model for the task."""
    if task not in known:
        there = f"it has models for {', '.join(known)}" if known else "no task can finetune it (docs/models.md)"
        raise InputError(f"{name} has no model for '{task}'{nearest(task, known)}: {there}")


def merged(settings: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with some values replaced; neither argument changes."""
    result = dict(settings)
    for key, value in overrides.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def class_of(name: str) -> type[Model]:
    """The class of a model's family without building anything; of a library's models what they have in common."""
    family = read_config(base_name(name), None)[0].get("family", base_name(name))
    if family.partition(":")[0] not in LIBRARIES:
        return FAMILIES[family]

    from models.wrap import WrappedModel

    return WrappedModel


def read_config(name: str, config: str | Path | dict[str, Any] | None) -> tuple[dict[str, Any], str]:
    """The configuration as a dict of its own, and how to call it in messages."""
    if isinstance(config, dict):
        return dict(config), f"configuration of {name}"
    of_library = name.partition(":")[0] in LIBRARIES and ":" in name
    if config is None and of_library:
        return {}, name
    if config is None or str(config) in model_names():
        path = task_file(str(config or name), "model")
    else:
        if not of_library and name not in FAMILIES and name not in model_names():
            raise InputError(
                f"unknown model '{name}'{nearest(name, model_names())}: choose one of {', '.join(model_names())} "
                "(prune.py and models.check also take timm:NAME and hf:ID)"
            )
        path = Path(config)
    return read_yaml(path), str(path)


def is_path(reference: str) -> bool:
    """Whether the part after `hf:` is a path: hub ids have at most one slash and begin with a letter."""
    return reference.count("/") > 1 or not reference[:1].isalnum()


def file_name(model: str) -> str:
    """A model's name in file names: the last part of a folder, since masks and results record the whole path."""
    library, colon, reference = model.partition(":")
    if library == SMALL or (colon and is_path(reference)):
        last = Path(reference).name
        model = f"{library}-{last if last.strip('.') else Path(reference).resolve().name}"
    return model.replace("/", "--").replace(":", "-")


def weights_path(name: str, weights: str | Path | None, default: str | None) -> Path | None:
    """What to load, or None for random weights: a file, a folder, an index of shards or one of the shards.

    InputError when it should be there and is not.
    """
    if weights is not None and str(weights) == RANDOM:
        return None
    path = weights if weights is not None else default
    if path is None:
        return None
    path = Path(path)
    if weights is None and not path.is_absolute() and not path.exists():
        shipped = CONFIGS.parent / path  # found from any working directory
        path = shipped if shipped.exists() else path
    if not path.exists() and weights is not None:
        raise InputError(f"{path} does not exist: check the path given as weights")
    if not path.exists():
        mini = f"{name}-mini" if f"{name}-mini" in model_names() else "xvlm-mini"
        origin = (
            "python -m data.download weights fetches the published one"
            if name in FAMILIES
            else "docs/models.md says where it comes from"
        )
        raise InputError(
            f"no weights for '{name}': {path} does not exist; put the checkpoint there ({origin}) or name another "
            f"(--weights; -pre in finetuning) (the model '{mini}' runs without: its weights are in the repository)"
        )
    weight_files(path)  # checks for a folder without weights or a missing shard, before building
    return path
