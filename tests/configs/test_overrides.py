"""`--set`: nested, typed, unknown keys refused; the file's own aliases stay apart."""

import dataclasses

import pytest
import yaml

from configs.overrides import read_settings
from configs.schema import parse, read_yaml, task_file
from console.errors import InputError
from pretraining.stages import PretrainConfig
from pruners.settings import PruneConfig
from tasks.captioning import CaptioningConfig
from tasks.image_classification import ClassificationConfig
from tasks.retrieval import RetrievalConfig


def parsed(schema, task, *assignments, model="xvlm-mini"):
    return parse(schema, *read_settings(task_file(model, task), assignments))


def test_nothing_set_is_the_file():
    path = task_file("xvlm-mini", "retrieval")
    assert read_settings(path, []) == (read_yaml(path), str(path))


def test_values_become_what_the_fields_are():
    config = parsed(
        RetrievalConfig,
        "retrieval",
        "epochs=3",
        "recipe.lr=1.0e-4",
        "recipe.lr_scale={vision_encoder: 1}",
        "train.files.annotations=[mine.json]",
        "train.files.miniworld=[]",
        "short_epoch=",
        "skip_val=true",
    )
    assert (config.epochs, config.recipe.lr, config.recipe.lr_scale) == (3, 1e-4, {"vision_encoder": 1.0})
    assert config.train.files.annotations == ["mine.json"] and config.train.files.miniworld == []
    assert config.short_epoch is None and config.skip_val is True
    assert config.train.max_tokens == 30, "the rest is the file's"


def test_later_ones_win():
    assert parsed(RetrievalConfig, "retrieval", "epochs=3", "epochs=4").epochs == 4


def test_aliases_of_the_file_stay_apart(tmp_path):
    """`test: {<<: *gallery}` shares its image roots with `val`."""
    config = parsed(RetrievalConfig, "retrieval", "val.image_roots.coco=elsewhere")
    assert config.val.image_roots == {"coco": "elsewhere"} and config.test.image_roots == {"coco": "images/coco"}


def test_entries_of_lists():
    config = parsed(PretrainConfig, "pretrain", "stages.1.sides.region.max_tokens=20", "stages.0.steps=5")
    assert config.stages[1].sides["region"].max_tokens == 20 and config.stages[0].steps == 5
    assert config.stages[3].sides["region"].max_tokens == 16, "an alias of the first"


def test_what_a_data_set_has_of_its_own():
    settings, where = read_settings(task_file("dino-mini", "image_classification"), ["epochs=2", "train.splits=[val]"])
    for name, own in settings.pop("datasets").items():
        config = parse(ClassificationConfig, {**settings, "train": None} | own, f"{where}: {name}")
        assert (config.epochs, config.train.splits) == (2, ["val"])


@pytest.mark.parametrize(
    ("schema", "task", "assignment", "message"),
    [
        (RetrievalConfig, "retrieval", "epoch=2", r"--set epoch=2: unknown key 'epoch' \(did you mean 'epochs'\?\)"),
        (RetrievalConfig, "retrieval", "recipe.lrr=2", r"recipe: unknown key 'lrr' \(did you mean 'lr'\?\)"),
        (RetrievalConfig, "retrieval", "epochs=two", "'epochs' must be a whole number, not 'two'"),
        (RetrievalConfig, "retrieval", "recipe.lr=1e-4", r"must be a number, not '1e-4' \(.*write 1\.0e-4\)"),
        (RetrievalConfig, "retrieval", "train.files=x.json", "'files' must be a mapping"),
        (RetrievalConfig, "retrieval", "epochs.first=2", "--set epochs.first=2: there is no key first in 1"),
        (RetrievalConfig, "retrieval", "epochs", "--set epochs: write KEY=VALUE"),
        (RetrievalConfig, "retrieval", "a..b=1", "write KEY=VALUE"),
        (RetrievalConfig, "retrieval", "=1", "write KEY=VALUE"),
        (RetrievalConfig, "retrieval", "val=[", "the value is not valid YAML"),
        (RetrievalConfig, "retrieval", "val=2025-13-45", "the value is not valid YAML"),
        (RetrievalConfig, "retrieval", "evaluation.k_test=0", "evaluation: k_test must be at least 1"),
        (CaptioningConfig, "captioning", "train.double_sep=true", "'captions' has no option 'double_sep': it is an op"),
        (PruneConfig, "prune", "sides.general.max_tokns=3", r"'max_tokns' \(did you mean 'max_tokens'\?\)"),
        (PretrainConfig, "pretrain", "stages.9.steps=3", "9 is not one of 4 entries"),
        (PretrainConfig, "pretrain", "stages.first.steps=3", "first is not one of 4 entries"),
    ],
)
def test_refused(schema, task, assignment, message):
    with pytest.raises(InputError, match=message):
        parsed(schema, task, assignment)


def test_what_a_run_writes_is_read_again(tmp_path):
    """All keys of all sections, as config.yaml of an output folder has them."""
    config = parsed(CaptioningConfig, "captioning", "train.prompt=a photo of", "prompt=a photo of")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
    assert parse(CaptioningConfig, *read_settings(tmp_path / "config.yaml", [])) == config
