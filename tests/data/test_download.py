"""`python -m data.download` from a server on this machine: fetch, record, check, and what goes wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import re
import tarfile
import zipfile

import pytest
import requests
import yaml

from configs.schema import CONFIGS
from console.errors import InputError
from data import downloads
from tests.conftest import REPOSITORY
from tests.serving import closed_port, serving

WEIGHTS = random.Random(0).randbytes(2_000_000)
CHUNK = 512 * 1024
ANNOTATIONS = {
    "data/finetune/itr/coco_test.json": json.dumps(
        [{"image": f"{i}.jpg", "caption": ["a"]} for i in range(2000)]
    ).encode(),
    "data/finetune/answer_list.json": b'["yes", "no"]',
}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def tarball(files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)


def zipball(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


@pytest.fixture
def site(monkeypatch):
    with serving(monkeypatch) as site:
        site.files = {
            "/finetune.tar.gz": tarball(ANNOTATIONS),
            "/dino.pth": WEIGHTS,
            "/bert.zip": zipball({"bert/vocab.txt": b"[PAD]\n[CLS]\n", "bert/model.bin": b"\0" * 1000}),
        }
        site.tags = dict.fromkeys(site.files, '"one"')
        yield site


@pytest.fixture
def download(run, site, tmp_path):
    """Run the command with a table that leads to the server."""
    table = {
        "annotations": {
            "finetune": {
                "what": "captions",
                "url": f"{site.address}/finetune.tar.gz",
                "archive": "finetune.tar.gz",
                "folder": "data/finetune",
                "files": ["itr/coco_test.json", "answer_list.json"],
            }
        },
        "weights": {
            "dino": {"what": "DINO", "url": f"{site.address}/dino.pth", "folder": "weights", "files": ["dino.pth"]},
            "bert": {
                "what": "words",
                "url": f"{site.address}/bert.zip",
                "archive": "bert.zip",
                "folder": "weights/bert-base-uncased",
                "inside": "bert",
                "select": True,
                "files": ["vocab.txt"],
            },
            "more": {
                "what": "another",
                "url": f"{site.address}/more.pth",
                "folder": "weights",
                "files": ["more.pth"],
                "optional": True,
            },
        },
        "masks": {
            "published": {
                "what": "masks",
                "by_hand": "it is a folder",
                "page": "https://example.org/masks",
                "folder": "pruned_weights/published",
                "files": [],
            }
        },
    }
    file = tmp_path / "table.yaml"
    (tmp_path / "root").mkdir()

    def command(*arguments, **changes):
        for name, change in changes.items():
            next(group for group in table.values() if name in group)[name].update(change)
        file.write_text(yaml.safe_dump(table, sort_keys=False))
        options = ("--table", file, "--root", tmp_path / "root")
        return run("-m", "data.download", *arguments, *options)

    return command


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def tree(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".lock"}


def ok(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(done):
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr


def test_everything_is_placed_and_recorded(download, site, root):
    out = ok(download("annotations", "weights"))
    assert f"finetune: 2 files in {root}/data/finetune" in out
    found = tree(root)
    record = json.loads(found.pop("data/downloads.json"))["finetune"]
    assert record.pop("fetched")
    assert record == {
        "from": f"{site.address}/finetune.tar.gz",
        "size": len(site.files["/finetune.tar.gz"]),
        "sha256": sha256(site.files["/finetune.tar.gz"]),
        "files": {name: {"size": len(body), "sha256": sha256(body)} for name, body in ANNOTATIONS.items()},
    }
    record = json.loads(found.pop("weights/downloads.json"))
    assert set(record) == {"dino", "bert"}
    assert record["dino"]["files"] == {"weights/dino.pth": {"size": 2_000_000, "sha256": sha256(WEIGHTS)}}
    vocabulary = {"weights/bert-base-uncased/vocab.txt": b"[PAD]\n[CLS]\n"}
    assert found == {**ANNOTATIONS, "weights/dino.pth": WEIGHTS, **vocabulary}


def test_a_second_run_needs_no_network(download, site, root):
    ok(download("annotations", "weights"))
    before = tree(root)
    site.requests.clear()
    out = ok(download("annotations", "weights"))
    assert out.count("already in") == 3
    assert not site.requests
    assert tree(root) == before


def test_an_interrupted_download_is_resumed(download, site, root):
    site.cuts = [CHUNK, 0, 0, 0]
    err = refused(download("dino"))
    assert (
        f"received {CHUNK} bytes but the server announced 2000000 bytes; the same command resumes the download" in err
    )
    assert f"save {site.address}/dino.pth as {root}/weights/downloads/dino.pth" in err
    site.requests.clear()
    ok(download("dino"))
    assert site.requests[-1][1]["Range"] == f"bytes={CHUNK}-"
    assert (root / "weights/dino.pth").read_bytes() == WEIGHTS
    assert [p.name for p in (root / "weights/downloads").iterdir()] == [".lock"]


def test_an_archive_put_there_by_hand(download, site, root):
    place = root / "data/downloads/finetune.tar.gz"
    place.parent.mkdir(parents=True)
    place.write_bytes(site.files["/finetune.tar.gz"])
    ok(download("finetune", "--keep"))
    assert not site.requests
    assert place.exists()
    assert (root / "data/finetune/answer_list.json").read_bytes() == b'["yes", "no"]'
    place.unlink()
    assert "2 files as fetched" in ok(download("--check"))


def test_check_finds_flipped_bytes_and_missing_files(download, site, root):
    ok(download("annotations", "dino"))
    site.requests.clear()
    out = ok(download("--check"))
    assert "finetune: 2 files as fetched" in out
    weights = bytearray(WEIGHTS)
    weights[100_000] ^= 1
    (root / "weights/dino.pth").write_bytes(weights)
    err = refused(download("--check"))
    assert re.search(r"weights/dino\.pth has changed since it was downloaded on 2\S+ \(1 of 3 files wrong\)", err)
    (root / "data/finetune/answer_list.json").unlink()
    done = download("--check", "annotations")
    assert "data/finetune/answer_list.json is missing (1 of 2 files wrong)" in refused(done)
    assert not site.requests
    ok(download("annotations", "dino", "--force"))
    ok(download("--check"))


def test_check_without_a_record(download, root):
    assert "so there is nothing to check" in refused(download("--check"))
    (root / "weights").mkdir()
    (root / "weights/dino.pth").write_bytes(WEIGHTS)
    done = download("--check", "dino")
    assert "dino: not fetched by this command" in done.stdout
    assert "nothing to check" in refused(done)


@pytest.mark.parametrize("text", ["{", "[]", '{"dino": {"size": 1}}'])
def test_a_damaged_record(download, root, text):
    (root / "weights").mkdir()
    (root / "weights/downloads.json").write_text(text)
    assert "downloads.json is" in refused(download("--check"))
    assert "delete it, and download" in refused(download("dino"))


def test_a_changed_source_must_be_accepted(download, site, root):
    ok(download("dino"))
    site.files["/dino.pth"], site.tags["/dino.pth"] = WEIGHTS[::-1], '"two"'
    err = refused(download("dino", "--force"))
    assert f"has the SHA-256 {sha256(WEIGHTS[::-1])}, but it should be {sha256(WEIGHTS)}" in err
    assert f"to accept it, remove 'dino' from {root}/weights/downloads.json" in err
    assert (root / "weights/dino.pth").read_bytes() == WEIGHTS
    (root / "weights/downloads.json").unlink()
    site.requests.clear()
    ok(download("dino", "--force"))
    assert (root / "weights/dino.pth").read_bytes() == WEIGHTS[::-1]
    assert not site.requests  # it had come already


def test_a_known_checksum(download, root):
    err = refused(download("dino", dino={"sha256": sha256(b"other")}))
    assert f"should be {sha256(b'other')}" in err
    assert "accept" not in err
    assert not (root / "weights/dino.pth").exists()
    (root / "weights/downloads/dino.pth").unlink()
    ok(download("dino", dino={"sha256": sha256(WEIGHTS)}))


def test_files_that_are_there_are_left(download, site, root):
    (root / "data/finetune").mkdir(parents=True)
    (root / "data/finetune/answer_list.json").write_text('["mine"]')
    (root / "weights").mkdir()
    (root / "weights/dino.pth").write_bytes(b"mine")
    out = ok(download("finetune", "dino"))
    assert "left as before, of other content (--force replaces files): answer_list.json" in out
    assert "put there by hand and not checked" in out
    assert [path for path, _ in site.requests] == ["/finetune.tar.gz"]
    assert (root / "data/finetune/answer_list.json").read_text() == '["mine"]'
    assert (root / "weights/dino.pth").read_bytes() == b"mine"
    ok(download("finetune", "dino", "--force"))
    assert {name: (root / name).read_bytes() for name in ANNOTATIONS} == ANNOTATIONS
    assert (root / "weights/dino.pth").read_bytes() == WEIGHTS


def test_a_file_that_was_left_and_is_gone_is_fetched(download, site, root):
    own = root / "data/finetune/answer_list.json"
    own.parent.mkdir(parents=True)
    own.write_text('["mine"]')
    ok(download("finetune"))
    ok(download("finetune"))
    own.unlink()
    site.requests.clear()
    ok(download("finetune"))
    assert len(site.requests) == 1
    assert own.read_bytes() == ANNOTATIONS["data/finetune/answer_list.json"]


def test_force_fetches_what_was_kept_again(download, site, root):
    ok(download("finetune", "--keep"))
    site.requests.clear()
    ok(download("finetune", "--keep", "--force"))
    assert len(site.requests) == 1


@pytest.mark.parametrize("name", ["../prune.py", "data/finetune/../../../prune.py", "prune.py"])
def test_an_archive_that_leads_elsewhere(download, site, root, name):
    site.files["/finetune.tar.gz"] = tarball({**ANNOTATIONS, name: b"import os"})
    assert "nothing of it was unpacked" in refused(download("finetune"))
    assert set(tree(root)) == {"data/downloads/finetune.tar.gz"}
    assert not (root.parent / "prune.py").exists()


def test_an_archive_of_other_files_than_expected(download, site):
    site.files["/finetune.tar.gz"] = tarball({"finetune/answer_list.json": b"[]"})
    assert "1 file in" in (out := ok(download("finetune")))
    assert "not in the archive: itr/coco_test.json" in out
    assert "already in" in ok(download("finetune"))


def test_offline_moved_and_one_of_two(download, site, root):
    address = f"http://127.0.0.1:{closed_port()}/dino.pth"
    err = refused(download("dino", dino={"url": address}))
    assert "dino: cannot fetch" in err
    assert "resumes" not in err
    del site.files["/finetune.tar.gz"]
    done = download("annotations", "bert", "dino")
    err = refused(done)
    assert "the file has moved (404)" in err
    assert "no connection to 127.0.0.1 (is this machine offline?)" in err
    assert "2 of 3 downloads are not here: finetune, dino (reasons above)" in err
    assert (root / "weights/bert-base-uncased/vocab.txt").exists()


def test_room_for_archive_and_files(download, site, root, monkeypatch):
    from storage import space

    size = len(site.files["/finetune.tar.gz"])
    usage = space.shutil.disk_usage(root)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: usage._replace(free=8 * size - 1))
    err = refused(download("finetune", finetune={"unpacks": 8.0}))
    assert "for finetune and to unpack it, but only" in err
    assert not (root / "data/downloads/finetune.tar.gz").exists()


def test_what_has_to_be_fetched_by_hand(download, root):
    err = refused(download("masks"))
    assert "since it is a folder: open https://example.org/masks in a browser" in err
    assert f"save its files to {root}/pruned_weights/published" in err
    (root / "pruned_weights/published").mkdir(parents=True)
    (root / "pruned_weights/published/a.pth").write_bytes(b"x")
    assert "put there by hand" in ok(download("masks"))


def test_optional_ones_come_only_when_named(download, site, root):
    site.files["/more.pth"] = b"more"
    ok(download("weights"))
    assert not (root / "weights/more.pth").exists()
    ok(download("more"))
    assert (root / "weights/more.pth").read_bytes() == b"more"


def test_the_list(download, site, root):
    out = ok(download("--list"))
    assert not site.requests
    assert "dino: not here (size not known)" in out
    assert f"from {site.address}/dino.pth\n    to   weights/" in out
    assert "more: not here (size not known, only when named)" in out
    assert "from https://example.org/masks" in out
    ok(download("dino"))
    (root / "data/finetune").mkdir(parents=True)
    (root / "data/finetune/answer_list.json").write_text("[]")
    out = ok(download("--list"))
    assert "dino: here (2.0 MB)" in out
    assert "finetune: 1 of 2 files is not here" in out
    assert "finetune" not in ok(download("--list", "weights"))
    ok(download("finetune"))
    (root / "data/finetune/itr/coco_test.json").unlink()
    assert "finetune: 1 of 2 files is not here" in ok(download("--list")), "files that were left as before count, too"


@pytest.mark.parametrize(
    ("names", "change", "words"),
    [
        ([], {}, "nothing is named to fetch: choose annotations, weights, masks"),
        (["dyno"], {}, "no download 'dyno' (did you mean 'dino'?)"),
        (["dino"], {"url": "file:///etc/passwd"}, "not an address that begins with https://"),
        (["dino"], {"folder": "../weights"}, "must be a path below"),
        (["dino"], {"folder": "."}, "must be a path below"),
        (["dino"], {"files": ["/etc/passwd"]}, "must be a path below"),
        (["dino"], {"sha": "1"}, "unknown key 'sha'"),
        (["dino"], {"drive": "1-X"}, "exactly one of url, drive and by_hand"),
        (["dino"], {"files": []}, "must be the one file that is fetched"),
    ],
)
def test_wrong_words(download, site, names, change, words):
    assert words in refused(download(*names, dino=change))
    assert not site.requests


def test_drive(download, site, root, monkeypatch):
    """The table gives a file id; the page and the file behind it are on this machine here."""
    get, drive = requests.Session.get, "https://drive.google.com"
    monkeypatch.setattr(
        requests.Session, "get", lambda self, url, **kw: get(self, url.replace(drive, site.address), **kw)
    )
    site.pages["/uc?id=1-Xy"] = f'<form id="download-form" action="{site.address}/dino.pth"></form>'
    ok(download("dino", dino={"url": None, "drive": "1-Xy"}))
    assert (root / "weights/dino.pth").read_bytes() == WEIGHTS
    record = json.loads((root / "weights/downloads.json").read_text())
    assert record["dino"]["from"] == "https://drive.google.com/file/d/1-Xy/view"


class TestShippedTable:
    def test_it_can_be_read_and_is_encrypted(self):
        table = downloads.read_table()
        assert list(table) == ["annotations", "weights", "masks"]
        everything = {name: download for group in table.values() for name, download in group.items()}
        assert len(everything) == sum(map(len, table.values()))
        for download in everything.values():
            assert download.seen_at.startswith("https://")
            assert download.address is None or download.address.startswith("https://")

    def test_it_fetches_what_full_models_read(self):
        """Every annotation file and every checkpoint named in configs/{xvlm,blip,dino}, and the vocabulary."""
        brought = set()
        for group in downloads.read_table().values():
            brought |= {f"{d.folder}/{file}" for d in group.values() if not d.optional for file in d.files}
        assert "weights/bert-base-uncased/vocab.txt" in brought
        named = set()
        for model in ("xvlm", "blip", "dino"):
            for page in (CONFIGS / model).glob("*.yaml"):
                text = re.sub(r"#.*", "", page.read_text())
                named |= set(re.findall(r"(?:data|weights)/[\w./-]+\.(?:json|csv|pth)\b", text))
        assert len(named) > 10
        assert named <= brought

    def test_what_comes_is_ignored_by_git(self):
        ignored = (REPOSITORY / ".gitignore").read_text().splitlines()
        for group in downloads.read_table().values():
            for download in group.values():
                assert f"{download.folder}/" in ignored or download.top in ("weights", "pruned_weights")
        assert {"data/downloads/", "data/downloads.json", "weights/*", "pruned_weights/"} <= set(ignored)

    def test_an_unknown_name_names_the_nearest(self):
        with pytest.raises(InputError, match="did you mean 'finetune'"):
            downloads.choose(downloads.read_table(), ["fine-tune"])
