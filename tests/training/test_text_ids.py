"""Runs whose images have ids that are texts, as those of NoCaps and TextCaps.

Two processes with a loader process each learn and find what one process does in the same data with whole numbers.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from studies.metrics import flat
from tests.training.small_finetuning import options, write_config


def as_texts(world, folder):
    """The world with every id replaced by a text; texts sort in another order than the numbers. Number -> text."""
    shutil.copytree(world, folder)
    names = {}

    def named(number):
        return names.setdefault(number, f"0{number % 7}{number:x}b")

    for path in folder.glob("data/finetune/ic/coco_karpathy_*_gt.json"):
        truth = json.loads(path.read_text())
        for key, records in (("id", truth["images"]), ("image_id", truth["annotations"])):
            for record in records:
                record[key] = named(record[key])
        path.write_text(json.dumps(truth))
        split = path.with_name(path.name.replace("_gt", ""))
        records = json.loads(split.read_text())
        for record in records:
            there = folder / "images/coco" / record["image"]
            image = there.with_stem(named(int(there.stem.rpartition("_")[2])))
            shutil.copyfile(there, image)
            record["image"] = str(image.relative_to(folder / "images/coco"))
        split.write_text(json.dumps(records))
    return names


@pytest.mark.slow
def test_two_processes_with_text_ids_end_like_one(world, mask, run, run_process, tmp_path):
    names = as_texts(world, tmp_path / "world")
    changes = {"epochs": 1, "batch_size": 4, "effective_batch": 8}
    one, two = (
        write_config(tmp_path / f"{name}.yaml", where, "captioning", **changes)
        for name, where in (("one", world), ("two", tmp_path / "world"))
    )
    for config in (one, two):
        config.write_text(config.read_text() + "leave_out: [METEOR, SPICE]\n")
    more = ["--mask", mask, "--seed", "1"]
    command = [part for part in options("captioning", one, tmp_path / "one", *more) if part != "--skip_eval"]
    assert run(*command, OMP_NUM_THREADS="1").returncode == 0
    command = [part for part in options("captioning", two, tmp_path / "two", *more) if part != "--skip_eval"]
    done = run_process(*command, "--devices", 2, "--num_workers", 1, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-2000:]

    one, two = (load_file(tmp_path / f"{name}" / "last.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)

    def rows(name):
        (path,) = (tmp_path / f"{name}" / "result").glob("*test*.json")
        return json.loads(path.read_text())

    def left(name, file):
        return json.loads((tmp_path / f"{name}" / file).read_text())

    wanted = [row | {"image_id": names[row["image_id"]]} for row in rows("one")]
    ids = [row["image_id"] for row in wanted]
    assert ids != sorted(ids)
    assert rows("two") == sorted(wanted, key=lambda row: row["image_id"])
    numbers, texts = (flat(left(name, "results.json")["metrics"]) for name in ("one", "two"))
    assert texts == pytest.approx(numbers)
    groups = [left(name, "items.json")["groups"]["items"] for name in ("one", "two")]
    metric = next(iter(groups[0]["scores"]))
    found = [dict(zip(group["ids"], group["scores"][metric], strict=True)) for group in groups]
    assert found[1] == {names[number]: pytest.approx(score) for number, score in found[0].items()}
