"""Numbers that mean nothing are refused when a configuration is read, in words that name them."""

import pytest
from torch import nn

from configs.schema import parse, read_yaml, task_file
from console.errors import InputError
from data.masking import Masking
from data.readers import ReaderConfig
from data.regions import RegionSampling
from data.transforms import Augmentation
from evaluation.retrieval import RetrievalSettings
from models.common.beam_search import SearchSettings
from tasks.captioning import CaptioningConfig
from training.optimizer import Recipe, make_optimizer

READER = {"reader": "captions", "files": {"annotations": ["x.json"], "image_roots": {"coco": "x"}}}
BAD = [
    (Augmentation, {"crop": [2.0, 1.0]}, "crop is two rising shares of the area"),
    (Augmentation, {"crop": [0.0, 1.0]}, "crop is two rising shares of the area"),
    (Augmentation, {"crop": [0.5]}, "crop is two rising shares of the area"),
    (Augmentation, {"flip": -1.0}, "flip is a probability"),
    (Augmentation, {"flip": float("nan")}, "flip is a probability"),
    (Augmentation, {"ops": -2}, "ops must be at least 0"),
    (Augmentation, {"level": 99}, "level is one of RandAugment's, from 0 to 10, not 99"),
    (ReaderConfig, {**READER, "max_tokens": 0}, "max_tokens must be at least 2"),
    (ReaderConfig, {**READER, "max_words": 0}, "max_words must be at least 1"),
    (ReaderConfig, {**READER, "most_of_image": 0}, "most_of_image must be at least 1"),
    (Masking, {"probability": 1.5}, "probability is a probability"),
    (Masking, {"most": 0}, "most must be at least 1"),
    (RegionSampling, {"visible": 2.0}, "visible is a probability"),
    (RetrievalSettings, {"k_test": 0}, "k_test must be at least 1"),
    (RetrievalSettings, {"image_batch": 0}, "image_batch must be at least 1"),
    (RetrievalSettings, {"text_batch": -1}, "text_batch must be at least 1"),
    (SearchSettings, {"beams": 0}, "beams must be at least 1"),
    (SearchSettings, {"max_length": 3}, r"min_length \(5\) is above max_length \(3\)"),
]


@pytest.mark.parametrize(("kind", "settings", "words"), BAD, ids=[f"{k.__name__} {w}" for k, _, w in BAD])
def test_refused(kind, settings, words):
    with pytest.raises(InputError, match=words):
        parse(kind, settings, "some.yaml")


def test_a_negative_factor_of_the_rate():
    with pytest.raises(InputError, match=r"lr_scale of head must be a number from 0 up, not -0\.5"):
        Recipe(lr=1.0, lr_scale={"head": -0.5})


def test_only_slow_metrics_are_left_out():
    settings = read_yaml(task_file("xvlm-mini", "captioning"))
    assert parse(CaptioningConfig, settings | {"leave_out": ["METEOR"]}, "some.yaml").leave_out == ["METEOR"]
    with pytest.raises(InputError, match="'CIDEr' cannot be left out, only METEOR and SPICE can"):
        parse(CaptioningConfig, settings | {"leave_out": ["CIDEr"]}, "some.yaml")


def test_the_reader_of_another_task():
    settings = read_yaml(task_file("xvlm-mini", "captioning"))
    settings["train"] |= {"reader": "retrieval_pairs"}
    del settings["train"]["most_of_image"]
    with pytest.raises(InputError, match="the reader of this task is 'captions', not 'retrieval_pairs'"):
        parse(CaptioningConfig, settings, "some.yaml")


def test_a_section_is_named():
    settings = {**READER, "augmentation": {"flip": 7.0}}
    with pytest.raises(InputError, match=r"some\.yaml: augmentation: flip is a probability, from 0 to 1, not 7\.0"):
        parse(ReaderConfig, settings, "some.yaml")


def test_a_rate_for_a_part_that_is_not_there():
    module = nn.ModuleDict({"vision_encoder": nn.Linear(2, 2), "text": nn.Linear(2, 2)})
    with pytest.raises(InputError, match="no parameter has 'vision_encoderr'"):
        make_optimizer(module.named_parameters(), Recipe(lr=1.0, lr_scale={"vision_encoderr": 0.5}))
    rates = [
        group["lr"]
        for group in make_optimizer(module.named_parameters(), Recipe(lr=1.0, lr_scale={"vision": 0.5})).param_groups
    ]
    assert sorted(rates) == [0.5, 1.0]
