"""Recall against plain loops and a case solved by hand."""

import pytest
import torch

from evaluation.recall import Candidates, found_early, recalls
from evaluation.recall import ranks as ranks_of


def ranks(there, back, *pairs):
    """Ranks by similarity alone."""
    return ranks_of(Candidates(there), Candidates(back), *pairs)


def recalls_by_loops(image_to_text, text_to_image, texts_of_image, image_of_text):
    """Count, for each query, how many wrong answers stand before the best right one."""

    def before(scores, right):
        best = None
        for target in right:
            count = 0
            for other in range(len(scores)):
                if other not in right and (
                    scores[other] > scores[target] or (scores[other] == scores[target] and other < target)
                ):
                    count += 1
            best = count if best is None else min(best, count)
        return best

    texts = [before(image_to_text[i].tolist(), own) for i, own in enumerate(texts_of_image)]
    images = [before(text_to_image[j].tolist(), [own]) for j, own in enumerate(image_of_text)]
    result = {}
    for label, wrong in (("txt", texts), ("img", images)):
        for k in (1, 5, 10):
            result[f"{label}_r{k}"] = 100 * sum(count < k for count in wrong) / len(wrong)
        result[f"{label}_r_mean"] = sum(result[f"{label}_r{k}"] for k in (1, 5, 10)) / 3
    result["r_mean"] = (result["txt_r_mean"] + result["img_r_mean"]) / 2
    return result


def pairing(captions):
    """captions[i] captions for image i, numbered in order."""
    texts_of_image, image_of_text = [], []
    for image, count in enumerate(captions):
        texts_of_image.append(list(range(len(image_of_text), len(image_of_text) + count)))
        image_of_text += [image] * count
    return texts_of_image, image_of_text


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_against_loops(seed, ties):
    torch.manual_seed(seed)
    captions = torch.randint(1, 4, (25,)).tolist()
    pairs = pairing(captions)
    there, back = torch.randn(25, sum(captions)), torch.randn(sum(captions), 25)
    for j, i in enumerate(pairs[1]):  # better than chance, so that no recall is 0
        there[i, j] += 1
        back[j, i] += 1
    if ties:
        there, back = there.round(), back.round()
    found = recalls(ranks(there, back, *pairs))
    assert found == pytest.approx(recalls_by_loops(there, back, *pairs), abs=0.0051)
    assert 0 < found["txt_r1"] < found["txt_r10"] < 100


def test_a_case_by_hand():
    """Six images with two captions each; ranks can be read off the rows."""
    pairs = pairing([2] * 6)
    there, back = torch.zeros(6, 12), torch.zeros(12, 6)
    for i in range(6):
        there[i, 2 * i] = 1.0  # one right caption first
    there[4, :] = torch.arange(12.0)  # captions 8 and 9 of image 4: two wrong ones (10, 11) before them
    there[5, :] = -torch.arange(12.0)  # captions 10 and 11 of image 5: ten wrong ones before them
    for j in range(12):
        back[j, j // 2] = 1.0
    back[0, 1:] = 2.0  # the right image comes last
    found = recalls(ranks(there, back, *pairs))
    assert found == {
        "txt_r1": 66.67, "txt_r5": 83.33, "txt_r10": 83.33, "txt_r_mean": 77.78,
        "img_r1": 91.67, "img_r5": 91.67, "img_r10": 100.0, "img_r_mean": 94.44,
        "r_mean": 86.11,
    }  # fmt: skip


@pytest.mark.parametrize("ties", [False, True])
def test_single_items_against_loops(ties):
    """One item at a time by the loops above; their means are the recalls."""
    torch.manual_seed(1)
    captions = torch.randint(1, 4, (25,)).tolist()
    pairs = pairing(captions)
    there, back = torch.randn(25, sum(captions)), torch.randn(sum(captions), 25)
    for j, i in enumerate(pairs[1]):
        there[i, j] += 1
        back[j, i] += 1
    if ties:
        there, back = there.round(), back.round()
    found = ranks(there, back, *pairs)
    groups = found_early({"itc ": found, "itm ": found}, pairs[1])
    text, image = groups["text"], groups["image"]
    assert (text.ids, image.ids) == (list(range(sum(captions))), list(range(25)))
    assert (text.pictures, image.pictures) == (pairs[1], image.ids)
    for group, label in ((text, "img"), (image, "txt")):
        assert list(group.scores) == [f"{start} {label}_r{k}" for start in ("itc", "itm") for k in (1, 5, 10)]
    for i, own in enumerate(pairs[0]):
        alone = recalls_by_loops(there[i : i + 1], torch.ones(1, 25), [own], [0])
        for k in (1, 5, 10):
            assert image.scores[f"itm txt_r{k}"][i] == alone[f"txt_r{k}"] / 100
    for j, own in enumerate(pairs[1]):
        row = back[j]
        right = all(row[i] < row[own] or (row[i] == row[own] and i > own) for i in range(25) if i != own)
        assert text.scores["itm img_r1"][j] == float(right)
    expected = recalls(found)
    for group, metric in ((text, "img_r1"), (image, "txt_r1"), (text, "img_r5"), (image, "txt_r10")):
        scores = group.scores[f"itm {metric}"]
        assert 100 * sum(scores) / len(scores) == pytest.approx(expected[metric], abs=0.0051)
        assert 0 < sum(scores) < len(scores)


def test_equal_scores_gain_nothing_by_luck():
    """A model that cannot tell anything apart finds only what stands first."""
    pairs = pairing([1] * 20)
    found = recalls(ranks(torch.zeros(20, 20), torch.zeros(20, 20), *pairs))
    assert (found["txt_r1"], found["txt_r5"], found["img_r10"]) == (5.0, 25.0, 50.0)


def test_fewer_candidates_than_ten():
    found = recalls(ranks(torch.eye(3).flip(0), torch.eye(3), *pairing([1] * 3)))
    assert found["txt_r1"] == 33.33
    assert found["txt_r5"] == found["txt_r10"] == found["img_r1"] == 100.0
