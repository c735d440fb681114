"""Folders of smaller models: their tensors, and how to rebuild them (`--model small:FOLDER`).

    FOLDER/model.safetensors   the tensors, by the model's own names, shared ones once
    FOLDER/plan.json           the model that it was cut from, with its settings; what stays of it; what made it
    FOLDER/config.json ...     of Hugging Face's models: what they are built from without the hub

The model is built at its first sizes, without its weights, cut by the plan, and filled: no code is in the files. A
plan holds for the classes of other tasks of its family, too, as a mask does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from configs.schema import parse
from console.errors import InputError, explain_os_error
from models import FAMILIES, LIBRARIES, RANDOM, check_task, merged, weights_path
from models.base import Model, Origin
from models.common.building import build
from models.common.checkpoint import KeyRules, fingerprint, load_state, own_names, read_state, shipped
from models.parts import Layers, Units, all_sets, checked, readers_left
from models.plans import Plan
from models.surgery import cut
from storage.atomic import atomic_path, write_text
from storage.tensors import write_safetensors

FORMAT = 1
WEIGHTS, PLAN = "model.safetensors", "plan.json"


def save_small(folder: Path | str, model: Model, made_by: Mapping[str, Any] | None = None) -> None:
    """Write a model that `cut` made as a folder, atomically; made_by: its provenance, for readers of plan.json.

    InputError for a model that was not cut, one that was not loaded by a name, and where a folder is in the way.
    """
    folder = Path(folder)
    if model.plan is None or model.origin is None:
        why = "nothing was removed from it" if model.plan is None else "it was not loaded by a name"
        raise InputError(f"{folder} cannot be written as a small model: {why}; save its state dict")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already: give another folder, or remove it")
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        settings = merged(dict(model.origin.settings), model.rebuilt(temporary))
        write_safetensors(temporary / WEIGHTS, shipped(model), {})
        _write_lines(temporary / PLAN, about_plan(model, model.plan, made_by or {}, settings))
        if folder.is_dir():
            folder.rmdir()  # an empty one


def base_of(model: Model) -> str:
    """SHA-256 of the weights that a plan for the model is made for: those that it was cut from, else its own."""
    return (model.origin and model.origin.base_sha256) or fingerprint(model)


def of_base(model: Model, base: str | None = None) -> Model:
    """The model with its base recorded (None: `base_of` it), also for models that are cut from it."""
    model.origin = model.origin and replace(model.origin, base_sha256=base or base_of(model))
    return model


def check_base(model: Model, about: Mapping[str, Any], path: Path | str) -> None:
    """InputError where a plan says that it was made for weights that are not the model's."""
    if about.get("base_sha256") not in (None, base_of(model)):
        raise InputError(
            f"{path} was made for other weights of {about['name']}: give the measured ones with --weights, or add "
            "--any_base"
        )


def write_plan(path: Path, model: Model, plan: Plan, made_by: Mapping[str, Any]) -> None:
    """Write a plan for the model to a file, without tensors."""
    _write_lines(path, about_plan(model, plan, made_by, dict(model.origin.settings)))


def _write_lines(path: Path, about: Mapping[str, Any]) -> None:
    """Write JSON with a line per key and per set of units: indented, lists of neurons would fill pages."""
    kept = ",\n  ".join(f"{json.dumps(name)}: {json.dumps(stay)}" for name, stay in about["kept"].items())
    lines = {key: json.dumps(value) for key, value in about.items()} | {"kept": f"{{\n  {kept}\n }}"}
    write_text(path, "{\n " + ",\n ".join(f"{json.dumps(key)}: {value}" for key, value in lines.items()) + "\n}\n")


def about_plan(model: Model, plan: Plan, made_by: Mapping[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What plan.json says."""
    about = {"format": FORMAT, **vars(model.origin), "settings": settings}
    return about | {"kept": plan.to_json(), "made_by": dict(made_by)}


def read_plan(path: Path | str) -> dict[str, Any]:
    """What a plan's file says; InputError where it is missing or damaged."""
    path = Path(path)
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        there = path.parent.is_dir() and path.name == PLAN
        what = f"{path.parent} is not a small model: it has no {PLAN}" if there else f"there is no {path}"
        raise InputError(f"{what}; give what shrink.py wrote") from error
    except OSError as error:
        raise explain_os_error(error, f"read {path}") from error
    except ValueError as error:
        raise InputError(f"{path} is no plan, or damaged: it is not JSON ({error})") from error
    needed = {"format", "name", "family", "settings", "task", "tokenizer", "kept"}
    kinds = {"name": str, "family": str, "settings": dict, "kept": dict, "made_by": dict | None}
    whole = isinstance(about, dict) and about.get("format") == FORMAT and needed <= about.keys()
    if not whole or not all(isinstance(about.get(key), kind) for key, kind in kinds.items()):
        raise InputError(f"{path} is no plan, damaged, or of another version: it needs {', '.join(sorted(needed))}")
    return about


def load_small(
    reference: str, weights: str | Path | None, settings: dict[str, Any], task: str | None = None, seed: int = 0
) -> Model:
    """The model of a folder. weights: others of the same shapes, or "random"; settings: replace those of its base.

    task: as of `load_task_model`; None: the class that was cut. InputError for a folder that is none, or damaged.
    """
    folder = Path(reference)
    about = read_plan(folder / PLAN)
    plan = Plan.from_json(about["kept"], str(folder / PLAN))
    origin = _origin(about)
    source = weights_path(f"small:{folder}", weights, str(folder / WEIGHTS))
    model = _built(folder, origin, plan, source, settings, task, seed)
    model.origin = replace(origin, settings=merged(dict(origin.settings), settings), task=task or origin.task)
    return model


def whole_of(folder: Path | str) -> Model:
    """The model that a smaller one was cut from, at its first sizes, with random weights."""
    about = read_plan(Path(folder) / PLAN)
    origin = _origin(about)
    model = _built(Path(folder), origin, Plan(), None, {}, origin.task, 0)
    model.origin, model.plan = origin, None
    return model.eval()


def _origin(about: Mapping[str, Any]) -> Origin:
    return Origin(*(about.get(field.name) for field in fields(Origin)))


def _built(folder: Path, origin: Origin, *how: Any) -> Model:
    """how: the other arguments of the two functions below."""
    load = _of_library if origin.family.partition(":")[0] in LIBRARIES else _of_family
    model = load(folder, origin, *how)
    model.tokenizer = origin.tokenizer or model.tokenizer
    return model


def _of_library(
    folder: Path, origin: Origin, plan: Plan, source: Path | None, settings: dict[str, Any], task: str | None, seed: int
) -> Model:
    library, _, reference = origin.family.partition(":")
    if (folder / "config.json").is_file():
        reference = str(folder)
    task = task or origin.task
    model = LIBRARIES[library](reference, RANDOM, merged(dict(origin.settings), settings), task=task, seed=seed)
    model = planned(model, plan)
    if source is not None:
        heads = tuple(name for name in model.state_dict() if task and model.in_head(name))
        rules = KeyRules(fresh=heads.__contains__, skip_resized=heads)
        state, report = read_state(source, rules)
        model.load_report = load_state(model.inner, state, rules, report)
    return model


def _of_family(
    folder: Path, origin: Origin, plan: Plan, source: Path | None, settings: dict[str, Any], task: str | None, seed: int
) -> Model:
    first = FAMILIES[origin.family]
    check_task(origin.name, task or origin.task or next(iter(first.tasks)), first.tasks)
    of_task = {None: first, **{name: first.tasks[name] for name in (task, origin.task) if name}}
    model_class, cut_class = of_task[task or origin.task], of_task[origin.task]
    where = str(folder / PLAN)
    known = {field.name for field in fields(model_class.Config)}  # another task's class may have fewer settings
    own = {name: value for name, value in origin.settings.items() if name in known}
    config = parse(model_class.Config, merged(own, settings), where)

    def change(model: Model) -> Model:
        with torch.device("meta"):
            as_cut = cut_class(parse(cut_class.Config, dict(origin.settings), where))
        return planned(model, plan, as_cut)

    return build(model_class, config, source, seed, change)


def planned(model: Model, plan: Plan, as_cut: Model | None = None) -> Model:
    """A whole model cut by a plan. as_cut: one of the class that the plan is of, where that may have other names."""
    sets = all_sets(model)
    if as_cut is None or type(as_cut) is type(model):
        return cut(model, plan.kept(sets))
    found = all_sets(as_cut)
    stays = checked(found, plan.kept(found))
    shapes = {name: tensor.shape for name, tensor in as_cut.inner.named_parameters(remove_duplicate=False)}
    units = [one for one in found if isinstance(one, Units)]
    masks = {one.consumer: one.over_inputs(stays[one.name], shapes[one.consumer]) for one in units}
    kept = readers_left([one for one in sets if isinstance(one, Units)], own_names(masks, model))
    # Layers have other names in the other class: a label on each tensor, renamed with it, says whether its layer stays.
    labels = {}
    for row in (one for one in found if isinstance(one, Layers)):
        for path in row.lists:
            labels |= {
                n: stays[row.name][int(n.removeprefix(f"{path}.").split(".")[0])] for n in shapes if _in(n, path)
            }
    labels = own_names(labels, model)
    for row in (one for one in sets if isinstance(one, Layers)):
        layers = [[stay for name, stay in labels.items() if _in(name, f"{row.name}.{n}")] for n in range(row.count)]
        kept[row.name] = torch.tensor([all(stays) for stays in layers])
    return cut(model, kept)


def _in(name: str, path: str) -> bool:
    return name.startswith(f"{path}.")
