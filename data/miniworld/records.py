"""The annotation files of each part, in the formats of the data sets they stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from data.miniworld.captions import Region
from data.miniworld.parts import FLOWER_LOOKS, IMAGENET_LOOKS, SPLITS, class_name, scaled, scene_for, text_draws, wnid
from data.miniworld.questions import Asker, ten_answers
from data.miniworld.statements import PAIRS, SCENES, draw_statements
from data.miniworld.words import ANSWERS
from data.miniworld.write import Writer, captions_of

STATEMENTS = 8  # of a set

Records = list[tuple[str, Any]]

# questions a scene, and the first question id
VQA = (("train", 4, 1), ("val", 6, 1_000_001), ("vg", 2, 2_000_001), ("test", 4, 3_000_001))


def write_calibration(writer: Writer) -> None:
    """What pruners look at: CC3M-like pairs with one caption, Visual Genome-like regions."""
    captions = writer.pictures("cc3m", "caption")
    writer.json("data/pretrain/cc3m_pretrain.json", [_pair(path, said[0]) for path, said in captions])
    _write_regions(writer, "vg")


def write_pretrain(writer: Writer) -> None:
    """The rest of the pretraining set; the SBU-like samples are webdataset shards and need no list."""
    captions = writer.pictures("cc3m_more", "captions")
    writer.json("data/pretrain/cc3m_more_pretrain.json", [_pair(path, said) for path, said in captions])
    writer.pictures("sbu", "caption")
    _write_regions(writer, "vg_more")
    coco = writer.pictures("coco", "captions")
    writer.json(
        "data/pretrain/coco_karpathy_gby_image.json",
        [{"image": path.removeprefix("images/coco/"), "dataset": "coco", "caption": said} for path, said in coco],
    )


def write_regions(writer: Writer) -> None:
    """Regions that no pretraining saw, to measure box prediction on."""
    writer.json("data/pretrain/vg_regions_val.json", _regions(writer.pictures("vg_val", "regions")))


def _write_regions(writer: Writer, split: str) -> None:
    regions = writer.pictures(split, "regions")
    writer.json(f"data/pretrain/{split}_regions.json", _regions(regions))
    writer.json(f"data/pretrain/{split}_dense_gby_image.json", _dense(regions))


def _pair(path: str, caption: str | list[str]) -> dict[str, Any]:
    return {"image": path.removeprefix("images/cc3m/"), "caption": caption, "dataset": "cc3m"}


def _regions(records: Records) -> list[dict[str, Any]]:
    """X-VLM's region file. Its images are opened as they are, without a root before them."""
    return [{"image": path, "elems": [_element(region) for region in regions]} for path, regions in records]


def _element(region: Region) -> dict[str, Any]:
    element: dict[str, Any] = {"caption": region.caption, "bb": list(region.box)}
    return element if region.attributes is None else {**element, "attributes": region.attributes}


def _dense(records: Records) -> list[dict[str, Any]]:
    """The same regions grouped by image, as BLIP's side reads them: attributes are part of the caption."""
    return [
        {
            "image": _name(path),
            "dataset": "vg",
            "caption": [" ".join(filter(None, (r.attributes, r.caption))) for r in regions],
            "bb": [list(r.box) for r in regions],
        }
        for path, regions in records
    ]


def write_itr(writer: Writer) -> None:
    """COCO-Karpathy retrieval: one training record a caption, five captions a record elsewhere."""
    writer.json("data/finetune/itr/coco_train.json", _one_a_record(writer.pictures("itr_train", "captions")))
    for split in ("val", "test"):
        records = writer.pictures(f"itr_{split}", "captions")
        writer.json(f"data/finetune/itr/coco_{split}.json", _five_a_record(records))


def write_ic(writer: Writer) -> None:
    """COCO-Karpathy captioning over the pictures and captions of retrieval, with COCO's ground truth."""

    def captions(split: str) -> Records:
        records = []
        for index in range(scaled(split, writer.scale)):
            scene = scene_for(split, index, writer.seed)
            records.append((SPLITS[split].path(index), captions_of(split, index, writer.seed, scene, 5)))
            writer.advance(1)
        return records

    folder = "data/finetune/ic"
    writer.json(f"{folder}/coco_karpathy_train.json", _one_a_record(captions("itr_train")))
    for split in ("val", "test"):
        records = captions(f"itr_{split}")
        writer.json(f"{folder}/coco_karpathy_{split}.json", _five_a_record(records))
        writer.json(f"{folder}/coco_karpathy_{split}_gt.json", _ground_truth(records))


def karpathy_id(path: str) -> int:
    """COCO's image id: the last `_` field of the file's stem."""
    return int(PurePosixPath(path).stem.rpartition("_")[2])


def _one_a_record(records: Records) -> list[dict[str, Any]]:
    return [
        {"image": path.removeprefix("images/coco/"), "image_id": f"coco_{karpathy_id(path)}", "caption": caption}
        for path, captions in records
        for caption in captions
    ]


def _five_a_record(records: Records) -> list[dict[str, Any]]:
    return [{"image": path.removeprefix("images/coco/"), "caption": captions} for path, captions in records]


def _ground_truth(records: Records) -> dict[str, Any]:
    pairs = [(karpathy_id(path), caption) for path, captions in records for caption in captions]
    return {
        "images": [{"id": karpathy_id(path)} for path, _ in records],
        "annotations": [
            {"id": number, "image_id": image, "caption": caption}
            for number, (image, caption) in enumerate(pairs, start=1)
        ],
    }


def write_vqa(writer: Writer) -> None:
    """VQA 2 and Visual Genome questions; every record also names its kind, as the official files do."""
    folder, given = "data/finetune/vqa", Counter()
    for split, per_scene, first in VQA:
        paths = [path for path, _ in writer.pictures(f"vqa_{split}")]
        records, asker = [], Asker()
        for index, path in enumerate(paths):
            name = f"vqa_{split}"
            draws = text_draws(name, index, writer.seed)
            scene = scene_for(name, index, writer.seed)
            for number, question in enumerate(asker.ask(draws, scene, per_scene)):
                answers = ten_answers(draws, question)
                records.append(
                    {
                        "question_id": first + 10 * index + number,
                        "question": question.text,
                        "answer": question.answer if split == "vg" else answers,
                        "image": f"image/{_name(path)}" if split == "vg" else path.removeprefix("images/coco/"),
                        "dataset": "vg" if split == "vg" else "vqa",
                        "question_type": question.kind,
                    }
                )
        if split == "test":  # official test answers are not public: ours go to the truth folder
            writer.json("truth/vqa_test_answers.json", records)
            records = [{key: r[key] for key in r if key != "answer"} for r in records]
        else:
            given.update(a for r in records for a in ([r["answer"]] * 10 if split == "vg" else r["answer"]))
        writer.json(f"{folder}/{'vg_qa' if split == 'vg' else name}.json", records)
    every = [answer for answers in ANSWERS.values() for answer in answers]
    writer.json(f"{folder}/answer_list.json", sorted(every, key=lambda a: (-given[a], every.index(a))))


def write_nlvr(writer: Writer) -> None:
    """NLVR2 in BLIP's format, with identifiers; every sentence is true of one pair of its set and false of another."""
    for split in ("train", "dev", "test"):
        paths, records = [path for path, _ in writer.pictures(f"nlvr_{split}")], []
        for first in range(0, len(paths), SCENES):
            name, group = f"nlvr_{split}", range(first, first + SCENES)
            scenes = [scene_for(name, index, writer.seed) for index in group]
            draws = text_draws(name, first, writer.seed)
            statements = list(enumerate(draw_statements(draws, scenes, STATEMENTS)))
            for pair, sides in enumerate(PAIRS):
                images = [paths[first + side].removeprefix("images/nlvr2/") for side in sides]
                for number, statement in statements:
                    if pair in (statement.true_of, statement.false_of):
                        identifier = f"{split}-{first // SCENES}-{pair}-{number}"
                        about = {"label": str(pair == statement.true_of), "identifier": identifier}
                        about |= {"sentence": statement.text, "kind": statement.kind}
                        records.append({"images": images, **about})
        writer.json(f"data/finetune/nlvr/nlvr_{split}.json", records)


def write_imagenet(writer: Writer) -> None:
    """One folder a class; a class is a texture and a shape."""
    writer.pictures("imagenet")
    rows = [(wnid(label), class_name(look)) for label, look in enumerate(IMAGENET_LOOKS)]
    writer.csv("data/imagenet/annots/metadata.csv", ("folder_name", "class_name"), rows)


def write_flowers102(writer: Writer) -> None:
    """One folder for all pictures, splits and classes in a table; a class is a colour and a shape."""
    rows: list[tuple[Any, ...]] = []
    for split in ("train", "val", "test"):
        records = writer.pictures(f"flowers_{split}")
        rows += [(_name(path), split, i % len(FLOWER_LOOKS)) for i, (path, _) in enumerate(records)]
    writer.csv("data/flowers102/annots/split.csv", ("filename", "split", "class"), rows)
    names = [(label, class_name(look)) for label, look in enumerate(FLOWER_LOOKS)]
    writer.csv("data/flowers102/annots/metadata.csv", ("idx", "class_name"), names)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


WRITERS: dict[str, Callable[[Writer], None]] = {
    "calibration": write_calibration,
    "pretrain": write_pretrain,
    "regions": write_regions,
    "itr": write_itr,
    "ic": write_ic,
    "vqa": write_vqa,
    "nlvr": write_nlvr,
    "imagenet": write_imagenet,
    "flowers102": write_flowers102,
}
