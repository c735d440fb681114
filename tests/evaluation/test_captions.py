"""Caption scores by hand, and against COCO's own evaluation; ground truth and result files."""

import json
import math
import shutil
import subprocess
from collections import Counter

import pytest
from pycocoevalcap import eval as coco_evaluation
from pycocoevalcap.meteor import meteor
from pycocoevalcap.spice import get_stanford_models, spice
from pycocotools.coco import COCO

from console.errors import InputError
from data.miniworld.captions import draw_captions
from data.miniworld.parts import scene_for, text_draws
from evaluation.captions import (
    METRICS,
    caption_scores,
    read_ground_truth,
    write_results,
)

WITHOUT_JAVA = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
TWO = {1: ["The dog runs.", "A dog!"], 2: ["two cats sleep on a bed"]}
SAID = {1: "the the the dog", 2: "Two cats sleep..."}


@pytest.fixture
def no_java(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.fixture
def broken_java(monkeypatch, tmp_path):
    """A `java` that is there and does not run, as on a machine with the launcher alone."""
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr(get_stanford_models, "urlretrieve", refuse)


def test_by_hand(no_java):
    """Unigrams: 2 of 4 (`the` counts once) and 3 of 3; bigrams 1 of 3 and 2 of 2; trigrams 0 of 2 and 1 of 1.

    7 words against 9 of the closest references. ROUGE-L: best precision 2/4 and recall 2/3 (`the dog`); 1 and 1/2.
    """
    scores, _ = caption_scores(TWO, SAID)
    short = math.exp(1 - 9 / 7)
    assert list(scores) == WITHOUT_JAVA
    assert scores["Bleu_1"] == pytest.approx(100 * 5 / 7 * short)
    assert scores["Bleu_2"] == pytest.approx(100 * math.sqrt(5 / 7 * 3 / 5) * short)
    assert scores["Bleu_3"] == pytest.approx(100 * (5 / 7 * 3 / 5 * 1 / 3) ** (1 / 3) * short)
    assert scores["Bleu_4"] < 0.1

    def f(precision, recall):
        return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)

    assert scores["ROUGE_L"] == pytest.approx(100 * (f(2 / 4, 2 / 3) + f(1, 1 / 2)) / 2)


def cider_by_loops(references, generated):
    """CIDEr-D of each image (Vedantam et al., CVPR 2015), written out from its definition; texts are split already."""

    def counts(text, n):
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    images = len(references)
    found = {}
    for image, texts in references.items():
        total = 0.0
        for n in (1, 2, 3, 4):

            def weights(text, n=n):
                in_images = {
                    gram: sum(any(gram in counts(other, n) for other in others) for others in references.values())
                    for gram in counts(text, n)
                }
                return {g: c * math.log(images / max(1, in_images[g])) for g, c in counts(text, n).items()}

            said = weights(generated[image])
            for text in texts:
                true = weights(text)
                length = math.sqrt(sum(w * w for w in said.values())) * math.sqrt(sum(w * w for w in true.values()))
                dot = sum(min(w, true.get(gram, 0.0)) * true.get(gram, 0.0) for gram, w in said.items())
                # lengths are counted in bigrams there
                short = len(generated[image].split()) - len(text.split())
                total += (dot / length if length else dot) * math.exp(-(short**2) / (2 * 6**2)) / len(texts)
        found[image] = 10 * total / 4
    return found


def test_cider_of_single_images_by_loops(no_java):
    truth = {
        9: ["a red bus on a street", "the red bus stops near the street"],
        2: ["two dogs play on the grass", "dogs run on grass"],
        5: ["a man rides a tall wave"],
    }
    said = {9: "a red bus on the street", 2: "two dogs on a street", 5: "a man rides a wave"}
    single = {}
    scores, _ = caption_scores(truth, said, single.__setitem__)
    assert list(single) == ["CIDEr"]
    assert list(single["CIDEr"]) == [2, 5, 9]
    assert single["CIDEr"] == pytest.approx(cider_by_loops(truth, said))
    assert len({round(score, 3) for score in single["CIDEr"].values()}) == 3
    assert 100 * sum(single["CIDEr"].values()) / 3 == pytest.approx(scores["CIDEr"])


def test_the_best_and_the_worst(no_java):
    truth = {5: ["A man rides a wave!"], 3: ["two dogs on the (green) grass"]}
    best, _ = caption_scores(truth, {5: "a man rides a wave", 3: "Two dogs, on the (green) grass."})
    assert best == pytest.approx({**dict.fromkeys(WITHOUT_JAVA, 100), "CIDEr": 1000})
    worst, _ = caption_scores(truth, {5: "nothing here fits at all", 3: "..."})
    assert worst == pytest.approx(dict.fromkeys(WITHOUT_JAVA, 0), abs=1e-3)


def test_what_needs_java_is_left_out_in_words(no_java):
    _, left_out = caption_scores(TWO, SAID)
    assert [sentence.partition(":")[0] for sentence in left_out] == ["METEOR", "SPICE"]
    assert all("needs Java, and there is no program `java`" in sentence for sentence in left_out)


def test_the_order_of_images_is_nothing(no_java):
    assert caption_scores(TWO, SAID) == caption_scores(dict(reversed(TWO.items())), dict(reversed(SAID.items())))


def test_a_java_that_does_not_run(broken_java, monkeypatch):
    """The scores are those of a machine without Java, and METEOR's destructor does not wait for a lock for ever."""
    started = []
    monkeypatch.setattr(meteor, "Meteor", lambda kind=meteor.Meteor: started.append(kind()) or started[0])
    scores, left_out = caption_scores(TWO, SAID)
    assert [sentence.partition(":")[0] for sentence in left_out] == ["Java's PTBTokenizer", "METEOR", "SPICE"]
    assert "too few lines" in left_out[0] and "ended early" in left_out[1] and "models are not there" in left_out[2]
    assert not started[0].lock.locked()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert scores == caption_scores(TWO, SAID)[0]


def test_a_folder_that_java_s_tokenizer_cannot_write(broken_java, monkeypatch):
    def refuse(*arguments, **named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    scores, left_out = caption_scores(TWO, SAID)
    assert list(scores) == WITHOUT_JAVA
    assert "Permission denied" in left_out[0] and "evaluation/ptb.py made the tokens" in left_out[0]


@pytest.mark.parametrize("outcome", ["a score", "a failure"])
def test_spice_where_its_models_are(broken_java, monkeypatch, tmp_path, outcome):
    def compute(self, truth, said):
        assert truth[1] == ["the dog runs", "a dog"] and said[2] == ["two cats sleep"]
        if outcome == "a failure":
            raise subprocess.CalledProcessError(1, "java")
        return 0.25, []

    monkeypatch.setattr(spice.Spice, "compute_score", compute)
    monkeypatch.setattr(get_stanford_models, "SPICELIB", str(tmp_path))
    (tmp_path / f"{get_stanford_models.JAR}.jar").touch()
    assert "-models.jar" in caption_scores(TWO, SAID)[1][-1]  # one of the two files is not enough
    (tmp_path / f"{get_stanford_models.JAR}-models.jar").touch()
    scores, left_out = caption_scores(TWO, SAID)
    if outcome == "a score":
        assert scores["SPICE"] == 25 and not any(sentence.startswith("SPICE") for sentence in left_out)
    else:
        assert "SPICE" not in scores and "its Java program failed" in left_out[-1]


def test_half_a_character_is_no_word(no_java, tmp_path):
    """As read from JSON with an escape that stands alone; such a file is written and read again, too."""
    half = {1: json.loads('"the the \\ud83d the dog"'), 2: json.loads('"Two cats\\udc00 sleep..."')}
    truth = {1: [*TWO[1], "a \ud83d\ude00 dog"], 2: TWO[2]}  # the two halves of one character are whole together
    scores, left_out = caption_scores(truth, half, leave_out=["SPICE"])
    whole, others = caption_scores({1: [*TWO[1], "a \U0001f600 dog"], 2: TWO[2]}, SAID, leave_out=["SPICE"])
    assert scores == whole
    assert left_out == ["characters: in 2 captions half of one (a lone surrogate) counts as a space", *others]
    write_results(tmp_path / "r.json", half)
    assert [row["caption"] for row in json.loads((tmp_path / "r.json").read_text())] == list(half.values())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java: METEOR does not run")
def test_what_java_gets():
    """Ids that are texts and half a character change no score; METEOR sees first words, the other scores all.

    5,000 times one word, with references as long, would keep METEOR for ever.
    """
    long, cut = ({1: " ".join(["the"] * n), 2: "two cats"} for n in (5_000, 200))
    truth = {1: [long[1], "a dog"], 2: ["two cats sleep"]}
    odd = {"0a1b": long[1], "42": "\ud83d two cats"}
    scores, left_out = caption_scores({"0a1b": truth[1], "42": truth[2]}, odd, leave_out=["SPICE"])
    assert "METEOR: only the first 200 words of 2 captions were scored" in left_out
    assert "characters: in 1 caption half of one (a lone surrogate) counts as a space" in left_out
    short, nothing = caption_scores({1: [cut[1], "a dog"], 2: ["two cats sleep"]}, cut, leave_out=["SPICE"])
    assert scores["METEOR"] == short["METEOR"] > 0
    assert not any(sentence.startswith("METEOR") for sentence in nothing)
    assert scores["Bleu_1"] == pytest.approx(100 * math.exp(1 - 5_003 / 5_002)), "all 5,002 words are right"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java: COCO's own evaluation does not run either")
def test_against_coco_s_own_evaluation(tmp_path, monkeypatch):
    """Captions of the mini world, and some with signs, against `COCOEvalCap`; SPICE has no models in either."""
    truth, said = {}, {}
    for index in range(12):
        texts = [c.text for c in draw_captions(text_draws("itr_test", index, 0), scene_for("itr_test", index), 1, 6)]
        truth[index], said[index] = texts[:5], texts[5] if index % 3 else texts[0]
    truth[20] = ["A man's dog isn't (very) big.", "The U.S. flag, 3.5 ft. tall...", "Two \u201cold\u201d t-shirts"]
    said[20] = "the man's dog isn't big"
    truth[21] = ["one line\nand another!", "black & white photo at 5 p.m."]
    said[21] = "a black-and-white photo - at 5 p.m."
    truth[22] = ["\u00bd a pizza"]
    said[22] = "..."
    annotations = [{"id": k, "image_id": i, "caption": t} for i, texts in truth.items() for k, t in enumerate(texts)]
    annotations = [{**annotation, "id": number} for number, annotation in enumerate(annotations)]
    (tmp_path / "gt.json").write_text(
        json.dumps({"info": {}, "images": [{"id": image} for image in truth], "annotations": annotations})
    )
    write_results(tmp_path / "said.json", said)

    class NoSpice:
        def method(self):
            return "SPICE"

        def compute_score(self, truth, said):
            return 0.0, []

    monkeypatch.setattr(coco_evaluation, "Spice", NoSpice)
    coco = COCO(str(tmp_path / "gt.json"))
    official = coco_evaluation.COCOEvalCap(coco, coco.loadRes(str(tmp_path / "said.json")))
    official.evaluate()
    scores, left_out = caption_scores(read_ground_truth(tmp_path / "gt.json"), said)
    assert list(scores) == [name for name in METRICS if name != "SPICE"]
    assert scores == pytest.approx({name: 100 * official.eval[name] for name in scores}, rel=1e-9)
    assert len(left_out) == 1 and left_out[0].startswith("SPICE: its Stanford models are not there")
    with monkeypatch.context() as patch:  # and the scores that need no Java are the same without it
        patch.setattr(shutil, "which", lambda name: None)
        alone, _ = caption_scores(truth, said)
    assert alone == {name: scores[name] for name in WITHOUT_JAVA}
    with monkeypatch.context() as patch:
        patch.setattr("evaluation.captions._meteor", None)  # not even called
        few, left_out = caption_scores(truth, said, leave_out=["METEOR"])
    assert few == {name: scores[name] for name in scores if name != "METEOR"}
    assert left_out[0] == "METEOR: the configuration leaves it out"


@pytest.mark.parametrize(
    ("truth", "said", "message"),
    [
        ({}, {}, "no reference captions"),
        (TWO, {1: "a dog"}, "no caption was generated for image 2"),
        ({image: ["a"] for image in range(9)}, {0: "a"}, r"for 8 images \(1, 2, 3, ...\)"),
        (TWO, {**SAID, 7: "a cat"}, "no captions of image 7"),
        ({**TWO, 3: []}, {**SAID, 3: "a cat"}, "no word about image 3"),
        ({**TWO, 3: [" ", "..."]}, {**SAID, 3: "a cat"}, "no word about image 3"),
        (TWO, {1: " ", 2: "a cat"}, "generated caption is empty for image 1"),
    ],
)
def test_bad_captions(no_java, truth, said, message):
    with pytest.raises(InputError, match=message):
        caption_scores(truth, said)


def test_ground_truth_whose_ids_are_texts(tmp_path):
    ids = ["0a1b", "0013ea2087020901", "42"]
    about = [{"id": n, "image_id": image, "caption": f"a {n}"} for n, image in enumerate(reversed(ids))]
    (tmp_path / "gt.json").write_text(json.dumps({"images": [{"id": image} for image in ids], "annotations": about}))
    assert read_ground_truth(tmp_path / "gt.json") == {"0a1b": ["a 2"], "0013ea2087020901": ["a 1"], "42": ["a 0"]}


def test_ids_that_are_texts_change_no_score(no_java):
    names = {1: "0a1b", 2: "42"}
    singles = [{}, {}]
    truth, said = ({names[image]: of for image, of in part.items()} for part in (TWO, SAID))
    one = caption_scores(TWO, SAID, singles[0].__setitem__, ["SPICE"])
    assert caption_scores(truth, said, singles[1].__setitem__, ["SPICE"]) == one
    assert singles[1]["CIDEr"] == {names[image]: score for image, score in singles[0]["CIDEr"].items()}
    with pytest.raises(InputError, match="ground truth have ids such as '0a1b', and those of the captions such as 1"):
        caption_scores(truth, SAID)


IMAGES, ABOUT = [{"id": 42}, {"id": 7}], {"id": 1, "image_id": 42, "caption": "a tray"}
OF_7 = {"id": 2, "image_id": 7, "caption": "a cat"}


def test_ground_truth(tmp_path):
    path = tmp_path / "gt.json"
    path.write_text(json.dumps({"images": IMAGES, "annotations": [OF_7, ABOUT, {**ABOUT, "caption": "food"}]}))
    found = read_ground_truth(path)
    assert found == {42: ["a tray", "food"], 7: ["a cat"]} and list(found) == [42, 7]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", r"not valid JSON \(line 1\)"),
        ([], "no list of records 'images'"),
        ({"images": IMAGES}, "no list of records 'annotations'"),
        ({"images": [42], "annotations": []}, "no list of records 'images'"),
        ({"images": [{"id": ""}], "annotations": [ABOUT]}, "images: record 0 has an unusable 'id'"),
        ({"images": [{"id": True}], "annotations": [ABOUT]}, "unusable 'id'"),
        ({"images": IMAGES, "annotations": [{"image_id": 42}]}, "annotations: record 0 has no field 'caption'"),
        ({"images": IMAGES, "annotations": [{**ABOUT, "caption": " "}, OF_7]}, "unusable 'caption'"),
        ({"images": IMAGES, "annotations": [ABOUT]}, "no caption for image 7"),
        ({"images": [], "annotations": []}, "no caption for any image"),
        ({"images": IMAGES[:1], "annotations": [ABOUT, OF_7]}, "annotation 1 is of image 7, not among"),
        ({"images": [*IMAGES, {"id": "7"}], "annotations": [ABOUT, OF_7]}, "the id 42 is a number and '7' a text"),
        (
            {"images": IMAGES, "annotations": [ABOUT, OF_7 | {"image_id": "7"}]},
            "annotation 1 is of image '7', not among",
        ),
        ({"images": IMAGES + IMAGES, "annotations": [ABOUT, OF_7]}, "images: 42 is there twice"),
    ],
)
def test_bad_ground_truth(tmp_path, content, message):
    path = tmp_path / "gt.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        read_ground_truth(path)
    assert "gt.json" in str(error.value)


@pytest.mark.parametrize("ids", [(7, 30, 200), ("0013ea2087020901", "00a1", "9")])
def test_results_in_the_order_of_their_ids(tmp_path, ids):
    """Numbers by size, texts by the alphabet, whichever process wrote which caption."""
    path = tmp_path / "result" / "r.json"
    write_results(path, {image: f"picture {image}" for image in reversed(ids)})
    assert json.loads(path.read_text()) == [{"image_id": image, "caption": f"picture {image}"} for image in ids]
    assert [file.name for file in path.parent.iterdir()] == ["r.json"]


def test_captions_for_evalai_byte_for_byte(tmp_path):
    write_results(tmp_path / "r.json", {42: "zwei Bäume", 7: "a"})
    expected = (
        '[\n {\n  "image_id": 7,\n  "caption": "a"\n },\n {\n  "image_id": 42,\n  "caption": "zwei Bäume"\n }\n]\n'
    )
    assert (tmp_path / "r.json").read_bytes() == expected.encode()
