"""Hugging Face models as things to prune: `--model hf:<id or local folder>`.

Records of their classes are in `models.library.hf_classes`.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from configs.schema import CONFIGS
from console.errors import InputError, in_a_line, nearest
from console.progress import console
from console.words import agreed, counted
from models import RANDOM, check_task, is_path
from models.base import ImageShape
from models.common.checkpoint import KeyRules, LoadReport, check_values, other_shape, read_state, unwrap
from models.library.hf_classes import CLASSIFIER, record_of
from models.library.hf_parts import fit_config, hf_parts
from models.library.hf_processor import HFProcessor
from models.library.hf_streaming import load_streamed, report_of
from models.library.hf_tokenizer import HFTokenizer
from models.library.hub import hub_or_cache
from models.wrap import WrappedModel
from storage.atomic import write_json

CLASSIFIES = "image_classification"

PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Files that may say what images are normalised with."""


def load_hf(
    reference: str, weights: str | Path | None, settings: dict[str, Any], task: str | None = None, seed: int = 0
) -> WrappedModel:
    """A Hugging Face model, wrapped, from a hub id or a folder with config.json and weights.

    weights: None for those of the reference, another id, a checkpoint (file, folder, index or shard), or "random" for
    fresh ones drawn from `seed`. settings: values that replace the config's. Keys of our own: `conv`, whether
    convolutions are pruned; `prune_head`, whether an image classifier's last layer is; `classes`, an alias of
    num_labels. task: for image_classification the model is a classifier, whose head is drawn from `seed` where the
    weights have none of as many classes; classes with two towers serve retrieval as they are.
    Raises InputError when the model cannot be loaded, when the toolkit has no record of its class, and when the weights
    do not fit it.
    """
    shipped = CONFIGS.parent / reference  # of a mini, found from any working directory
    if not Path(reference).exists() and (shipped / "config.json").is_file():
        reference = str(shipped)
    if _is_here(reference) and not Path(reference).is_dir():
        raise InputError(f"hf:{reference}: there is no such folder; give one with config.json and weights")
    if Path(reference).is_dir() and not (Path(reference) / "config.json").is_file():
        raise InputError(f"hf:{reference} has no config.json: give a folder with config.json and weights")
    settings = dict(settings)
    stream = settings.pop("stream", False)
    if stream:
        check_streamed(reference, weights, task)
    own = {"conv": settings.pop("conv", False), "head": settings.pop("prune_head", False)}
    classes = settings.pop("classes", None)
    given = [reference] if weights is None or str(weights) == RANDOM else [reference, str(weights)]
    with contextlib.nullcontext() if all(map(_is_here, given)) else hub_or_cache():
        config = _config(reference, settings)
        if getattr(config, "quantization_config", None):
            raise InputError(f"hf:{reference} has quantised weights (quantization_config): prune the model before that")
        if classes is not None:
            config.num_labels = classes
        model_class = getattr(transformers, _class_name(reference, config, task))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if stream:
                return _streamed(model_class, Path(reference), config, own)
            if str(weights) == RANDOM:
                module, report = _made(model_class, reference, config), None
            else:
                module, report = _pretrained(model_class, str(weights or reference), config, task == CLASSIFIES)
        record = record_of(model_class.__name__)
        model = wrap_hf(module.eval(), record.reads(reference, config), _preprocessor(reference, record.sees), **own)
    model.load_report = report
    return model if task else model.with_layers()


def check_streamed(reference: str, weights: str | Path | None, task: str | None) -> None:
    """InputError for what cannot be read block by block: ids of the hub, weights from elsewhere, models of a task."""
    if task is not None or weights is not None:
        raise InputError("--stream reads the weights of the model's own folder: leave out --weights, or --stream")
    if not Path(reference).is_dir():
        raise InputError(
            f"--stream reads a folder block by block, and there is no folder {reference}: fetch the model first "
            f"(hf download {reference} --local-dir FOLDER) and give hf:FOLDER"
        )


def _streamed(model_class: type, folder: Path, config: Any, own: dict[str, Any]) -> WrappedModel:
    """A model whose blocks stay in its folder; InputError for a class whose record names none."""
    record = record_of(model_class.__name__)
    if not record.blocks:
        raise InputError(
            f"hf:{folder} is a {model_class.__name__}, whose record names no blocks: leave out --stream, or add them "
            "(docs/add-a-model.md)"
        )
    module, streamed = load_streamed(model_class, folder, config, record.blocks)
    model = wrap_hf(module, record.reads(str(folder), config), _preprocessor(str(folder), record.sees), **own)
    model.streamed, model.load_report = streamed, report_of(module, folder)
    return model.with_layers()


def _is_here(reference: str) -> bool:
    """Whether this is a local path rather than a hub id; like transformers, local files go first."""
    return is_path(reference) or Path(reference).exists()


def _config(reference: str, settings: dict[str, Any]) -> Any:
    """Its config.json with some values replaced; InputError where there is no such file or value."""
    try:
        config, unknown = transformers.AutoConfig.from_pretrained(reference, **settings, return_unused_kwargs=True)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise _not_there(reference, error) from error
    for key in unknown:
        raise InputError(f"hf:{reference}: its config has no '{key}'{nearest(key, config.to_dict())}")
    return config


def _made(model_class: type, reference: str, config: Any) -> nn.Module:
    """A model of these sizes with fresh weights; InputError where the sizes do not fit each other."""
    try:
        return model_class(config)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(
            f"hf:{reference}: no {model_class.__name__} can be made of its config.json ({in_a_line(error)}): check "
            "its sizes, and those of --set"
        ) from error


def _class_name(reference: str, config: Any, task: str | None) -> str:
    """The class to make: the config's own, or the image classifier above its tower; InputError where it is unknown."""
    if not config.architectures:
        raise InputError(f"hf:{reference}: its config.json names no class in 'architectures'")
    own = config.architectures[0]
    above = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.get(config.model_type, ())
    known = own.endswith(CLASSIFIER) and hasattr(transformers, own)
    classifiers = (own,) if known else (above,) if isinstance(above, str) else above
    if task is not None:
        apart = getattr(record_of(own), "apart", False)
        there = [name for name, has in (("retrieval", apart), (CLASSIFIES, classifiers)) if has]
        check_task(f"hf:{reference}", task, there)
        return own if task == "retrieval" else classifiers[0]
    if record_of(own) is not None and hasattr(transformers, own):
        return own
    if not classifiers:
        raise InputError(
            f"hf:{reference} is of the class {own}, which has no record here (docs/models.md lists those that do): "
            "wrap it yourself with a few lambdas, or add a record (docs/add-a-model.md)"
        )
    return classifiers[0]


def _pretrained(model_class: type, source: str, config: Any, another_classifier: bool) -> tuple[nn.Module, LoadReport]:
    """A model with the weights of a folder or id, and what happened to their keys; InputError when they do not fit.

    another_classifier: whether theirs may be of other classes.
    """
    report, state, place = LoadReport(source), None, source
    if _is_here(source):
        state, report = read_state(source, KeyRules())
        with torch.device("meta"):
            wanted = _made(model_class, source, config).state_dict()
        state, place = unwrap(state, KeyRules(), wanted, report), None
        report.files = []  # identified by the tensors that transformers makes of them, as those of the hub
    try:
        with contextlib.nullcontext() if state is None else quietly():
            module, info = model_class.from_pretrained(
                place,
                config=config,
                state_dict=state,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with the tensor's name
            )
    except pickle.UnpicklingError as error:
        raise InputError(
            f"the weights of {source} are corrupt or hold Python objects besides tensors, which could run code: "
            "give them as safetensors"
        ) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _not_there(source, error) from error
    resized = {name: f"{tuple(old)} -> {tuple(new)}, newly initialised" for name, old, new in info["mismatched_keys"]}
    fresh = sorted({*info["missing_keys"], *resized})
    heads = record_of(model_class.__name__).exclude
    lacking = [name for name in fresh if not any(head in name for head in heads)]
    for name, old, new in info["mismatched_keys"]:
        if name in lacking or not another_classifier:
            raise other_shape(source, name, old, new)
    total = len(module.state_dict())
    if lacking:  # transformers would fill them at random and say so among other lines
        raise InputError(
            f"the weights of {source} do not fit {model_class.__name__}: {len(lacking)} of its "
            f"{counted(total, 'tensor')} {agreed(len(lacking), 'is')} missing (first: {lacking[0]}); give weights of "
            "this model"
        )
    check_values(source, dict(module.named_parameters()))
    report.loaded, report.fresh, report.resized = total - len(fresh), fresh, resized
    report.dropped += sorted(info["unexpected_keys"])
    return module, report


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Inside, transformers draws no progress bars, since the file was read already, and prints no report of its own."""
    logging = transformers.utils.logging
    shown, before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if shown:
            logging.enable_progress_bar()


def wrap_hf(
    module: nn.Module,
    tokenizer: HFTokenizer | HFProcessor | None = None,
    preprocessor: Mapping[str, Any] | None = None,
    conv: bool = False,
    head: bool = False,
) -> WrappedModel:
    """A model whose class has a record, wrapped. preprocessor: its preprocessor_config.json, where it has one.

    conv, head: whether convolutions, and the classifier, are pruned.
    """
    record, config = record_of(type(module).__name__), module.config
    shape = ImageShape(0, 1)
    if record.sees:
        shape = image_shape(getattr(config, "vision_config", config), preprocessor or {}, record.normalised)
    if head and not record.head:
        raise InputError(f"prune_head is for image classifiers, and {type(module).__name__} is none: leave it out")
    dense = tuple(part for part in record.dense(module) if not head or part != record.head)
    parts = tuple(part for part in dense if any(part in name for name, _ in module.named_modules()))
    options = {"exclude": lambda name: any(part in name for part in parts), "image_shape": shape, "conv": conv}
    options |= {"parts": hf_parts, "rebuilt": partial(_write_base, copy.deepcopy(config)), "write_stock": write_stock}
    model = record.wrapped(module, tokenizer, example=partial(record.example, module, shape), **options)
    model.key_rules = KeyRules(partial(_of_tower, module.base_model_prefix, frozenset(module.state_dict())))
    return model


def _of_tower(prefix: str, own: frozenset[str], key: str, keys: set[str]) -> str:
    """The name of a tower's weight in the model around it, or the reverse, so that a mask of one fits the other."""
    names = (key, f"{prefix}.{key}", key.removeprefix(f"{prefix}."))
    return next((name for name in names if name in own), key)


def _write_base(config: Any, model: WrappedModel, folder: Path) -> dict[str, Any]:
    """Config, what images are normalised with, and tokenizer, as `load_hf` reads them from a folder.

    config: before anything was removed, whose sizes it says.
    """
    config.architectures = [type(model.module).__name__]
    config.save_pretrained(folder)
    write_inputs(model, folder)
    return {}


def write_stock(model: WrappedModel, folder: Path) -> None:
    """The model as transformers' own class reads it back; InputError where its sizes are none that the class has."""
    fit_config(model.module)
    with quietly():
        model.module.save_pretrained(folder)
    write_inputs(model, folder)


def write_inputs(model: WrappedModel, folder: Path) -> None:
    """Write the image normalisation and the tokenizer."""
    shape = model.image_shape
    said = {"size": shape.image_size, "image_mean": shape.mean, "image_std": shape.std}
    write_json(folder / "preprocessor_config.json", {key: value for key, value in said.items() if value is not None})
    if isinstance(model.tokenizer, HFTokenizer | HFProcessor):
        model.tokenizer.save(folder)


ANY_SIZE = {"dinov2", "dinov2_with_registers", "dinov3_vit"}
"""Types of vision towers that fit their positions to any image: the preprocessor's size counts more than theirs."""


def image_shape(config: Any, preprocessor: Mapping[str, Any], normalised: tuple[float, ...] | None) -> ImageShape:
    """Of a vision tower's config, and of the preprocessor where it says more; 224 pixels where neither says a side."""
    sides = [getattr(config, "image_size", None), preprocessor.get("crop_size") or preprocessor.get("size")]
    if hasattr(config, "num_patches"):  # of SigLIP 2, which reads any shape of as many patches
        sides[0] = round(config.num_patches**0.5) * config.patch_size
    side = next(filter(None, reversed(sides) if config.model_type in ANY_SIZE else sides), 224)
    if isinstance(side, Mapping):
        side = side.get("height") or side.get("shortest_edge") or 224
    patch = getattr(config, "patch_size", 1)
    mean, std = (preprocessor.get(key, normalised) for key in ("image_mean", "image_std"))
    return ImageShape(_first(side), _first(patch), mean and tuple(mean), std and tuple(std))


def _first(size: int | list[int] | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]


def _preprocessor(reference: str, sees: bool) -> dict[str, Any]:
    """The reference's preprocessor_config.json; empty if there is none, which a note says if `sees`."""
    try:
        return ImageProcessingMixin.get_image_processor_dict(reference)[0]
    except OSError as error:
        if there := [name for name in PREPROCESSORS if (Path(reference) / name).exists()]:
            raise InputError(
                f"{Path(reference) / there[0]} cannot be read ({in_a_line(error)}): repair or remove it"
            ) from error
        if sees:
            console.print(
                f"note: hf:{reference} has no preprocessor_config.json: images get the size that config.json says, and "
                "the mean and deviation that are usual for its class",
                markup=False,
            )
        return {}


def _not_there(reference: str, error: Exception) -> InputError:
    return InputError(
        f"hf:{reference} cannot be loaded ({in_a_line(error)}): give a local folder with config.json and weights, "
        "or an id that the hub or its cache has"
    )
