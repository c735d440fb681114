"""The file of single items' scores: its format by hand, and what happens to those of earlier runs."""

import json

import pytest

from evaluation.items import Items, groups_of, items_files, one_group, write_items


def test_the_format(tmp_path):
    groups = {
        "text": Items([4, 2], [0, 0], {"img_r1": [1.0, 0.0], "itc img_r1": [0.0, 0.25]}),
        "image": Items([0], [0], {"r": [1.0]}),
    }
    write_items(tmp_path / "items.json", groups)
    assert (tmp_path / "items.json").read_text() == (
        '{"format":2,"groups":{"text":{"ids":[4,2],"pictures":[0,0],"scores":{"img_r1":[1.0,0.0],'
        '"itc img_r1":[0.0,0.25]}},"image":{"ids":[0],"scores":{"r":[1.0]}}}}\n'
    )
    assert groups_of(json.loads((tmp_path / "items.json").read_text()), "here") == groups
    assert [path.name for path in tmp_path.iterdir()] == ["items.json"]


def test_one_kind_of_item():
    scores = {"a": {7: 0.5, 3: 1.0}, "b": {3: 0.0, 7: 1.0}}
    assert one_group(scores, None) == {"items": Items([7, 3], [7, 3], {"a": [0.5, 1.0], "b": [1.0, 0.0]})}
    assert one_group(scores, {3: 0, 7: 1, 8: 2})["items"].pictures == [1, 0]
    assert one_group({}, None) == {}
    for wrong in ((scores, {3: 0}), ({"a": {7: 0.5}, "b": {3: 0.0}}, None)):
        with pytest.raises(KeyError):
            one_group(*wrong)


def test_ids_may_be_texts(tmp_path):
    """Two questions whose ids are equal as numbers, of one picture."""
    groups = {"items": Items(["01827492", "1827492"], [0, 0], {"overall": [1.0, 0.0]})}
    write_items(tmp_path / "items.json", groups)
    assert groups_of(json.loads((tmp_path / "items.json").read_text()), "here") == groups


def test_scores_of_an_earlier_run_do_not_stay(tmp_path):
    write_items(tmp_path / "items.json", {"items": Items([1], [1], {"a": [1.0]})})
    write_items(tmp_path / "items.json", {})
    assert not list(tmp_path.iterdir())
    write_items(tmp_path / "items.json", {})


def test_items_that_do_not_fit_their_scores():
    with pytest.raises(AssertionError, match="a has 1 scores for 2 items"):
        Items([1, 2], [1, 2], {"a": [1.0]})
    with pytest.raises(AssertionError, match="occurs twice"):
        Items([1, 1], [1, 1], {"a": [1.0, 1.0]})
    with pytest.raises(AssertionError, match="has a picture"):
        Items([1, 2], [1], {"a": [1.0, 1.0]})


def test_a_file_for_each_row_of_a_table(tmp_path):
    def names(*labels):
        return [path.name for path in items_files(tmp_path / "zero_shot.json", labels)]

    assert names("dense") == names("m_75") == ["items.json"]
    assert names("dense", "m_75") == ["items_dense.json", "items_m_75.json"]
    assert names("dense", "m", "m") == ["items_dense.json", "items_1_m.json", "items_2_m.json"]
