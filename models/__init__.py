"""WHAT is pruned: one file a model family; `load_model` builds one from its name and fills it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.registry import Registry
from configs.schema import model_names, parse, read_yaml, task_file
from console.errors import InputError, nearest
from storage.shards import weight_files

if TYPE_CHECKING:
    from torch import nn

FAMILIES: Registry[type[nn.Module]] = Registry(
    "model family",
    {
        "xvlm": "models.xvlm.model:XVLM",
        "blip": "models.blip.model:BLIP",
        "dino": "models.dino.model:DINO",
    },
)
"""Family -> class of its pretraining model. A new family is one line here, a folder here and one in configs/."""

LIBRARIES: Registry[Callable[..., nn.Module]] = Registry(
    "library",
    {
        "timm": "models.library.timm_models:load_timm",
        "hf": "models.library.hf_models:load_hf",
    },
)
"""Prefix of a model's name -> function that loads any model of that library, wrapped."""

RANDOM = "random"
"""Value of `weights` that asks for fresh random weights instead of a file."""


def load_model(
    name: str, config: str | Path | dict[str, Any] | None = None, weights: str | Path | None = None
) -> nn.Module:
    """Build the model `name` and fill it with weights; returns it in eval mode, on the CPU, float32.

    name: a shipped model (a folder of configs/), a family, timm:<name> or hf:<id or folder>. config: another model's
    name, a YAML path or a dict; default configs/<name>/model.yaml. weights: a checkpoint (a file, a folder with it, an
    index of shards or a shard), or "random"; default: the configuration's, or random weights when it names none. What
    happened to each key of the file is kept in `model.load_report`.
    Raises InputError for unknown names, a missing or unfitting file, and broken configurations.
    """
    library, colon, rest = name.partition(":")
    if colon and library in LIBRARIES:
        settings = config if isinstance(config, dict) else read_yaml(config) if config else {}
        return LIBRARIES[library](rest, weights, settings).eval()
    model_class, model_config, extras = family_config(name, config)
    path = weights_path(name, weights, extras.get("weights"))

    from models.common.building import build  # torch only when a model is really built

    model = build(model_class, model_config, path)
    model.tokenizer = extras.get("tokenizer")
    return model.eval()


def family_config(
    name: str, config: str | Path | dict[str, Any] | None = None
) -> tuple[type[nn.Module], Any, dict[str, str]]:
    """The class of a model, its parsed configuration, and what else the file says (weights, tokenizer)."""
    settings, where = read_config(name, config)
    family = settings.pop("family", name)
    extras = {key: settings.pop(key) for key in ("weights", "tokenizer") if key in settings}
    model_class = FAMILIES[family]
    return model_class, parse(model_class.Config, settings, where), extras


def read_config(name: str, config: str | Path | dict[str, Any] | None) -> tuple[dict[str, Any], str]:
    """The configuration as a dict of its own, and how to call it in messages."""
    if isinstance(config, dict):
        return dict(config), f"configuration of {name}"
    if config is None or str(config) in model_names():
        path = task_file(str(config or name), "model")
    else:
        if name not in FAMILIES and name not in model_names():
            raise InputError(
                f"unknown model '{name}'{nearest(name, model_names())}: choose one of {', '.join(model_names())} "
                "(prune.py and models.check also take timm:NAME and hf:ID)"
            )
        path = Path(config)
    return read_yaml(path), str(path)


def is_path(reference: str) -> bool:
    """Whether the part after `hf:` can be no id of the hub: those have one slash at most and begin with a letter."""
    return reference.count("/") > 1 or not reference[:1].isalnum()


def file_name(model: str) -> str:
    """A model's name as part of a file's: of a folder the last part, since masks and results keep the whole path."""
    library, colon, reference = model.partition(":")
    if colon and is_path(reference):
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
        beside = Path(__file__).parent.parent / path  # shipped weights are found from any working directory
        path = beside if beside.exists() else path
    if not path.exists() and weights is not None:
        raise InputError(f"{path} does not exist: check the path given as weights")
    if not path.exists():
        mini = f"{name}-mini" if f"{name}-mini" in model_names() else "xvlm-mini"
        raise InputError(
            f"no weights for '{name}': the file {path} does not exist; put the checkpoint there (python -m "
            "data.download weights fetches the published ones) or name another (--weights; -pre where one finetunes) "
            f"(the model '{mini}' runs without: its weights are in the repository)"
        )
    weight_files(path)  # a folder without weights, a missing shard: said before anything is built
    return path
