"""Unpacking what a stranger packed: everything below one folder, or nothing at all."""

from __future__ import annotations

import hashlib
import io
import stat
import tarfile
import zipfile

import pytest

from console.errors import InputError
from storage import space
from storage.unpack import unpack

FILES = {"data/finetune/itr/a.json": b"[1]" * 50_000, "data/finetune/list.json": b"[]", "data/finetune/empty": b""}
INSIDE = ["data/finetune", "finetune"]


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def make_tar(path, files, *extra, mode="w:gz"):
    with tarfile.open(path, mode) as packed:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
        for info in extra:
            packed.addfile(info)
    return path


def make_zip(path, files, *extra):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
        for info, content in extra:
            packed.writestr(info, content)
    return path


def member(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def everything(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "root" / "data" / "finetune"


@pytest.fixture
def archive(tmp_path):
    return make_tar(tmp_path / "finetune.tar.gz", FILES)


@pytest.mark.parametrize("prefix", ["data/finetune/", "./data/finetune/", "finetune/"])
@pytest.mark.parametrize("ending", [".tar.gz", ".tar", ".zip"])
def test_all_files_come_out(tmp_path, folder, prefix, ending):
    files = {prefix + name.removeprefix("data/finetune/"): content for name, content in FILES.items()}
    clutter = {"._data": b"x", f"{prefix}.DS_Store": b"x", f"{prefix}itr/._a.json": b"x", "__MACOSX/b": b"x"}
    path = tmp_path / f"packed{ending}"
    if ending == ".zip":
        make_zip(path, {**files, **clutter, prefix: b""})
    else:
        make_tar(path, {**files, **clutter}, member(prefix, tarfile.DIRTYPE), mode="w:gz" if ending[-1] == "z" else "w")
    written, kept = unpack(path, folder, INSIDE)
    expected = {name.removeprefix("data/finetune/"): content for name, content in FILES.items()}
    assert everything(folder) == expected
    assert written == {name: sha256(content) for name, content in expected.items()}
    assert kept == []
    assert [p.name for p in folder.parent.iterdir()] == ["finetune"]


def test_only_what_is_wanted(tmp_path, folder):
    path = make_zip(tmp_path / "bert.zip", {"bert/vocab.txt": b"[PAD]\n", "bert/model.bin": b"1" * 100, "other": b"2"})
    assert unpack(path, folder, ["bert"], only=["vocab.txt"])[0] == {"vocab.txt": sha256(b"[PAD]\n")}
    assert everything(folder) == {"vocab.txt": b"[PAD]\n"}
    with pytest.raises(InputError, match=r"holds no words\.txt"):
        unpack(path, folder, ["bert"], only=["words.txt"])


HARD, SOFT = tarfile.LNKTYPE, tarfile.SYMTYPE
DISGUISED = [
    ({"data/finetune/../../evil": b"x"}, ()),
    ({"../evil": b"x"}, ()),
    ({"/etc/evil": b"x"}, ()),
    ({"data/finetune/..\\evil": b"x"}, ()),
    ({"C:/evil": b"x"}, ()),
    ({}, (member("data/finetune/link", SOFT, "../../.."),)),
    ({}, (member("data/finetune/link", SOFT, "/etc/passwd"),)),
    ({}, (member("data/finetune/link", HARD, "data/finetune/list.json"),)),
    ({}, (member("data/finetune/pipe", tarfile.FIFOTYPE),)),
    ({}, (member("data/finetune/disk", tarfile.BLKTYPE),)),
    ({"data/finetune/list.json": b"other"}, ()),
    ({"./data/finetune/list.json": b"other"}, ()),
    ({"conftest.py": b"x"}, ()),
]


@pytest.mark.parametrize(("files", "extra"), DISGUISED)
def test_a_tar_with_anything_strange_is_refused_whole(tmp_path, folder, files, extra):
    path = tmp_path / "bad.tar"
    with tarfile.open(make_tar(path, FILES, mode="w"), "a") as packed:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
        for info in extra:
            packed.addfile(info)
    with pytest.raises(InputError, match="nothing of it was unpacked"):
        unpack(path, folder, INSIDE)
    assert everything(tmp_path) == {"bad.tar": path.read_bytes()}


def test_a_zip_with_anything_strange_is_refused_whole(tmp_path, folder):
    for i, extra in enumerate([("data/finetune/../../evil", b"x"), ("/evil", b"x")]):
        path = make_zip(tmp_path / f"bad{i}.zip", FILES, extra)
        with pytest.raises(InputError, match="nothing of it was unpacked"):
            unpack(path, folder, INSIDE)
    encrypted = bytearray(make_zip(tmp_path / "secret.zip", {"finetune/a": b"x"}).read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        encrypted[encrypted.index(signature) + flags] |= 1
    (tmp_path / "secret.zip").write_bytes(encrypted)
    with pytest.raises(InputError, match=r"filename='finetune/a'.* is encrypt"):
        unpack(tmp_path / "secret.zip", folder, INSIDE)
    assert not everything(folder.parent)


def test_a_link_in_a_zip_comes_out_as_a_plain_file(tmp_path, folder):
    link = zipfile.ZipInfo("data/finetune/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    unpack(make_zip(tmp_path / "a.zip", FILES, (link, b"/etc/passwd")), folder, INSIDE)
    assert not (folder / "link").is_symlink()
    assert (folder / "link").read_bytes() == b"/etc/passwd"


@pytest.mark.parametrize("ending", [".tar.gz", ".zip"])
@pytest.mark.parametrize("harm", ["cut", "flip", "html", "empty"])
def test_damage_is_seen_before_anything_is_there(tmp_path, folder, ending, harm):
    path = tmp_path / f"a{ending}"
    content = bytearray((make_zip if ending == ".zip" else make_tar)(path, FILES).read_bytes())
    if harm == "cut":
        content = content[: len(content) * 2 // 3]
    elif harm == "flip":
        content[len(content) // 4] ^= 0x10
    else:
        content = b"<html>not here</html>" if harm == "html" else b""
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged or cut short \(.*: delete it and fetch it again|holds nothing"):
        unpack(path, folder, INSIDE)
    assert not folder.exists()
    assert not list(folder.parent.glob("*"))


def test_a_wrong_checksum_at_the_very_end_is_seen(tmp_path, folder, archive):
    """The last eight bytes of gzip: CRC and length of everything; tarfile alone does not read so far."""
    content = bytearray(archive.read_bytes())
    content[-8] ^= 1
    archive.write_bytes(content)
    with pytest.raises(InputError, match="CRC check failed"):
        unpack(archive, folder, INSIDE)
    assert not folder.parent.exists()


def test_files_of_the_user_are_left_alone(folder, archive):
    (folder / "itr").mkdir(parents=True)
    (folder / "itr/a.json").write_bytes(b"mine")
    (folder / "other").write_bytes(b"mine, too")
    written, kept = unpack(archive, folder, INSIDE)
    assert kept == ["itr/a.json"]
    assert written == {"list.json": sha256(b"[]"), "empty": sha256(b"")}
    assert everything(folder) == {"itr/a.json": b"mine", "other": b"mine, too", "list.json": b"[]", "empty": b""}
    written, kept = unpack(archive, folder, INSIDE, force=True)
    assert kept == []
    assert everything(folder)["itr/a.json"] == FILES["data/finetune/itr/a.json"]
    assert everything(folder)["other"] == b"mine, too"
    assert unpack(archive, folder, INSIDE)[1] == []  # the same content is as good as written


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interruption_leaves_nothing(folder, archive, monkeypatch, there, end):
    if there:
        folder.mkdir(parents=True)
    written = []

    def stop(packed, name, path, extract=tarfile.TarFile.extract, **options):
        extract(packed, name, path, **options)
        if written:
            (path / name).write_bytes(b"half")
            raise end
        written.append(name)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extract", stop)
        with pytest.raises(KeyboardInterrupt if end is KeyboardInterrupt else InputError):
            unpack(archive, folder, INSIDE)
    assert written
    assert everything(folder.parent) == {}
    assert folder.exists() == there
    unpack(archive, folder, INSIDE)
    assert len(everything(folder.parent)) == 3


@pytest.mark.parametrize("there", [False, True])
def test_what_a_killed_process_left_is_removed(folder, archive, there):
    if there:
        folder.mkdir(parents=True)
    left = (folder if there else folder.parent) / ".finetune.part"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"half")
    unpack(archive, folder, INSIDE)
    assert [p.name for p in folder.parent.iterdir()] == ["finetune"]
    assert len(everything(folder)) == 3
    assert not list(folder.glob(".*"))


def test_room_is_looked_at_first(folder, archive, monkeypatch):
    usage = space.shutil.disk_usage(archive)
    needed = sum(map(len, FILES.values()))
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(InputError, match=r"150\.0 kB are needed in .*finetune to unpack .* only 150\.0 kB are free"):
        unpack(archive, folder, INSIDE)
    assert not folder.parent.exists()
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: usage._replace(free=needed))
    unpack(archive, folder, INSIDE)


def test_bytes_for_people():
    words = [space.in_bytes(n) for n in (0, 999, 1000, 1_550_000, 2_000_000_000, 3e12, 4e15)]
    assert words == ["0 bytes", "999 bytes", "1.0 kB", "1.6 MB", "2.0 GB", "3.0 TB", "4,000.0 TB"]
