"""Costs, layers and published numbers of made-up results, by hand."""

import numpy as np
import pytest
import torch

from console.errors import InputError
from sparsity.mask import Mask
from studies.collecting import collect, count_layers
from studies.costs import check_cost, costs_of, front
from studies.layers import layer_shares, modality_shares
from studies.markup import table_csv
from studies.plan import PRUNE
from studies.published import published_table, read_published
from studies.results import read_records
from studies.scores import Scores
from studies.tables import modality_table, task_table
from tests.studies.fakes import make
from tests.studies.made import put, put_pruning, read


def results_of(folder):
    put(folder, {"overall": 1.0})
    return read(folder)


def test_times_and_memory(tmp_path):
    """Seeds 0 and 1 take 2 and 4 s, 1 and 2 GB; seed 2 was interrupted and lacks its first sitting."""
    folder = tmp_path / "made"
    for seed, (seconds, memory) in enumerate(((2.0, 1.0), (4.0, 2.0), (0.1, 3.0))):
        put_pruning(folder, "omp", seed, seconds, memory, attempts=2 if seed == 2 else 1)
    results = results_of(folder)
    assert costs_of(results, "xvlm-mini", ["omp", "snip"], "seconds")["omp"].values == (2, 4)
    assert costs_of(results, "xvlm-mini", ["omp"], "seconds")["omp"].sd == pytest.approx(2**0.5)
    assert costs_of(results, "xvlm-mini", ["omp"], "peak_memory_gb")["omp"].mean == 2
    assert costs_of(results, "xvlm-mini", ["omp"], "cpu_seconds")["omp"].values == (6, 8)
    assert "snip" not in costs_of(results, "xvlm-mini", ["omp", "snip"], "seconds")


def test_sparsities_pruned_later_add_their_time(tmp_path):
    """63 and 75 % together in 5 s, 90 % on its own in 3: 8 s."""
    rows = {name: {"seconds": 5.0, "masks_in_this_run": 2, "peak_memory_gb": 1.0} for name in ("63", "75")}
    rows["90"] = {"seconds": 3.0, "masks_in_this_run": 1, "peak_memory_gb": 1.5}
    put_pruning(tmp_path / "made", "omp", 0, 0, 1.5, metrics=rows)
    results = results_of(tmp_path / "made")
    assert costs_of(results, "xvlm-mini", ["omp"], "seconds")["omp"].values == (8,)
    assert costs_of(results, "xvlm-mini", ["omp"], "peak_memory_gb")["omp"].values == (1.5,)


def test_sittings_that_ended_well_are_no_interruption(tmp_path):
    """One for each sparsity that was added."""
    put_pruning(tmp_path / "made", "omp", 0, 2.0, 1.0, attempts=2, ended_well=True)
    assert costs_of(results_of(tmp_path / "made"), "xvlm-mini", ["omp"], "seconds")["omp"].values == (2,)


def test_other_sparsities_share_the_cost_of_pruning(tmp_path):
    made = put_pruning(tmp_path / "made", "snip", 0, 2.0, 1.0)
    put(tmp_path / "made", {"overall": 1.0}, "high", 90, pruned_by=made.stem, method="snip")
    costs = costs_of(results_of(tmp_path / "made"), "xvlm-mini", ["snip", "high", "omp"], "seconds")
    assert {name: cost.values for name, cost in costs.items()} == {"snip": (2,), "high": (2,)}


def test_the_front_is_what_plain_loops_find():
    draw = np.random.default_rng(0)
    points = {str(i): tuple(draw.integers(0, 12, 2).tolist()) for i in range(40)}
    beaten = {
        a
        for a, (cost, score) in points.items()
        if any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points.values())
    }
    found = front(points)
    assert {points[name] for name in found} == {points[name] for name in points.keys() - beaten}
    assert [points[name][0] for name in found] == sorted(points[name][0] for name in found)


def test_unknown_cost():
    with pytest.raises(InputError, match=r"unknown axis 'secnds' \(did you mean 'seconds'\?\)"):
        check_cost("secnds")


# -- layers ---------------------------------------------------------------------------------------------


def test_counts_of_a_mask_file_are_the_masks_own(tmp_path):
    draw = torch.Generator().manual_seed(0)
    kept = {name: torch.rand(5, 7, generator=draw) > 0.6 for name in ("a", "b", "c")}
    mask = Mask(kept, {"a": "vision", "b": "text", "c": "vision"})
    mask.save(tmp_path / "mask.safetensors")
    expected = {
        "vision": {name: [int(kept[name].sum()), 35] for name in "ac"},
        "text": {"b": [int(kept["b"].sum()), 35]},
    }
    assert count_layers(tmp_path / "mask.safetensors") == (expected, None)
    (tmp_path / "other").write_text("no mask")
    assert count_layers(tmp_path / "other") == ({}, None)
    assert count_layers(tmp_path / "missing") == ({}, None)


def layers(a, b, c):
    return {"63": {"vision": {"a": [a, 10], "b": [b, 30]}, "text": {"c": [c, 20]}}}


def test_shares_by_modality_are_means_over_seeds(tmp_path):
    """vision keeps 10 of 40, then 20 of 40: 0.75 and 0.5 pruned, mean 0.625; layer b 20 of 30 and 10 of 30: 0.5."""
    put_pruning(tmp_path / "made", "snip", 0, 1, 1, layers=layers(0, 10, 20))
    put_pruning(tmp_path / "made", "snip", 1, 1, 1, layers=layers(0, 20, 0))
    put_pruning(tmp_path / "made", "omp", 0, 1, 1)
    found = layer_shares(results_of(tmp_path / "made"), "xvlm-mini", ["omp", "snip"], 63)
    assert found.modalities == {"vision": ["a", "b"], "text": ["c"]}
    assert found.of_modality("snip", "vision") == pytest.approx(0.625)
    assert found.pruned == {"snip": {"a": 1, "b": 0.5, "c": 0.5}}
    assert layer_shares(results_of(tmp_path / "other"), "xvlm-mini", ["omp"], 63) is None


def test_modalities_are_counted_on_task_models(tmp_path):
    """platon keeps 2 of 10 and 4 of 10 of vision in two tasks: 70 % pruned; the score of each has its own beside it."""
    folder = tmp_path / "made"
    put_pruning(folder, "omp", 0, 1, 1, layers=layers(5, 15, 10))
    put(folder, {"overall": 50.0}, "dense", 0, kept={"vision": [10, 10], "text": [8, 8]})
    put(folder, {"overall": 40.0}, "omp", 63, kept={"vision": [5, 10], "text": [4, 8]})
    for task, metric, left in (("vqa", "overall", 2), ("captioning", "CIDEr", 4)):
        kept = {"vision": [left, 10], "text": [6, 8]}
        put(folder, {metric: 45.0}, "platon", 63, task, kept=kept, pruned_by=None)
    results = read(folder)
    found = {63.0: modality_shares(results, "xvlm-mini", ["omp", "platon", "snip"], 63)}
    assert found == {
        63.0: {
            "omp": {"vision": 0.5, "text": 0.5},
            "platon": {"vision": pytest.approx(0.7), "text": pytest.approx(0.25)},
        }
    }
    table = modality_table("xvlm-mini", found, ["omp", "platon", "snip"], True)
    assert [[cell.text for cell in row.cells] for row in table.rows] == [["50.0", "50.0"], ["70.0", "25.0"]]
    assert table.notes[-1].endswith("means over tasks.")
    table = task_table(Scores(results), "xvlm-mini", "vqa")
    assert [words for words, _ in table.heads[0]] == ["accuracy", "vision kept", "text kept"]
    shown = {row.label: [cell.text for cell in row.cells] for row in table.rows}
    assert shown["platon"] == ["45.0", "20.0", "75.0"]
    assert shown["dense"] == ["50.0", "100.0", "100.0"]


# -- published numbers ----------------------------------------------------------------------------------

HEAD = "model,task,metric,pruner,sparsity,value\n"


@pytest.fixture
def scores(tmp_path):
    put(tmp_path / "made", {"overall": 60.0}, seed=0)
    put(tmp_path / "made", {"overall": 64.0}, seed=1)
    put(tmp_path / "made", {"overall": 80.0}, "dense", 0)
    return Scores(read(tmp_path / "made"))


def test_ours_beside_theirs(tmp_path, scores):
    path = tmp_path / "paper.csv"
    path.write_text(
        HEAD
        + "xvlm-mini,vqa,overall,omp,75,63.25\nxvlm-mini,vqa,overall,snip,75,61\n"
        + "xvlm-mini,vqa,overall,dense,0,79\nblip,vqa,overall,omp,75,1\n"
    )
    table = published_table(scores, read_published(path, scores), "xvlm-mini")
    shown = {row.label: [cell.text for cell in row.cells] for row in table.rows}
    assert shown == {"dense": ["80.0", "79.0", "+1.0"], "omp": ["62.0", "63.2", "−1.2"], "snip": ["", "61.0", ""]}
    assert table.heads[0] == [("VQA: accuracy", 3)]
    assert published_table(scores, read_published(path, scores), "blip") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,task,metric\n", "lacks the column 'pruner'"),
        (HEAD + "xvlm-mini,vqa,overal,omp,75,1\n", r"line 2: unknown metric 'overal' \(did you mean 'overall'\?\)"),
        (HEAD + "xvlm-mini,vqa,overall,omp,75,high\n", "line 2: 'high' in the column 'value' is not a number"),
        (HEAD + "xvlm-mini,vqa,overall,omp,75\n", "line 2: 'None' in the column"),
        (HEAD + "xvlm-mini,vqa,overall,omp,75,1\n" * 2, "line 3: omp at 75 % is given twice"),
        (HEAD + "blip,vqa,overall,omp,75,1\n", "has no number on these results"),
        (HEAD, "has no number on these results"),
    ],
)
def test_published_numbers_that_are_wrong(tmp_path, scores, text, message):
    path = tmp_path / "paper.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_published(path, scores)
    with pytest.raises(InputError, match="no such file"):
        read_published(tmp_path / "none.csv", scores)


def test_lines_of_other_models_are_none_of_ours(tmp_path, scores):
    """Their metrics may be others; what has our names and no number of ours is told."""
    path = tmp_path / "paper.csv"
    ours = "xvlm-mini,vqa,overall,omp,75,1\n"
    path.write_text(HEAD + ours + "xvlm,vqa,some metric,omp,75,1\nxvlm-mini,nlvr,accuracy,omp,75,1\n")
    assert read_published(path, scores).notes == ()
    path.write_text(HEAD + ours + "xvlm-mini,vqa,overall,ommp,75,1\nxvlm-mini,vqa,overall,omp,0.75,1\n")
    (note,) = read_published(path, scores).notes
    assert note.endswith("without a counterpart in these results: ommp (did you mean 'omp'?), omp at 0.75 %")


def test_published_files_that_are_no_csv(tmp_path, scores):
    path = tmp_path / "paper.csv"
    path.write_text(HEAD + '"' + 200_000 * "x")
    with pytest.raises(InputError, match=r"cannot be read as CSV .*quotation mark"):
        read_published(path, scores)


def test_minus_signs_in_csv_can_be_read(tmp_path, scores):
    path = tmp_path / "paper.csv"
    path.write_text(HEAD + "xvlm-mini,vqa,overall,omp,75,63.25\n")
    table = published_table(scores, read_published(path, scores), "xvlm-mini")
    (line,) = table_csv(table).splitlines()[1:]
    assert min(float(value) for value in line.split(",")[1:] if value) == -1.2


def test_results_of_prunings_carry_the_counts(tmp_path):
    """A grid's own prune step, with real masks: what `collect` writes is what the report reads."""
    plan, places = make(tmp_path, pruners=["omp"])
    step = next(step for step in plan.steps if step.kind == PRUNE)
    for sparsity, kept in ((50, [True, True, False, False]), (75, [True, False, False, False])):
        Mask({"a": torch.tensor([kept])}, {"a": "vision"}).save(places.made(step, sparsity))
    table = "sparsity,seconds,calibration_seconds,masks_in_this_run,peak_memory_gb\n50,2,1,2,0.5\n75,2,1,2,0.5\n"
    places.made(step, 50).with_name("runtimes.csv").write_text(table)
    assert collect(step, places, plan)
    (found,) = read_records(places.result(step.id))
    assert found.result["layers"] == {"50": {"vision": {"a": [2, 4]}}, "75": {"vision": {"a": [1, 4]}}}
