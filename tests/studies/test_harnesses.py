"""Results of others' tools in a report. The files are made up in the forms that lmms-eval 0.7.3, lm-eval 0.4.13,
clip_benchmark 1.6.2 and VLMEvalKit write.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from console.errors import InputError
from evaluation.bootstrap import interval
from studies.harnesses import runs_of_tools
from studies.loyalty import _given, loyalty_table
from studies.reading import read_results
from studies.scores import Scores
from tests.studies.made import put, report

DENSE = "Qwen2.5-VL-3B-Instruct"
PRUNED = f"hf-{DENSE}_wanda_50_seed42"
ANSWERS = {DENSE: "yes no yes no yes no yes no yes no yes no", PRUNED: "yes No yes yes yes no yes no. no no yes no"}
TRUTH = "yes no yes no no no yes no yes no yes yes"


def lmms_eval(root: Path, model: str, date: str = "20261101_101010", **changes: object) -> Path:
    """Twelve questions of POPE on six pictures, two questions each, and a metric of points."""
    folder = root / f"models__{model}"
    folder.mkdir(parents=True, exist_ok=True)
    given, truth = ANSWERS[model].split(), TRUTH.split()
    right = [float(one.lower() == other) for one, other in zip(given, truth, strict=True)]
    content = {
        "results": {
            "pope": {
                "alias": "pope", "pope_accuracy,none": sum(right) / 12, "pope_accuracy_stderr,none": "N/A",
                "pope_f1_score,none": 0.25, "samples": 12,
            },
            "mme": {"alias": "mme", "mme_perception_score,none": 1500.5, "wer,none": 0.5},
            "mme_part": {"alias": "part", "score,none": 1.0},
        },
        "group_subtasks": {"mme": ["mme_part"], "pope": []},
        "higher_is_better": {"pope": {"pope_accuracy": True}, "mme": {"wer": False}},
        "config": {"model": "qwen2_5_vl", "model_args": f"pretrained=models/{model}", "limit": None},
        "lmms_eval_version": "0.7.3", "model_name": f"models/{model}",
    }  # fmt: skip
    (folder / f"{date}_results.json").write_text(json.dumps(content | changes))
    lines = [
        {
            "doc_id": n, "target": truth[n], "filtered_resps": given[n], "doc_hash": "x", "input": "Is there a dog?",
            "input_media": [f"{n // 2}.jpg"], "pope_accuracy": {"question_id": n, "score": right[n]},
            "pope_f1_score": {"question_id": n, "score": right[n]},
        }
        for n in range(12)
    ]  # fmt: skip
    (folder / f"{date}_samples_pope.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def logs(tmp_path):
    """A folder of results: dense and pruned, of four tools; of one place two, whose older one does not count."""
    logs = tmp_path / "logs"
    for model in (DENSE, PRUNED):
        lmms_eval(logs, model, "20261001_101010", results={"pope": {"pope_accuracy,none": 0.01}})
        lmms_eval(logs, model)
        (logs / f"{model}_imagenet1k.json").write_text(
            json.dumps({"dataset": "imagenet1k", "model": f"local-dir:x/{model}", "pretrained": "", "task": "z",
                        "metrics": {"acc1": 0.6, "acc5": 0.9}, "language": "en"})
        )  # fmt: skip
        kit = logs / model / "T20261101_Gabc"
        kit.mkdir(parents=True)
        with (kit / f"{model}_POPE_score.csv").open("w", newline="") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerows([["split", "Overall", "acc"], ["Overall", 80.5, 81.0], ["adversarial", 70, 71]])
        (logs / f"models__{model}" / "results_2026-11-02T10-10-10.5.json").write_text(
            json.dumps(
                {"results": {"mmmu_val": {"acc,none": 0.4, "alias": "x"}}, "model_name": f"models/{model}"}
                | {"config": {"limit": 8.0}, "lm_eval_version": "0.4.13"}
            )
        )
    (logs / f"{DENSE}.json").write_text('{"model": {}, "data": {}}')
    (logs / "broken.json").write_text("no JSON of ours")
    return logs


def test_runs(logs):
    found, notes = runs_of_tools(logs)
    runs = {(run.task, run.pruner): run for run in found}
    assert {run.model for run in found} == {f"hf:{DENSE}"}
    pruned = runs["lmms-eval:pope", "wanda"]
    assert (pruned.sparsity, pruned.seed, pruned.method, pruned.chance) == (50.0, 42, "wanda", True)
    assert pruned.metrics == pytest.approx({"pope_accuracy": 100 * 7 / 12, "pope_f1_score": 25.0})
    assert list(pruned.items()["items"].scores) == ["pope_accuracy"], "the other one is no mean of scores"
    assert runs["lmms-eval:mme", "dense"].metrics == {"mme_perception_score": 1500.5}
    assert runs["vlmevalkit:POPE", "dense"].metrics["Overall"] == 80.5
    assert runs["vlmevalkit:POPE", "dense"].metrics["adversarial acc"] == 71
    assert runs["clip_benchmark:imagenet1k", "wanda"].metrics == {"acc1": 60.0, "acc5": 90.0}
    assert runs["lm-eval:mmmu_val", "dense"].metrics == {"acc": 40.0}
    assert len(runs) == 10
    assert "lmms-eval mme: wer is left out, since lower is better" in notes
    assert f"lm-eval mmmu_val of {PRUNED} is a trial of 8 samples" in notes


def test_a_report_with_loyalty(logs):
    report(logs, "--loyalty", "--only", "task=lmms-eval:pope", "--output", str(logs / "out"))
    with (logs / "out" / "tables" / "scores.csv").open() as file:
        rows = {(row["task"], row["metric"], row["pruner"]): row for row in csv.DictReader(file)}
    assert float(rows["lmms-eval:pope", "pope_accuracy", "wanda"]["share_of_dense"]) == pytest.approx(7 / 10)
    with (logs / "out" / "tables" / "loyalty.csv").open() as file:
        *_, row = csv.reader(file)
    pairs = zip(*(text.lower().replace(".", "").split() for text in ANSWERS.values()), strict=True)
    same = np.array([one == other for one, other in pairs])
    low, high = interval(same.astype(float), [n // 2 for n in range(12)])
    found = [
        f"wanda hf:{DENSE}",
        "lmms-eval (pope)",
        "50 %",
        "83.3",
        f"{100 * low:.1f} to {100 * high:.1f}",
        "12",
        "answers",
    ]
    assert row == found and same.sum() == 10
    page = (logs / "out" / "index.html").read_text()
    assert "logs: 2 runs of tasks" in page and "lmms-eval (pope)" in page


def test_next_to_our_own(logs, tmp_path):
    """One model, whatever the folder above it; our own runs are compared by the scores of items, seed by seed."""
    folder = tmp_path / "made"
    for seed, right in ((0, [1, 1, 0, 0, 1, 1]), (1, [1, 1, 1, 0, 0, 0])):
        for pruner, sparsity, scores in (("dense", 0, [1, 1, 0, 0, 1, 0]), ("omp", 50, right)):
            items = {"format": 2, "groups": {"items": {"ids": list(range(6)), "scores": {"overall": scores}}}}
            put(folder, {"overall": 50.0}, pruner, sparsity, seed=seed, items=items, model=f"hf:models/{DENSE}")
    both = Scores(read_results([str(folder), str(logs)], tmp_path, tmp_path / "work"))
    assert both.models == (f"hf:models/{DENSE}",) and {"vqa", "lmms-eval:pope"} <= set(both.known)
    rows = {row.label: [cell.text for cell in row.cells] for row in loyalty_table(both).rows}
    assert rows["omp"] == ["VQA", "50 %", "75.0", rows["omp"][3], "6", "accuracy, right or wrong"]
    assert rows["wanda"][-1] == "answers"


def test_one_run_in_two_folders_counts_once(logs, tmp_path):
    shutil.copytree(logs, tmp_path / "again")
    once, twice = (read_results(folders, tmp_path, tmp_path) for folders in ([logs], [logs, tmp_path / "again"]))
    assert [run.id for run in twice.tasks] == [run.id for run in once.tasks]


def test_choices_that_were_scored(tmp_path):
    """Of log-likelihoods the best choice is the answer; the pictures are those of the documents."""
    folder = tmp_path / "models__x"
    folder.mkdir()
    content = {"results": {"ai2d": {"acc,none": 0.5}}, "model_name": "models/x", "config": {}}
    (folder / "results_2026.json").write_text(json.dumps(content))
    lines = [
        {"doc_id": n, "doc": {"image_id": "a"}, "filter": kind, "acc": 1 - n,
         "filtered_resps": [["-3.5", "False"], ["-1.25", "True"]]}
        for n in range(2) for kind in ("none", "other")
    ]  # fmt: skip
    (folder / "samples_ai2d_2026.jsonl").write_text("\n".join(map(json.dumps, lines)))
    [run] = runs_of_tools(tmp_path)[0]
    assert run.items()["items"].pictures == ["a", "a"] and run.items()["items"].scores == {"acc": [1.0, 0.0]}
    assert _given(run, "acc", True) == {(0, 0): ("1", "a"), (0, 1): ("1", "a")}


def test_bad_files(logs, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="or the output folder of another tool"):
        read_results([str(tmp_path / "empty")], tmp_path, tmp_path / "work")
    samples = lmms_eval(logs, PRUNED) / "20261101_101010_samples_pope.jsonl"
    lines = samples.read_text().splitlines()
    samples.write_text("\n".join(lines[:11]))
    with pytest.raises(InputError, match="were tested on different items: run both on the same ones"):
        report(logs, "--loyalty")
    samples.write_text(lines[0][:40])
    with pytest.raises(InputError, match=r"samples_pope\.jsonl is damaged"):
        report(logs)
    samples.write_text("{}")
    with pytest.raises(InputError, match="is incomplete as a file of samples"):
        report(logs)
    samples.with_name("20261101_101010_results.json").write_text('{"results": [], "model_name": "x"}')
    with pytest.raises(InputError, match="is incomplete as a result of lmms-eval"):
        report(logs)
    table = next(logs.rglob("*_score.csv"))
    table.write_text(table.read_text() + "1,2,3,4,5,6,7,8,9\n")
    with pytest.raises(InputError, match=r"_score\.csv is damaged: a line has more fields than the first one"):
        runs_of_tools(table.parent.parent)
    table.write_bytes(b"split,Overall\nnone,80\n\xff,1\n")
    assert runs_of_tools(table.parent.parent)[0][0].metrics["Overall"] == 80
    for file in [*logs.rglob("*samples*"), *logs.rglob("*_results.json")]:
        file.unlink()
    with pytest.raises(InputError, match="--loyalty needs scores or answers of single items"):
        report(logs, "--loyalty")
