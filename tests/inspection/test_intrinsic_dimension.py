"""The command: every layer has a dimension, memory changes nothing, and what it leaves weights layers."""

import json

import pytest
import torch
import yaml

from configs.schema import task_file
from console.errors import InputError
from data.miniworld import ensure
from inspection import intrinsic_dimension
from inspection.intrinsic_dimension import kind_of
from models import load_model, load_task_model
from pruners import prune
from sparsity.weighting import read_ids
from tests.training.small_finetuning import placed


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    """blip-mini's file, of 48 samples of a small world."""
    root = tmp_path_factory.mktemp("ids")
    world = ensure("calibration", root / "world", workers=1, show=False, scale=0.03)
    settings = placed(yaml.safe_load(task_file("blip-mini", "prune").read_text()), world)
    (root / "prune.yaml").write_text(yaml.safe_dump(settings))
    return root


def measured(root, name, *more):
    words = ["--model", "blip-mini", "--config", str(root / "prune.yaml"), "--num_workers", "0", "--device", "cpu"]
    words += ["--samples", "48", "--blocks", "4", "--output_dir", str(root / name), *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["intrinsic_dimension", *words])
        intrinsic_dimension.main()
    return root / name / "blip-mini.json"


def test_every_layer_is_measured_whatever_the_memory(ids):
    one, other = (json.loads(measured(ids, f"m{m}", "--memory", m).read_text()) for m in ("4", "0.004"))
    model = load_model("blip-mini")
    assert list(one["dimensions"]) == list(model.prunable_layers())
    assert all(1 < value < 60 for value in one["dimensions"].values())
    assert one["weights"]["file"].endswith("blip-mini.safetensors")
    for name, value in one["dimensions"].items():
        assert other["dimensions"][name] == pytest.approx(value, rel=1e-3)
        assert one["layers"][name]["used"] <= 48
    assert (ids / "m4" / "blip-mini.png").stat().st_size > 10_000


def test_task_layers_match_the_names_of_masks(ids):
    path = measured(ids, "names")
    model = load_task_model("blip-mini", "captioning")
    factors = read_ids(path, 1.0).fitted(model)
    known = json.loads(path.read_text())["dimensions"]
    assert list(factors) == list(model.prunable_layers())
    for name, factor in factors.items():
        tied = name.replace("text_decoder.", "text_encoder.").replace("bert.", "")
        assert factor == known.get(name, known.get(tied))


def test_weighted_magnitudes_by_hand(ids):
    """The smallest of |W| ID^2 go, over all layers."""
    ids_of = read_ids(measured(ids, "hand"), 2.0)
    model = load_model("blip-mini")
    mask = prune(model, [], "omp", (0.8,), ids=ids_of)[0.8]
    scores = {name: layer.weight.abs() * ids_of.by_name[name] ** 2 for name, layer in model.prunable_layers().items()}
    together = torch.cat([score.flatten() for score in scores.values()])
    threshold = together.kthvalue(round(0.8 * together.numel())).values
    differing = sum(int((mask[name] != (score.detach() > threshold)).sum()) for name, score in scores.items())
    assert differing <= 20  # products of float32, rounded in another order
    assert mask.sparsity_by_modality()["vision"] < prune(model, [], "omp", (0.8,))[0.8].sparsity_by_modality()["vision"]


def test_equal_dimensions_change_nothing(ids):
    path = measured(ids, "equal")
    content = json.loads(path.read_text())
    content["dimensions"] = dict.fromkeys(content["dimensions"], 8.0)
    path.write_text(json.dumps(content))
    model = load_model("blip-mini")
    for options in ({}, {"allocation": "modality"}, {"allocation": "multimodal"}):
        plain = prune(model, [], "omp", (0.8,), **options)[0.8]
        assert prune(model, [], "omp", (0.8,), ids=read_ids(path, 1.0), **options)[0.8] == plain


def test_density_is_plotted_against_dimensions(ids, tmp_path):
    mask = prune(load_model("blip-mini"), [], "omp", (0.8,))[0.8]
    mask.save(tmp_path / "mask.safetensors")
    rows = json.loads(measured(ids, "kept", "--kept", str(tmp_path / "mask.safetensors")).read_text())["layers"]
    assert all(row["kept"] == pytest.approx(1 - mask.sparsity([name])) for name, row in rows.items())


def test_what_is_refused(ids, tmp_path, monkeypatch):
    path = measured(ids, "refused")
    found = read_ids(path, 1.0)
    model = load_model("blip-mini")
    with pytest.raises(InputError, match="--ids changes nothing under the allocation 'layer'"):
        prune(model, [], "localmp", (0.8,), ids=found)
    with pytest.raises(InputError, match=r"these intrinsic dimensions belong to another model \(blip-mini\)"):
        prune(load_model("xvlm-mini"), [], "omp", (0.8,), ids=found)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="is not a file of intrinsic dimensions"):
        read_ids(tmp_path / "x.json", 1.0)
    with pytest.raises(InputError, match="48 samples cannot be cut into 20 blocks of 4 or more: give at least 80"):
        measured(ids, "few", "--blocks", "20")
    settings = yaml.safe_load((ids / "prune.yaml").read_text())
    settings["sides"]["general"] = settings["sides"]["region"]  # as many records, whose last batch is not full
    (tmp_path / "prune.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(InputError, match="the data has 61 samples, fewer than 62: lower --samples"):
        measured(tmp_path, "many", "--samples", "62")
    with monkeypatch.context() as patch, pytest.raises(InputError, match="no such file"):
        patch.setattr("calibration.layer_outputs.squared_distances", None)  # --kept is read first
        measured(ids, "mistyped", "--kept", str(tmp_path / "none.safetensors"))


def test_the_task_sets_the_image_size(monkeypatch):
    """As in the task's script: weights finetuned at 384 pixels are not interpolated."""
    asked = {}

    def load(name, task, overrides, **others):
        asked.update(overrides)
        raise InputError("seen")

    monkeypatch.setattr("evaluation.efficiency.table.load_task_model", load)
    args = intrinsic_dimension.parse_args(["--model", "blip", "--task", "retrieval", "--device", "cpu", "--seed", "1"])
    with pytest.raises(InputError, match="seen"):
        intrinsic_dimension.measure(args, None)
    assert asked == {"vision": {"image_size": 384}}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("visual_encoder.blocks.0.attn.qkv.weight", "attn.qkv"),
        ("text_encoder.encoder.layer.2.crossattention.self.key.weight", "crossattention.self.key"),
        ("head.weight", "head"),
    ],
)
def test_kinds_of_layers(name, kind):
    assert kind_of(name) == kind
