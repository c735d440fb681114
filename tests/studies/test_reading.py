"""Which results are taken, which are left out and said so, and which end the command."""

import re

import pytest

from console.errors import InputError
from studies.reading import read_results
from studies.results import pack, read_records
from studies.version import version
from tests.studies.made import change, places_of, put, put_pruning, read


def values(results):
    return sorted(run.metrics["overall"] for run in results.tasks)


def test_a_grid_a_folder_and_a_folder_of_folders(tmp_path):
    put(tmp_path / "results" / "one", {"overall": 1.0})
    put(tmp_path / "results" / "two", {"overall": 2.0}, "snip")
    (tmp_path / "one.yaml").write_text("models: [xvlm-mini]\npruners: [omp]\n")
    assert values(read_results([str(tmp_path / "one.yaml")], tmp_path / "results", tmp_path / "results/work")) == [1]
    packed = str(tmp_path / "results" / "one.jsonl.xz")
    assert values(read_results([packed], tmp_path, tmp_path / "results/work")) == [1]
    assert values(read(tmp_path / "results" / "two")) == [2]
    assert values(read_results([str(tmp_path / "results")], tmp_path, tmp_path / "results/work")) == [1, 2]
    assert values(read(tmp_path / "results" / "one", tmp_path / "results" / "two")) == [1, 2]


def test_the_current_folder(tmp_path, monkeypatch):
    put(tmp_path / "one", {"overall": 1.0})
    monkeypatch.chdir(tmp_path)
    assert values(read_results(["."], tmp_path, tmp_path / "work")) == [1]


def test_the_same_run_in_two_grids_counts_once(tmp_path):
    for grid in ("one", "two"):
        put(tmp_path / grid, {"overall": 1.0}, id="same")
    assert values(read(tmp_path / "one", tmp_path / "two")) == [1]


def test_a_shared_pruning_has_both_sparsities(tmp_path):
    for grid, sparsity in (("one", "75"), ("two", "90")):
        layers = {sparsity: {"text": {"layer": [1, 4]}}}
        put_pruning(tmp_path / grid, "omp", 0, 1, 1, id="same", metrics={sparsity: {"seconds": 1.0}}, layers=layers)
        put(tmp_path / grid, {"overall": 1.0}, sparsity=float(sparsity))
    (pruning,) = read(tmp_path / "one", tmp_path / "two").prunings
    assert set(pruning.result.layers) == set(pruning.result.metrics) == {"75", "90"}
    assert pruning.metrics == {"75 seconds": 1.0, "90 seconds": 1.0}


def test_rows_are_in_the_order_of_the_grid(tmp_path):
    for pruner in ("zebra", "omp", "multiflow", "snip"):
        put(tmp_path / "made", {"overall": 1.0}, pruner)
    assert read(tmp_path / "made").order == ("multiflow", "snip", "omp", "zebra"), "the toolkit's, then by name"
    pack(places_of(tmp_path / "made"), "pruners: [omp, snip]\nvariants: {zebra: {pruner: omp}}\n")
    assert read(tmp_path / "made").order == ("omp", "snip", "zebra", "multiflow")
    put(tmp_path / "made", {"overall": 1.0}, "platon + ID", method="platon", pruned_by=None)
    pack(places_of(tmp_path / "made"), "pruners: [omp]\nprogressive: [platon]\nvariants: {zebra: {pruner: omp}}\n")
    assert read(tmp_path / "made").order == ("omp", "platon + ID", "zebra", "multiflow", "snip")


def test_another_version_is_named_and_not_mixed(tmp_path):
    put(tmp_path / "made", {"overall": 1.0})
    for seed in (1, 2):
        put(tmp_path / "made", {"overall": 50.0}, seed=seed, version={**version(), "torch": "1"})
    found = read(tmp_path / "made")
    assert values(found) == [1], "today's, although the others are more"
    assert found.notes == ("2 results of another version (torch 1) are left out",)


def test_another_version_alone_is_shown(tmp_path):
    put(tmp_path / "made", {"overall": 1.0}, seed=0, version={"results": "0"})
    put(tmp_path / "made", {"overall": 2.0}, seed=1, version={**version(), "results": "7"})
    found = read(tmp_path / "made")
    assert values(found) == [2], "the newest"
    assert found.notes[0] == "these results were made with another version than today's (results 7)"
    assert "results 0" in found.notes[1]


@pytest.mark.parametrize("text", ['{"format": 2, "id": "x", "axes"', "[]", '{"format": 2, "id": "x"}'])
def test_half_of_a_result_ends_the_command(tmp_path, text):
    put(tmp_path / "made", {"overall": 1.0})
    half = put(tmp_path / "made", {"overall": 2.0}, "snip")
    half.write_text(text)
    with pytest.raises(InputError, match=r"snip.*\.jsonl is damaged or holds no results: remove it"):
        read(tmp_path / "made")


def test_a_result_that_is_being_written_is_not_seen(tmp_path):
    whole = put(tmp_path / "made", {"overall": 1.0})
    whole.with_name(f".{whole.name}.0a1b2c3d.part").write_text('{"format": 2,')
    assert values(read(tmp_path / "made")) == [1]


def test_a_repeated_result_replaces_the_first(tmp_path):
    """Its axes are those of the first, its id is that of a run that is defined in the same way."""
    put(tmp_path / "made", {"overall": 1.0}, id="first", finished="2026-01-01T00:00:00+00:00")
    put(tmp_path / "made", {"overall": 2.0}, id="again", finished="2026-01-02T00:00:00+00:00")
    found = read(tmp_path / "made")
    assert values(found) == [2]
    assert found.notes == ("1 result has a newer one in the same place, which is used",)


def test_tasks_of_another_configuration_are_left_out(tmp_path):
    for seed in range(3):
        put(tmp_path / "made", {"overall": 1.0}, seed=seed)
    put(tmp_path / "made", {"overall": 9.0}, "snip", like="more epochs")
    found = read(tmp_path / "made")
    assert values(found) == [1, 1, 1]
    assert found.notes == ("1 result of xvlm-mini vqa with another configuration is left out",)


def test_masks_made_in_another_way_are_left_out(tmp_path):
    """snip with 4 batches (two seeds) and with 50 (one): the seeds of one recipe belong together."""
    for seed, batches in ((0, 4), (1, 4), (2, 50)):
        made = {"kind": "prune", "config": {"num_batches": batches}, "seed": seed}
        put_pruning(tmp_path / "made", "snip", seed, 3.0, 1.0, id=f"prune-{seed}", defined_by=made)
        put(tmp_path / "made", {"overall": float(batches)}, "snip", seed=seed, pruned_by=f"prune-{seed}")
    found = read(tmp_path / "made")
    assert values(found) == [4, 4]
    assert len(found.prunings) == 2
    assert found.notes == ("2 results of xvlm-mini snip pruned in another way are left out",)


def test_masks_made_while_training_are_of_a_task(tmp_path):
    """Captioning and VQA may have phases of their own; within a task there is one way."""
    for task, metric, interval in (("captioning", "CIDEr", 5), ("vqa", "overall", 10)):
        for seed in (0, 1):
            made = {"seed": seed, "progressive": {"prune": "platon", "interval": interval, "sparsity": 75}}
            put(tmp_path / "made", {metric: 1.0}, "platon", 75, task, seed, pruned_by=None, defined_by=made)
    other = {"progressive": {"prune": "platon", "interval": 50, "sparsity": 90}}
    put(tmp_path / "made", {"overall": 9.0}, "platon", 90, pruned_by=None, defined_by=other)
    found = read(tmp_path / "made")
    assert sorted((run.task, run.sparsity) for run in found.tasks) == [("captioning", 75)] * 2 + [("vqa", 75)] * 2
    assert found.notes == ("1 result of xvlm-mini platon vqa pruned in another way is left out",)


def test_selections(tmp_path):
    for pruner in ("omp", "snip"):
        for number, sparsity in enumerate((63, 62.5)):
            put(tmp_path / "made", {"overall": 10.0 * number + len(pruner)}, pruner, sparsity)
    put(tmp_path / "made", {"overall": 99.0}, "dense", 0)
    assert values(read(tmp_path / "made", only=["pruner=omp"])) == [3, 13, 99]
    assert values(read(tmp_path / "made", only=["sparsity=62.5", "pruner=omp,snip"])) == [13, 14, 99]
    assert values(read(tmp_path / "made", only=["model=xvlm-mini"])) == [3, 4, 13, 14, 99]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("pruners=omp", r"not 'pruners=omp' \(did you mean 'pruner'\?\): the axes are model, pruner"),
        ("pruner", "--only takes AXIS=VALUE"),
        ("pruner=omq", r"unknown pruner 'omq' \(did you mean 'omp'\?\): these results have omp"),
        ("sparsity=76", "unknown sparsity '76'"),
        ("task=vqq", "unknown task 'vqq'"),
    ],
)
def test_unknown_axes_and_values(tmp_path, word, message):
    put(tmp_path / "made", {"overall": 1.0})
    with pytest.raises(InputError, match=message):
        read(tmp_path / "made", only=[word])


def test_nothing_to_report(tmp_path):
    with pytest.raises(InputError, match="there are no results"):
        read(tmp_path / "nowhere")
    pack(places_of(tmp_path / "made"), "")
    with pytest.raises(InputError, match="holds no results: run the grid first"):
        read(tmp_path / "made")
    put_pruning(tmp_path / "made", "omp", 0, 1.0, 1.0)
    with pytest.raises(InputError, match="holds no result of a task yet, only prunings"):
        read(tmp_path / "made")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 3}, "is of format 3, and this version reads 2"),
        ({"version": "x"}, "'version' must be a mapping"),
        ({"version": {"torch": 2}}, "'version.torch' must be text"),
        ({"like": [1]}, "'like' must be text"),
        ({"pruned_by": 7}, "'pruned_by' must be text"),
        ({"seconds": "x"}, "'seconds' must be a number"),
        ({"defined_by": "x"}, "'defined_by' must be a mapping"),
        ({"layers": {"75": 5}}, "'layers.75' must be a mapping"),
        ({"axes": {"model": "m"}}, "axes: the key 'pruner' is missing"),
        ({"pruner": None}, "axes: 'pruner' must be text"),
        ({"seed": "0"}, "axes: 'seed' must be a whole number"),
        ({"sparsity": 7500}, "'sparsity' must be a percentage"),
        ({"items": 7}, "unknown key 'items'"),
    ],
)
def test_values_that_no_grid_writes(tmp_path, changes, words):
    path = put(tmp_path / "made", {"overall": 1.0}, id="x")
    (record,) = read_records(path)
    axes = {key: changes.pop(key) for key in list(changes) if key in record.result["axes"]}
    change(path, axes=record.result["axes"] | axes)
    change(path, **changes)
    with pytest.raises(InputError, match=rf"made\.jsonl\.xz: x.*{re.escape(words)}"):
        read(tmp_path / "made")


def test_a_result_without_a_number_is_told(tmp_path):
    put(tmp_path / "made", {"overall": "abc"}, "snip")
    put(tmp_path / "made", {"overall": 1.0})
    assert any(note.endswith("has no metric") for note in read(tmp_path / "made").notes)
