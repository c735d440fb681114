"""Retrieval: similarity of all pairs, the best re-ranked by matching."""

import pytest
import torch
from torch import nn

from evaluation import retrieval
from evaluation.recall import Candidates, ranks, recalls
from evaluation.retrieval import RetrievalSettings, evaluate_retrieval, reranked
from models.tasks import Retriever
from tests.evaluation.test_recall import pairing, recalls_by_loops


class Pictures:
    """A gallery whose image i is filled with the number i and whose text j is the word j."""

    def __init__(self, captions):
        self.texts_of_image, self.image_of_text = pairing(captions)
        self.texts = [str(j) for j in range(len(self.image_of_text))]

    def __len__(self):
        return len(self.texts_of_image)

    def __getitem__(self, i):
        return torch.full((3, 2, 2), float(i))

    def collate(self, images):
        return {"image": torch.stack(images)}


class Numbers:
    """A tokenizer for them; remembers how it was asked."""

    def __init__(self):
        self.asked = set()

    def encode(self, text, sep, limit):
        self.asked.add((sep, limit))
        return [int(text)]

    def pad_batch(self, rows, length):
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        ids[:, 0] = torch.tensor(rows)[:, 0]
        return ids, (torch.arange(length) < 1).long().expand(len(rows), -1)


class Tables(Retriever):
    """A model with a given similarity and matching score for every pair [images, texts]."""

    def __init__(self, similarity, matching):
        super().__init__()
        self.similarity, self.matching = nn.Parameter(similarity), matching
        self.asked = 0

    def image_entry(self, image):
        number = image[:, 0, 0, 0]
        return number[:, None, None], self.similarity[number.long()]

    def text_entry(self, ids, atts):
        number = ids[:, 0]
        return number[:, None, None].float(), torch.eye(self.similarity.shape[1])[number]

    def match(self, text, text_atts, image, similarity):
        assert image.shape[0] == 1  # for all the texts
        i, j = image[:, 0, 0].long().expand(len(text)), text[:, 0, 0].long()
        assert text_atts.shape[0] == text.shape[0]
        assert torch.equal(similarity, self.similarity[i, j])
        self.asked += len(i)
        return self.matching[i, j]


def evaluate(model, gallery, k, **options):
    return evaluate_retrieval(model, gallery, Numbers(), RetrievalSettings(k_test=k, **options))


def reranked_by_loops(similarity, matching, k):
    """How columns stand in each row (0 the first, -1 the second, ...) and which were matched.

    The k best by similarity are matched and stand by that; behind them the others stand by similarity.
    """
    standing, matched = torch.zeros_like(similarity), torch.zeros_like(similarity, dtype=torch.bool)
    for row in range(len(similarity)):
        columns = sorted(range(similarity.shape[1]), key=lambda c: -similarity[row, c])  # equal ones by number
        best = sorted(columns[:k])
        order = sorted(best, key=lambda c: -matching[row, c]) + columns[k:]
        for place, column in enumerate(order):
            standing[row, column] = -place
        matched[row, best] = True
    return standing, matched


@pytest.mark.parametrize("together", [1, 10, 1000])
@pytest.mark.parametrize("k", [1, 3, 12, 29, 30, 1000])
def test_against_loops(k, together):
    """Batches that do not divide the gallery; k below, at and above the number of texts and images."""
    torch.manual_seed(k)
    gallery = Pictures([2, 3, 1, 3, 2, 4, 1, 2, 3, 4, 3, 2])
    assert (len(gallery), len(gallery.texts)) == (12, 30)
    similarity, matching = torch.randn(12, 30), torch.randn(12, 30)
    for j, i in enumerate(gallery.image_of_text):
        similarity[i, j] += 1
        matching[i, j] += 2
    model = Tables(similarity, matching)
    found = evaluate(model, gallery, k, image_batch=5, text_batch=7, pairs=together)
    pairs = gallery.texts_of_image, gallery.image_of_text
    assert found["itc"] == pytest.approx(recalls_by_loops(similarity, similarity.t(), *pairs), abs=0.0051)
    there, matched = reranked_by_loops(similarity, matching, k)
    back, asked_back = reranked_by_loops(similarity.t(), matching.t(), k)
    assert found["itm"] == pytest.approx(recalls_by_loops(there, back, *pairs), abs=0.0051)
    assert model.asked == (matched | asked_back.t()).sum()  # no pair twice


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 5, 8, 9, 10, 11])
def test_first_ten_are_those_of_similarity(k, ties):
    """60 images of one to four captions; with ties, of similarity and of matching, as equal captions have them."""
    torch.manual_seed(k)
    gallery = Pictures(torch.randint(1, 5, (60,)).tolist())
    similarity, matching = torch.randn(60, len(gallery.texts)), torch.randn(60, len(gallery.texts))
    for j, i in enumerate(gallery.image_of_text):
        similarity[i, j] += 2
        matching[i, j] += 1
    if ties:
        similarity, matching = (2 * similarity).round() / 2, matching.round()
    found = evaluate(Tables(similarity, matching), gallery, k)
    pairs = gallery.texts_of_image, gallery.image_of_text
    there, back = reranked_by_loops(similarity, matching, k)[0], reranked_by_loops(similarity.t(), matching.t(), k)[0]
    assert found["itm"] == pytest.approx(recalls_by_loops(there, back, *pairs), abs=0.0051)
    same = [label for label in ("txt_r10", "img_r10") if found["itm"][label] == found["itc"][label]]
    assert same == (["txt_r10", "img_r10"] if k <= 10 else []), "the eleventh may come among the ten, nobody else"
    assert found["itm"]["txt_r1"] == found["itc"]["txt_r1"] or k > 1


def test_how_many_were_reranked_is_said():
    gallery = Pictures([2, 3, 1])
    assert reranked(RetrievalSettings(k_test=2), gallery) == "2 of 6 texts for each image, 2 of 3 images for each text"
    assert reranked(RetrievalSettings(k_test=5), gallery) == "5 of 6 texts for each image, 3 of 3 images for each text"


@pytest.mark.parametrize("world", [2, 3, 7])
def test_several_processes_match_each_pair_once(world, monkeypatch):
    """One after the other; the last one adds what the others left, as the collective does for all of them."""
    torch.manual_seed(world)
    gallery = Pictures([2, 3, 1, 3, 2, 4, 1, 2, 3, 4, 3, 2])
    similarity, matching = torch.randn(12, 30), torch.randn(12, 30)
    alone = Tables(similarity, matching)
    wanted = evaluate(alone, gallery, k=5, pairs=10)
    shares, asked, told = [], 0, []
    for rank in range(world):
        left = []
        monkeypatch.setattr(retrieval, "place", lambda rank=rank: (rank, world))
        monkeypatch.setattr(retrieval, "add_processes", lambda scores, left=left: left.append(scores) or scores)
        model = Tables(similarity, matching)
        evaluate_retrieval(model, gallery, Numbers(), RetrievalSettings(k_test=5, pairs=10), told.append)
        shares.append(left)
        asked += model.asked
    assert asked == alone.asked
    assert all(share.is_contiguous() for left in shares for share in left)  # or NCCL would refuse them
    assert sum(told) == world * 12
    sums = iter([sum(parts) for parts in zip(*shares, strict=True)])
    monkeypatch.setattr(retrieval, "add_processes", lambda scores: next(sums))
    assert evaluate(Tables(similarity, matching), gallery, k=5, pairs=10) == wanted


def test_matching_mends_what_similarity_gets_wrong():
    """Three pairs. Similarity takes text 1 for image 0; matching knows better, if it is asked about text 0."""
    similarity = torch.tensor([[0.5, 0.9, 0.1], [0.2, 0.95, 0.3], [0.1, 0.2, 0.8]])
    gallery, matching = Pictures([1, 1, 1]), 10 * torch.eye(3)
    alone = evaluate(Tables(similarity, matching), gallery, k=1)
    assert alone["itc"]["txt_r1"] == alone["itm"]["txt_r1"] == 66.67
    both = evaluate(Tables(similarity, matching), gallery, k=2)
    assert (both["itc"]["txt_r1"], both["itm"]["txt_r1"], both["itm"]["img_r1"]) == (66.67, 100.0, 100.0)


def test_more_candidates_than_there_are():
    torch.manual_seed(0)
    similarity, matching = torch.randn(4, 4), torch.randn(4, 4)
    gallery = Pictures([1] * 4)
    exact, more = (evaluate(Tables(similarity, matching), gallery, k) for k in (4, 256))
    assert exact == more
    pairs = gallery.texts_of_image, gallery.image_of_text
    assert more["itm"] == recalls(
        ranks(Candidates(matching), Candidates(matching.t()), *pairs)
    )  # all pairs matched: similarity plays no part


def test_text_encoding_and_progress():
    gallery, tokenizer, steps = Pictures([1, 2]), Numbers(), []
    settings = RetrievalSettings(k_test=2, max_tokens=7, sep=True)
    evaluate_retrieval(Tables(torch.randn(2, 3), torch.randn(2, 3)), gallery, tokenizer, settings, steps.append)
    assert tokenizer.asked == {(True, 7)}
    assert sum(steps) == 2  # a step for each image


def test_a_real_model_pair_by_pair(xvlm):
    """The reference X-VLM in batches gives the ranks of single pairs."""
    torch.manual_seed(0)
    images, words = torch.randn(5, 3, 32, 32), torch.randint(5, 200, (8, 6))

    class Noise(Pictures):
        def __getitem__(self, i):
            return images[i]

    class Words(Numbers):
        def encode(self, text, sep, limit):
            return words[int(text)][: 3 + int(text) % 4].tolist()

        def pad_batch(self, rows, length):
            ids, atts = torch.zeros(2, len(rows), length, dtype=torch.long)
            for row, tokens in enumerate(rows):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                atts[row, : len(tokens)] = 1
            return ids, atts

    gallery = Noise([2, 1, 2, 1, 2])
    settings = RetrievalSettings(k_test=100, image_batch=2, text_batch=3, max_tokens=12)
    found = evaluate_retrieval(xvlm, gallery, Words(), settings)
    similarity, matching = torch.empty(5, 8), torch.empty(5, 8)
    with torch.no_grad():
        for i in range(5):
            for j in range(8):
                ids = torch.tensor([Words().encode(str(j), False, None)])
                atts = torch.ones_like(ids)
                image, image_feature = xvlm.image_entry(images[i : i + 1])
                text, text_feature = xvlm.text_entry(ids, atts)
                similarity[i, j] = (image_feature * text_feature).sum()
                matching[i, j] = xvlm.match(text, atts, image, None)
    pairs = gallery.texts_of_image, gallery.image_of_text
    assert found["itc"] == pytest.approx(recalls_by_loops(similarity, similarity.t(), *pairs), abs=0.0051)
    assert found["itm"] == pytest.approx(recalls_by_loops(matching, matching.t(), *pairs), abs=0.0051)
