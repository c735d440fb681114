"""Caption metrics as in COCO's evaluation: BLEU, METEOR, ROUGE, CIDEr and SPICE.

The scorers are pycocoevalcap's. Tokens are those of Stanford's PTBTokenizer if Java is installed, else the same tokens
by `evaluation/ptb.py`. METEOR and SPICE are Java programs and are left out without Java; SPICE also without its
Stanford models, which pycocoevalcap would otherwise download during a run.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from console.errors import InputError
from console.words import counted
from data.records import Id, check_fields, check_ids, check_same_kind, is_id, is_text, read_json
from evaluation.ptb import LINE_ENDS, ptb_tokens
from storage.atomic import write_json

Captions = dict[Id, list[str]]
METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")
PTB, METEOR, SPICE = "Java's PTBTokenizer", "METEOR", "SPICE"
SLOW = (METEOR, SPICE)
"""Java programs that take at least ten seconds per call; short trials may leave them out."""

METEOR_WORDS = 200
"""METEOR gets at most these words of each caption and reference, since its time explodes for long, similar texts.

For one repeated word with five such references: 200 words take 2 s, 600 words 45 s, 800 words more than 90 s; at 5,000
it crashes.
"""

HALF = re.compile("[\ud800-\udfff]")


class _LeftOut(Exception):
    """A program that is not available; the message says why."""


def caption_scores(
    references: Mapping[Id, list[str]],
    generated: Mapping[Id, str],
    note: Callable[[str, dict[Id, float]], None] = lambda *_: None,
    leave_out: Collection[str] = (),
) -> tuple[dict[str, float], list[str]]:
    """Scores times 100 by the names of `METRICS`, and a sentence for each program or part that was left out.

    references: human captions by image id. generated: one caption for each of the same images. note: receives the CIDEr
    of single images, by image id; the score is 100 times their mean. leave_out: programs not to start. InputError if an
    image lacks either, or a caption is empty.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    left_out: list[str] = []
    references, generated = _whole(references, generated, left_out)
    _check_pairs(references, generated)
    truth, said = _tokenised(references, generated, left_out)
    scores = {f"Bleu_{n}": s for n, s in enumerate(Bleu(4).compute_score(truth, said, verbose=0)[0], start=1)}
    scores["ROUGE_L"] = Rouge().compute_score(truth, said)[0]
    scores["CIDEr"], single = Cider().compute_score(truth, said)
    note("CIDEr", dict(zip(truth, single.tolist(), strict=True)))
    for name, score in zip(SLOW, (_meteor, _spice), strict=True):
        try:
            if name in leave_out:
                raise _LeftOut("the configuration leaves it out")
            scores[name] = score(truth, said)
        except _LeftOut as reason:
            left_out.append(f"{name}: {reason}")
    texts = [text for captions in (truth, said) for texts in captions.values() for text in texts]
    if METEOR in scores and (longer := sum(len(text.split()) > METEOR_WORDS for text in texts)):
        left_out.append(f"{METEOR}: only the first {METEOR_WORDS} words of {counted(longer, 'caption')} were scored")
    return {name: 100 * float(scores[name]) for name in METRICS if name in scores}, left_out


def read_ground_truth(path: Path | str) -> Captions:
    """Captions by image id, in the order of the file's images, from a file in COCO's format.

    {"images": [{"id": 42}], "annotations": [{"id": 1, "image_id": 42, "caption": "..."}]}; every image needs a caption.
    Ids are all whole numbers, or all texts ("0013ea2087020901").
    """
    content = read_json(path)
    lists = [content.get(name) if isinstance(content, dict) else None for name in ("images", "annotations")]
    for name, records in zip(("images", "annotations"), lists, strict=True):
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise InputError(f"{path} has no list of records '{name}': it must be in COCO's caption format")
    images, annotations = lists
    check_fields(images, f"{path}, images", {"id": is_id})
    check_fields(annotations, f"{path}, annotations", {"image_id": is_id, "caption": is_text})
    captions: Captions = {image["id"]: [] for image in images}
    check_ids([image["id"] for image in images], f"{path}, images")
    for index, annotation in enumerate(annotations):
        if annotation["image_id"] not in captions:
            raise InputError(f"{path}: annotation {index} is of image {annotation['image_id']!r}, not among its images")
        captions[annotation["image_id"]].append(annotation["caption"])
    bare = [image for image, texts in captions.items() if not texts]
    if bare or not captions:
        raise InputError(f"{path} has no caption for {_some(bare) if bare else 'any image'}: there is nothing to score")
    return captions


def write_results(path: Path | str, captions: Mapping[Id, str]) -> None:
    """Write [{"image_id": 42, "caption": "..."}], the format of COCO's server, in the order of the ids."""
    write_json(path, [{"image_id": image, "caption": captions[image]} for image in sorted(captions)])


def _some(images: Iterable[Id]) -> str:
    """`image 3`, or `4 images (3, 5, 7, ...)`."""
    images = sorted(images)
    if len(images) == 1:
        return f"image {images[0]!r}"
    return f"{len(images)} images ({', '.join(map(repr, images[:3]))}{', ...' if len(images) > 3 else ''})"


def _whole(
    references: Mapping[Id, list[str]], generated: Mapping[Id, str], left_out: list[str]
) -> tuple[Captions, dict[Id, str]]:
    """The captions without lone surrogates, which cannot be sent to a program: each becomes a space."""
    halves = 0

    def whole(text: str) -> str:
        nonlocal halves
        text, found = HALF.subn(" ", text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass"))
        halves += found > 0
        return text

    found = {i: list(map(whole, texts)) for i, texts in references.items()}, {i: whole(t) for i, t in generated.items()}
    if halves:
        left_out.append(f"characters: in {counted(halves, 'caption')} half of one (a lone surrogate) counts as a space")
    return found


def _check_pairs(references: Mapping[Id, list[str]], generated: Mapping[Id, str]) -> None:
    if not references:
        raise InputError("there are no reference captions to compare with: check the ground truth")
    check_same_kind(references, generated, "the images of the ground truth", "those of the captions")
    if missing := references.keys() - generated.keys():
        raise InputError(f"no caption was generated for {_some(missing)} of the ground truth: generate all of them")
    if strange := generated.keys() - references.keys():
        raise InputError(f"the ground truth has no captions of {_some(strange)}: give that of the same images")
    if bare := [image for image, texts in references.items() if not any(map(ptb_tokens, texts))]:
        raise InputError(f"the ground truth has no word about {_some(bare)}: leave such images out of it")
    if empty := [image for image, text in generated.items() if not text.strip()]:
        raise InputError(f"the generated caption is empty for {_some(empty)}: raise min_length")


def _tokenised(
    references: Mapping[Id, list[str]], generated: Mapping[Id, str], left_out: list[str]
) -> tuple[Captions, Captions]:
    """Both as tokens joined by spaces, sorted by image id, so that float sums do not depend on the order of images."""
    images = sorted(references)
    texts = [text for image in images for text in (generated[image], *references[image])]
    tokens = (" ".join(ptb_tokens(text)) for text in texts)
    if shutil.which("java"):  # otherwise the messages on METEOR and SPICE say that Java is missing
        try:
            tokens = iter(_java_tokens(texts))
        except _LeftOut as reason:
            left_out.append(f"{PTB}: {reason}; evaluation/ptb.py made the tokens")
    truth, said = {}, {}
    for image in images:
        said[image] = [next(tokens)]
        truth[image] = [next(tokens) for _ in references[image]]
    return truth, said


def _java_tokens(texts: list[str]) -> list[str]:
    """The tokens of pycocoevalcap's own tokenizer for each text; Java is started once for all."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # A character that ends a line for Java would shift all captions after it.
    lines = {index: [{"caption": LINE_ENDS.sub(" ", text)}] for index, text in enumerate(texts)}
    try:
        found = PTBTokenizer().tokenize(lines)
    except OSError as error:  # it writes into its own folder
        raise _LeftOut(f"it failed ({error.strerror or error})") from error
    if len(found) != len(texts):
        raise _LeftOut("it gave too few lines")
    return [found[index][0] for index in range(len(texts))]


def _need_java() -> None:
    if shutil.which("java") is None:
        raise _LeftOut("it needs Java, and there is no program `java`: install a Java runtime")


def _meteor(truth: Captions, said: Captions) -> float:
    _need_java()
    from pycocoevalcap.meteor.meteor import Meteor

    def first_words(captions: Captions) -> Captions:
        return {
            image: [" ".join(text.split(" ")[:METEOR_WORDS]) for text in texts] for image, texts in captions.items()
        }

    scorer = Meteor()
    try:
        return scorer.compute_score(first_words(truth), first_words(said))[0]
    except (OSError, ValueError) as error:  # a broken pipe, or an output that is not a number
        raise _LeftOut("its Java program ended early: try `java -version`, it needs 2 GB of memory") from error
    finally:
        if scorer.lock.locked():  # held after a failure, so that the destructor would wait forever
            scorer.lock.release()
        with contextlib.suppress(OSError):
            scorer.meteor_p.stdin.close()


def _spice(truth: Captions, said: Captions) -> float:
    _need_java()
    from pycocoevalcap.spice import get_stanford_models as models

    folder = Path(models.__file__).parent / models.SPICELIB
    for jar in (folder / f"{models.JAR}.jar", folder / f"{models.JAR}-models.jar"):
        if not jar.is_file():
            raise _LeftOut(f"its Stanford models are not there ({jar.name}): run `python -m {models.__name__}`")
    from pycocoevalcap.spice.spice import Spice

    try:
        return Spice().compute_score(truth, said)[0]
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise _LeftOut(f"its Java program failed ({error}): it is made for Java 8 and needs 8 GB of memory") from error
