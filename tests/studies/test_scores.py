"""Scores of made-up results against numbers written out by hand."""

import numpy as np
import pytest

from console.errors import InputError
from evaluation.items import Items, groups_of
from studies.pairs import Pair, pairs_table
from studies.results import pack
from studies.rows import UNPRUNED
from studies.scores import Scores
from studies.significance import Kind, mean_scores
from studies.significance import scores_of as scores_of_items
from studies.tables import main_table, overview_table, share_table, task_table
from tests.studies.made import places_of, put, read
from training.results import metrics_line

COLUMN = ("xvlm-mini", "vqa", "overall", 75.0)


def scores_of(folder, only=()):
    return Scores(read(folder, only=only))


def items(values, names=None):
    return grouped(ids=names or [f"q{i}" for i in range(len(values))], scores={"overall": values})


def grouped(**items):
    return {"format": 2, "groups": {"items": items}}


@pytest.fixture
def grid(tmp_path):
    """dense 80; omp 60, 62, 64; snip 70, 71, 75; lamp 40 and 44, a seed missing."""
    folder = tmp_path / "results" / "made"
    rows = {"omp": (60, 62, 64), "snip": (70, 71, 75), "lamp": (40, 44), "dense": (79, 81, 80), "random weights": (9,)}
    for pruner, values in rows.items():
        for seed, value in enumerate(values):
            put(folder, {"overall": value}, pruner, 0 if pruner in UNPRUNED else 75, seed=seed)
    return folder


def test_means_deviations_shares_and_ranks(grid):
    scores = scores_of(grid)
    found = scores.column(COLUMN)
    assert scores.dense("xvlm-mini", "vqa", "overall").mean == 80
    assert {name: score.mean for name, score in found.items()} == {"omp": 62, "snip": 72, "lamp": 42}
    assert found["omp"].sd == 2  # (4 + 0 + 4) / 2 = 4
    assert found["snip"].sd == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2 = 7
    assert found["lamp"].sd == pytest.approx(8**0.5)  # (4 + 4) / 1
    assert {name: score.share for name, score in found.items()} == {"omp": 0.775, "snip": 0.9, "lamp": 0.525}
    assert {name: score.rank for name, score in found.items()} == {"omp": 2, "snip": 1, "lamp": 0}
    assert {name: score.missing for name, score in found.items()} == {"omp": 0, "snip": 0, "lamp": 1}
    assert all(score.p is None for score in found.values())
    assert sum(scores.untested.values()) == 1


def test_the_table_says_so(grid):
    table = main_table(scores_of(grid), "xvlm-mini", [("vqa", "overall")])
    assert table.heads == [[("VQA", 1)], [("accuracy", 1)], [("75 %", 1)]]
    shown = {row.label: row.cells[0] for row in table.rows}
    rows = ["dense", "random weights", "snip", "omp", "lamp"]
    assert list(shown) == rows, "what is not pruned on top, then in the toolkit's own order"
    assert (shown["dense"].text, shown["dense"].spread, shown["dense"].share) == ("80.0", "1.0", "")
    assert (shown["snip"].text, shown["snip"].spread, shown["snip"].share) == ("72.0", "2.6", "90.0")
    assert (shown["lamp"].text, shown["lamp"].seeds, shown["omp"].seeds) == ("42.0", "2", "")
    assert (shown["snip"].mark, shown["omp"].mark) == ("†", "")
    assert any(note.startswith("† not tested") for note in table.notes)
    shares = {
        row.label: [cell.text for cell in row.cells]
        for row in share_table(scores_of(grid), "xvlm-mini", [("vqa", "overall")]).rows
    }
    assert shares == {"snip": ["90.0", "90.0"], "omp": ["77.5", "77.5"], "lamp": ["52.5", "52.5"]}


def test_what_looks_equal_shares_a_rank(tmp_path):
    folder = tmp_path / "made"
    for pruner, value in {"omp": 50.01, "snip": 50.04, "lamp": 49.0, "l2": 49.04, "rand": 1}.items():
        put(folder, {"overall": value}, pruner)
    ranks = {name: score.rank for name, score in scores_of(folder).column(COLUMN).items()}
    assert ranks == {"omp": 1, "snip": 1, "lamp": 2, "l2": 2, "rand": 0}


def test_one_pruner_alone_is_not_the_best(tmp_path):
    put(tmp_path / "made", {"overall": 50.0})
    assert scores_of(tmp_path / "made").column(COLUMN)["omp"].rank == 0


def test_without_chance_one_value_is_all_there_is(tmp_path):
    folder = tmp_path / "made"
    put(folder, {"itm r_mean": 30.0}, task="zero_shot", chance=False)
    for seed in range(3):
        put(folder, {"itm r_mean": 40.0 + seed}, "snip", task="zero_shot", seed=seed)
    found = scores_of(folder).column(("xvlm-mini", "zero_shot", "itm r_mean", 75.0))
    assert (found["omp"].sd, found["omp"].missing) == (None, 0)
    assert (found["snip"].sd, found["snip"].missing) == (1, 0)
    only = scores_of(folder, ["seed=1"]).column(("xvlm-mini", "zero_shot", "itm r_mean", 75.0))
    assert (only["omp"].values, only["snip"].values) == ((30,), (41,))


def test_seeds_that_no_run_has_yet_are_missing(tmp_path):
    """The grid's own copy says how many there are to be; a selection asks for fewer."""
    folder = tmp_path / "made"
    put(folder, {"overall": 50.0})
    put(folder, {"overall": 60.0}, "snip", chance=False)
    assert scores_of(folder).column(COLUMN)["omp"].missing == 0, "nobody asked for more"
    pack(places_of(folder), "models: [xvlm-mini]\ntasks: [vqa]\nseeds: [0, 1, 2]\n")
    found = scores_of(folder).column(COLUMN)
    assert (found["omp"].missing, found["snip"].missing) == (2, 0)
    assert scores_of(folder, ["seed=0"]).column(COLUMN)["omp"].missing == 0
    pack(places_of(folder), "models: [xvlm-mini]\ntasks: {xvlm-mini: [retrieval]}\nseeds: [0, 1, 2]\n")
    assert scores_of(folder).column(COLUMN)["omp"].missing == 0, "of another task"


def test_a_dense_model_at_zero_has_no_share(tmp_path):
    folder = tmp_path / "made"
    put(folder, {"overall": 0.0}, "dense", 0)
    put(folder, {"overall": 1.0})
    assert scores_of(folder).column(COLUMN)["omp"].share is None


def test_nested_metrics_and_words_among_them(tmp_path):
    folder = tmp_path / "made"
    put(folder, {"overall": 50, "by_kind": {"count": 30.5}, "left_out": ["METEOR"], "empty": None, "flag": True})
    scores = scores_of(folder)
    assert scores.metrics("xvlm-mini", "vqa") == ["overall", "by_kind count"]
    assert task_table(scores, "xvlm-mini", "vqa").heads == [[("accuracy", 1), ("count", 1)]]


def test_what_diverged_is_told(tmp_path):
    put(tmp_path / "made", {"overall": float("nan"), "by_kind": {"count": float("inf"), "colour": 3.0}}, "omp")
    put(tmp_path / "made", {"overall": 50.0}, "snip")
    (note,) = read(tmp_path / "made").notes
    assert note.endswith("omp-75-seed0: overall, by_kind count is not a finite number")


def test_means_of_shares_are_over_tasks(tmp_path):
    """VQA keeps 40 of 80, captioning 90 of 100: 0.7; without one of them there is no mean."""
    folder = tmp_path / "made"
    columns = [("captioning", "CIDEr"), ("vqa", "overall")]
    put(folder, {"overall": 80.0}, "dense", 0)
    put(folder, {"CIDEr": 100.0}, "dense", 0, "captioning")
    put(folder, {"overall": 40.0})
    put(folder, {"CIDEr": 90.0}, task="captioning")
    put(folder, {"overall": 50.0}, "snip")
    scores = scores_of(folder)
    assert scores.mean_share("xvlm-mini", "omp", 75, columns).values == pytest.approx((0.7,))
    assert scores.mean_share("xvlm-mini", "snip", 75, columns) is None


def test_means_of_shares_by_seed(tmp_path):
    """A seed counts once every task has it; a run without chance stands for every seed."""
    folder = tmp_path / "made"
    columns = [("zero_shot", "IoU"), ("captioning", "CIDEr"), ("vqa", "overall")]
    put(folder, {"IoU": 50.0}, "dense", 0, "zero_shot", chance=False)
    put(folder, {"IoU": 25.0}, task="zero_shot", chance=False)
    for seed, dense, cider, right in ((0, 70.0, 90.0, 40.0), (1, 90.0, 60.0, 20.0)):
        put(folder, {"overall": dense}, "dense", 0, seed=seed)
        put(folder, {"CIDEr": 100.0}, "dense", 0, "captioning", seed=seed)
        put(folder, {"overall": right}, seed=seed)
        put(folder, {"CIDEr": cider}, task="captioning", seed=seed)
    put(folder, {"overall": 80.0}, seed=2)  # its captions are still to come
    found = scores_of(folder).mean_share("xvlm-mini", "omp", 75, columns)
    assert found.values == pytest.approx(((0.5 + 0.9 + 0.5) / 3, (0.5 + 0.6 + 0.25) / 3))
    assert found.missing == 1
    row = share_table(scores_of(folder), "xvlm-mini", columns).rows[0]
    assert (row.cells[-1].text, row.cells[-1].spread, row.cells[-1].seeds) == ("54.2", "13.0", "2")


def test_models_side_by_side(tmp_path):
    folder = tmp_path / "made"
    for model, task, metric in (("xvlm-mini", "vqa", "overall"), ("dino-mini", "image_classification", "top1")):
        put(folder, {metric: 80.0}, "dense", 0, task, model=model, id=f"{model}-dense")
        for pruner, value in (("omp", 40.0), ("snip", 60.0), ("rand", 8.0)):
            if (model, pruner) != ("dino-mini", "snip"):
                put(folder, {metric: value}, pruner, 75, task, model=model, id=f"{model}-{pruner}")
    scores = scores_of(folder)
    columns = {"xvlm-mini": [("vqa", "overall")], "dino-mini": [("image_classification", "top1")]}
    table = overview_table(scores, columns)
    assert table.heads == [[("xvlm-mini", 1), ("dino-mini", 1)], [("75 %", 1), ("75 %", 1)]]
    shown = {row.label: [(cell.text, cell.rank) for cell in row.cells] for row in table.rows}
    assert shown == {
        "snip": [("75.0", 1), ("", 0)],
        "omp": [("50.0", 2), ("50.0", 1)],
        "rand": [("10.0", 0), ("10.0", 2)],
    }
    assert "dino-mini: classification (top-1)." in table.notes


def test_words_beside_recalls_are_no_score(tmp_path):
    folder = tmp_path / "made"
    metrics = {"r_mean": 50.0, "itc": {"r_mean": 40.0}, "reranked": "8 of 10 texts for each image"}
    put(folder, metrics, task="retrieval")
    put(folder, {"itm r_mean": 50.0, "reranked": "8 of 10 texts for each image"}, task="zero_shot")
    scores = scores_of(folder)
    assert scores.metrics("xvlm-mini", "retrieval") == ["r_mean", "itc r_mean"]
    assert scores.metrics("xvlm-mini", "zero_shot") == ["itm r_mean"]
    assert scores.main("xvlm-mini") == [("zero_shot", "itm r_mean"), ("retrieval", "r_mean")]
    assert metrics_line(metrics) == "r_mean 50, itc/r_mean 40"


# -- items ----------------------------------------------------------------------------------------------


def test_best_and_second_are_tested_on_their_items(tmp_path):
    """snip is right on all of 40 items and omp on 20 of them; lamp, who is third, has no items."""
    folder = tmp_path / "made"
    put(folder, {"overall": 100.0}, "snip", items=items([1] * 40))
    put(folder, {"overall": 50.0}, "omp", items=items([1, 0] * 20))
    put(folder, {"overall": 40.0}, "lamp")
    found = scores_of(folder).column(COLUMN)
    assert found["snip"].p < 0.001
    assert found["snip"].against == "omp"
    assert found["omp"].p is None
    row = main_table(scores_of(folder), "xvlm-mini", [("vqa", "overall")]).rows[0]
    assert (row.label, row.cells[0].mark) == ("snip", "*")


def test_a_lucky_picture_is_no_star(tmp_path):
    """snip is ahead by 20 questions of 400: the questions of one picture, or one each of 20."""
    for kind, whose in (("one", [min(i // 20, 380) for i in range(400)]), ("many", list(range(400)))):
        folder = tmp_path / kind
        for pruner, right in (("snip", 120), ("omp", 100)):
            scores = items([1.0] * right + [0.0] * (400 - right), list(range(400)))
            scores["groups"]["items"]["pictures"] = whose
            put(folder, {"overall": right / 4}, pruner, items=scores)
    assert scores_of(tmp_path / "one").column(COLUMN)["snip"].p > 0.3
    assert scores_of(tmp_path / "many").column(COLUMN)["snip"].p < 0.001


@pytest.mark.parametrize("pictures", [1, 4, 5])
def test_few_pictures_are_not_tested(tmp_path, pictures):
    """All 40 questions are right against none, but they are of so many pictures; with 5, p is at its least."""
    for pruner, right in (("snip", 1), ("omp", 0)):
        scores = items([right] * 40)
        scores["groups"]["items"]["pictures"] = [i % pictures for i in range(40)]
        put(tmp_path / "made", {"overall": 100 * right}, pruner, items=scores)
    p = scores_of(tmp_path / "made").column(COLUMN)["snip"].p
    assert p == (None if pictures < 5 else pytest.approx(1 / 10_001))


def test_small_differences_get_no_star(tmp_path):
    folder = tmp_path / "made"
    put(folder, {"overall": 52.5}, "snip", items=items([1] * 21 + [0] * 19))
    put(folder, {"overall": 50.0}, "omp", items=items([1] * 20 + [0] * 20))
    table = main_table(scores_of(folder), "xvlm-mini", [("vqa", "overall")])
    assert [row.cells[0].mark for row in table.rows] == ["", ""]
    assert any(note.startswith("No star: the best never differs") for note in table.notes)
    assert scores_of(folder).column(COLUMN)["snip"].p > 0.3


def test_scores_are_averaged_over_seeds_item_by_item():
    """Items stand in another order in the second seed."""
    first, second = items([1, 0, 0.5], ["a", "b", "d"]), items([0.5, 1, 1], ["d", "a", "b"])
    (kind,) = mean_scores([groups_of(first, "first"), groups_of(second, "second")], "overall")
    assert kind.scores == {"a": 1, "b": 0.5, "d": 0.5}


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (items([1, 0], ["a", "z"]), "different items"),
        (items([0, 0], ["a", "b"]), "of 2 pictures, and a test needs at least 5"),
        (grouped(ids=["a", "b"], scores={"other": [1, 0]}), "no scores of single test items"),
        ({"format": 3, "groups": {}}, "another format"),
        (grouped(ids=["a", "a"], scores={"overall": [1, 0]}), "incomplete"),
        (grouped(ids=["a", "b"], scores={"overall": [1]}), "incomplete"),
        (grouped(ids=["a", "b"], scores={"overall": [1, "x"]}), "incomplete"),
        (grouped(scores={"overall": [1, 0]}), "incomplete"),
        (grouped(ids=["a", "b"], pictures=[1, 1], scores={"overall": [1, 0]}), "different items"),
        (grouped(ids=["a", "b"], pictures=["a"], scores={"overall": [1, 0]}), "incomplete"),
        (grouped(ids=["a", "b"], scores={"overall": [1, 0]}) | {"format": 1}, "another format"),
        ({"format": 2, "groups": []}, "incomplete"),
        ({"groups": {}}, "another format"),
    ],
)
def test_items_that_cannot_be_paired_are_not_tested(tmp_path, other, why):
    """The table is made all the same, and the reason is kept."""
    folder = tmp_path / "made"
    put(folder, {"overall": 100.0}, "snip", items=items([1, 1], ["a", "b"]))
    put(folder, {"overall": 50.0}, "omp", items=other)
    scores = scores_of(folder)
    assert scores.column(COLUMN)["snip"].p is None
    assert why in next(iter(scores.untested))


def test_scores_of_single_items():
    groups = {"text": Items([7, 8], [7, 7], {"img_r1": [1.0, 0.0]}), "image": Items([7], [7], {"txt_r1": [0.5]})}
    assert scores_of_items(groups, "img_r1") == [Kind({7: 1.0, 8: 0.0}, {7: 7, 8: 7})]
    assert scores_of_items(groups, "txt_r1") == [Kind({7: 0.5}, {7: 7})]
    assert scores_of_items(groups, "r_mean") == [], "there is but R@1"


def test_mean_recalls_combine_both_directions(tmp_path):
    """Three texts found at places 0, 5 and 20, and one image whose caption stands at place 1."""
    text = {"itc img_r1": [1, 0, 0], "itc img_r5": [1, 0, 0], "itc img_r10": [1, 1, 0]}
    image = {"itc txt_r1": [0], "itc txt_r5": [1], "itc txt_r10": [1]}
    groups = {"text": Items([0, 1, 2], [0, 0, 0], text), "image": Items([0], [0], image)}
    texts, images = scores_of_items(groups, "itc r_mean")
    assert texts.scores == pytest.approx({0: 1, 1: 1 / 3, 2: 0})
    assert images.scores == pytest.approx({0: 2 / 3})
    assert set(texts.pictures.values()) == set(images.pictures.values()) == {0}
    assert scores_of_items(groups, "itc txt_r_mean") == [images]
    assert scores_of_items(groups, "r_mean") == []
    folder = tmp_path / "made"
    for pruner, right in (("snip", 1.0), ("omp", 0.0)):
        scores = {f"{label}_r{k}": [right] * 30 for label in ("img", "txt") for k in (1, 5, 10)}
        kinds = {
            kind: {
                "ids": list(range(30)),
                "scores": {name: of for name, of in scores.items() if name.startswith(label)},
            }
            for kind, label in (("text", "img"), ("image", "txt"))
        }
        put(folder, {"r_mean": 100 * right}, pruner, task="retrieval", items={"format": 2, "groups": kinds})
    assert scores_of(folder).column(("xvlm-mini", "retrieval", "r_mean", 75.0))["snip"].p < 0.001


def test_trial_runs_are_called_so(tmp_path):
    folder = tmp_path / "made"
    put(folder, {"overall": 52.5}, "snip", defined_by={"kind": "vqa", "debug": True})
    put(folder, {"overall": 50.0}, "omp")
    notes = read(folder).notes
    assert any(note.startswith("1 of these results are trials of two steps") for note in notes)


def test_pairs_that_somebody_asked_for(tmp_path):
    """Also of two tasks over the same items; rows without scores are left out, unknown ones refused."""
    folder, generator = tmp_path / "results" / "made", np.random.default_rng(0)
    easy, hard = (generator.random(200) < share for share in (0.9, 0.6))
    for task, pruner, right in (("vqa", "omp", easy), ("vqa", "snip", hard), ("retrieval", "omp", hard)):
        values = right.astype(float).tolist()
        put(folder, {"overall": 100 * right.mean()}, pruner, task=task, items=items(values))
    scores = scores_of(folder)
    asked = ["omp=snip", "omp@vqa=omp@retrieval", "snip=omp"]
    table = pairs_table(scores, [Pair.of(text, ["dense", "omp", "snip"], scores.known) for text in asked])
    rows = {row.label: [cell.text for cell in row.cells] for row in table.rows if row.kind != "section"}
    expected = f"{100 * (easy.mean() - hard.mean()):+.1f}"
    assert rows["omp against snip"][4] == rows["omp against omp (retrieval)"][4] == expected
    assert rows["snip against omp"][4] == expected.replace("+", "-")
    assert all(float(cells[5]) == pytest.approx(1 / 10_001, abs=1e-4) for cells in rows.values())
    for text, why in (
        ("omp", "takes two rows"),
        ("omp=snap", "no row is called 'snap' \\(did you mean 'snip'"),
        ("omp=snip@vqa", "takes two"),
        ("omp@vqa=omp@retreival", "no task is called 'retreival' \\(did you mean 'retrieval'"),
    ):
        with pytest.raises(InputError, match=why):
            Pair.of(text, ["dense", "omp", "snip"], scores.known)
    with pytest.raises(InputError, match="these rows have no scores of the same task"):
        pairs_table(scores, [Pair.of("snip@retrieval=omp@vqa", ["omp", "snip"], scores.known)])
