"""Calibration batches: shapes, determinism whatever the workers, missing images, manifests."""

import json

import pytest
import torch
from PIL import Image

from console.errors import InputError
from data.calibration import CalibrationBatches, make_manifest
from data.miniworld import ensure
from data.readers import make_reader
from data.regions import RegionSampling
from data.sources import Files
from data.tokenizer import load_tokenizer
from models.base import ImageShape
from tests.data.configured import configured

SHAPE = ImageShape(64, 8)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return ensure("calibration", tmp_path_factory.mktemp("world"), scale=0.03, show=False)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("weights/mini-vocab.txt")


def make(world, tokenizer, most=2, seed=42, workers=0, limit=None, **options):
    sides = {
        "general": configured(
            "mlm_pairs",
            Files(["data/pretrain/cc3m_pretrain.json"], {"cc3m": "images/cc3m"}, root=str(world)),
        ),
        "region": configured(
            "mlm_regions",
            Files(["data/pretrain/vg_regions.json"], root=str(world)),
            regions=RegionSampling(most=most),
        ),
    }
    readers = {name: make_reader(config, SHAPE, tokenizer) for name, config in sides.items()}
    return CalibrationBatches(readers, 8, seed, workers, limit, **options)


def same(a, b):
    return all(
        torch.equal(a[i][side][name], b[i][side][name]) for i in range(len(a)) for side in a[i] for name in a[i][side]
    )


def test_fields_shapes_and_types(world, tokenizer):
    pair = next(iter(make(world, tokenizer)))
    general, region = pair["general"], pair["region"]
    assert list(general) == ["image", "text_ids", "text_atts", "text_ids_masked", "masked_pos", "masked_ids"]
    assert list(region)[:2] == ["image", "idx_to_group_img"]
    g = region["image"].shape[0]
    expected = {"image": (g, 3, 64, 64), "idx_to_group_img": (8,), "image_atts": (8, 65), "target_bbox": (8, 4)}
    expected |= {"is_image": (8,), "text_ids": (8, 40), "text_atts": (8, 40), "text_ids_masked": (8, 40)}
    expected |= {"masked_pos": (8, 8), "masked_ids": (8, 8)}
    assert {name: tuple(t.shape) for name, t in region.items()} == expected
    for name, tensor in [*general.items(), *region.items()]:
        assert tensor.dtype == (torch.float32 if name in ("image", "target_bbox") else torch.int64), name
    assert region["idx_to_group_img"].max() < g
    assert (region["image_atts"][:, 0] == 1).all()
    assert ((region["target_bbox"] > 0) & (region["target_bbox"] <= 1)).all()
    assert (general["text_ids"][:, 0] == tokenizer.cls).all()
    assert not (general["text_ids"] == tokenizer.sep).any()
    assert ((general["text_ids"] != 0) == (general["text_atts"] == 1)).all()
    hidden = general["masked_ids"] != -100
    assert (general["text_ids"].gather(1, general["masked_pos"])[hidden] == general["masked_ids"][hidden]).all()


@pytest.mark.parametrize("most", [1, 5])
def test_region_batches_always_hold_so_many_texts(world, tokenizer, most):
    for pair in make(world, tokenizer, most=most, limit=3):
        assert pair["region"]["text_ids"].shape[0] == 8


def test_workers_do_not_change_batches(world, tokenizer):
    alone = list(make(world, tokenizer, limit=4))
    assert same(alone, list(make(world, tokenizer, limit=4)))
    assert same(alone, list(make(world, tokenizer, limit=4, workers=2)))


def test_batches_do_not_touch_the_global_random_state(world, tokenizer):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    next(iter(make(world, tokenizer)))
    assert torch.equal(before, torch.get_rng_state())


def test_shares_and_starts_give_the_same_units(world, tokenizer):
    batches = make(world, tokenizer, limit=4)
    sides = ("general", "region")
    whole = {(t, side): batch for t, side, batch in batches.units(sides, 0, 1, 0, None)}
    parts = {}
    for rank in range(3):
        mine = {(t, side): batch for t, side, batch in batches.units(sides, rank, 3, 0, None)}
        assert not set(mine) & set(parts)
        parts |= mine
    assert list(whole) == sorted(parts)
    assert all(torch.equal(whole[u][n], parts[u][n]) for u in whole for n in whole[u])
    later = {(t, side): batch for t, side, batch in batches.units(sides, 0, 1, 3, None)}
    assert all(torch.equal(later[u][n], whole[u][n]) for u in later for n in later[u])


def test_the_seed_says_which_samples_calibrate(world, tokenizer):
    first = make(world, tokenizer, limit=2).data.sides["general"]
    other = make(world, tokenizer, limit=2, seed=43).data.sides["general"]
    assert set(first.planned(0) + first.planned(1)) != set(other.planned(0) + other.planned(1))


def test_every_record_once_an_epoch(world, tokenizer):
    side = make(world, tokenizer).data.sides["general"]
    n = len(side.reader.source)
    epochs = [[i for t in range(e * side.batches, (e + 1) * side.batches) for i in side.planned(t)] for e in range(2)]
    dropped = n % 8 if n % 8 == 1 else 0
    assert [len(set(epoch)) for epoch in epochs] == [n - dropped] * 2
    assert epochs[0] != epochs[1]


def copy_of(world, tmp_path, break_images):
    """A world with some general images missing or broken."""
    records = json.loads((world / "data/pretrain/cc3m_pretrain.json").read_text())[:40]
    for i, record in enumerate(records):
        target = tmp_path / "images/cc3m" / record["image"]
        target.parent.mkdir(parents=True, exist_ok=True)
        if i not in break_images:
            Image.open(world / "images/cc3m" / record["image"]).save(target)
        elif break_images[i] == "broken":
            target.write_bytes(b"no picture")
        elif break_images[i] == "cut":
            whole = (world / "images/cc3m" / record["image"]).read_bytes()
            target.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pairs.json").write_text(json.dumps(records))
    config = configured("mlm_pairs", Files(["pairs.json"], {"cc3m": "images/cc3m"}, root=str(tmp_path)))
    return config, records


def test_few_unreadable_images_are_replaced_and_named(world, tokenizer, tmp_path):
    config, records = copy_of(world, tmp_path, {3: "missing", 17: "broken"})
    readers = {"general": make_reader(config, SHAPE, tokenizer)}
    batches = CalibrationBatches(readers, 8, 0)
    batches.check_files(len(batches))
    pairs = list(batches)
    assert all(pair["general"]["image"].shape[0] == 8 for pair in pairs)
    assert len(batches.failed) == 2
    assert any(records[3]["image"] in name and "missing" in name for name in batches.failed)
    assert any(records[17]["image"] in name and "broken" in name for name in batches.failed)
    assert same(pairs, list(CalibrationBatches(readers, 8, 0, num_workers=2)))


def test_half_pictures_are_replaced_named_and_counted(world, tokenizer, tmp_path):
    config, records = copy_of(world, tmp_path, {3: "cut", 17: "cut"})
    readers = {"general": make_reader(config, SHAPE, tokenizer)}
    batches = CalibrationBatches(readers, 8, 0)
    loaded = [batches.data.sides["general"][t] for t in range(5)]
    planned = [index for t in range(5) for index in batches.data.sides["general"].planned(t)]
    used = [index for batch in loaded for index in batch.used]
    replaced = [index for index, taken in zip(planned, used, strict=True) if index != taken]
    assert sorted(replaced) == [3, 17] and not {3, 17} & set(used)
    list(batches)
    manifest = make_manifest(batches, 5, 0, sorted(batches.failed))
    expected = sorted(
        f"{tmp_path}/images/cc3m/{records[i]['image']} (broken: image file is truncated)" for i in (3, 17)
    )
    assert manifest["failed"] == expected


def test_many_missing_images_stop_before_work(world, tokenizer, tmp_path):
    config, _ = copy_of(world, tmp_path, dict.fromkeys(range(0, 40, 10), "missing"))
    readers = {"general": make_reader(config, SHAPE, tokenizer)}
    with pytest.raises(
        InputError, match=r"4 of 40 calibration samples cannot be read, more than --max_missing 0.05 allows"
    ) as said:
        CalibrationBatches(readers, 8, 0).check_files(5)
    assert "(missing)" in str(said.value)
    assert "\n" not in str(said.value)
    CalibrationBatches(readers, 8, 0, max_missing=0.2).check_files(5)


def test_many_broken_images_stop_the_run(world, tokenizer, tmp_path):
    config, records = copy_of(world, tmp_path, dict.fromkeys(range(0, 40, 10), "broken"))
    readers = {"general": make_reader(config, SHAPE, tokenizer)}
    with pytest.raises(InputError, match=r"cannot be read") as error:
        list(CalibrationBatches(readers, 8, 0))
    with pytest.raises(InputError, match=r"of 10 calibration samples cannot be read, more than --max_missing 0\.05 "):
        for rank in range(4):  # all of them read no more than one does, and have no larger share that may fail
            list(CalibrationBatches(readers, 8, 0).units(("general",), rank, 4, 0, 5))
    assert records[0]["image"].split("/")[1][:2] in str(error.value)


def test_manifest_says_what_was_used(world, tokenizer):
    batches = make(world, tokenizer, limit=2)
    list(batches)
    manifest = make_manifest(batches, 2, 42, [])
    assert manifest["sides"]["general"]["samples"] == 16
    assert manifest["sides"]["general"]["used"] == [
        i for t in range(2) for i in batches.data.sides["general"].planned(t)
    ]
    (file,) = manifest["sides"]["general"]["files"]
    import hashlib

    path = world / "data/pretrain/cc3m_pretrain.json"
    assert file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    again = make_manifest(make(world, tokenizer, limit=2), 2, 42, [])
    other = make_manifest(make(world, tokenizer, limit=2, seed=1), 2, 1, [])
    assert manifest["hash"] == again["hash"] != other["hash"]


@pytest.mark.parametrize("workers", [0, 1])
def test_wordless_captions_are_replaced_and_named(workers, world, tokenizer, tmp_path):
    config, records = copy_of(world, tmp_path, {})
    records[5]["caption"] = "?!"
    (tmp_path / "pairs.json").write_text(json.dumps(records))
    batches = CalibrationBatches({"general": make_reader(config, SHAPE, tokenizer)}, 8, 0, workers)
    assert all(len(batch["general"]["text_ids"]) == 8 for batch in batches)
    (name,) = batches.failed
    assert records[5]["image"] in name
    assert "the caption '?!' has no word" in name
    for record in records:
        record["caption"] = "..."
    (tmp_path / "pairs.json").write_text(json.dumps(records))
    batches = CalibrationBatches({"general": make_reader(config, SHAPE, tokenizer)}, 8, 0, workers)
    with pytest.raises(InputError, match=r"^10 samples in a row cannot be read") as caught:
        list(batches)
    assert "Traceback" not in str(caught.value)  # nor where a worker met it
