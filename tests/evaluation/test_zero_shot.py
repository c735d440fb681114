"""The zero-shot command on a mini world of a few pictures."""

import json
import sys

import pytest
import torch
import yaml

from console.errors import InputError, run_command
from data.miniworld import ensure
from evaluation import zero_shot, zero_shot_table
from models import load_model
from sparsity.mask import Mask
from tests.evaluation.items_means import means


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """configs/xvlm-mini/zero_shot.yaml, but smaller."""
    root = tmp_path_factory.mktemp("world")
    for part in ("itr", "regions"):
        ensure(part, root, workers=1, show=False, scale=0.02)
    settings = {
        "gallery": {
            "root": str(root),
            "annotations": ["data/finetune/itr/coco_test.json"],
            "image_roots": {"coco": "images/coco"},
        },
        "images": 12,
        "retrieval": {"k_test": 16, "max_tokens": 30},
        "regions": {
            "reader": "mlm_regions",
            "max_tokens": 16,
            "files": {"root": str(root), "annotations": ["data/pretrain/vg_regions_val.json"]},
            "augmentation": {"flip": 0.0, "ops": 0},
        },
        "region_batches": 1,
    }
    path = root / "zero_shot.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def command(monkeypatch, config, *arguments):
    base = ["evaluation.zero_shot", "--model", "xvlm-mini", "--weights", "random", "--config", str(config)]
    monkeypatch.setattr(sys, "argv", [*base, *map(str, arguments)])
    zero_shot.main()


def test_a_row_for_the_dense_model_and_each_mask(config, tmp_path, monkeypatch, capsys):
    layers = load_model("xvlm-mini", weights="random").prunable_layers()
    Mask({name: torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in layers.items()}).save(
        tmp_path / "masks" / "b_all.safetensors"
    )
    Mask({name: torch.zeros_like(layer.weight, dtype=torch.bool) for name, layer in layers.items()}).save(
        tmp_path / "masks" / "a_none.safetensors"
    )
    command(monkeypatch, config, "--masks", tmp_path / "masks" / "*.safetensors", "--json", tmp_path / "out.json")
    dense, none, everything = json.loads((tmp_path / "out.json").read_text())
    assert [row["mask"] for row in (dense, none, everything)] == ["dense", "a_none", "b_all"]
    assert {k: v for k, v in everything.items() if k != "mask"} == {k: v for k, v in dense.items() if k != "mask"}
    for row in (dense, none, everything):
        found = means(tmp_path / f"items_{row['mask']}.json")
        assert {name: list(of) for name, of in found.items()} == {
            "text": [f"{kind} img_r{k}" for kind in ("itc", "itm") for k in (1, 5, 10)],
            "image": [f"{kind} txt_r{k}" for kind in ("itc", "itm") for k in (1, 5, 10)],
            "region": ["IoU"],
        }
        for metric, mean in (pair for of in found.values() for pair in of.items()):
            assert metric not in row or mean == pytest.approx(row[metric], abs=0.0051)
    assert none["IoU"] != dense["IoU"]  # and the mask before it did not stay on the model
    shown = capsys.readouterr().out
    assert "12 images" in shown
    assert "a_none" in shown
    assert dense["reranked"] == none["reranked"] and "of 12 images for each text" in dense["reranked"]
    assert f"reranked: {dense['reranked']}" in " ".join(shown.split()) and shown.count("for each text") == 1


def test_a_mask_by_its_name_and_fewer_images(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layers = load_model("xvlm-mini", weights="random").prunable_layers()
    Mask({name: layer.weight.abs() > 0.02 for name, layer in layers.items()}).save(tmp_path / "m.safetensors")
    command(monkeypatch, config, "--masks", "m.safetensors", "*.safetensors", "--images", "3", "--json", "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())
    assert {path.name for path in tmp_path.glob("items*")} == {"items_dense.json", "items_m.json"}
    assert [row["mask"] for row in rows] == ["dense", "m"]  # named twice, evaluated once


def test_masks_without_the_dense_model(config, tmp_path, monkeypatch):
    layers = load_model("xvlm-mini", weights="random").prunable_layers()
    Mask({name: layer.weight.abs() > 0.02 for name, layer in layers.items()}).save(tmp_path / "m.safetensors")
    out = tmp_path / "out.json"
    command(monkeypatch, config, "--no-dense", "--masks", tmp_path / "m.safetensors", "--images", "3", "--json", out)
    (row,) = json.loads(out.read_text())
    assert row["mask"] == "m"
    assert means(tmp_path / "items.json")["text"]["itm img_r1"] == pytest.approx(row["itm img_r1"], abs=0.0051)
    (tmp_path / "n.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes())
    masks = ["--no-dense", "--images", "3", "--masks", tmp_path / "n.safetensors", tmp_path / "m.safetensors", "--json"]
    command(monkeypatch, config, *masks, tmp_path / "n" / "out.json", tmp_path / "m" / "out.json")
    for name in ("n", "m"):  # a file for each row
        assert json.loads((tmp_path / name / "out.json").read_text()) == [row | {"mask": name}]
        assert means(tmp_path / name / "items.json") == means(tmp_path / "items.json")
    for files, says in (((1, 2, 3), "has 3 files for 2 rows"), ((1, 2), "has files in one folder")):
        with pytest.raises(InputError, match=says):
            command(monkeypatch, config, *masks, *(tmp_path / f"{number}.json" for number in files))
    with pytest.raises(InputError, match="--no-dense leaves nothing to evaluate"):
        command(monkeypatch, config, "--no-dense")
    with pytest.raises(InputError, match=r"items\.json is for the scores of single items"):
        command(monkeypatch, config, "--json", tmp_path / "items.json")
    with pytest.raises(InputError, match="is a folder: name the file to write"):
        command(monkeypatch, config, "--json", tmp_path / "n")


def test_bad_input(config, tmp_path, monkeypatch, capsys):
    for name in ("images", "max_words", "region_batches"):
        with pytest.raises(InputError, match=f"{name} must be at least 1, not 0"):
            command(monkeypatch, config, "--set", f"{name}=0")
    with pytest.raises(InputError, match=r"nowhere\.safetensors"):
        command(monkeypatch, config, "--masks", tmp_path / "nowhere.safetensors", "--images", "2")
    Mask({"another.weight": torch.ones(2, 2, dtype=torch.bool)}).save(tmp_path / "other.safetensors")
    with monkeypatch.context() as early, pytest.raises(InputError, match=r"another\.weight"):
        early.setattr(zero_shot_table, "measurements", lambda *rest: pytest.fail("the dense model was evaluated first"))
        command(early, config, "--masks", tmp_path / "other.safetensors", "--images", "2")
    monkeypatch.setattr(sys, "argv", ["evaluation.zero_shot", "--model", "xvlm-mimi"])
    with pytest.raises(SystemExit) as caught:
        run_command(zero_shot.main)
    assert caught.value.code == 2
    assert "did you mean 'xvlm-mini'?" in capsys.readouterr().err
