"""docs/reproduce.md against the grid, the recipes and the table of downloads: its counts and hours follow from them."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest
import yaml

from studies.grid import read_grid
from studies.plan import PRUNE, expand
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs/reproduce.md").read_text(encoding="utf-8")
TRAINING, FLOAT32 = 0.35 * 312e12, 0.7 * 19.5e12  # FLOPs a second, as the page assumes
CAPTIONS, QUESTIONS, VAL, TEST = 567_000, 1_200_000, 214_354, 447_793
PAIRS = 256 * (5_000 + 25_010)
WIDTH, PATCHES = 768, 577


def layers(count: int, text: int, image: int = 0) -> float:
    """FLOPs of transformer layers over `text` tokens, with cross-attention to `image` tokens: 12 d² weights a layer."""
    own = 2 * 12 * WIDTH**2 * text + 4 * text**2 * WIDTH
    cross = 2 * 2 * WIDTH**2 * (text + image) + 4 * text * image * WIDTH if image else 0
    return count * (own + cross)


def reranked(count: int, text: int, texts: int = 256) -> float:
    """FLOPs of a pair of which the image's keys and values serve many texts."""
    return layers(count, text, PATCHES) - (1 - 1 / texts) * count * 2 * 2 * WIDTH**2 * PATCHES


IMAGE = layers(12, PATCHES)


def work(model: str, task: str) -> tuple[float, float, float]:
    """FLOPs of training on a sample and of one evaluation, and how many such the test split is."""
    x = model == "xvlm"

    def read(text: int) -> float:  # alone in X-VLM's first six layers; BLIP attends to the image in all
        return (layers(6, text) + layers(6, text, PATCHES)) if x else layers(12, text, PATCHES)

    if task == "retrieval":
        match = layers(6 if x else 12, 30, PATCHES)
        encoders = IMAGE + layers(6 if x else 12, 30)
        sample = 3 * (encoders + 3 * match) + (0 if x else encoders)
        return sample, PAIRS * reranked(6 if x else 12, 14) + 5_000 * IMAGE, 1
    if task == "captioning":  # 16 words by three beams, each with all words before it
        return 3 * (IMAGE + read(30)), 5_000 * (IMAGE + 3 * 16 * read(12)), 1
    answers = layers(6 if x else 12, 4, 15)
    return 3 * (IMAGE + read(15) + 2 * answers), VAL * (IMAGE + read(15) + 128 * answers), TEST / VAL


def rows() -> dict[tuple[str, str], list[str]]:
    """(model, task) -> the cells of the table of hours."""
    found = re.findall(r"^\| (X-VLM|BLIP) (retrieval|captioning|VQA) \|(.*)\|$", PAGE, re.MULTILINE)
    return {
        (model.lower().replace("-", ""), task.lower()): [cell.strip() for cell in cells.split("|")]
        for model, task, cells in found
    }


def number(cell: str) -> float:
    return float(cell.replace(",", ""))


@pytest.mark.parametrize("model", ["xvlm", "blip"])
@pytest.mark.parametrize("task", ["retrieval", "captioning", "vqa"])
def test_hours_of_a_run(model, task):
    recipe = yaml.safe_load((REPOSITORY / f"configs/{model}/{task}.yaml").read_text())
    steps, step, training, evaluation, count, all_of_them = rows()[model, task]
    samples = QUESTIONS if task == "vqa" else CAPTIONS
    assert number(steps) == recipe["epochs"] * math.ceil(samples / recipe["effective_batch"])
    sample, once, test = work(model, task)
    assert number(step) == pytest.approx(sample * recipe["effective_batch"] / TRAINING, abs=0.0051)
    assert number(training) == pytest.approx(sample * samples * recipe["epochs"] / TRAINING / 3600, abs=0.051)
    assert number(evaluation) == pytest.approx(once / FLOAT32 / 3600, abs=0.051)
    assert count.startswith(f"{recipe['epochs']} val")
    assert number(all_of_them) == pytest.approx((recipe["epochs"] + test) * once / FLOAT32 / 3600, abs=0.051)


def test_runs_and_hours_in_all():
    steps = expand(read_grid(REPOSITORY / "configs/experiments/main.yaml")).steps
    kinds = Counter((step.model, step.kind) for step in steps if step.kind != PRUNE)
    assert f"{len(steps)} runs" in PAGE and f"({sum(step.kind == PRUNE for step in steps)} runs)" in PAGE
    assert kinds.keys() == rows().keys() and set(kinds.values()) == {93} and "is done 93 times" in PAGE
    training, evaluation = (sum(number(row[cell]) for row in rows().values()) for cell in (2, 5))
    assert f"93 x ({training:.1f} + {evaluation:.1f}) h" in PAGE
    assert 93 * (training + evaluation) == pytest.approx(6_900, rel=0.005) and "6,900 hours of one A100" in PAGE
    tests = sum(work(*key)[1] * work(*key)[2] for key in rows() if key[1] != "captioning") / FLOAT32 / 3600
    captioning = sum(number(row[5]) for key, row in rows().items() if key[1] == "captioning")
    assert 93 * (training + tests + captioning) == pytest.approx(4_400, rel=0.01) and "4,400 hours" in PAGE


def test_what_is_fetched_is_in_the_table_of_downloads():
    groups = yaml.safe_load((REPOSITORY / "data/downloads.yaml").read_text())
    names = {name: download for group in groups.values() for name, download in group.items()}
    table = re.findall(r"^\| `([\w-]+)` \|.*\| (\w+) \|$", PAGE, re.MULTILINE)
    assert {"finetune", "pretrain", "vlm", "bert-vocab", "published-masks"} == {name for name, _ in table}
    for name, checksum in table:
        assert checksum == "unpublished" and "sha256" not in names[name] and "size" not in names[name]
    fetched = re.search(r"^python -m data.download ([a-z][a-z -]+)$", PAGE, re.MULTILINE)[1].split()
    assert names.keys() >= set(fetched)
    needed = [path for name in fetched for path in names[name]["files"]]
    assert {"4m-xvlm-vit-bert.pth", "14m-blip-vitB.pth", "vocab.txt", "cc3m_pretrain.json"} <= set(needed)
