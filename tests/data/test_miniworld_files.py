"""The mini world on disk: in the official formats, the same for any number of processes, never half there."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from console.errors import InputError
from data.miniworld import PARTS, ensure, paint, scene_for, store, vocabulary
from data.miniworld.__main__ import main
from data.miniworld.checker import check_caption
from data.miniworld.scene import BACKGROUNDS, NAMES, Scene, Thing

REPOSITORY = Path(__file__).resolve().parents[2]
SCALE = 0.01


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Every part, a hundredth of the size."""
    root = tmp_path_factory.mktemp("world")
    for part in PARTS:
        assert ensure(part, root, workers=1, show=False, scale=SCALE) == root
    return root


def read(root, path):
    return json.loads((root / path).read_text())


def sha(root, part):
    return read(root, f"world-{part}.json")["sha256"]


def test_same_world_for_any_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("data.miniworld.write.CHUNK", 40)  # several for each process
    for name, workers, seed in (("one", 1, 0), ("two", 2, 0), ("other", 2, 1)):
        ensure("calibration", tmp_path / name, seed=seed, workers=workers, show=False, scale=0.05)
    assert sha(tmp_path / "one", "calibration") == sha(tmp_path / "two", "calibration")
    assert sha(tmp_path / "one", "calibration") != sha(tmp_path / "other", "calibration")
    for path in sorted((tmp_path / "one").rglob("*.json")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_pretraining_files(world):
    pairs = read(world, "data/pretrain/cc3m_pretrain.json")
    assert all(set(r) == {"image", "caption", "dataset"} and isinstance(r["caption"], str) for r in pairs)
    assert re.fullmatch(r"\d{5}/\d{9}\.png", pairs[0]["image"]) and pairs[0]["dataset"] == "cc3m"
    more = read(world, "data/pretrain/cc3m_more_pretrain.json")
    assert len(more) == 164 and all(len(set(r["caption"])) == 5 for r in more)
    for record in pairs + more:
        assert Image.open(world / "images/cc3m" / record["image"]).size == (64, 64)
    for prefix in ("vg", "vg_more"):
        regions = read(world, f"data/pretrain/{prefix}_regions.json")
        dense = read(world, f"data/pretrain/{prefix}_dense_gby_image.json")
        for record, flat in zip(regions, dense, strict=True):
            assert set(record) == {"image", "elems"} and (world / record["image"]).is_file()
            assert flat["image"] == Path(record["image"]).name and flat["dataset"] == "vg"
            assert flat["bb"] == [element["bb"] for element in record["elems"]]
            for x, y, w, h in flat["bb"]:
                assert min(x, y) >= 0 and min(w, h) > 0 and x + w <= 64 and y + h <= 64
            for element, caption in zip(record["elems"], flat["caption"], strict=True):
                assert set(element) <= {"caption", "bb", "attributes"}
                assert caption == " ".join(filter(None, (element.get("attributes"), element["caption"])))
    assert any("attributes" in element for record in regions for element in record["elems"])
    coco = read(world, "data/pretrain/coco_karpathy_gby_image.json")
    assert set(coco[0]) == {"image", "dataset", "caption"} and len(coco[0]["caption"]) == 5
    assert (world / "images/coco" / coco[0]["image"]).is_file()
    with tarfile.open(world / "data/pretrain/sbu/00000.tar") as tar:
        names = tar.getnames()
        assert names[:2] == ["000000000.png", "000000000.txt"] and len(names) == 2 * 41
        assert Image.open(tar.extractfile(names[0])).size == (64, 64)
        caption = tar.extractfile(names[1]).read().decode()
    assert check_caption(caption, scene_for("sbu", 0)).true


def test_retrieval_and_captioning_files(world):
    train = read(world, "data/finetune/itr/coco_train.json")
    assert len(train) == 5 * 30 and all(set(r) == {"image", "image_id", "caption"} for r in train)
    assert train == read(world, "data/finetune/ic/coco_karpathy_train.json")
    for record in train:
        assert record["image_id"] == f"coco_{int(record['image'][-16:-4])}"
        assert (world / "images/coco" / record["image"]).is_file()
    for split, count in (("val", 5), ("test", 10)):
        records = read(world, f"data/finetune/itr/coco_{split}.json")
        assert len(records) == count and all(len(set(r["caption"])) == 5 for r in records)
        assert records == read(world, f"data/finetune/ic/coco_karpathy_{split}.json")
        truth = read(world, f"data/finetune/ic/coco_karpathy_{split}_gt.json")
        by_image = {int(Path(r["image"]).stem.split("_")[-1]): r["caption"] for r in records}
        assert [image["id"] for image in truth["images"]] == list(by_image)
        said = {image: [] for image in by_image}
        for annotation in truth["annotations"]:
            said[annotation["image_id"]].append(annotation["caption"])
        assert said == by_image
        assert len({annotation["id"] for annotation in truth["annotations"]}) == 5 * count


def test_question_files(world):
    answers = read(world, "data/finetune/vqa/answer_list.json")
    assert len(answers) == len(set(answers)) == 36
    ids = []
    for name, root in (("vqa_train", "images/coco"), ("vqa_val", "images/coco"), ("vg_qa", "images/vg")):
        for record in read(world, f"data/finetune/vqa/{name}.json"):
            ids.append(record["question_id"])
            said = record["answer"] if isinstance(record["answer"], list) else [record["answer"]]
            assert len(said) == (1 if name == "vg_qa" else 10) and set(said) <= set(answers)
            image = Path(record["image"]).name if name == "vg_qa" else record["image"]
            assert (world / root / image).is_file() and record["question_type"]
    hidden = read(world, "truth/vqa_test_answers.json")
    test = read(world, "data/finetune/vqa/vqa_test.json")
    assert all(set(r) == {"question_id", "question", "image", "dataset", "question_type"} for r in test)
    assert [r["question_id"] for r in hidden] == [r["question_id"] for r in test]
    ids += [r["question_id"] for r in test]
    assert len(set(ids)) == len(ids)


def test_class_folders(world):
    with (world / "data/imagenet/annots/metadata.csv").open() as file:
        names = {row["folder_name"]: row["class_name"] for row in csv.DictReader(file)}
    folders = sorted((world / "data/imagenet/train").iterdir())
    assert [folder.name for folder in folders] == sorted(names) and len(names) == 32
    truth = read(world, "truth/imagenet.json")
    for path, scene in truth.items():
        thing = scene["objects"][0]
        assert names[Path(path).parent.name] == f"{thing['texture']} {thing['shape']}"
        assert (world / path).is_file()
    with (world / "data/flowers102/annots/metadata.csv").open() as file:
        flowers = {row["idx"]: row["class_name"] for row in csv.DictReader(file)}
    with (world / "data/flowers102/annots/split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(flowers) == 24 and {row["split"] for row in rows} == {"train", "val", "test"}
    for row in rows:
        path = f"data/flowers102/images/{row['filename']}"
        thing = read(world, f"truth/flowers_{row['split']}.json")[path]["objects"][0]
        assert flowers[row["class"]] == f"{thing['colour']} {thing['shape']}" and (world / path).is_file()


def load_truth(root, split):
    """The scenes of a split by image path, from its truth file."""
    scenes = {}
    for image, record in read(root, f"truth/{split}.json").items():
        things = []
        for o in record["objects"]:
            look = {kind: names.index(o[kind]) for kind, names in NAMES.items()}
            rest = {name: o[name] for name in ("x", "y", "radius", "turn", "phase")}
            things.append(Thing(**look, **rest, tint=tuple(o["tint"])))
        background, key = BACKGROUNDS.index(record["background"]), int(record["key"], 16)
        scenes[image] = Scene(background, tuple(record["tint"]), record["clutter"], key, tuple(things))
    return scenes


def test_truth_gives_the_scenes_back(world):
    for split in ("cc3m", "itr_test", "flowers_val"):
        truth = load_truth(world, split)
        assert list(truth.values()) == [scene_for(split, index) for index in range(len(truth))]
    picture = next(iter(truth))
    assert np.array_equal(np.asarray(Image.open(world / picture)), paint(truth[picture]))


def test_vocabulary_covers_every_text_of_every_part(world):
    known = vocabulary()
    assert known[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(known) <= 256 and known[5:] == sorted(set(known[5:])) and known == vocabulary()
    words = set()
    texts = {"caption", "question", "answer", "sentence", "attributes", "elems", "annotations"}

    def collect(value):
        if isinstance(value, dict):
            for key in value.keys() & texts:
                collect(value[key])
        elif isinstance(value, list):
            for item in value:
                collect(item)
        else:
            words.update(value.split())

    for path in (world / "data").rglob("*.json"):
        collect(read(world, path.relative_to(world)))
    assert len(words) > 100 and words <= set(known)
    assert {"a", "picture", "of"} <= set(known)


def test_verify_finds_a_changed_picture(world, tmp_path, capsys):
    main(["verify", "--root", str(world)])
    assert capsys.readouterr().out.count("whole (no record to compare)") == len(PARTS)
    ensure("calibration", tmp_path, workers=1, show=False, scale=0.002)
    image = next((tmp_path / "images/cc3m").rglob("*.png"))
    picture = np.array(Image.open(image))
    picture[0, 0, 0] ^= 1
    Image.fromarray(picture).save(image)
    with pytest.raises(InputError, match="have changed"):
        main(["verify", "--root", str(tmp_path)])
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(InputError, match="not a whole picture"):
        main(["verify", "--root", str(tmp_path)])
    image.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        main(["verify", "calibration", "--root", str(tmp_path)])


def test_errors_are_sentences(tmp_path, world):
    with pytest.raises(InputError, match="did you mean 'calibration'"):
        ensure("calibrations", tmp_path)
    with pytest.raises(InputError, match="seed 0, not 7"):
        ensure("itr", world, seed=7, scale=SCALE, show=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"part of the path is a file|the path already exists"):
        ensure("itr", tmp_path / "file", scale=SCALE, show=False)
    (tmp_path / "world-itr.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        ensure("itr", tmp_path, scale=SCALE, show=False)


def test_another_world_is_said_plainly(monkeypatch, capsys):
    manifest = {"part": "itr", "seed": 0, "scale": 1.0, "sha256": "0" * 64}
    assert "is not the recorded one" in store.other_world(manifest)
    assert store.other_world({**manifest, "seed": 1}) is None
    assert store.other_world({**manifest, "sha256": PARTS["itr"].sha256}) is None


# --- never half there --------------------------------------------------------------------------------------


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(writer):
        writer.pictures("cc3m", "caption")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(store.WRITERS, "calibration", fail)
    with pytest.raises(InputError, match="disk is full"):
        ensure("calibration", tmp_path, workers=1, show=False, scale=SCALE)
    assert [path.name for path in tmp_path.iterdir()] == [".lock-calibration"]


SCRIPT = """
import sys
from data.miniworld import store
draw_part = store._generate
def logged(*args):
    with open(sys.argv[2], "a") as log:
        log.write("x")
    draw_part(*args)
store._generate = logged
store.ensure("calibration", sys.argv[1], workers=1, show=False, scale=float(sys.argv[3]))
"""


def start(root, log, scale):
    command = [sys.executable, "-c", SCRIPT, str(root), str(log), str(scale)]
    return subprocess.Popen(command, cwd=REPOSITORY)


def test_two_processes_at_once_generate_once(tmp_path):
    log = tmp_path / "log"
    both = [start(tmp_path / "world", log, 0.05) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert log.read_text() == "x"
    assert sha(tmp_path / "world", "calibration")


def test_a_killed_process_leaves_no_lock(tmp_path):
    log, root = tmp_path / "log", tmp_path / "world"
    process = start(root, log, 1.0)
    for _ in range(600):
        if any(root.glob(".making-*/images")):
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (root / "images").exists() and not (root / "world-calibration.json").exists()
    ensure("calibration", root, workers=1, show=False, scale=SCALE)
    assert not list(root.glob(".making-*")) and load_truth(root, "cc3m")


# --- command line ------------------------------------------------------------------------------------------


def test_help_is_quick_and_mistakes_end_with_two(tmp_path):
    started = time.perf_counter()
    command = [sys.executable, "-m", "data.miniworld"]
    asked = subprocess.run([*command, "--help"], cwd=REPOSITORY, capture_output=True, text=True)
    assert asked.returncode == 0 and "generate" in asked.stdout
    assert time.perf_counter() - started < 2
    wrong = subprocess.run(
        [*command, "generate", "coco", "--root", str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ") and "Traceback" not in wrong.stderr


def test_show_writes_a_sheet(tmp_path, capsys):
    main(["show", "--split", "vqa_test", "--count", "3", "--out", str(tmp_path / "sheet.png")])
    assert "3 scenes of vqa_test" in capsys.readouterr().out
    assert Image.open(tmp_path / "sheet.png").width > 3 * 256
    with pytest.raises(InputError, match="did you mean 'vqa_test'"):
        main(["show", "--split", "vqa_tst"])
