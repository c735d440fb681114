"""The pages are true: their code runs, their commands are accepted, their links and paths lead somewhere."""

from __future__ import annotations

import ast
import fnmatch
import importlib
import importlib.util
import json
import re
import shlex
import signal
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from console.errors import InputError
from tests.conftest import REPOSITORY
from tests.docs.pages import Block, anchors, blocks, commands, inline_code, links, pages

PAGES = pages()
WITH_CODE = [page for page in PAGES if any(block.language == "python" for block in blocks(page.read_text()))]
LANGUAGES = {"python", "yaml", "json", "diff", "sh", "text", "mermaid", "bibtex", ""}
"""text: what was printed; none: commands that are only checked, or a picture in words."""

NOT_RUN = {
    r"pip install .*": "installs; .ci/run does it",
    r"conda .*": "installs",
    r"ruff .*": "style; .ci/run checks it",
    r"python -m pytest.*": "these tests",
    r"python (prune|image_classification)\.py --model (timm|hf):.*": "needs weights from the network",
    r"python -m data\.download (?!--list).*": "needs the network, or what came from it",
}
"""Commands in `sh` blocks that this test does not run, with the reason; their options are checked all the same."""

PARSED = {
    "prune": "prune",
    "masks": "masks",
    "shrink": "shrink",
    "pretrain": "pretrain",
    "retrieval": "retrieval",
    "captioning": "captioning",
    "captioning_pretrain": "captioning_pretrain",
    "vqa": "vqa",
    "nlvr": "nlvr",
    "image_classification": "image_classification",
    "models.check": "models.check",
    "data.download": "data.download",
    "data.miniworld": "data.miniworld.__main__",
    "evaluation.harnesses": "evaluation.harnesses",
    "evaluation.next_tokens": "evaluation.next_tokens",
    "evaluation.zero_shot": "evaluation.zero_shot",
    "evaluation.efficiency": "evaluation.efficiency.__main__",
    "experiments": "experiments",
}
"""Command -> the module with its `parse_args`."""

OUTSIDE = re.compile(r"^(\.\.?/|/|~)")
ENDINGS = (".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".json", ".csv", ".png", ".pth", ".safetensors")


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A working directory that looks like the repository, to which a page may add files; what it adds can be used."""
    import configs.schema
    import models
    import pruners
    import tasks

    for entry in ("configs", "data", "models", "pruners", "tasks", "tests", "weights"):
        (tmp_path / entry).symlink_to(REPOSITORY / entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(configs.schema, "CONFIGS", tmp_path / "configs")
    for registry in (models.FAMILIES, pruners.PRUNERS, tasks.TASKS):
        monkeypatch.setattr(registry, "_places", dict(registry._places))
    for package in (models, pruners, tasks):
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / package.__name__)])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


def add_file(root: Path, path: str, text: str) -> None:
    """Write a file below links to the repository's folders, without writing into the repository."""
    folder = root
    for part in Path(path).parent.parts:
        folder /= part
        if folder.is_symlink():
            original = folder.resolve()
            folder.unlink()
            folder.mkdir()
            for child in original.iterdir():
                (folder / child.name).symlink_to(child)
        folder.mkdir(exist_ok=True)
    (root / path).unlink(missing_ok=True)
    (root / path).write_text(text)


def add_line(path: str, text: str) -> None:
    """The added line of a diff of a registry, put into that registry."""
    added = [line[1:] for line in text.splitlines() if line.startswith("+")]
    variable = re.search(r"^[ ](\w+): .* = Registry\($", text, re.MULTILINE)[1]
    for line in text.splitlines():
        assert line.startswith("+") or line[1:] in (REPOSITORY / path).read_text().splitlines(), line
    module = importlib.import_module(str(Path(path).parent).replace("/", "."))
    getattr(module, variable)._places.update(ast.literal_eval("{" + "".join(line.strip() for line in added) + "}"))


def add(root: Path, block: Block) -> None:
    """What a page tells its reader to write."""
    if block.language == "diff":
        add_line(block.path, block.text)
    else:
        add_file(root, block.path, block.text)


def run_tests(path: Path) -> None:
    """The test functions of a file that takes no fixtures."""
    namespace: dict = {"__name__": path.stem}
    exec(compile(path.read_text(), path, "exec"), namespace)
    tests = [value for name, value in namespace.items() if name.startswith("test_")]
    assert tests, path
    for test in tests:
        test()


def module_and_arguments(command: str) -> tuple[str, list[str]] | None:
    """'python -m a.b -c' -> ('a.b', ['-c']); 'python a.py -c' -> ('a', ['-c']); None for other commands."""
    words = shlex.split(command)
    if words[:2] == ["python", "-m"]:
        return words[2], words[3:]
    if words[0] == "python" and len(words) > 1 and words[1].endswith(".py"):
        return words[1].removesuffix(".py"), words[2:]
    return None


def check_command(command: str) -> None:
    """The module of a command exists, and accepts its options."""
    found = module_and_arguments(command)
    if found is None:
        return
    module, arguments = found
    if module in PARSED and not {"-h", "--help"} & set(arguments):
        importlib.import_module(PARSED[module]).parse_args(arguments)
    elif module != "pytest":
        assert importlib.util.find_spec(module) is not None, command


def run_command(command: str, monkeypatch) -> None:
    """Run a command of the toolkit within this process; it must succeed."""
    module, arguments = module_and_arguments(command)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    try:
        importlib.import_module(PARSED[module]).main()
    except SystemExit as end:
        assert not end.code, command


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_code_of_a_page_runs(page, house, monkeypatch, capsys):
    """From top to bottom, as a reader would: files are written, lines added, Python and commands run."""
    monkeypatch.setenv("COLUMNS", "80")
    namespace: dict = {"__name__": page.stem}
    for block in blocks(page.read_text()):
        assert block.language in LANGUAGES, f"{page}:{block.line}: a block of another language is not looked at"
        if block.path:
            add(house, block)
            if Path(block.path).name.startswith("test_"):
                run_tests(house / block.path)
        elif block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), namespace)
        elif block.language == "sh":
            for command in commands(block):
                if not any(re.fullmatch(pattern, command) for pattern in NOT_RUN):
                    run_command(command, monkeypatch)
        elif block.language == "text":
            assert block.text in capsys.readouterr().out, f"{page}:{block.line}: this is not what was printed"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_accepted(page, house):
    """Every command shown, run or not: the program is there and knows the options."""
    text = page.read_text()
    for block in blocks(text):
        if block.path:
            add(house, block)
    shown = [c for block in blocks(text) if block.language in ("sh", "") for c in commands(block)]
    for command in [*shown, *inline_code(text)]:
        for part in re.split(r" && ", command):
            if part.startswith("python ") and not re.search(r"[A-Z]{4,}", part):  # placeholders such as NAME
                check_command(part)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in links(text):
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        assert path.exists(), f"{name_of(page)} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(path.read_text()), (
                f"{name_of(page)} links to {target}, but there is no such heading"
            )


def users_places() -> tuple[list[str], list[str]]:
    """Where users and tools put files, and what of it is in the repository all the same, from .gitignore."""
    lines = (REPOSITORY / ".gitignore").read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    places = [line.strip("/").rstrip("*").rstrip("/") for line in lines if not line.startswith("!") and "/" in line]
    return places, [line[1:] for line in lines if line.startswith("!")]


def is_path(code: str, places: list[str]) -> bool:
    """Whether code in backticks is meant as a path of the repository."""
    if not re.fullmatch(r"[\w.<>*{}/-]+", code) or OUTSIDE.match(code):
        return False
    first = code.split("/")[0]
    if "/" not in code:
        return code.endswith((".py", ".sh"))
    known = {path.name for path in REPOSITORY.iterdir()} | {place.split("/")[0] for place in places}
    return first in known or code.endswith(ENDINGS)


def exists(code: str, page: Path, own: set[str]) -> bool:
    """Whether a path (with `<model>` and `*` for any name) is in the repository, or where users put their files."""
    places, kept = users_places()
    pattern = re.sub(r"<[^>]+>|\{[^}]+\}", "*", code).rstrip("/")
    if pattern in own or any(name.startswith(f"{pattern}/") for name in own):
        return True
    if any(next(root.glob(pattern), None) is not None for root in (REPOSITORY, page.parent)):
        return True
    users = any(pattern == place or pattern.startswith(f"{place}/") for place in places)
    return users and not any(fnmatch.fnmatch(pattern, name) for name in kept)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_in_backticks_exist(page):
    text = page.read_text()
    own = {block.path for block in blocks(text) if block.path}
    places, _ = users_places()
    wrong = [code for code in inline_code(text) if is_path(code, places) and not exists(code, page, own)]
    assert not wrong, f"{name_of(page)} names {', '.join(wrong)}, which do not exist"


def test_this_test_sees_what_is_wrong(tmp_path):
    """A page with one mistake of each kind."""
    places, _ = users_places()
    own: set[str] = set()
    for path in ("models/nowhere.py", "prine.py", "weights/nowhere-mini.safetensors", "configs/<model>/dance.yaml"):
        assert is_path(path, places)
        assert not exists(path, REPOSITORY / "README.md", own), path
    for path in ("models/wrap.py", "prune.py", "weights/14m-blip-vitB.pth", "configs/<model>/prune.yaml", "images/vg/"):
        assert is_path(path, places)
        assert exists(path, REPOSITORY / "README.md", own), path
    for code in ("multiflow", "[b, t]", "n:m", "H / 2", "1e-5", "../shared"):
        assert not is_path(code, places)
    assert links("[a](b.md#c) [d](https://e) ```x```") == ["b.md#c"]
    assert anchors("# Part 1: any *module*\n") == {"part-1-any-module"}
    assert [block.language for block in blocks("```python\nx\n```\n\n```sh\ny\n```\n")] == ["python", "sh"]
    with pytest.raises(InputError):
        check_command("python prune.py --modle xvlm")


def test_structured_blocks_are_valid():
    """YAML and JSON on the pages can be read."""
    readers = {"yaml": yaml.safe_load, "json": json.loads}
    for page in PAGES:
        for block in blocks(page.read_text()):
            if block.language in readers:
                assert readers[block.language](block.text), f"{name_of(page)}:{block.line}"


def test_the_conda_environment_is_the_requirements():
    """conda runs pip in the folder of the file, so that the path in it is looked for beside it."""
    environment = yaml.safe_load((REPOSITORY / "deps/environment.yaml").read_text())
    pip = next(part["pip"] for part in environment["dependencies"] if isinstance(part, dict))
    assert pip == ["-r requirements.txt"]
    assert (REPOSITORY / "deps" / pip[0].removeprefix("-r ")).is_file()
    minimum = re.search(r'requires-python = ">=([\d.]+)"', (REPOSITORY / "pyproject.toml").read_text())[1]
    assert f"python={minimum}" in environment["dependencies"]


def test_the_package_has_every_script():
    package = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert sorted(package["py-modules"]) == sorted(path.stem for path in REPOSITORY.glob("*.py"))


def test_pages_name_no_place_of_their_writing():
    """No absolute path of anybody's machine."""
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(root|work|home|tmp)/", page.read_text()), page
