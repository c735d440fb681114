"""Shards as people have them, damaged by hand; what can be read of them, beside what webdataset's own reader gives."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image
from webdataset.handlers import ignore_and_continue
from webdataset.tariterators import base_plus_ext, tarfile_samples

from console.errors import InputError
from data import shards
from data.calibration import CalibrationBatches, make_manifest
from data.readers import make_reader
from data.shards import expand_shards, index_shard
from data.sources import Files, Pairs
from data.tokenizer import load_tokenizer
from models.base import ImageShape
from tests.data.configured import configured


def png(level):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def packed(*files):
    """A tar file of (name, content) with plain headers of one block each."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def pairs_of(numbers):
    return [file for i in numbers for file in ((f"{i:03}.png", png(i)), (f"{i:03}.txt", b"caption %d" % i))]


def saved(tmp_path, content, name="a.tar"):
    (tmp_path / name).write_bytes(content)
    return str(tmp_path / name)


def read(path):
    """[(key, caption)] and what was left out; every picture must be that of its caption."""
    samples, left_out = index_shard(path)
    for sample in samples:
        image, caption = sample.read()
        assert image == png(int(caption.split()[-1]))
    return [(sample.key, sample.read()[1]) for sample in samples], left_out


def theirs(path):
    """Keys of the pairs that webdataset streams, with errors passed over."""
    samples = tarfile_samples([{"url": path}], handler=ignore_and_continue)
    return [sample["__key__"] for sample in samples if "png" in sample and "txt" in sample]


def numbered(numbers):
    return [(f"{i:03}", f"caption {i}") for i in numbers]


def headers(content):
    """Where each member begins."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [member.offset for member in tar]


WHOLE = packed(*pairs_of(range(10)))
HEADERS = headers(WHOLE)


def test_whole_shards_as_webdataset_reads_them(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        for i in range(10):
            sink.write({"__key__": f"{i:03}", "png": png(i), "txt": f"caption {i}", "json": {"width": 8}})
    for path in (saved(tmp_path, WHOLE, "b.tar"), str(tmp_path / "a.tar")):
        assert read(path) == (numbered(range(10)), "")
        assert theirs(path) == [key for key, _ in numbered(range(10))]


@pytest.mark.parametrize(
    ("cut", "pairs", "left_out"),
    [
        (HEADERS[11] + 512 + 4, 5, "files cut short: 1 (first: 005.txt), images without a text: 1 (first: 005)"),
        (HEADERS[12] + 512 + 30, 6, "files cut short: 1 (first: 006.png)"),
        (HEADERS[12] + 100, 6, f"damaged places: 1 (first: bytes {HEADERS[12]} to {HEADERS[12] + 100})"),
        (HEADERS[12], 6, ""),
    ],
)
def test_truncated(cut, pairs, left_out, tmp_path):
    path = saved(tmp_path, WHOLE[:cut])
    assert read(path) == (numbered(range(pairs)), left_out)
    assert theirs(path) == [key for key, _ in numbered(range(pairs))]


def test_joined(tmp_path):
    """Other pairs, and pairs of the same keys; webdataset ends with the first archive."""
    for other in (range(10, 15), range(5)):
        path = saved(tmp_path, WHOLE + packed(*pairs_of(other)))
        assert read(path) == (numbered([*range(10), *other]), "")
        assert len(theirs(path)) == 10


@pytest.mark.parametrize(("place", "what"), [(10, "texts without an image"), (11, "images without a text")])
def test_a_damaged_header_within(place, what, tmp_path):
    """One pair is lost; webdataset ends there."""
    content = bytearray(WHOLE)
    content[HEADERS[place] + 150] ^= 1  # of the check sum
    path = saved(tmp_path, content)
    told = f"damaged places: 1 (first: bytes {HEADERS[place]} to {HEADERS[place + 1]}), {what}: 1 (first: 005)"
    assert read(path) == (numbered(i for i in range(10) if i != 5), told)
    assert len(theirs(path)) == 5


def test_the_first_header_is_damaged(tmp_path):
    path = saved(tmp_path, b"x" * 512 + WHOLE[512:])
    found, told = read(path)
    assert found == numbered(range(1, 10))
    assert told == f"damaged places: 1 (first: bytes 0 to {HEADERS[1]}), texts without an image: 1 (first: 000)"


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_damaged_header_after_a_long_name(kind, tmp_path):
    folder = "d" * 150
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, content in pairs_of(range(6)):
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    content = bytearray(buffer.getvalue())
    assert len(read(saved(tmp_path, content))[0]) == 6
    for place in (0, 4):
        header = headers(buffer.getvalue())[place] + 1024
        damaged = bytearray(content)
        damaged[header + 150] ^= 1
        found, told = read(saved(tmp_path, damaged))
        assert [key for key, _ in found] == [f"{folder}/{i:03}" for i in range(6) if i != place // 2]
        assert told.startswith("damaged places: 1 (first: bytes ") and "texts without an image: 1" in told


def test_names_that_come_twice(tmp_path):
    """Of neighbours the first counts, as in webdataset; after others the key begins anew, as joined archives do."""
    twice = [("000.png", png(0)), ("000.png", png(1)), ("000.txt", b"caption 0"), *pairs_of([2]), *pairs_of([0, 2])]
    path = saved(tmp_path, packed(*twice))
    assert read(path) == (numbered([0, 2, 0, 2]), "files of the same name: 1 (first: 000.png)")
    assert theirs(path) == [key for key, _ in numbered([0, 2, 0, 2])]


def test_members_in_any_order(tmp_path):
    """Images first and texts behind, as `tar` packs *.png *.txt."""
    path = saved(tmp_path, packed(*sorted(pairs_of(range(10)), key=lambda file: file[0][-3:])))
    assert read(path) == (numbered(range(10)), "")


def test_hidden_members_and_what_has_no_partner(tmp_path):
    extra = [("._000.png", b"x"), ("__MACOSX/._000.txt", b"x"), (".DS_Store", b"x"), ("a.b.png", b"x")]
    path = saved(tmp_path, packed(*extra, *pairs_of([0]), ("001.png", png(1)), ("002.txt", b"two"), ("000.cls", b"3")))
    assert read(path) == (
        numbered([0]),
        "hidden or system files: 3 (first: ._000.png), images without a text: 1 (first: 001), "
        "texts without an image: 1 (first: 002)",
    )


def test_names_are_split_as_webdataset_does(tmp_path):
    names = ["a/b.png", "./c.PNG", "d.e/f.txt", "g.seg.png", "h/i.Caption", "j.txt"]
    split = shards._grouped(((name, shards.Member(0, 0)) for name in names), {})
    expected = [(key.removeprefix("./"), f".{end.lower()}") for key, end in map(base_plus_ext, names)]
    assert [(key, *fields) for key, fields in split] == [pair for pair in expected if pair[1] in shards.FIELDS]


def test_the_text_of_a_pair(tmp_path):
    """A byte order mark is none of it; .txt goes before .caption, and both before .json."""
    mark = b"\xef\xbb\xbf"
    files = [("0.png", b""), ("0.json", mark + b'{"caption": "zero"}'), ("1.png", b""), ("1.txt", mark + "é".encode())]
    files += [("2.png", b""), ("2.caption", b"right"), ("2.json", b'{"caption": "wrong"}')]
    files += [("3.png", b""), ("3.txt", b"right"), ("3.caption", b"wrong")]
    samples, _ = index_shard(saved(tmp_path, packed(*files)))
    assert [sample.read()[1] for sample in samples] == ["zero", "é", "right", "right"]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed(pack, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SHARDS_DIR", str(tmp_path / "unpacked"))
    path = saved(tmp_path, pack(WHOLE), "a.tar.gz")
    for _ in range(2):
        assert read(path) == (numbered(range(10)), "")
    (copy,) = (tmp_path / "unpacked").glob("a-*.tar")
    assert copy.read_bytes() == WHOLE
    assert capsys.readouterr().err.count("is compressed, and pairs are read at random: it is unpacked once") == 1
    assert Pairs(Files(shards=[path])).name(3) == f"{path}:003"
    path = saved(tmp_path, pack(packed(*pairs_of([7]))), "a.tar.gz")  # another file of the same name
    os.utime(path, (1, 1))
    assert read(path) == (numbered([7]), "")


def test_compressed_and_truncated(tmp_path, monkeypatch):
    """All that stands before the cut is there: as much as zlib gives."""
    import zlib

    monkeypatch.setenv("SHARDS_DIR", str(tmp_path / "unpacked"))
    whole = packed(
        *((name, content + os.urandom(3000) * (name[-3:] == "png")) for name, content in pairs_of(range(10)))
    )
    cut = gzip.compress(whole)[: len(whole) // 2]
    there = zlib.decompressobj(wbits=31).decompress(cut)
    samples, _ = index_shard(saved(tmp_path, cut, "a.tgz"))
    (copy,) = (tmp_path / "unpacked").glob("a-*.tar")
    assert copy.read_bytes() == there and 0 < len(samples) < 10
    assert [sample.key for sample in samples] == [sample.key for sample in index_shard(saved(tmp_path, there))[0]]


def test_random_damage_ends_in_pairs_or_a_sentence(tmp_path):
    rng = random.Random(0)
    for _ in range(300):
        content = bytearray(WHOLE)
        for _ in range(rng.choice((1, 5, 40))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        if rng.random() < 0.3:
            place = rng.randrange(len(content))
            content[place:place] = rng.randbytes(rng.randrange(1, 1500))
        try:
            samples, _ = index_shard(saved(tmp_path, content[: rng.randrange(len(content) // 2, len(content))]))
        except InputError:
            continue
        assert all(sample.read() for sample in samples)


def test_shards_without_a_pair(tmp_path):
    for content in (b"", bytes(10240), b"no tar file" * 1000, packed(("a.png", b""), ("b.txt", b""))):
        with pytest.raises(InputError, match=r"a\.tar holds no pair of an image and a text of the same key.*: check"):
            index_shard(saved(tmp_path, content))


@pytest.mark.parametrize("pattern", ["{0..3.tar", "0..3}.tar", "{{0..3}.tar"])
def test_unbalanced_braces(pattern):
    with pytest.raises(InputError, match=r"have a brace that is not closed, or not opened: write it like \{00000\.\."):
        expand_shards(pattern)


def test_losses_are_told_once_and_kept(tmp_path, capsys):
    """Of a few shards one by one, of the others together; the manifest has them all."""
    for i in range(5):
        saved(tmp_path, packed(*pairs_of(range(8)), ("x.txt", b"x")), f"{i}.tar")
    files = Files(shards=["{0..4}.tar"], root=str(tmp_path))
    expected = [
        f"{tmp_path}/{i}.tar: 8 pairs are read; left out are texts without an image: 1 (first: x)" for i in range(5)
    ]
    assert Pairs(files).left_out == expected
    Pairs(files)
    assert capsys.readouterr().err.splitlines() == [
        *expected[:3],
        f"something is left out of 2 more sources, too (last: {expected[-1]})",
    ]
    reader = make_reader(configured("pairs", files), ImageShape(16, 8), load_tokenizer("weights/mini-vocab.txt"))
    manifest = make_manifest(CalibrationBatches({"general": reader}, 4, 0), 2, 0, [])
    assert manifest["sides"]["general"]["left_out"] == expected
    assert json.loads(json.dumps(manifest)) == manifest


def test_a_shard_that_vanishes_is_a_sentence(tmp_path):
    path = saved(tmp_path, WHOLE)
    samples, _ = index_shard(path)
    os.unlink(path)  # noqa: PTH108
    with pytest.raises(InputError, match=r"cannot read the shard .*a\.tar: no such file"):
        samples[0].read()
